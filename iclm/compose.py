"""The one apply: trunk -> route -> streams -> combine, with interventions as an argument.

  tokens -> embed -> trunk -+-> router: prompt only --> index, weights
                            +-> upper, no adapters ---> h_base                      (residual only)
                            +-> upper, adapters of the invariant and of the chosen
                                domain expert, as one batch -> messages z -> contributions u
  residual:  logits = head(h_base + u_invariant + w u_domain)

Source: Gendron et al. 2024 (arXiv 2402.02636), section 3. Deviations: one base and gathered
adapters instead of K + 2 models; the router never sees answer or padding; messages are stochastic
and metered; `residual` is ours (DESIGN of the project: a fresh model is its base bitwise).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from iclm import axes, experts, information, routing, sharding
from iclm.config import Config, InputError
from iclm.data.pipeline import Batch
from iclm.nn import combine, transformer
from iclm.routing import Routing


class Intervention(NamedTuple):
  """What is done to the model; a field that is None is left alone and costs nothing.

  route_B: expert per input, -1 leaves it alone. enabled_E: False masks the router's logits, so that
  the expert's inputs re-route. use_invariant: False drops the invariant stream. swap_E: an input
  routed to e is served by swap_E[e]. message_SBTZ where patch_SB: stream s of input b speaks with
  this message instead of its own (interchange; the training mean of an expert is its knock-out).
  """

  route_B: Int[Array, "B"] | None = None
  enabled_E: Bool[Array, "E"] | None = None
  use_invariant: Bool[Array, ""] | None = None
  swap_E: Int[Array, "E"] | None = None
  message_SBTZ: Float[Array, "S B T Z"] | None = None
  patch_SB: Bool[Array, "S B"] | None = None


NOTHING = Intervention()


class Output(NamedTuple):
  """logits_BTV in float32. The rest is None where the model has no such part.

  messages_SBTZ and rate_SBT (nats per position) are in the order of `streams`; alone_SBTV
  is what each stream says alone, on request.
  """

  logits_BTV: Float[Array, "B T V"]
  routing: Routing | None = None
  messages_SBTZ: Float[Array, "S B T Z"] | None = None
  rate_SBT: Float[Array, "S B T"] | None = None
  alone_SBTV: Float[Array, "S B T V"] | None = None
  prompt_BP: Float[Array, "B P"] | None = None  # What the router read, beside its prototypes.


class Model(NamedTuple):
  """Pure functions over one parameter tree.

  init(key) -> boxed params: {"base", "invariant", "domain", "router", "combine"}, the parts that
    the config has.
  apply(params, batch, key, do, tau=, alone=) -> Output. `key=None` is deterministic: messages
    take their mean, routes their argmax, nothing is dropped.
  """

  init: Callable[[Array], Any]
  apply: Callable[..., Output]


def check_finite(config: Config, params: Any) -> None:
  """Where every input meets all experts (block adapters, compute="all"), all must be finite.

  Raises:
    InputError: names an expert that is not.
  """
  if config.experts.kind == "none" or (config.compute == "routed" and not _is_block(config)):
    return
  for path, x in jax.tree.leaves_with_path(params["domain"]):
    bad_E = ~jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1)
    if bad_E.any():
      raise InputError(
        f"expert {int(bad_E.argmax())} is not finite in {jax.tree_util.keystr(path)}, and under "
        f"config.compute = {config.compute!r}, config.router.kind = {config.router.kind!r} every "
        "input would feel it"
      )


def streams(config: Config) -> tuple[str, ...]:
  """Names of the streams that a config runs, in their order."""
  if config.experts.kind == "none":
    return ()
  return axes.STREAMS if config.experts.invariant else (axes.DOMAIN,)


def build(config: Config, vocab_size: int, mesh: Mesh | None = None) -> Model:
  """The model of a config.

  Args:
    mesh: rows are pinned to it where given; without one the compiler is free.
  """
  decoder = transformer.Decoder(config.model, vocab_size, config.experts.dropout)
  if config.experts.kind == "none":
    return Model(
      lambda key: {"base": _init_base(decoder, key)}, functools.partial(_plain, config, decoder)
    )
  expert = experts.make(config)
  init = functools.partial(_init, config, decoder, expert)
  return Model(init, functools.partial(_apply, config, decoder, expert, mesh))


def _init_base(decoder: transformer.Decoder, key: Array) -> Any:
  tokens_BT, mask_BTT = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool)
  params = decoder.init(key, tokens_BT, tokens_BT, mask_BTT)["params"]
  if decoder.model.qk_init == "equal":
    for name in params.keys() & {"trunk_layers", "upper_layers"}:
      params[name] = transformer.equal_qk(dict(params[name]), decoder.model)
  return params


def _init(config: Config, decoder, expert: experts.Expert, key: Array) -> Any:
  k_base, k_domain, k_invariant, k_router, k_head = jax.random.split(key, 5)
  k_proj, k_prototypes = jax.random.split(k_router)
  d, p, e = config.model.d_model, config.router.width, config.experts.count
  params = {
    "base": _init_base(decoder, k_base),
    "domain": experts.stack(expert.init, k_domain, e),
    "router": {
      "projection_DP": _box(jax.random.normal(k_proj, (d, p)) * d**-0.5, (None, None)),
      "prototypes_EP": _box(jax.random.normal(k_prototypes, (e, p)), (None, None)),
    },
  }
  if config.experts.invariant:
    params["invariant"] = expert.init(k_invariant)
  if config.combine == "concat":
    width = len(streams(config)) * d
    head = jax.random.normal(k_head, (width, decoder.vocab_size)) * width**-0.5
    params["combine"] = {"head_CV": _box(head, (None, axes.VOCAB))}
  return params


def _box(value: Array, names: tuple[str | None, ...]) -> nn.LogicallyPartitioned:
  return nn.LogicallyPartitioned(value, names)


def _mask(config: Config, batch: Batch) -> Bool[Array, "B T T"]:
  prefix_BT = batch.segment_BT == 1 if config.model.attention == "prefix" else None
  return transformer.attention_mask(batch.segment_BT, prefix_BT)


def _plain(config, decoder, params, batch, key=None, do=NOTHING, *, tau=None, alone=False):
  """The plain base: no router, no experts, nothing to intervene on."""
  if any(field is not None for field in do):
    raise ValueError("the plain base has no router and no experts to intervene on")
  args = batch.tokens_BT, batch.position_BT, _mask(config, batch)
  return Output(decoder.apply({"params": params["base"]}, *args))


def _apply(
  config: Config,
  decoder: transformer.Decoder,
  expert: experts.Expert,
  mesh: Mesh | None,
  params: Any,
  batch: Batch,
  key: Array | None = None,
  do: Intervention = NOTHING,
  *,
  tau: Float[Array, ""] | float | None = None,
  alone: bool = False,
) -> Output:
  """See `Model`."""
  k_route, k_drop, k_noise = (None,) * 3 if key is None else jax.random.split(key, 3)
  pin = functools.partial(_pin, mesh)

  def call(method: str, *args: Any) -> Array:
    called: Any = decoder.apply({"params": params["base"]}, *args, method=method)
    return pin(called)

  shared = transformer.shared(config.model, batch.position_BT, _mask(config, batch), None)
  embedded_BTD = call("embed", batch.tokens_BT)
  x_BTD = call("trunk", embedded_BTD, shared)
  base_BTD: Any = None
  if config.combine == "residual" or config.router.reads == "base":
    base_BTD = call("upper", x_BTD, {}, shared)

  read_BTD = {"embed": embedded_BTD, "trunk": x_BTD, "base": base_BTD}[config.router.reads]
  routed, prompt = _route(config, params["router"], read_BTD, batch, k_route, do, tau)

  served = _serve(config, params, routed, batch.tokens_BT.shape[1])
  repeat = lambda x: pin(jnp.repeat(x, served.n, axis=0))
  shared = jax.tree.map(repeat, shared)._replace(weights_BTE=served.weights)
  run = lambda layers: call("upper", repeat(x_BTD), layers, shared)
  state = expert.apply(served.params, run, k_drop)
  said, z, rate = _speak(config, expert, served, state, k_noise, do)
  per_stream = functools.partial(_per_stream, config, served, routed)
  spoken: Any = per_stream(said)
  said_SBTD = spoken.astype(x_BTD.dtype)
  if config.bottleneck.kind == "none" and config.combine == "residual":
    said_SBTD = said_SBTD - base_BTD[None]  # The adapters' own effect on the state.

  strength_SB = _strength(config, routed, do)
  said_SBTD = jnp.where(strength_SB[..., None, None] == 0, 0, said_SBTD)
  unembed = lambda h: decoder.apply({"params": params["base"]}, h, method="unembed")
  head_CV = params["combine"]["head_CV"] if config.combine == "concat" else None
  mix = combine.KINDS[config.combine](said_SBTD, base_BTD, head_CV, unembed)
  alone_SBTV = None
  if alone:
    only_SSB = jnp.eye(len(strength_SB))[..., None] * jnp.ones_like(strength_SB)[None]
    alone_SBTV = jnp.stack([mix(only_SB) for only_SB in only_SSB])
  return Output(mix(strength_SB), routed, per_stream(z), per_stream(rate), alone_SBTV, prompt)


def _route(config: Config, params: Any, read_BTD: Array, batch: Batch, key, do: Intervention, tau):
  """Reads the prompt, and only the prompt. Returns the Routing and what was read, prompt_BP."""
  r = config.router
  if r.detach:
    read_BTD = jax.lax.stop_gradient(read_BTD)
  if r.level == "input":
    read_BTD = routing.pool(read_BTD, batch.prompt_mask_BT)
  prompt = transformer.rms_normalise(read_BTD, config.model.norm_eps) @ params["projection_DP"]
  # Per token, what holds for an input holds for each of its tokens.
  like_rows = lambda x_B: jnp.broadcast_to(
    x_B[(..., *(None,) * (prompt.ndim - 2))], prompt.shape[:-1]
  )
  routed = routing.route(
    r.kind,
    prompt,
    params["prototypes_EP"],
    scale=r.scale,
    tau=r.tau_end if tau is None else tau,
    straight_through=r.straight_through,
    key=key,
    row_mask_B=batch.prompt_mask_BT.any(axis=1) if r.level == "input" else batch.segment_BT > 0,
    hash_B=like_rows(routing.hash_tokens(batch.tokens_BT, batch.prompt_mask_BT)),
    domain_B=like_rows(batch.domain_B),
    enabled_E=do.enabled_E,
    route_B=None if do.route_B is None else like_rows(do.route_B),
    swap_E=do.swap_E,
  )
  return routed, prompt


class _Served(NamedTuple):
  """The rows that the upper layers run: `n` per input, in the order of `slots`."""

  params: Any  # Gathered for each row, or all experts where `weights` is given.
  weights: Array | None
  n: int
  slots: tuple[int, ...]  # Stream of each of an input's rows.


def _serve(config: Config, params: Any, routed: Routing, n_tokens: int) -> _Served:
  """Which parameters serve which row. Streams of an input lie side by side, so that rows stay on
  the device of their input."""
  names = streams(config)
  both = [params[name] for name in names]
  n_inputs = routed.index_B.shape[0]
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  if config.compute == "routed" and not _is_block(config):
    picked = experts.gather(params["domain"], routed.index_B)
    parts = [experts.repeat(p, n_inputs) for p in both[:-1]] + [picked]
    rows = jax.tree.map(lambda *x: flat(jnp.stack(x, axis=1)), *parts)
    return _Served(rows, None, len(names), tuple(range(len(names))))
  stacks = [jax.tree.map(lambda x: x[None], p) for p in both[:-1]] + both[-1:]
  every = jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)
  n_invariant, n_experts = len(names) - 1, config.experts.count
  if config.compute == "all":
    rows = jax.tree.map(flat, experts.repeat(every, n_inputs))
    slots = (0,) * n_invariant + (n_invariant,) * n_experts
    return _Served(rows, None, n_invariant + n_experts, slots)
  weights_BTE = routed.weights_BE if config.router.level == "token" else routed.weights_BE[:, None]
  weights_BTE = jnp.broadcast_to(weights_BTE, (n_inputs, n_tokens, n_experts))
  weights = jnp.pad(weights_BTE, ((0, 0), (0, 0), (n_invariant, 0)))
  if n_invariant:
    always = jnp.broadcast_to(jnp.eye(1, 1 + n_experts)[None], weights.shape)
    weights = flat(jnp.stack([always, weights], axis=1))
  return _Served(every, weights, len(names), tuple(range(len(names))))


def _is_block(config: Config) -> bool:
  """Routes that spread over experts or tokens, or whose gradient does, cannot be gathered."""
  r = config.router
  return r.kind in ("soft", "uniform") or r.level == "token" or r.gradient == "all"


def _speak(config: Config, expert: experts.Expert, served: _Served, state, key, do: Intervention):
  """What each row says (its contribution), its message and its rate in nats per position."""
  if config.bottleneck.kind == "none":
    if do.message_SBTZ is not None:
      raise ValueError("bottleneck.kind = 'none' has no message to patch")
    return state, None, None
  message = expert.encode(served.params, state, served.weights)
  z = information.sample_message(key, *message)
  if do.message_SBTZ is not None:
    to_rows = lambda x: jnp.moveaxis(x[jnp.array(served.slots)], 1, 0).reshape(-1, *x.shape[2:])
    z = jnp.where(to_rows(do.patch_SB)[:, None, None], to_rows(do.message_SBTZ), z)
  said = expert.decode(served.params, z, served.weights)
  return said, z, information.gaussian_rate(*message)


def _per_stream(config: Config, served: _Served, routed: Routing, rows: Array | None):
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


def _strength(config: Config, routed: Routing, do: Intervention) -> Float[Array, "S B"]:
  """Weight of each stream: 1 forward; backward, the domain stream's leads to the router."""
  ones_B = jnp.ones(routed.index_B.shape[0])
  domain_B = ones_B
  if config.compute == "routed" and not _is_block(config):
    domain_B = jnp.take_along_axis(routed.weights_BE, routed.index_B[:, None], axis=1)[:, 0]
  if not config.experts.invariant:
    return domain_B[None]
  invariant_B = ones_B if do.use_invariant is None else ones_B * do.use_invariant
  return jnp.stack([invariant_B, domain_B])


def _pin(mesh: Mesh | None, x: Array) -> Array:
  """Rows stay where their input is."""
  return x if mesh is None else jax.lax.with_sharding_constraint(x, sharding.rows(mesh))
