"""One optimizer for each group of parameters."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax
from jaxtyping import Array, Float
from optax import contrib

from iclm import axes
from iclm.config import Config, InputError, nearest
from iclm.optim.decay import decayed, decays
from iclm.optim.frozen import all_but, freeze
from iclm.optim.lazy import lazy_adamw, only
from iclm.optim.schedules import schedule

LOWER = "embedding", "trunk_layers"  # Of the base, in which a tied head is the embedding.
GROUPS = ("base", axes.INVARIANT, axes.DOMAIN, "router", "combine")

ADAM_RMS = 0.2  # Of an update over the learning rate, as Liu et al. find it for AdamW.


def from_config(config: Config) -> optax.GradientTransformation:
  """The optimizer of a run; see `make`."""
  o, trains = config.optimizer, config.trains
  moves = {name: getattr(trains, name) for name in GROUPS}
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
    trainable=moves,
    still=() if trains.lower else LOWER,
  )


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
  still: tuple[str, ...],
) -> optax.GradientTransformation:
  """AdamW per group; apply its updates with `apply_updates`.

  Args:
    kind: what moves the base; all else goes by AdamW. See `muon`.
    lr: of the global step.
    b1: decay of the momentum, under either kind.
    weight_decay: decoupled, times the learning rate; on matrices alone (see `UNDECAYED`).
    clip: largest gradient norm of a group, and of each single domain expert; inf for none.
    lr_scale: group -> factor of its learning rate.
    trainable: group -> whether it moves; for "domain" also the indices of the experts that do.
      What is frozen, a group, an expert or a part of the base, has no moments.
    still: parts of the base that do not move with it.

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
    moved = optax.chain(optax.clip_by_global_norm(clip), moved)
    return all_but(moved, still) if group == "base" and still else moved

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
    of = lambda path, x: layers_in_out if x.ndim == 3 and decays(path) else None
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


def group_norms(grads: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
  """Norm of each group's gradient before clipping; "domain" is the norm over all experts."""
  return {group: optax.tree.norm(part) for group, part in grads.items()}
