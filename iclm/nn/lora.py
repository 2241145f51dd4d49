"""Low-rank adapters: the product of two thin matrices, picked per row or mixed by weights.

Hu et al. 2021 (arXiv 2106.09685). One call adapts every row of a batch, whichever expert serves it:

- *gathered* (hard, input-level routes): each row brings its own matrices, `a_BDR` and `b_BRF`. The
  cost is free of the number of experts, and an expert that no row picked cannot be felt.
- *block* (soft, token-level, or gradient to every expert): `x` times all the experts' `a`, times a
  weight per expert, times all their `b`. A non-finite expert poisons every row, weight 0 or not.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

PRODUCT = "product"  # Name of a result that rematerialisation may keep.


def delta(
  x_BTD: Float[Array, "B T D"],
  a: Float[Array, "_ D R"],
  b: Float[Array, "_ R F"],
  weights_BTE: Float[Array, "B T E"] | None,
) -> Float[Array, "B T F"]:
  """What the adapters add to the output of a projection, before the scale alpha / rank.

  Args:
    x_BTD: input of the projection.
    a: `a_BDR` when gathered, `a_EDR` when block.
    b: `b_BRF` when gathered, `b_ERF` when block.
    weights_BTE: None when gathered; else the weight of every expert at every position.
  """
  a, b = a.astype(x_BTD.dtype), b.astype(x_BTD.dtype)
  if weights_BTE is None:
    low_BTR = checkpoint_name(jnp.einsum("btd,bdr->btr", x_BTD, a), PRODUCT)
    return jnp.einsum("btr,brf->btf", low_BTR, b)
  low_BTER = checkpoint_name(jnp.einsum("btd,edr->bter", x_BTD, a), PRODUCT)
  low_BTER = low_BTER * weights_BTE[..., None].astype(x_BTD.dtype)
  return jnp.einsum("bter,erf->btf", low_BTER, b)


def dropout(key: Array, x_BTD: Float[Array, "B T D"], rate: float) -> Float[Array, "B T D"]:
  """Zeroes a share `rate` of the adapter's inputs and scales up the rest."""
  keep = jax.random.bernoulli(key, 1.0 - rate, x_BTD.shape)
  return jnp.where(keep, x_BTD / (1.0 - rate), 0.0).astype(x_BTD.dtype)


def init(key: Array, d_in: int, d_out: int, rank: int) -> tuple[Array, Array]:
  """Returns a ~ U(±1/sqrt(d_in)) as in the reference, and b = 0: a fresh adapter adds nothing."""
  bound = d_in**-0.5
  return jax.random.uniform(key, (d_in, rank), minval=-bound, maxval=bound), jnp.zeros(
    (rank, d_out)
  )
