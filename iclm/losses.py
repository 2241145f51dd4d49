"""Scalars to descend on: the cross-entropy of the next token, and the weighted total."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, ScalarLike, Shaped

from iclm.config import InputError


def next_token_xent(
  logits_BTV: Float[Array, "*B T V"],
  targets_BT: Int[Array, "*B T"],
  mask_BT: Shaped[Array, "*B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Masked mean cross-entropy of the next token, computed in float32.

  What does not count cannot be felt: its logits may be NaN and its target any integer, and neither
  the loss nor a gradient notices.

  Args:
    logits_BTV: unnormalised log-probabilities, any float dtype.
    targets_BT: token ids in [0, V) where the mask is set.
    mask_BT: non-zero where the token counts.

  Returns:
    loss: nats per counted token; 0 when the mask is empty.
    n_tokens: the number of counted tokens.
  """
  nats_BT, counts_BT = _nats(logits_BTV, targets_BT, mask_BT)
  n_tokens = counts_BT.sum(dtype=jnp.float32)
  return nats_BT.sum() / jnp.maximum(n_tokens, 1.0), n_tokens


def grouped_xent(
  logits_BTV: Float[Array, "B T V"],
  targets_BT: Int[Array, "B T"],
  mask_BT: Shaped[Array, "B T"],
  group_B: Int[Array, "B"],
  n_groups: int,
) -> tuple[Float[Array, "G"], Float[Array, "G"]]:
  """`next_token_xent` of each group of rows.

  Args:
    group_B: in [0, n_groups); a row of another number belongs to no group.

  Returns:
    loss_G: nats per counted token; 0 for a group without one.
    n_G: counted tokens of each group.
  """
  nats_BT, counts_BT = _nats(logits_BTV, targets_BT, mask_BT)
  member_BG = jax.nn.one_hot(group_B, n_groups)
  n_G = counts_BT.sum(1, dtype=jnp.float32) @ member_BG
  return nats_BT.sum(1) @ member_BG / jnp.maximum(n_G, 1.0), n_G


def _nats(logits_BTV, targets_BT, mask_BT) -> tuple[Array, Array]:
  """Cross-entropy of each token, 0 where it does not count, and where it does."""
  counts_BT = mask_BT > 0
  # Before the softmax: behind it, a zero cotangent times NaN would be NaN.
  logits_BTV = jnp.where(counts_BT[..., None], logits_BTV.astype(jnp.float32), 0.0)
  targets_BT = jnp.where(counts_BT, targets_BT, 0)
  nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
  return jnp.where(counts_BT, nats_BT, 0.0), counts_BT


def total(
  terms: Mapping[str, ScalarLike], weights: Mapping[str, ScalarLike]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The sum of weight times term, with each part of it on record.

  Args:
    terms: scalars by name; the suffix of a name says its unit.
    weights: one weight for every term, and none besides.

  Returns:
    loss: the weighted sum.
    metrics: `name` holds the raw term, `weighted/name` what it adds to the loss.

  Raises:
    InputError: a term has no weight, or a weight has no term: one of them would be ignored.
  """
  for name in terms:
    if name not in weights:
      raise InputError(f"loss term {name!r} has no weight; there are weights for {sorted(weights)}")
  for name in weights:
    if name not in terms:
      raise InputError(f"weight {name!r} has no loss term; there are terms {sorted(terms)}")
  metrics, loss = {}, jnp.zeros((), jnp.float32)
  for name, term in terms.items():
    term = jnp.asarray(term, jnp.float32)
    weighted = weights[name] * term
    metrics[name], metrics[f"weighted/{name}"] = term, weighted
    loss = loss + weighted
  return loss, metrics
