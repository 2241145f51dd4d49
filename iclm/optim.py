"""Which parameters move, and how far: AdamW per group of parameters, one by one per domain expert.

The matrices of the base's layers may go by Muon instead (`kind`).

Groups are the top-level keys of the parameter tree. Each group is its own optimizer with its own
clip norm, so that no group feels another one's gradient; the experts of "domain" (every leaf with
the expert axis first) are moreover independent of each other:

- an expert without a gradient in a step keeps parameters, moments and step count bitwise;
- it is clipped by its own norm, and its bias correction counts its own steps.

Source: Loshchilov and Hutter 2019 (arXiv 1711.05101) for AdamW; Liu et al. 2025 (arXiv 2502.16982)
for Muon, by optax. Deviation: laziness is per expert.
`optax.adamw` would move an idle expert by its momentum and its weight decay.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from optax import contrib

from iclm import axes
from iclm.config import Config, InputError, nearest

GROUPS = ("base", axes.INVARIANT, axes.DOMAIN, "router", "combine")

# Parts of a leaf's name that exempt it from weight decay. Names, because ranks mislead: stacked
# over layers or experts, a gain looks like a matrix, and prototypes are one.
UNDECAYED = ("gain", "scale", "bias", "prototypes")

ADAM_RMS = 0.2  # Of an update over the learning rate, as Liu et al. find it for AdamW.


class LazyAdamState(NamedTuple):
  """Moments have the shapes (and the boxes) of the parameters."""

  step: Int[Array, ""]  # Of the whole run: where the schedule stands.
  count_E: Int[Array, "E"]  # Steps in which the expert was active: its bias correction.
  mu: Any
  nu: Any


def from_config(config: Config) -> optax.GradientTransformation:
  """The optimizer of a run; see `make`."""
  o, trains = config.optimizer, config.trains
  moves = {name: getattr(trains, name) for name in ("base", "invariant", "router", "domain")}
  if trains.domain and trains.only_experts:
    moves["domain"] = trains.only_experts
  return make(
    kind=o.kind,
    lr=schedule(o.schedule, lr=o.lr, warmup=o.warmup, steps=config.steps, decay=o.decay, end=o.end),
    b1=o.b1,
    b2=o.b2,
    eps=o.eps,
    weight_decay=o.weight_decay,
    clip=o.clip,
    lr_scale=dict.fromkeys(GROUPS, 1.0) | {"router": o.router_lr},
    trainable=moves | {"combine": True},
  )


def schedule(
  kind: str, *, lr: float, warmup: int, steps: int, decay: float, end: float
) -> optax.Schedule:
  """Learning rate over global steps 0..steps-1: linear warm-up to `lr`, then the shape of `kind`.

  Step t < warmup takes lr (t + 1) / warmup: the first step already counts.

  Args:
    kind: constant; cosine (to the end); wsd (constant, then linear over the last `decay`).
    decay: share of the steps, in (0, 1]; wsd alone reads it.
    end: the rate at `steps`, over the peak; constant does not read it.

  Raises:
    InputError: unknown kind, or no step is left after the warm-up.

  Source: wsd is Hägele et al. 2024 (arXiv 2405.18392).
  """
  if not 0 <= warmup < steps:
    raise InputError(f"optimizer.warmup = {warmup} must lie in [0, steps = {steps})")
  n_decay = round(decay * steps)
  if kind == "constant":
    shape = optax.constant_schedule(lr)
  elif kind == "cosine":
    shape = optax.cosine_decay_schedule(lr, steps - warmup, alpha=end)
  elif kind == "wsd":
    if not 1 <= n_decay <= steps - warmup:
      raise InputError(
        f"optimizer.decay = {decay} of {steps} steps must be between 1 step and the "
        f"{steps - warmup} that follow the warm-up"
      )
    shape = optax.linear_schedule(lr, end * lr, n_decay, steps - warmup - n_decay)
  else:
    raise InputError(
      f"optimizer.schedule = {kind!r}: {nearest(kind, ('constant', 'cosine', 'wsd'))}"
    )
  if warmup <= 1:  # Step 0 is at the peak already.
    return optax.join_schedules([optax.constant_schedule(lr), shape], [warmup])
  rise = optax.linear_schedule(lr / warmup, lr, warmup - 1)
  return optax.join_schedules([rise, shape], [warmup])


def make(
  *,
  kind: Literal["adamw", "muon"],
  lr: optax.Schedule,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip: float,
  lr_scale: Mapping[str, float],
  trainable: Mapping[str, bool | tuple[int, ...]],
) -> optax.GradientTransformation:
  """AdamW per group; apply its updates with `apply_updates` of this module.

  Args:
    kind: what moves the base; all else goes by AdamW. See `muon`.
    lr: of the global step.
    b1: decay of the momentum, under either kind.
    weight_decay: decoupled, times the learning rate; on matrices alone (see `UNDECAYED`).
    clip: largest gradient norm of a group, and of each single domain expert; inf for none.
    lr_scale: group -> factor of its learning rate.
    trainable: group -> whether it moves; for "domain" also the indices of the experts that do.
      What is frozen, a group or an expert, has no moments.

  Returns:
    A transformation whose state is a dict: group -> the state of its optimizer.

  Raises:
    InputError: a name is not a group. At init: a group of the parameters is not in `lr_scale` and
      `trainable`, or an expert's index is out of range.
  """
  for given, names in (("lr_scale", lr_scale), ("trainable", trainable)):
    for name in names:
      if name not in GROUPS:
        raise InputError(f"{given} names {name!r}, which is no group: {nearest(name, GROUPS)}")

  @functools.cache
  def of(group: str) -> optax.GradientTransformation:
    if group not in trainable or group not in lr_scale:
      raise InputError(f"parameters have a group {group!r} that trainable and lr_scale do not name")
    moves, rate = trainable[group], lambda step: lr_scale[group] * lr(step)
    if moves is False:
      return freeze()
    if group == axes.DOMAIN:
      every = lazy_adamw(rate, b1, b2, eps, weight_decay, clip)
      return every if moves is True else only(every, moves)
    if moves is not True:
      raise InputError(f"trainable[{group!r}] = {moves!r} must be True or False")
    if group == "base" and kind == "muon":
      moved = muon(rate, b1, b2, eps, weight_decay)
    else:
      moved = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(clip), moved)

  def init(params):
    return {group: of(group).init(part) for group, part in params.items()}

  def update(updates: Any, state: Any, params: Any = None):
    both = {group: of(group).update(g, state[group], params[group]) for group, g in updates.items()}
    return {group: u for group, (u, _) in both.items()}, {g: s for g, (_, s) in both.items()}

  return optax.GradientTransformation(init, update)


def muon(
  lr: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
  """Muon for the matrices of stacked layers, Adam without weight decay for all else.

  An update has the RMS that AdamW's tends to have, so that one learning rate serves both.
  """

  def matrices(params):
    layers_in_out = contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
    of = lambda path, x: layers_in_out if x.ndim == 3 and _decays(path) else None
    return jax.tree_util.tree_map_with_path(of, params)

  return contrib.muon(
    lr,
    beta=b1,
    eps=eps,
    weight_decay=weight_decay,
    adam_b1=b1,
    adam_b2=b2,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=ADAM_RMS,
  )


def lazy_adamw(
  lr: optax.Schedule,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip: float,
) -> optax.GradientTransformation:
  """AdamW for experts stacked on the first axis of every leaf, each as if it were alone.

  An expert is active in a step if any element of its gradient is not zero (or not a number). All
  else about an inactive expert stands still.
  """

  def init(params):
    n_experts = _n_experts(params)
    # Two trees of zeros: a donated state may hold no buffer twice.
    mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return LazyAdamState(jnp.zeros((), jnp.int32), jnp.zeros(n_experts, jnp.int32), mu, nu)

  def update(updates: Any, state: Any, params: Any = None):
    grads = updates
    some = [jnp.any(g != 0, axis=range(1, g.ndim)) for g in jax.tree.leaves(grads)]
    active_E = functools.reduce(jnp.logical_or, some)
    count_E = state.count_E + active_E
    n_E = jnp.maximum(count_E, 1)  # An expert that never ran has no bias to correct.
    norm_E = expert_norms(grads)
    rate = jnp.asarray(lr(state.step))

    def clipped(g):
      norm = _over(norm_E, g)
      return jnp.where(norm < clip, g, g / norm * clip)

    def moment(g, m, decay):
      return jnp.where(_over(active_E, m), (1 - decay) * g + decay * m, m)

    def move(path, m, v, p):
      m_hat = m / _over(1 - b1**n_E, m)
      v_hat = v / _over(1 - b2**n_E, v)
      step = m_hat / (jnp.sqrt(v_hat) + eps)
      if _decays(path):
        step = step + weight_decay * p
      return jnp.where(_over(active_E, p), -rate * step, -0.0).astype(p.dtype)

    grads = jax.tree.map(clipped, grads)
    mu = jax.tree.map(lambda g, m: moment(g, m, b1), grads, state.mu)
    nu = jax.tree.map(lambda g, v: moment(g * g, v, b2), grads, state.nu)
    updates = jax.tree_util.tree_map_with_path(move, mu, nu, params)
    return updates, LazyAdamState(state.step + 1, count_E, mu, nu)

  return optax.GradientTransformation(init, update)


def only(
  every: optax.GradientTransformation, experts: tuple[int, ...]
) -> optax.GradientTransformation:
  """`every` for some of the stacked experts; the others do not move, and have no state.

  The state is without boxes: a few experts do not divide over the devices that hold all of them.

  Raises:
    InputError: at init: an index is out of range.
  """
  index_S = np.array(experts)  # Not of jax: the first call may be traced, and this is kept.
  some = lambda stacked: jax.tree.map(lambda x: x[index_S], stacked)

  def bare(part):
    return {k: bare(v) for k, v in part.items()} if isinstance(part, dict) else _leaf(part)

  def init(params):
    n_experts = _n_experts(params)
    for index in experts:
      if not 0 <= index < n_experts:
        raise InputError(f"trainable experts {experts} name {index}, but there are {n_experts}")
    return every.init(some(bare(params)))

  def update(updates: Any, state: Any, params: Any = None):
    moved, state = every.update(some(updates), state, some(params))
    place = lambda g, u: jnp.full_like(g, -0.0).at[index_S].set(u)
    return jax.tree.map(place, updates, moved), state

  return optax.GradientTransformation(init, update)


def freeze() -> optax.GradientTransformation:
  """Moves nothing, allocates nothing. Its update is -0: adding +0 would turn a -0 into +0."""
  init = lambda params: optax.EmptyState()
  update = lambda updates, state, params=None: (
    jax.tree.map(lambda g: jnp.full_like(g, -0.0), updates),
    state,
  )
  return optax.GradientTransformation(init, update)


def apply_updates(params: Any, updates: Any) -> Any:
  """Adds the updates; where an update is zero, the parameter keeps every bit.

  `optax.apply_updates` adds zeros too, and a sum flushes subnormal parameters to zero on CPU.
  """
  move = lambda p, u: jnp.where(u == 0, p, (p + u).astype(p.dtype))
  return jax.tree.map(move, params, updates)


def decayed(params: Any) -> Any:
  """Mask: True where weight decay applies."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _decays(path), params)


def group_norms(grads: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
  """Norm of each group's gradient before clipping; "domain" is the norm over all experts."""
  return {group: optax.tree.norm(part) for group, part in grads.items()}


def expert_norms(grads: Any) -> Float[Array, "E"]:
  """Norm of each expert's gradient over all leaves of the "domain" group."""
  squares = [jnp.sum(g * g, axis=range(1, g.ndim)) for g in jax.tree.leaves(grads)]
  return jnp.sqrt(sum(squares))


def _decays(path: tuple) -> bool:
  # The name is the last key of a dict: a box adds an attribute behind it.
  name = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
  return not any(word in name for word in UNDECAYED)


def _over(x_E: Array, like: Array) -> Array:
  """x_E with trailing axes of size 1, to broadcast over a leaf of the stack."""
  return x_E.reshape(-1, *(1,) * (like.ndim - 1))


def _n_experts(stacked: Any) -> int:
  return _leaf(stacked).shape[0]


def _leaf(part: Any) -> Array:
  """The first of a tree, or the content of a box."""
  return jax.tree.leaves(part)[0]
