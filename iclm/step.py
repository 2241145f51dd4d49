"""TrainState, its init, and the two pure steps: one moves the state, one scores a batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from iclm import compose, information, losses, optim, routing, sharding
from iclm.config import Config, InputError
from iclm.data.pipeline import Batch

# Terms that the router adds: its own names -> (metric with unit, weight in config.loss).
ROUTER_TERMS = {
  "balance_ratio": "balance",
  "z_nats2": "zloss",
  "codebook_sq": "codebook",
  "commitment_sq": "commitment",
}


class TrainState(NamedTuple):
  """Everything that the next step depends on, besides its batch and the run's key."""

  step: Int[Array, ""]
  params: Any
  opt_state: Any
  usage_E: Float[Array, "E"]  # Running share of inputs per expert.
  skipped: Int[Array, ""]  # Non-finite steps so far,
  skipped_in_a_row: Int[Array, ""]  # and since the last good one.


def init_state(
  config: Config, model: compose.Model, tx: optax.GradientTransformation, mesh: Mesh, key: Array
) -> TrainState:
  """A fresh state, born in its shards: no device ever holds more than its part."""
  build = functools.partial(_build, config, model, tx)
  shardings = sharding.shardings_of(jax.eval_shape(build, key), mesh, fsdp=config.fsdp)
  return jax.jit(lambda k: sharding.unbox(build(k)), out_shardings=shardings)(key)


def abstract_state(config: Config, model: compose.Model, tx, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state, for restoring it."""
  boxed = jax.eval_shape(functools.partial(_build, config, model, tx), jax.random.key(0))
  shardings = sharding.shardings_of(boxed, mesh, fsdp=config.fsdp)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, sharding.unbox(boxed), shardings)


def make_train_step(config: Config, model: compose.Model, tx, mesh: Mesh) -> Callable:
  """`train_step` compiled: (state, batch, key) -> (state, metrics); the old state is donated.

  The next state keeps the shardings of `abstract_state`: left to the compiler, they would differ
  from those of a fresh or restored state in name, and the second step would compile all over.
  """
  advance = functools.partial(train_step, config=config, model=model, tx=tx)
  kept = jax.tree.map(lambda x: x.sharding, abstract_state(config, model, tx, mesh))
  return jax.jit(advance, donate_argnums=0, out_shardings=(kept, sharding.replicated(mesh)))


def _build(config: Config, model: compose.Model, tx, key: Array) -> TrainState:
  params = model.init(key)
  n = max(config.experts.count, 1)
  # Every counter is an array of its own: a donated state may hold no buffer twice.
  zero = lambda: jnp.zeros((), jnp.int32)
  return TrainState(
    zero(), params, tx.init(params), jnp.full((n,), 1 / n, jnp.float32), zero(), zero()
  )


def train_step(
  state: TrainState,
  batch: Batch,
  key: Array,
  *,
  config: Config,
  model: compose.Model,
  tx: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
  """The next state and scalar metrics; donate `state` when jitting.

  A non-finite loss or gradient leaves parameters, moments and usage as they were and is counted.
  Noise is folded from (key, step), so that a resumed run draws alike.

  Args:
    key: of the run; the same for every step.

  Returns:
    metrics: every loss term raw and weighted, with its unit as suffix; gradient norms per group;
      per expert usage under `usage/e`. All float32 scalars.
  """
  key, k_revive = jax.random.split(jax.random.fold_in(key, state.step))
  r = config.router
  tau = routing.temperature(state.step, r.tau_start, r.tau_end, r.tau_steps)
  loss_fn = functools.partial(_loss, config=config, model=model, tau=tau)
  grads, metrics, seen = _accumulate(loss_fn, state.params, batch, key, config.accumulate)
  norms = optim.group_norms(grads)
  finite = jnp.isfinite(metrics["loss_nats"]) & jnp.isfinite(sum(norms.values()))

  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optim.apply_updates(state.params, updates)
  usage_E = state.usage_E
  if seen is not None:
    params, usage_E = _follow_routes(config, params, usage_E, seen, k_revive)
    metrics |= {f"usage/{e}": usage_E[e] for e in range(config.experts.count)}
    metrics |= {"effective_experts": routing.effective_experts(usage_E), "tau": tau}
  keep = lambda new, old: jnp.where(finite, new, old)
  params, opt_state, usage_E = jax.tree.map(
    keep, (params, opt_state, usage_E), (state.params, state.opt_state, state.usage_E)
  )
  bad = (~finite).astype(jnp.int32)
  skipped, in_a_row = state.skipped + bad, (state.skipped_in_a_row + bad) * bad
  metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
  metrics |= {"skipped": skipped, "skipped_in_a_row": in_a_row}
  return TrainState(state.step + 1, params, opt_state, usage_E, skipped, in_a_row), metrics


class Seen(NamedTuple):
  """What the router saw and did in a step; None for routers that learn nothing."""

  index_B: Int[Array, "B"]
  prompt_BP: Any  # Float[Array, "B P"]
  score_B: Float[Array, "B"]
  row_mask_B: Bool[Array, "B"]


def _loss(params, batch: Batch, key, n_tokens, *, config: Config, model: compose.Model, tau):
  """Weighted total of one micro-batch, with (metrics, Seen). `n_tokens`: counted per micro-batch
  on average, so that the mean over micro-batches is the mean over the batch."""
  params = {
    name: part if getattr(config.trains, name) else jax.lax.stop_gradient(part)
    for name, part in params.items()
  }
  k_apply, k_dependence = jax.random.split(key)
  output = model.apply(params, batch, k_apply, tau=tau, alone=config.loss.aux > 0)
  mean = lambda nats, n: nats * n / jnp.maximum(n_tokens, 1)
  nll, counted = losses.next_token_xent(output.logits_BTV, batch.targets_BT, batch.loss_mask_BT)
  terms, weights = {"answer_nats": mean(nll, counted)}, {"answer_nats": 1.0}
  extra = {}
  names = compose.streams(config)
  if output.rate_SBT is not None:
    for name, rate_BT in zip(names, output.rate_SBT, strict=True):
      rate = jnp.where(batch.loss_mask_BT > 0, rate_BT, 0.0).sum() / jnp.maximum(n_tokens, 1)
      terms[f"rate_{name}_nats"], weights[f"rate_{name}_nats"] = rate, config.loss.beta
  if output.alone_SBTV is not None:
    for name, alone_BTV in zip(names, output.alone_SBTV, strict=True):
      nll, counted = losses.next_token_xent(alone_BTV, batch.targets_BT, batch.loss_mask_BT)
      terms[f"aux_{name}_nats"], weights[f"aux_{name}_nats"] = mean(nll, counted), config.loss.aux
  if config.loss.dependence > 0:
    value, extra = _dependence(config, output, batch, k_dependence)
    terms |= value
    weights |= dict.fromkeys(value, config.loss.dependence)
  if output.routing is not None:
    for name, term in output.routing.losses.items():
      terms[f"router_{name}"] = term
      weights[f"router_{name}"] = getattr(config.loss, ROUTER_TERMS[name])
  loss, metrics = losses.total(terms, weights)
  hit = (output.logits_BTV.argmax(-1) == batch.targets_BT) & (batch.loss_mask_BT > 0)
  metrics |= extra | {"loss_nats": loss, "token_accuracy": hit.sum() / jnp.maximum(n_tokens, 1)}
  seen = None
  if output.routing is not None:
    rows_B = batch.prompt_mask_BT.any(axis=1)
    seen = Seen(output.routing.index_B, output.prompt_BP, output.routing.score_B, rows_B)
  return loss, (metrics, seen)


def check_weights(config: Config) -> None:
  """A loss weight without a term to weigh would be ignored: that is an error.

  Raises:
    InputError: names the weight and the router whose losses it cannot weigh.
  """
  has = set()
  if config.experts.kind != "none" and config.router.kind in routing.LEARNED:
    has = {"balance", "zloss"} | (
      {"codebook", "commitment"} if config.router.kind == "vq" else set()
    )
  for name in ("balance", "zloss", "codebook", "commitment"):
    if getattr(config.loss, name) != 0 and name not in has:
      raise InputError(
        f"config.loss.{name} = {getattr(config.loss, name)} weighs nothing under "
        f"config.router.kind = {config.router.kind!r}, config.experts.kind = "
        f"{config.experts.kind!r}; set it to 0"
      )


def _dependence(config: Config, output: compose.Output, batch: Batch, key):
  """Dependence of the two messages where an answer starts: one sample per question."""
  starts_BT = batch.loss_mask_BT > 0
  before_BT = jnp.pad(starts_BT[:, :-1], ((0, 0), (1, 0)))
  same_BT = jnp.pad(batch.segment_BT[:, 1:] == batch.segment_BT[:, :-1], ((0, 0), (1, 0)))
  start_M = (starts_BT & ~(before_BT & same_BT)).reshape(-1)
  # A row starts one answer per segment, its context included where `data.loss` is "all".
  n = min(start_M.size, len(starts_BT) * (config.data.questions_per_row + 1))
  (at_N,) = jnp.nonzero(start_M, size=n, fill_value=0)
  mask_N = jnp.arange(n) < start_M.sum()
  messages_SBTZ: Any = output.messages_SBTZ
  x_NZ, y_NZ = (z_BTZ.reshape(-1, z_BTZ.shape[-1])[at_N] for z_BTZ in messages_SBTZ)
  d = config.dependence
  if d.kind == "joint_mi":
    p_NC, q_NC = (jax.nn.softmax(z_NZ[:, : d.features]) for z_NZ in (x_NZ, y_NZ))
    return {"dependence_mi_nats": information.joint_mi(p_NC, q_NC, mask_N)}, {}
  groups_N, n_groups = _groups(config, output.logits_BTV.shape[-1], batch, at_N, mask_N)
  result = information.dependence(x_NZ, y_NZ, mask_N, groups_N, n_groups, key, d.features)
  extra = {"dependence_classes": result.n_used, "dependence_skipped": result.n_skipped}
  return {"dependence_nhsic": result.value}, extra


def _groups(config: Config, n_vocab: int, batch: Batch, at_N, mask_N):
  """Class of each sample: nothing, its domain, or its label among the most frequent ones."""
  d = config.dependence
  if d.given == "none":
    return None, 1
  if d.given == "domain":
    domain_BT = jnp.broadcast_to(batch.domain_B[:, None], batch.tokens_BT.shape)
    return domain_BT.reshape(-1)[at_N], max(len(config.data.domains), 1)
  label_N = batch.targets_BT.reshape(-1)[at_N]
  n_V = jnp.zeros(n_vocab, jnp.int32).at[label_N].add(mask_N)
  n_groups = min(d.classes, n_vocab)
  _, frequent_G = jax.lax.top_k(n_V, n_groups)
  class_V = jnp.full(n_vocab, -1).at[frequent_G].set(jnp.arange(n_groups))
  return class_V[label_N], n_groups


def _accumulate(loss_fn: Callable, params, batch: Batch, key, n: int):
  """Mean gradient and metrics over `n` micro-batches, and what the router saw in all of them."""
  n_tokens = (batch.loss_mask_BT > 0).sum() / n
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if n == 1:
    grads, (metrics, seen) = grad_fn(params, batch, key, n_tokens)
    return grads, metrics, seen
  # Row b * n + a goes to micro-batch a: every device keeps its own rows.
  split = lambda x: jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)

  def micro(grads, inputs):
    more, aux = grad_fn(params, inputs[0], inputs[1], n_tokens)
    return jax.tree.map(jnp.add, grads, more), aux

  zeros = jax.tree.map(jnp.zeros_like, params)
  xs = (jax.tree.map(split, batch), jax.random.split(key, n))
  grads, (metrics, seen) = jax.lax.scan(micro, zeros, xs)
  grads = jax.tree.map(lambda g: g / n, grads)
  metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
  seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
  return grads, metrics, seen


def _follow_routes(config: Config, params, usage_E, seen: Seen, key):
  """Updates the running usage and revives dead experts, if the router learns."""
  r = config.router
  index_B, mask_B = seen.index_B, seen.row_mask_B
  if r.level == "token":
    mask_B = jnp.broadcast_to(mask_B[:, None], index_B.shape)
  usage_E = routing.update_usage(usage_E, index_B, mask_B, r.usage_decay)
  learns = r.kind in routing.LEARNED and r.kind != "kmeans" and config.trains.router
  if r.revive_below == 0 or not learns:
    return params, usage_E
  flat = lambda x: x.reshape(-1, *x.shape[index_B.ndim :])
  score_B = flat(jnp.where(mask_B, seen.score_B, 0.0))
  prototypes_EP, revived_E = routing.revive(
    params["router"]["prototypes_EP"], usage_E, flat(seen.prompt_BP), score_B, key, r.revive_below
  )
  router = params["router"] | {"prototypes_EP": prototypes_EP}
  return params | {"router": router}, jnp.where(revived_E, 1 / usage_E.shape[0], usage_E)


class Scores(NamedTuple):
  """What evaluation needs of a batch, per position or per row; see `iclm.evals.accuracy`."""

  logp_BT: Float[Array, "B T"]  # Of the targets, nats (<= 0).
  hit_BT: Bool[Array, "B T"]  # The target is the argmax.
  alone_logp_SBT: Float[Array, "S B T"]  # The same for each stream alone.
  alone_hit_SBT: Bool[Array, "S B T"]
  rate_SBT: Float[Array, "S B T"]
  index_B: Int[Array, "B"]
  confidence_B: Float[Array, "B"]


def eval_step(
  params: Any,
  batch: Batch,
  key: Array | None,
  do: compose.Intervention,
  *,
  config: Config,
  model: compose.Model,
) -> Scores:
  """Scores the targets of a batch; deterministic where `key` is None."""
  output = model.apply(params, batch, key, do, alone=True)
  logp_BT, hit_BT = _score(output.logits_BTV, batch.targets_BT)
  n = (0, *batch.tokens_BT.shape)
  alone_logp, alone_hit = jnp.zeros(n), jnp.zeros(n, bool)
  if output.alone_SBTV is not None:
    alone_logp, alone_hit = jax.vmap(_score, (0, None))(output.alone_SBTV, batch.targets_BT)
  silent = jnp.zeros((len(compose.streams(config)), *batch.tokens_BT.shape))  # No bottleneck.
  rate = silent if output.rate_SBT is None else output.rate_SBT
  index_B, confidence_B = jnp.zeros(n[1], jnp.int32), jnp.ones(n[1])
  if output.routing is not None:
    first = (slice(None), *(0,) * (output.routing.index_B.ndim - 1))  # Of tokens: the first one's.
    index_B, confidence_B = output.routing.index_B[first], output.routing.confidence_B[first]
  return Scores(logp_BT, hit_BT, alone_logp, alone_hit, rate, index_B, confidence_B)


def _score(logits_BTV, targets_BT):
  logp_BT = -optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
  return logp_BT, logits_BTV.argmax(-1) == targets_BT
