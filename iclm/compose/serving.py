"""Which parameters serve which row, what each row says, and how loud each stream is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from iclm import axes, experts, information
from iclm.compose.cache import Passes
from iclm.compose.interface import Draws, Intervention
from iclm.config import Config, InputError
from iclm.nn import block, transformer
from iclm.routing import Routing


def streams(config: Config) -> tuple[str, ...]:
  """Names of the streams that a config runs, in their order."""
  if config.experts.kind == "none":
    return ()
  return axes.STREAMS if config.experts.invariant else (axes.DOMAIN,)


def heard_alone(config: Config) -> tuple[str, ...]:
  """Names of the streams that say something alone: none where one speaks through another."""
  return () if config.topology.kind == "around" else streams(config)


def n_layers(config: Config) -> tuple[int, int]:
  """Layers on which a domain expert, and the invariant one, carry adapters."""
  t, every = config.topology, config.model.layers - config.model.trunk_layers
  if t.kind == "parallel":
    return every, every
  return t.lower + t.upper, every - t.lower - t.upper


def is_block(config: Config) -> bool:
  """Routes that spread over experts or tokens, or whose gradient does, cannot be gathered."""
  r = config.router
  return r.kind in ("soft", "uniform") or r.level == "token" or r.gradient == "all"


def check_finite(config: Config, params: Any) -> None:
  """Where every input meets all experts (block adapters, compute="all"), all must be finite.

  Raises:
    InputError: names an expert that is not.
  """
  if config.experts.kind == "none" or (config.compute == "routed" and not is_block(config)):
    return
  for path, x in jax.tree.leaves_with_path(params["domain"]):
    bad_E = ~jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1)
    if bad_E.any():
      raise InputError(
        f"expert {int(bad_E.argmax())} is not finite in {jax.tree_util.keystr(path)}, and under "
        f"config.compute = {config.compute!r}, config.router.kind = {config.router.kind!r} every "
        "input would feel it"
      )


class Upper(NamedTuple):
  """What either topology runs the layers above the trunk on."""

  config: Config
  decoder: transformer.Decoder
  expert: experts.Expert
  passes: Passes  # Runs the layers; under a cache, each that it is asked for by name has a past.
  params: Any
  x_BTD: Float[Array, "B T D"]  # States of the trunk.
  shared: block.Shared
  routed: Routing
  draws: Draws
  do: Intervention
  at_BC: Int[Array, "B C"] | None  # The positions that are asked for; None for all.
  adapters: Any  # Of `parallel.adapters`; None to pick them here.


class Served(NamedTuple):
  """The rows that the upper layers run: `n` per input, in the order of `slots`."""

  params: Any  # Of each row, or of all experts where `weights` is given.
  weights: Array | None
  n: int
  slots: tuple[int, ...]  # Stream of each of an input's rows.


def serve(
  config: Config,
  expert: experts.Expert,
  params: Any,
  routed: Routing,
  n_tokens: int,
  *,
  with_base: bool = False,
) -> Served:
  """Which parameters serve which row. Streams of an input lie side by side, so that rows stay on
  the device of their input.

  Args:
    with_base: behind the rows of each input lies one more that no expert changes.
  """
  names, n_inputs = streams(config), len(routed.index_B)
  stacks = [jax.tree.map(lambda x: x[None], params[name]) for name in names[:-1]]
  stacks, first = [*stacks, params["domain"]], len(stacks)  # Number of the first domain expert.
  if config.compute == "routed" and is_block(config):
    every = jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)
    weights = _block_weights(config, routed, n_tokens, first)
    return Served(every, weights, len(names), tuple(range(len(names))))
  always_BS = jnp.broadcast_to(jnp.arange(first), (n_inputs, first))
  if config.compute == "all":
    n_experts = config.experts.count
    domain_BS = jnp.broadcast_to(first + jnp.arange(n_experts), (n_inputs, n_experts))
  else:
    domain_BS = first + routed.index_B[:, None]
  slots = (0,) * first + (first,) * domain_BS.shape[1]
  base_BS = jnp.full((n_inputs, int(with_base)), -1)
  index_BS = jnp.concatenate([always_BS, domain_BS, base_BS], axis=1)
  return Served(expert.rows(stacks, index_BS.reshape(-1)), None, index_BS.shape[1], slots)


def _block_weights(config: Config, routed: Routing, n_tokens: int, n_invariant: int) -> Array:
  """Of each expert, the invariant one in front, at each position of the streams' rows."""
  n_inputs, n_experts = routed.weights_BE.shape[0], config.experts.count
  weights_BTE = routed.weights_BE if config.router.level == "token" else routed.weights_BE[:, None]
  weights_BTE = jnp.broadcast_to(weights_BTE, (n_inputs, n_tokens, n_experts))
  weights = jnp.pad(weights_BTE, ((0, 0), (0, 0), (n_invariant, 0)))
  if n_invariant:
    always = jnp.broadcast_to(jnp.eye(1, 1 + n_experts)[None], weights.shape)
    weights = jnp.stack([always, weights], axis=1).reshape(-1, *weights.shape[1:])
  return weights


def speak(
  config: Config,
  expert: experts.Expert,
  served: Served,
  routed: Routing,
  state: Array,
  key: Array | None,
  do: Intervention,
) -> tuple[Array, Any, Any]:
  """What each row says (its contribution), its message and its rate in nats per position."""
  if config.bottleneck.kind == "none":
    if do.message_SBTZ is not None or do.speaker_SB is not None:
      raise ValueError("bottleneck.kind = 'none' has no message to patch")
    return state, None, None
  message = expert.encode(served.params, state, served.weights)
  z = information.sample_message(key, *message)
  to_rows = lambda x: jnp.moveaxis(x[jnp.array(served.slots)], 1, 0).reshape(-1, *x.shape[2:])
  if do.speaker_SB is not None:
    own_SBTZ: Any = per_stream(config, served, routed, z)
    z = _spoken(z, own_SBTZ, served, to_rows(do.speaker_SB))
  if do.message_SBTZ is not None:
    patch = to_rows(do.patch_SB)
    patch = patch.reshape(*patch.shape, *(1,) * (z.ndim - patch.ndim))
    z = jnp.where(patch, to_rows(do.message_SBTZ), z)
  said = expert.decode(served.params, z, served.weights)
  return said, z, information.gaussian_rate(*message)


def _spoken(z: Array, own_SBTZ: Array, served: Served, speaker: Array) -> Array:
  """Messages of rows that speak for another input: what its stream says there, whichever expert
  says it; their own where they speak for themselves, and 0 where they are silent."""
  input_R, slot_R = jnp.divmod(jnp.arange(len(speaker)), served.n)
  stream_R = jnp.array(served.slots)[slot_R] - served.slots[0]
  is_own_R = (speaker == input_R)[:, None, None]
  z = jnp.where(is_own_R, z, own_SBTZ[stream_R, speaker])
  return jnp.where(speaker[:, None, None] < 0, 0, z)


def per_stream(config: Config, served: Served, routed: Routing, rows: Array | None):
  """Rows -> streams (S, B, ...). Under compute="all", the experts' rows are weighed here: this is
  the formulation of the paper, in which a NaN of any expert is felt by every input."""
  if rows is None:
    return None
  x = rows.reshape(-1, served.n, *rows.shape[1:])
  if config.compute == "all":
    n_invariant = served.n - config.experts.count
    chosen = jnp.einsum("be,be...->b...", routed.weights_BE, x[:, n_invariant:])
    x = jnp.concatenate([x[:, :n_invariant], chosen[:, None]], axis=1)
  return jnp.moveaxis(x, 1, 0)


def strength(config: Config, routed: Routing, do: Intervention) -> Float[Array, "S B"]:
  """Weight of each stream: 1 forward; backward, the domain stream's leads to the router."""
  ones_B = jnp.ones(routed.index_B.shape[0])
  domain_B = ones_B
  if config.compute == "routed" and not is_block(config):
    domain_B = jnp.take_along_axis(routed.weights_BE, routed.index_B[:, None], axis=1)[:, 0]
  if not config.experts.invariant:
    return domain_B[None]
  invariant_B = ones_B if do.use_invariant is None else ones_B * do.use_invariant
  return jnp.stack([invariant_B, domain_B])
