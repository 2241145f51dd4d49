"""The topology `around`: a domain expert on both sides of an invariant core, in one stream.

  embed -> trunk -> lower, adapters of the domain expert -> its message
        -> core, adapters of the invariant expert -> its message
        -> upper, adapters of the domain expert -> head

The core knows of the input what the domain expert's message carries, and the answer can tell of the
core what the invariant one's does: no state goes past a message. With `lower` = 0 the domain expert
translates token by token, so that whatever looks at more than one token is the core's. Without the
invariant expert, as an intervention, the domain expert's message passes by the core.

A rate is told, and priced, where an answer is predicted. Here the messages of the prompt reach the
core too, and are not counted: it bounds what an answer's own positions pass on, not what the core
knows of the input.

Source: ours, after a prototype of the project; the paper has parallel streams only.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from iclm import axes
from iclm.compose import serving
from iclm.nn import block, transformer


def run(upper: serving.Upper) -> tuple[Array, Array, Array]:
  """Returns logits_BTV, messages_SBTZ and rate_SBT; its passes are `lower`, `core` and `upper`."""
  config, decoder, expert, passes, params, x_BTD, shared, routed, draws, do, at_BC, _ = upper
  t = config.topology
  split = lambda key: (None, None, None) if key is None else jax.random.split(key, 3)
  drop, noise = split(draws.dropout), split(draws.message)
  domain = expert.rows([params["domain"]], routed.index_B)
  invariant = jax.tree.map(lambda x: x[None], params["invariant"])
  core = expert.rows([invariant], jnp.zeros(len(x_BTD), jnp.int32))

  def layers(name, x_BTD, first, n, adapted, key, at_BC=None):
    if n == 0:
      return block.pick(x_BTD, at_BC)
    args = decoder, params["base"], first, n, x_BTD, shared, at_BC
    span = lambda found: passes(name, functools.partial(_span, *args, found))
    return expert.apply(adapted, span, key)

  def say(stream, mine, x_BTD, key) -> Any:
    served = serving.Served(mine, None, 1, (stream,))
    return serving.speak(config, expert, served, routed, x_BTD, key, do)

  thinker, speaker = map(axes.STREAMS.index, (axes.INVARIANT, axes.DOMAIN))
  strength_SB = serving.strength(config, routed, do)
  below = layers("lower", x_BTD, 0, t.lower, _part(domain, 0, t.lower), drop[0])
  into_BTD, z_domain, rate_domain = say(speaker, domain, below, noise[0])
  into_BTD = (into_BTD * strength_SB[speaker][:, None, None]).astype(x_BTD.dtype)
  n_core = config.model.layers - config.model.trunk_layers - t.lower - t.upper
  inside = layers("core", into_BTD, t.lower, n_core, core, drop[1])
  out_BTD, z_core, rate_core = say(thinker, core, inside, noise[1])
  heard_B11 = strength_SB[thinker][:, None, None] > 0
  out_BTD = jnp.where(heard_B11, out_BTD.astype(x_BTD.dtype), into_BTD)
  above = _part(domain, t.lower, t.lower + t.upper)
  top = layers("upper", out_BTD, t.lower + n_core, t.upper, above, drop[2], at_BC)
  logits_BTV: Any = decoder.apply({"params": params["base"]}, top, method="unembed")
  pick = functools.partial(block.pick, at_BC=at_BC)
  messages_SBTZ = jnp.stack([pick(z_core), pick(z_domain)])
  rate_SBT = jnp.stack([pick(rate[..., None])[..., 0] for rate in (rate_core, rate_domain)])
  return logits_BTV, messages_SBTZ, rate_SBT


def _part(rows: Any, first: int, last: int) -> Any:
  """Gathered experts with the adapters of some of their layers."""
  return rows | {"adapter": jax.tree.map(lambda x: x[:, first:last], rows["adapter"])}


def _span(decoder, base, first: int, n: int, x_BTD, shared, at_BC, adapters, past=None) -> Any:
  """`n` of the base's upper layers, from number `first` on."""
  model = dataclasses.replace(decoder.model, layers=decoder.model.trunk_layers + n)
  shorter = transformer.Decoder(model, decoder.vocab_size, decoder.dropout)
  parts = [base[name] for name in ("upper_layers", "last_layer") if name in base]
  every = jax.tree.map(lambda *x: jnp.concatenate(x)[first : first + n], *parts)
  below, last = (jax.tree.map(lambda x, at=at: x[at], every) for at in (slice(-1), slice(-1, None)))
  params = {"params": base | {"upper_layers": below, "last_layer": last}}
  return shorter.apply(params, x_BTD, adapters, shared, at_BC, past, method="upper")
