"""What evaluation needs of a batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from iclm import compose
from iclm.config import Config
from iclm.data.pipeline import Batch


class PositionScores(NamedTuple):
  """What evaluation needs of a batch, per position or per row; see `iclm.evals.accuracy`."""

  logp_BT: Float[Array, "B T"]  # Of the targets, nats (<= 0).
  hit_BT: Bool[Array, "B T"]  # The target is the argmax.
  alone_logp_ABT: Float[Array, "A B T"]  # The same of each of `compose.heard_alone`, if asked.
  alone_hit_ABT: Bool[Array, "A B T"]
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
  alone: bool = True,
) -> PositionScores:
  """Scores the targets of a batch; deterministic where `key` is None, else its messages are drawn.

  Args:
    alone: what each stream says alone is scored too, at the cost of one more head for each.
  """
  output = model.apply(params, batch, compose.Draws(message=key), do, alone=alone)
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
  return PositionScores(logp_BT, hit_BT, alone_logp, alone_hit, rate, index_B, confidence_B)


def _score(logits_BTV, targets_BT):
  logp_BT = -optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
  return logp_BT, logits_BTV.argmax(-1) == targets_BT
