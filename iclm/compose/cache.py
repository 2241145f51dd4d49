"""What a model keeps of the tokens that it has read, so that the next one costs one token.

  prompt     ->  apply(cache=empty(B, C))  ->  Output.cache: keys, values, the route
  one token  ->  apply(cache=that)         ->  the same, one slot further

Each pass through layers keeps keys and values of its own: trunk, and the streams' rows, with one
more of the base under residual, which a pass of its own reads the prompt with (and under block
adapters each token); or, around a core, lower, core and upper. The router reads when the cache is
empty and never again; routed by token, it reads each token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from iclm.data.pipeline import Batch
from iclm.nn import attention
from iclm.routing import Routing


class Cache(NamedTuple):
  """C slots for each of B inputs; all inputs use the same ones, and mask what is padding.

  Attributes:
    past: pass through layers -> of each layer (k_NHCK, v_NHCK), N rows of it; {} when nothing was
      read. A layer's arrays lie apart, because a loop over a stack of them would copy each.
    last: the same of the token read last, which goes into `past` when the next one is read: a loop
      that wrote it behind its readers would copy all of `past`, twice, for every token.
    segment_BC: of the token in each slot, as in `Batch`; 0 is padding, or free.
    position_BC: of the token in each slot, as in `Batch`.
    used: slots that are taken.
    routed: the route of the prompts; None for a plain base, and when nothing was read.
  """

  past: dict[str, Any]
  last: dict[str, Any]
  segment_BC: Int[Array, "B C"]
  position_BC: Int[Array, "B C"]
  used: Int[Array, ""]
  routed: Routing | None


def empty(n_inputs: int, n_slots: int) -> Cache:
  """A cache of nothing. Writing more than `n_slots` tokens into it is not noticed."""
  # Two arrays, since a donated cache may hold no buffer twice.
  segment_BC, position_BC = (jnp.zeros((n_inputs, n_slots), jnp.int32) for _ in range(2))
  return Cache({}, {}, segment_BC, position_BC, jnp.zeros((), jnp.int32), None)


class Passes:
  """Runs layers of a base; under a cache each named pass attends to its own past."""

  def __init__(self, pin: Callable[[Array], Array], cache: Cache | None):
    self.pin, self._cache, self._own, self._past = pin, cache, {}, {}
    if cache is not None and cache.past:
      self._past = _put(cache.past, cache.last, cache.used - 1, axis=2)

  @property
  def has_cache(self) -> bool:
    return self._cache is not None

  def __call__(self, name: str | None, run: Callable[..., Any]) -> Any:
    """The states of `run(past=...)`; a pass without a name is not remembered."""
    if self._cache is None or name is None:
      return self.pin(run())
    x_BTD, self._own[name] = run(past=self._past.get(name, ()))
    return self.pin(x_BTD)

  def join(self, name: str, last: str) -> None:
    """Behind the rows of each input in one pass come those of another, which has one per input."""

    def one(rows, more):
      every = rows.reshape(rows.shape[0], more.shape[1], -1, *rows.shape[2:])
      joined = jnp.concatenate([every, more[:, :, None]], axis=2)
      return joined.reshape(rows.shape[0], -1, *rows.shape[2:])

    self._own[name] = jax.tree.map(one, self._own[name], self._own.pop(last))

  def mask(self, batch: Batch, own_BTT: Bool[Array, "B T T"], window: int) -> Array:
    """What each token sees in a window: of the past, and of the T tokens as `own_BTT` says."""
    mine_BT, held = batch.position_BT, self._cache
    own_BTT = attention.within(own_BTT, mine_BT, mine_BT, window)
    if held is None or not held.past:
      return own_BTT
    past_BTC = attention.cached_mask(batch.segment_BT, held.segment_BC)
    past_BTC = attention.within(past_BTC, mine_BT, held.position_BC, window)
    return jnp.concatenate([past_BTC, own_BTT], axis=-1)

  def grown(self, batch: Batch, routed: Routing | None) -> Cache | None:
    """The cache with what the passes have read."""
    if self._cache is None:
      return None
    held, used = self._cache, self._cache.used
    n_new = batch.segment_BT.shape[1]
    n_free = held.segment_BC.shape[1] - n_new
    own = {name: _layers(stack) for name, stack in self._own.items()}
    last = jax.tree.map(lambda new: new[:, :, -1:], own)
    if not held.past:
      free = ((0, 0), (0, 0), (0, n_free), (0, 0))
      past = jax.tree.map(lambda new: jnp.pad(new, free), own)
    else:
      past = self._past if n_new == 1 else _put(self._past, own, used, axis=2)
    kept = None if routed is None else routed._replace(losses={})
    segment_BC = _put(held.segment_BC, batch.segment_BT, used, axis=1)
    position_BC = _put(held.position_BC, batch.position_BT, used, axis=1)
    return Cache(past, last, segment_BC, position_BC, used + n_new, kept)


def _put(held: Any, new: Any, at: Array, axis: int) -> Any:
  """`held` with `new` from slot `at` on, in every array."""
  put = jax.lax.dynamic_update_slice_in_dim
  return jax.tree.map(lambda old, new: put(old, new.astype(old.dtype), at, axis), held, new)


def _layers(stack: Any) -> tuple[Any, ...]:
  """Of each layer the keys and values; () where a pass has no layer."""
  return tuple(zip(*stack, strict=True)) if stack else ()
