"""The loss of a batch, term by term."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iclm import compose, information, losses, optim
from iclm.config import Config
from iclm.data.pipeline import Batch

# Terms that the router adds: its own names, with their units -> the weight's name in config.loss.
ROUTER_TERMS = {
  "balance_ratio": "balance",
  "z_nats2": "zloss",
  "codebook_sq": "codebook",
  "commitment_sq": "commitment",
}


class Seen(NamedTuple):
  """What the router saw and chose in a step, per input or per token; None without experts."""

  index_B: Int[Array, "*B"]
  prompt_BP: Any  # Float[Array, "*B P"]
  score_B: Float[Array, "*B"]
  mask_B: Bool[Array, "*B"]  # Not padding.


class Counted(NamedTuple):
  """The positions whose targets a loss is taken of: C of each row, or all T of them."""

  at_BC: Int[Array, "B C"] | None  # None for all; then C is T in what follows.
  targets_BC: Int[Array, "B C"]
  mask_BC: Float[Array, "B C"]
  starts_BC: Bool[Array, "B C"]  # An answer starts here.


def loss(params, batch: Batch, key, n_tokens, *, config: Config, model: compose.Model, state, tau):
  """Weighted total of one micro-batch, with (metrics, Seen). `n_tokens`: counted per micro-batch
  on average, so that the mean over micro-batches is the mean over the batch. Of the state, it goes
  by the step and by the weights of the domains."""
  params = _without_frozen_gradients(config, params)
  k_apply, k_dependence = jax.random.split(key)
  # Folded, not split: without perturbations, the draws of all else are what they were.
  do = compose.perturb(config, len(batch.tokens_BT), jax.random.fold_in(key, 2), state.step)
  at = _counted(config, batch)
  alone = config.loss.aux > 0
  output = model.apply(params, batch, k_apply, do, tau=tau, alone=alone, at_BC=at.at_BC)
  mean = lambda nats, n: nats * n / jnp.maximum(n_tokens, 1)
  nll, counted = losses.next_token_xent(output.logits_BTV, at.targets_BC, at.mask_BC)
  terms: dict[str, Any] = {"answer_nats": mean(nll, counted)}
  weights: dict[str, Any] = {"answer_nats": 1.0}
  extra = {}
  if config.loss.group_dro > 0:
    of_batch = output.logits_BTV, at.targets_BC, at.mask_BC, batch.domain_B
    nats_G, n_G = losses.grouped_xent(*of_batch, len(state.group_G))
    terms["group_dro_nats"] = (state.group_G * nats_G).sum()
    weights |= {"answer_nats": 0.0, "group_dro_nats": 1.0}
    told_G = jnp.where(n_G > 0, nats_G, jnp.nan)  # Undefined of a domain that no row shows.
    extra = {f"domain_nats/{name}": told_G[g] for g, name in enumerate(config.data.domains)}
  names = compose.streams(config)
  if output.rate_SBT is not None:
    beta = config.loss.beta * jnp.minimum(1.0, (state.step + 1) / max(config.bottleneck.ramp, 1))
    for name, rate_BT in zip(names, output.rate_SBT, strict=True):
      rate = jnp.where(at.mask_BC > 0, rate_BT, 0.0).sum() / jnp.maximum(n_tokens, 1)
      terms[f"rate_{name}_nats"], weights[f"rate_{name}_nats"] = rate, beta
  if output.alone_SBTV is not None:
    for name, alone_BTV in zip(names, output.alone_SBTV, strict=True):
      nll, counted = losses.next_token_xent(alone_BTV, at.targets_BC, at.mask_BC)
      terms[f"aux_{name}_nats"], weights[f"aux_{name}_nats"] = mean(nll, counted), config.loss.aux
  if config.loss.dependence > 0:
    value, found = _dependence(config, output, batch, at, k_dependence, do)
    extra |= found
    terms |= value
    weights |= dict.fromkeys(value, config.loss.dependence)
  if output.routing is not None:
    for name, term in output.routing.losses.items():
      terms[f"router_{name}"] = term
      weights[f"router_{name}"] = getattr(config.loss, ROUTER_TERMS[name])
  loss, metrics = losses.total(terms, weights)
  hit = (output.logits_BTV.argmax(-1) == at.targets_BC) & (at.mask_BC > 0)
  metrics |= extra | {"loss_nats": loss, "token_accuracy": hit.sum() / jnp.maximum(n_tokens, 1)}
  return loss, (metrics, _seen(config, output, batch))


def _without_frozen_gradients(config: Config, params):
  params = {
    name: part if getattr(config.trains, name) else jax.lax.stop_gradient(part)
    for name, part in params.items()
  }
  if not config.trains.lower:
    lower = {name: params["base"][name] for name in optim.LOWER if name in params["base"]}
    params |= {"base": params["base"] | jax.lax.stop_gradient(lower)}
  return params


def _seen(config: Config, output: compose.Output, batch: Batch):
  """Returns a Seen; None without experts."""
  routed: Any = output.routing
  if routed is None:
    return None
  mask_B = batch.prompt_mask_BT.any(axis=1)
  if config.router.level == "token":
    mask_B = batch.segment_BT > 0
  # What another expert was made to serve, the router still meant.
  return Seen(routed.own_B, output.prompt_BP, routed.score_B, mask_B)


def _counted(config: Config, batch: Batch) -> Counted:
  counts_BT = batch.loss_mask_BT > 0
  before_BT = jnp.pad(counts_BT[:, :-1], ((0, 0), (1, 0)))
  same_BT = jnp.pad(batch.segment_BT[:, 1:] == batch.segment_BT[:, :-1], ((0, 0), (1, 0)))
  # Where a loss counts all targets, the context starts none.
  starts_BT = counts_BT & ~(before_BT & same_BT) & (batch.segment_BT > 1)
  every = batch.targets_BT, batch.loss_mask_BT, starts_BT
  if config.data.counted == 0:
    return Counted(None, *every)
  # Those that count, in their order, then others to fill up, which do not.
  _, at_BC = jax.lax.top_k(batch.loss_mask_BT, config.data.counted)
  return Counted(at_BC, *(jnp.take_along_axis(x_BT, at_BC, axis=1) for x_BT in every))


def _dependence(
  config: Config,
  output: compose.Output,
  batch: Batch,
  at: Counted,
  key: Array,
  do: compose.Intervention,
):
  """Dependence of the two messages where an answer starts: one sample per question.

  Without those inputs of which one stream is silent, or another's, by intervention: which one it is
  is a dependence that no message can be rid of.
  """
  start_M = at.starts_BC.reshape(-1)
  n = min(start_M.size, len(at.starts_BC) * config.data.questions_per_row)
  (at_N,) = jnp.nonzero(start_M, size=n, fill_value=0)
  mask_N = jnp.arange(n) < start_M.sum()
  if do.speaker_SB is not None:
    untouched_B = (do.speaker_SB == jnp.arange(len(at.starts_BC))[None]).all(axis=0)
    mask_N &= untouched_B[at_N // at.starts_BC.shape[1]]
  messages_SBTZ: Any = output.messages_SBTZ
  x_NZ, y_NZ = (z_BTZ.reshape(-1, z_BTZ.shape[-1])[at_N] for z_BTZ in messages_SBTZ)
  d = config.dependence
  if d.kind == "joint_mi":
    p_NC, q_NC = (jax.nn.softmax(z_NZ[:, : d.features]) for z_NZ in (x_NZ, y_NZ))
    return {"dependence_mi_nats": information.joint_mi(p_NC, q_NC, mask_N)}, {}
  n_vocab = output.logits_BTV.shape[-1]
  groups_N, n_groups, n_rare = _groups(config, n_vocab, batch, at, at_N, mask_N)
  result = information.dependence(x_NZ, y_NZ, mask_N, groups_N, n_groups, key, d.features)
  skipped = result.n_skipped + n_rare
  extra = {"dependence_classes": result.n_used, "dependence_skipped": skipped}
  return {"dependence_nhsic": result.value}, extra


def _groups(config: Config, n_vocab: int, batch: Batch, at: Counted, at_N, mask_N):
  """Class of each sample: nothing, its domain, or its label among the most frequent ones; the
  number of classes, and of the labels that are in none."""
  d = config.dependence
  if d.given == "none":
    return None, 1, 0
  if d.given == "domain":
    domain_BC = jnp.broadcast_to(batch.domain_B[:, None], at.targets_BC.shape)
    return domain_BC.reshape(-1)[at_N], max(len(config.data.domains), 1), 0
  label_N = at.targets_BC.reshape(-1)[at_N]
  n_V = jnp.zeros(n_vocab, jnp.int32).at[label_N].add(mask_N)
  n_groups = min(d.classes, n_vocab)
  n_G, frequent_G = jax.lax.top_k(n_V, n_groups)
  class_V = jnp.full(n_vocab, -1).at[frequent_G].set(jnp.arange(n_groups))
  return class_V[label_N], n_groups, (n_V > 0).sum() - (n_G > 0).sum()
