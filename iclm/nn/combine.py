"""How the streams' contributions become logits: each kind returns a function of their strengths.

Every kind takes what the streams say (said_SBTD), the state of the base without adapters, a head of
its own (concat only) and the base's norm and head; each is tested to use every stream. Strengths
are 1 for a stream that speaks and 0 for one that is silenced; their gradient leads to the router.
Source: Gendron et al. 2024, section 3.3, for logits, probas and concat; residual is ours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iclm.nn import block

Mix = Callable[[Float[Array, "S B"]], Float[Array, "B T V"]]


def residual(said_SBTD, base_BTD, head_CV, unembed) -> Mix:
  """The base's head on base + contributions: streams that say 0 leave the base bitwise."""

  def mix(strength_SB):
    h_BTD = base_BTD
    for said_BTD, strength_B in zip(said_SBTD, strength_SB, strict=True):
      h_BTD = h_BTD + said_BTD * strength_B[:, None, None].astype(said_BTD.dtype)
    return unembed(h_BTD)

  return mix


def logits(said_SBTD, base_BTD, head_CV, unembed) -> Mix:
  """Mean of the streams' logits: a product of experts."""
  logits_SBTV = jax.vmap(unembed)(said_SBTD)
  return lambda strength_SB: jnp.einsum("sb,sbtv->btv", _share(strength_SB), logits_SBTV)


def probas(said_SBTD, base_BTD, head_CV, unembed) -> Mix:
  """Log of the mean of the streams' probabilities: a mixture of experts."""
  log_p_SBTV = jax.nn.log_softmax(jax.vmap(unembed)(said_SBTD))

  def mix(strength_SB):
    share_SB11 = _share(strength_SB)[..., None, None]
    return jax.nn.logsumexp(log_p_SBTV, axis=0, b=share_SB11)

  return mix


def concat(said_SBTD, base_BTD, head_CV, unembed) -> Mix:
  """A new head on the concatenated states.

  Deviation: RMSNorm where the paper has BatchNorm, which makes a sample feel its batch.
  """

  def mix(strength_SB):
    h_SBTD = block.rms_normalise(said_SBTD, 1e-6) * strength_SB[..., None, None]
    return jnp.einsum("btc,cv->btv", jnp.concatenate(list(h_SBTD), axis=-1), head_CV)

  return mix


def _share(strength_SB: Array) -> Array:
  return strength_SB / jax.lax.stop_gradient(strength_SB.sum(axis=0, keepdims=True))


KINDS = {"residual": residual, "logits": logits, "probas": probas, "concat": concat}
