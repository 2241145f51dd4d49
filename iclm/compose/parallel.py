"""The topology `parallel`: the invariant and the domain expert side by side, on one base.

  x -> upper, adapters of the invariant and of the chosen domain expert, as one batch -> messages z
  residual:  logits = head(h_base + u_invariant + w u_domain)

Source: Gendron et al. 2024 (arXiv 2402.02636), section 3.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iclm import experts
from iclm.compose import serving
from iclm.config import Config
from iclm.nn import combine, transformer
from iclm.routing import Routing


def run(
  upper: serving.Upper, base_BCD: Float[Array, "B C D"] | None, *, alone: bool
) -> tuple[Array, Any, Any, Any]:
  """Returns logits_BTV, messages_SBTZ, rate_SBT, and alone_SBTV where asked for.

  Args:
    upper: its one pass is `streams`.
    base_BCD: states of the base where they are asked for; None where nothing needs them, or where
      they are computed with the streams (residual, under a cache).
  """
  config, decoder, expert, passes, params, x_BTD, shared, routed, draws, do, at_BC, kept = upper
  serve = functools.partial(serving.serve, config, expert, params, routed, x_BTD.shape[1])
  joins = config.combine == "residual" and base_BCD is None
  served, whole = serve(), serve(with_base=joins)
  repeat = lambda x: passes.pin(jnp.repeat(x, whole.n, axis=0))
  shared = jax.tree.map(repeat, shared)._replace(weights_BTE=served.weights)
  at_RC = None if at_BC is None else repeat(at_BC)

  def layers(adapters):
    args = {"params": params["base"]}, repeat(x_BTD), adapters, shared, at_RC
    return passes("streams", functools.partial(decoder.apply, *args, method="upper"))

  state = expert.apply(whole.params, layers, draws.dropout) if kept is None else layers(kept)
  if joins:
    every = state.reshape(-1, whole.n, *state.shape[1:])
    state, base_BCD = every[:, :-1].reshape(-1, *state.shape[1:]), every[:, -1]
  base: Any = base_BCD
  if served.weights is not None:
    served = served._replace(weights=shared.at(at_RC).weights_BTE)
  said, z, rate = serving.speak(config, expert, served, routed, state, draws.message, do)
  per_stream = functools.partial(serving.per_stream, config, served, routed)
  spoken: Any = per_stream(said)
  said_SBTD = spoken.astype(x_BTD.dtype)
  if config.bottleneck.kind == "none" and config.combine == "residual":
    said_SBTD = said_SBTD - base[None]  # The adapters' own effect on the state.

  strength_SB = serving.strength(config, routed, do)
  mix = _mix(config, decoder, params, said_SBTD, strength_SB, base)
  alone_SBTV = None
  if alone:
    only_SSB = jnp.eye(len(strength_SB))[..., None] * jnp.ones_like(strength_SB)[None]
    alone_SBTV = jnp.stack([mix(only_SB) for only_SB in only_SSB])
  return mix(strength_SB), per_stream(z), per_stream(rate), alone_SBTV


def adapters(config: Config, expert: experts.Expert, params: Any, routed: Routing | None) -> Any:
  """What the layers of each row are given, the base's among them, once a cache holds the route."""
  is_picked = config.topology.kind == "parallel" and not serving.is_block(config)
  if routed is None or not is_picked:
    return None
  joins, n = config.combine == "residual", config.model.layers - config.model.trunk_layers
  served = serving.serve(config, expert, params, routed, 1, with_base=joins)
  return expert.apply(served.params, lambda layers: transformer.split(layers, n - 1), None)


def _mix(config: Config, decoder, params: Any, said_SBTD, strength_SB, base_BTD) -> combine.Mix:
  """The combine of a config over what the streams say; a silent one is not felt, not even NaN."""
  said_SBTD = jnp.where(strength_SB[..., None, None] == 0, 0, said_SBTD)
  unembed = lambda h: decoder.apply({"params": params["base"]}, h, method="unembed")
  head_CV = params["combine"]["head_CV"] if config.combine == "concat" else None
  return combine.KINDS[config.combine](said_SBTD, base_BTD, head_CV, unembed)
