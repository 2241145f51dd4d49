"""Which token is said next, row by row; what is asked for are arrays, so one program serves all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Sampling(NamedTuple):
  """How tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 leave nothing out."""

  temperature: Any  # >= 0, divides the logits.
  top_k: Any  # So many of the likeliest tokens,
  top_p: Any  # and of those the fewest that hold this share of their probability, in (0, 1].


GREEDY = Sampling(0.0, 0, 1.0)


def choose(logits_BV: Float[Array, "B V"], key_B: Array, sampling: Sampling) -> Int[Array, "B"]:
  """A token per row: the likeliest one, or a draw with the row's own key.

  Args:
    key_B: typed keys; a row's token depends on its own logits and key alone.

  Source: nucleus sampling, Holtzman et al. 2019 (arXiv 1904.09751), after the temperature.
  """
  greedy = lambda: logits_BV.argmax(-1).astype(jnp.int32)

  def draw():
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)  # Ties as argmax breaks them.
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1) / sampling.temperature
    kept_BV = jnp.where(keep(sorted_BV, sampling), sorted_BV, -jnp.inf)
    rank_B = jax.vmap(jax.random.categorical)(key_B, kept_BV)
    return jnp.take_along_axis(order_BV, rank_B[:, None], axis=-1)[:, 0].astype(jnp.int32)

  return jax.lax.cond(jnp.asarray(sampling.temperature) > 0, draw, greedy)


def keep(sorted_BV: Float[Array, "B V"], sampling: Sampling) -> Bool[Array, "B V"]:
  """Which of the logits, sorted from the largest down, may be drawn; the first one always."""
  rank_BV = jnp.broadcast_to(jnp.arange(sorted_BV.shape[-1]), sorted_BV.shape)
  top_BV = (rank_BV < sampling.top_k) | (jnp.asarray(sampling.top_k) <= 0)
  p_BV = jax.nn.softmax(jnp.where(top_BV, sorted_BV, -jnp.inf))
  before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
  # Rounding may take the sum past 1 before the last token.
  whole = jnp.asarray(sampling.top_p) >= 1
  return top_BV & ((before_BV < sampling.top_p) | whole | (rank_BV == 0))
