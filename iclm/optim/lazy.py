"""AdamW for stacked experts, each as if it were alone: an idle one stands still."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from iclm.optim.decay import decays


class LazyAdamState(NamedTuple):
  """Moments have the shapes (and the boxes) of the parameters."""

  step: Int[Array, ""]  # Of the run, but for those skipped: where the schedule stands.
  count_E: Int[Array, "E"]  # Steps in which the expert was active: its bias correction.
  mu: Any
  nu: Any


def lazy_adamw(
  lr: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: float, clip: float
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
      if decays(path):
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
  """
  index_S = np.array(experts)  # Not of jax: the first call may be traced, and this is kept.
  some = lambda stacked: jax.tree.map(lambda x: x[index_S], stacked)

  def bare(part):
    return {k: bare(v) for k, v in part.items()} if isinstance(part, dict) else _leaf(part)

  def init(params):
    return every.init(some(bare(params)))

  def update(updates: Any, state: Any, params: Any = None):
    moved, state = every.update(some(updates), state, some(params))
    place = lambda g, u: jnp.full_like(g, -0.0).at[index_S].set(u)
    return jax.tree.map(place, updates, moved), state

  return optax.GradientTransformation(init, update)


def expert_norms(grads: Any) -> Float[Array, "E"]:
  """Norm of each expert's gradient over all leaves of the "domain" group."""
  squares = [jnp.sum(g * g, axis=range(1, g.ndim)) for g in jax.tree.leaves(grads)]
  return jnp.sqrt(sum(squares))


def _over(x_E: Array, like: Array) -> Array:
  """x_E with trailing axes of size 1, to broadcast over a leaf of the stack."""
  return x_E.reshape(-1, *(1,) * (like.ndim - 1))


def _n_experts(stacked: Any) -> int:
  return _leaf(stacked).shape[0]


def _leaf(part: Any) -> Array:
  """The first of a tree, or the content of a box."""
  return jax.tree.leaves(part)[0]
