"""What does not move keeps every bit."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax


def freeze() -> optax.GradientTransformation:
  """Moves nothing, allocates nothing. Its update is -0: adding +0 would turn a -0 into +0."""
  init = lambda params: optax.EmptyState()
  update = lambda updates, state, params=None: (
    jax.tree.map(lambda g: jnp.full_like(g, -0.0), updates),
    state,
  )
  return optax.GradientTransformation(init, update)


def all_but(
  tx: optax.GradientTransformation, names: Collection[str]
) -> optax.GradientTransformation:
  """`tx` for a tree without some of its parts, which do not move and have no state."""
  rest = lambda tree: {name: part for name, part in tree.items() if name not in names}
  still = freeze()

  def update(updates: Any, state: Any, params: Any = None):
    fixed: Any = still.update(updates, optax.EmptyState())[0]
    moved: Any
    moved, state = tx.update(rest(updates), state, rest(params))
    return fixed | moved, state

  return optax.GradientTransformation(lambda params: tx.init(rest(params)), update)


def apply_updates(params: Any, updates: Any) -> Any:
  """Adds the updates; where an update is zero, the parameter keeps every bit.

  `optax.apply_updates` adds zeros too, and a sum flushes subnormal parameters to zero on CPU.
  """
  move = lambda p, u: jnp.where(u == 0, p, (p + u).astype(p.dtype))
  return jax.tree.map(move, params, updates)
