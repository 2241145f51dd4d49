"""The one apply, and the parameters that it takes."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from iclm import axes, experts, routing, sharding
from iclm.compose import around, parallel, serving
from iclm.compose.cache import Cache, Passes
from iclm.compose.interface import NOTHING, Draws, Intervention, Model, Output
from iclm.config import Config, InputError, require
from iclm.data.pipeline import Batch
from iclm.nn import attention, block, transformer


def build(config: Config, vocab_size: int, mesh: Mesh | None = None) -> Model:
  """The model of a config.

  Args:
    vocab_size: ids of the tokenizer.
    mesh: rows of a model with experts are pinned to it; else, and without one, the compiler is
      free.

  Raises:
    InputError: the tokenizer has more ids than the embedding has rows (`config.model.vocab_size`).
  """
  vocab_size = _rows(config, vocab_size)
  decoder = transformer.Decoder(config.model, vocab_size, config.experts.dropout)
  if config.experts.kind == "none":
    return Model(
      lambda key: {"base": transformer.init(decoder, key)},
      functools.partial(_plain, config, decoder),
      lambda params, routed: None,
    )
  n_domain, n_invariant = serving.n_layers(config)
  expert, invariant = experts.make(config, n_domain), experts.make(config, n_invariant)
  init = functools.partial(_init, config, decoder, expert, invariant)
  apply = functools.partial(_apply, config, decoder, expert, mesh)
  return Model(init, apply, functools.partial(parallel.adapters, config, expert))


def _rows(config: Config, vocab_size: int) -> int:
  """Rows of the embedding: at least as many as the tokenizer has ids."""
  rows = config.model.vocab_size or vocab_size
  if rows < vocab_size:
    raise InputError(
      f"the tokenizer has {vocab_size} ids, but config.model.vocab_size = {rows}; name the "
      "tokenizer that the base was trained with, or set it to 0"
    )
  return rows


def _init(config: Config, decoder, expert, invariant: experts.Expert, key: Array) -> Any:
  k_base, k_domain, k_invariant, k_router, k_head = jax.random.split(key, 5)
  k_proj, k_prototypes = jax.random.split(k_router)
  d, p, e = config.model.d_model, config.router.width, config.experts.count
  params = {
    "base": transformer.init(decoder, k_base),
    # All that reaches the core comes through an expert: it starts on one language, not on E.
    "domain": experts.stack(expert.init, k_domain, e, config.topology.kind == "around"),
    "router": {
      "projection_DP": _box(jax.random.normal(k_proj, (d, p)) * d**-0.5, (None, None)),
      "prototypes_EP": _box(jax.random.normal(k_prototypes, (e, p)), (None, None)),
    },
  }
  if config.experts.invariant:
    params["invariant"] = invariant.init(k_invariant)
  if config.combine == "concat":
    width = len(serving.streams(config)) * d
    head = jax.random.normal(k_head, (width, decoder.vocab_size)) * width**-0.5
    params["combine"] = {"head_CV": _box(head, (None, axes.VOCAB))}
  return params


def _box(value: Array, names: tuple[str | None, ...]) -> nn.LogicallyPartitioned:
  return nn.LogicallyPartitioned(value, names)


def _mask(config: Config, batch: Batch, passes: Passes) -> Bool[Array, "B T C"] | None:
  """Who sees whom; None where each token sees all before it, which a kernel need not be told.

  A kernel that knows it skips half of the products. Only padding then sees more than under a mask.
  """
  m, has_one = config.model, config.data.questions_per_row == 1
  is_causal = m.attention == "causal" and m.window == 0 and has_one and not passes.has_cache
  if m.kernel == "cudnn" and is_causal:
    return None
  prefix_BT = batch.segment_BT == 1 if m.attention == "prefix" else None
  own_BTT = attention.own_mask(batch.segment_BT, prefix_BT)
  return passes.mask(batch, own_BTT, m.window)


def _positions(config: Config, batch: Batch, key: Array | None) -> Int[Array, "B T"]:
  """Positions with steps drawn from 1..`position_gap`, or their mean when there is no key.

  What is learnt then goes by the order of tokens and not by their distance, and longer inputs stay
  within the distances that training has seen. The questions of a row see one drawn context.
  Source: after Ruoss et al. 2023 (arXiv 2305.16843), who draw the positions from a range at once.
  """
  gap, position_BT = config.model.position_gap, batch.position_BT
  if gap == 1:
    return position_BT
  if key is None:
    return position_BT * (1 + gap) // 2
  steps_BT = jax.random.randint(key, position_BT.shape, 1, gap + 1)
  return jnp.take_along_axis(jnp.cumsum(steps_BT, axis=1), position_BT, axis=1)


def _plain(
  config,
  decoder,
  params,
  batch,
  key=None,
  do=NOTHING,
  *,
  tau=None,
  alone=False,
  cache=None,
  at_BC=None,
  adapters=None,
):
  """The plain base: no router, no experts, nothing to intervene on."""
  del adapters  # There are none.
  if any(field is not None for field in do):
    raise ValueError("the plain base has no router and no experts to intervene on")
  passes = Passes(lambda x: x, cache)
  call = functools.partial(decoder.apply, {"params": params["base"]})
  mask_BTC = _mask(config, batch, passes)
  shared = block.shared(
    config.model, _positions(config, batch, Draws.of(key).position), mask_BTC, None
  )
  run = lambda method, *args: passes(method, functools.partial(call, *args, method=method))
  x_BTD = run("trunk", call(batch.tokens_BT, method="embed"), shared)
  logits_BTV = call(run("upper", x_BTD, {}, shared, at_BC), method="unembed")
  return Output(logits_BTV, cache=passes.grown(batch, None))


def _apply(
  config: Config,
  decoder: transformer.Decoder,
  expert: experts.Expert,
  mesh: Mesh | None,
  params: Any,
  batch: Batch,
  key: Array | Draws | None = None,
  do: Intervention = NOTHING,
  *,
  tau: Float[Array, ""] | float | None = None,
  alone: bool = False,
  cache: Cache | None = None,
  at_BC: Int[Array, "B C"] | None = None,
  adapters: Any = None,
) -> Output:
  """See `Model`."""
  draws = Draws.of(key)
  pin = functools.partial(_pin, mesh)
  passes = Passes(pin, cache)

  def call(name: str | None, method: str, *args: Any) -> Array:
    variables = {"params": params["base"]}
    return passes(name, functools.partial(decoder.apply, variables, *args, method=method))

  position_BT, mask_BTC = _positions(config, batch, draws.position), _mask(config, batch, passes)
  shared = block.shared(config.model, position_BT, mask_BTC, None)
  embedded_BTD = call(None, "embed", batch.tokens_BT)
  x_BTD = call("trunk", "trunk", embedded_BTD, shared)
  base_BTD: Any = None
  routed, read, prompt = _kept_route(config, cache), None, None
  base = _base_pass(config, cache is not None, routed is not None, batch.read_BD is not None)
  if base.is_summed or base.is_read:
    # What only the router of a prompt reads is not needed again.
    again = base.is_summed or config.router.level == "token"
    asked = None if base.is_read else at_BC  # A router reads every token of a prompt.
    base_BTD = call("base" if again else None, "upper", x_BTD, {}, shared, asked)
  if routed is None:
    state_BTD = {"embed": embedded_BTD, "trunk": x_BTD, "base": base_BTD}[config.router.reads]
    read = _read(config, state_BTD, batch)
    routed, prompt = _route(config, params["router"], read, batch, draws.route, do, tau)
  args = config, decoder, expert, passes, params, x_BTD, shared, routed, draws, do, at_BC, adapters
  upper = serving.Upper(*args)
  if config.topology.kind == "around":
    told = *around.run(upper), None
  else:
    base_BCD = block.pick(base_BTD, at_BC if base.is_read else None)
    told = parallel.run(upper, base_BCD if base.is_summed else None, alone=alone)
  logits_BTV, messages_SBTZ, rate_SBT, alone_SBTV = told
  if base.will_join and base.is_summed:
    passes.join("streams", "base")
  cached = passes.grown(batch, None if config.router.level == "token" else routed)
  return Output(logits_BTV, routed, messages_SBTZ, rate_SBT, alone_SBTV, read, prompt, cached)


class _BasePass(NamedTuple):
  """What the base's own pass through the upper layers, which no expert changes, is run for.

  Attributes:
    is_summed: its state is a summand of the logits, and no row of the streams' pass is it.
    is_read: the router reads it.
    will_join: token by token, what a pass costs is the weights that it reads: from the second pass
      over a cache on, the base is one row more beside the streams.
  """

  is_summed: bool
  is_read: bool
  will_join: bool


def _base_pass(config: Config, is_cached: bool, is_routed: bool, is_kept: bool) -> _BasePass:
  """Args: there is a cache; it holds a route; what the router reads of a prompt comes with it."""
  residual = config.combine == "residual"
  will_join = is_cached and residual and not serving.is_block(config)
  is_read = config.router.reads == "base" and not is_routed and not is_kept
  return _BasePass(residual and not (will_join and is_routed), is_read, will_join)


def _kept_route(config: Config, cache: Cache | None) -> routing.Routing | None:
  """The route of the prompt that a cache holds; routed by token, there is none to keep.

  Raises:
    InputError: the route of a token goes by the whole prompt, which is gone.
  """
  if cache is None:
    return None
  require(
    config.router.level == "input" or config.router.kind != "random",
    "config.router.kind = 'random' with config.router.level = 'token' hashes the whole prompt "
    "for each token, and cannot go on from a cache; level = 'input' can",
  )
  return cache.routed


def _read(config: Config, read: Any, batch: Batch) -> Array:
  """What the router has of states, and only of the prompt's: read_BD, or of each token read_BTD."""
  if batch.read_BD is not None:
    return batch.read_BD
  if config.router.level == "input":
    read = routing.pool(read, batch.prompt_mask_BT)
  return jax.lax.stop_gradient(read) if config.router.detach else read


def _route(config: Config, params: Any, read: Array, batch: Batch, key, do: Intervention, tau):
  """Returns the Routing and what it goes by, prompt_BP."""
  r = config.router
  prompt = block.rms_normalise(read, config.model.norm_eps) @ params["projection_DP"]
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


def _pin(mesh: Mesh | None, x: Array) -> Array:
  """Rows stay where their input is."""
  return x if mesh is None else jax.lax.with_sharding_constraint(x, sharding.rows(mesh))
