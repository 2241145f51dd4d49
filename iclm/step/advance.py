"""One step of training: gradients, updates, and what follows from the routes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from iclm import compose, optim, routing, sharding
from iclm.config import LEARNED, Config
from iclm.data.pipeline import Batch
from iclm.step import terms
from iclm.step.state import TrainState, abstract_state
from iclm.step.terms import Seen


def make_train_step(config: Config, model: compose.Model, tx, mesh: Mesh) -> Callable:
  """`train_step` compiled: (state, batch, key) -> (state, metrics); the old state is donated.

  The next state keeps the shardings of `abstract_state`: left to the compiler, they would differ
  from those of a fresh or restored state in name, and the second step would compile all over.
  """
  advance = functools.partial(train_step, config=config, model=model, tx=tx)
  kept = jax.tree.map(lambda x: x.sharding, abstract_state(config, model, tx, mesh))
  return jax.jit(advance, donate_argnums=0, out_shardings=(kept, sharding.replicated(mesh)))


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
      per expert usage under `usage/e`; what the router and its temperature do, and how often
      updates were skipped. All scalars, float32 but for counts.
  """
  key, k_revive = jax.random.split(jax.random.fold_in(key, state.step))
  r = config.router
  tau = routing.temperature(state.step, r.tau_start, r.tau_end, r.tau_steps)
  loss_fn = functools.partial(terms.loss, config=config, model=model, state=state, tau=tau)
  grads, metrics, seen = _accumulate(loss_fn, state.params, batch, key, config.accumulate)
  norms = optim.group_norms(grads)
  finite = jnp.isfinite(metrics["loss_nats"]) & jnp.isfinite(sum(norms.values()))

  def move(state: TrainState) -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optim.apply_updates(state.params, updates)
    usage_E = state.usage_E
    if seen is not None:
      params, usage_E = _follow_routes(config, params, usage_E, seen, k_revive)
    group_G = _weigh_domains(config, state.group_G, metrics)
    return state._replace(params=params, opt_state=opt_state, usage_E=usage_E, group_G=group_G)

  # A branch, not a choice between two states: there the old moments would live beside the new ones.
  moved = jax.lax.cond(finite, move, lambda state: state, state)
  if seen is not None:
    usage_E = moved.usage_E
    metrics |= {f"usage/{e}": usage_E[e] for e in range(config.experts.count)}
    metrics |= {"effective_experts": routing.effective_experts(usage_E), "tau": tau}
  bad = (~finite).astype(jnp.int32)
  skipped, in_a_row = state.skipped + bad, (state.skipped_in_a_row + bad) * bad
  metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
  metrics |= {"skipped": skipped, "skipped_in_a_row": in_a_row}
  counted = {"step": state.step + 1, "skipped": skipped, "skipped_in_a_row": in_a_row}
  return moved._replace(**counted), metrics


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
  metrics = _joined(metrics)
  seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
  return grads, metrics, seen


def _joined(metrics: dict[str, Array]) -> dict[str, Array]:
  """Means over the micro-batches, of classes their number; a dependence is the mean of those that
  could tell it: where none of their classes is large enough, it is 0 in the loss."""
  told = {name: jnp.mean(x, axis=0) for name, x in metrics.items()}
  if "dependence_classes" in metrics:
    told |= {name: metrics[name].sum() for name in ("dependence_classes", "dependence_skipped")}
    n_able = (metrics["dependence_classes"] > 0).sum()
    told["dependence_nhsic"] = metrics["dependence_nhsic"].sum() / jnp.maximum(n_able, 1)
  return told


def _weigh_domains(config: Config, group_G, metrics):
  """The worse a domain fares, the more it weighs: exponentiated gradient ascent.

  Source: Sagawa et al., "Distributionally robust neural networks", arXiv 1911.08731, algorithm 1.
  Deviations: a step descends with the weights of the step before; and the domains of a batch share
  what weight they had, so that one that is not in it, of which nothing is known, keeps its own.
  """
  if config.loss.group_dro == 0:
    return group_G
  nats_G = jnp.stack([metrics[f"domain_nats/{name}"] for name in config.data.domains])
  here_G = ~jnp.isnan(nats_G)
  raised_G = jnp.where(here_G, group_G * jnp.exp(config.loss.group_dro * nats_G), 0.0)
  share = jnp.where(here_G, group_G, 0.0).sum() / jnp.maximum(raised_G.sum(), 1e-30)
  return jnp.where(here_G, raised_G * share, group_G)


def _follow_routes(config: Config, params, usage_E, seen: Seen, key):
  """Updates the running usage and revives dead experts, if the router learns."""
  r = config.router
  index_B, mask_B = seen.index_B, seen.mask_B
  usage_E = routing.update_usage(usage_E, index_B, mask_B, r.usage_decay)
  learns = r.kind in LEARNED and r.kind != "kmeans" and config.trains.router
  if r.revive_below == 0 or not learns:
    return params, usage_E
  flat = lambda x: x.reshape(-1, *x.shape[index_B.ndim :])
  score_B = flat(jnp.where(mask_B, seen.score_B, 0.0))
  prototypes_EP, revived_E = routing.revive(
    params["router"]["prototypes_EP"], usage_E, flat(seen.prompt_BP), score_B, key, r.revive_below
  )
  router = params["router"] | {"prototypes_EP": prototypes_EP}
  return params | {"router": router}, jnp.where(revived_E, 1 / usage_E.shape[0], usage_E)
