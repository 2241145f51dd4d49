"""How evenly the experts are used."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike, Shaped


def update_usage(
  usage_E: Float[Array, "E"],
  index_B: Int[Array, "*B"],
  row_mask_B: Shaped[Array, "*B"] | None,
  decay: ScalarLike,
) -> Float[Array, "E"]:
  """Moving average of the share of the inputs that each expert serves; no rows, no change."""
  counts_B = jnp.ones(index_B.shape, bool) if row_mask_B is None else row_mask_B > 0
  share_E = masked_mean(jax.nn.one_hot(index_B, usage_E.shape[0]), row_mask_B)
  return jnp.where(counts_B.any(), decay * usage_E + (1 - decay) * share_E, usage_E)


def effective_experts(usage_E: Float[Array, "E"]) -> Float[Array, ""]:
  """The exponential of the usage's entropy: E when all serve alike, 1 when one serves all."""
  share_E = usage_E / usage_E.sum()
  return jnp.exp(-jax.scipy.special.xlogy(share_E, share_E).sum())


def masked_mean(x_BE, row_mask_B) -> Float[Array, "E"]:
  """Mean over every leading dimension, of the rows that count; 0 when none does."""
  x_NE = x_BE.reshape(-1, x_BE.shape[-1])
  if row_mask_B is None:
    return x_NE.mean(0)
  counts_N1 = (row_mask_B > 0).reshape(-1, 1)
  return jnp.where(counts_N1, x_NE, 0.0).sum(0) / jnp.maximum(counts_N1.sum(), 1)
