"""What a router may read: the masked positions of a prompt, and nothing else."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped, UInt32


def pool(x_BTD: Float[Array, "*B T D"], mask_BT: Shaped[Array, "*B T"]) -> Float[Array, "*B D"]:
  """Mean over the masked positions in float32; what is not masked may be NaN and is not felt.

  Returns:
    0 where the mask is empty.
  """
  counts_BT = mask_BT > 0
  sum_BD = jnp.where(counts_BT[..., None], x_BTD.astype(jnp.float32), 0.0).sum(-2)
  return sum_BD / jnp.maximum(counts_BT.sum(-1, keepdims=True), 1)


def hash_tokens(
  tokens_BT: Int[Array, "*B T"], mask_BT: Shaped[Array, "*B T"]
) -> UInt32[Array, "*B"]:
  """A hash of the masked tokens in their order, whatever stands between or around them.

  A polynomial of the mixed tokens in an odd base, modulo 2^32: two prompts collide about once in
  2^32 draws. Not meant to withstand an adversary.
  """
  counts_BT = mask_BT > 0
  token_BT = mix(tokens_BT.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
  factor_BT = jnp.where(counts_BT, jnp.uint32(0x01000193), jnp.uint32(1))
  power_BT = jnp.cumprod(factor_BT, axis=-1, dtype=jnp.uint32)
  return mix(jnp.where(counts_BT, token_BT * power_BT, 0).sum(-1, dtype=jnp.uint32))


def mix(bits: UInt32[Array, "*B"]) -> UInt32[Array, "*B"]:
  """The finaliser of MurmurHash3: a bijection in which each bit in sways each bit out."""
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
