"""Which expert runs: a router embedding in, a `Routing` out.

The learned kinds share one form, prototypes c_EP and logits_BE = -scale * mean_P (emb - c)^2: minus
the distance, so that the nearest expert wins. The given kinds do not look at the embedding. The
batch may have any leading dimensions, so that the same functions route tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, ScalarLike, Shaped, UInt32

from iclm.config import LEARNED
from iclm.routing.prompt import mix
from iclm.routing.prototypes import distance
from iclm.routing.usage import masked_mean

_MIXED = ("soft", "uniform")  # These give every enabled expert a share.
_SURE = 100.0  # The oracle's margin in nats: exp(-100) is 0 beside 1 in float32.


class Routing(NamedTuple):
  """What the router decided, and what it costs."""

  logits_BE: Float[Array, "*B E"]  # Without noise; -inf for a disabled expert.
  weights_BE: Float[Array, "*B E"]  # One-hot for the hard kinds, whatever their gradient.
  index_B: Int32[Array, "*B"]  # The expert that runs, or weighs most,
  own_B: Int32[Array, "*B"]  # and the one that would, were no route forced.
  confidence_B: Float[Array, "*B"]  # softmax(logits) of that expert, in [0, 1]; no gradient.
  score_B: Float[Array, "*B"]  # RMS distance to the nearest prototype; 0 for the given kinds.
  losses: dict[str, Float[Array, ""]]  # Of the router's own choice, before any intervention.


class _Seen(NamedTuple):
  """All that a kind may look at."""

  emb_BP: Array
  prototypes_EP: Array
  scale: Any
  key: Any
  hash_B: Any
  domain_B: Any


class _Wish(NamedTuple):
  """A kind's answer: beliefs, what the pick is the maximum of, and squared errors per input."""

  logits_BE: Array
  pick_BE: Array
  errors: dict[str, Array]


def route(
  kind: str,
  emb_BP: Float[Array, "*B P"],
  prototypes_EP: Float[Array, "E P"],
  *,
  scale: ScalarLike,
  tau: ScalarLike,
  straight_through: bool,
  key: PRNGKeyArray | None,
  row_mask_B: Shaped[Array, "*B"] | None,
  hash_B: UInt32[Array, "*B"] | None,
  domain_B: Int[Array, "*B"] | None,
  enabled_E: Bool[Array, "E"] | None = None,
  route_B: Int[Array, "*B"] | None = None,
  swap_E: Int[Array, "E"] | None = None,
) -> Routing:
  """Each input's expert depends on that input alone; interventions act on the decision.

  Args:
    kind: one of `config.LEARNED` or `config.GIVEN`.
    emb_BP: router embedding, of the prompt only.
    prototypes_EP: one per expert; the given kinds take only E from them.
    scale: > 0, nats per unit of mean squared distance.
    tau: > 0, temperature of the soft weights and of the straight-through gradient.
    straight_through: whether the task's gradient passes the weights, as if they were soft.
    key: noise for `gumbel`; None is deterministic.
    row_mask_B: zero on the padding rows, which no loss counts; None counts all.
    hash_B: from `hash_tokens`, for `random`; no other kind looks at it.
    domain_B: for `oracle` alone; clipped to [0, E), and outside of it the confidence is 1 / E.
    enabled_E: inputs of a disabled expert re-route; at least one must be enabled.
    route_B: the expert to run, -1 to leave alone; wins over all else and cuts the gradient.
    swap_E: a permutation; who would go to e goes to swap[e].

  Source: Jang et al., arXiv 1611.01144 (gumbel); van den Oord et al., arXiv 1711.00937, equation 3
  (vq; deviation: the chosen weight carries the task gradient, not the code).
  """
  wish = _KINDS[kind](_Seen(emb_BP, prototypes_EP, scale, key, hash_B, domain_B))
  index_B = _pick(wish.pick_BE, enabled_E, swap_E)
  logits_BE = _redirect(wish.logits_BE, enabled_E, swap_E)
  weights_BE = jax.nn.softmax(_redirect(wish.pick_BE, enabled_E, swap_E) / tau)
  if kind not in _MIXED:
    weights_BE = _forward_backward(jax.nn.one_hot(index_B, logits_BE.shape[-1]), weights_BE)
  if not straight_through:
    weights_BE = jax.lax.stop_gradient(weights_BE)
  own_B = index_B
  if route_B is not None:
    index_B, weights_BE = _force(route_B, index_B, weights_BE)
  belief_BE = jax.lax.stop_gradient(jax.nn.softmax(logits_BE))
  confidence_B = jnp.take_along_axis(belief_BE, index_B[..., None], axis=-1)[..., 0]
  score_B, losses = jnp.zeros(index_B.shape), {}
  if kind in LEARNED:
    score_B = jax.lax.stop_gradient(jnp.sqrt(distance(emb_BP, prototypes_EP).min(-1)))
    losses = _losses(wish, row_mask_B)
  return Routing(logits_BE, weights_BE, index_B, own_B, confidence_B, score_B, losses)


def _force(route_B: Array, index_B: Array, weights_BE: Array) -> tuple[Array, Array]:
  """Indices and weights with those of `route_B` in their place where it names an expert."""
  index_B = jnp.where(route_B >= 0, route_B, index_B).astype(jnp.int32)
  forced_BE = jax.nn.one_hot(index_B, weights_BE.shape[-1])
  return index_B, jnp.where((route_B >= 0)[..., None], forced_BE, weights_BE)


def temperature(
  step: ScalarLike, start: ScalarLike, end: ScalarLike, steps: int
) -> Float[Array, ""]:
  """Falls from start to end by an equal factor per step, then stays; both are above 0."""
  share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
  return jnp.asarray(start * (jnp.asarray(end) / start) ** share)


def _nearest(seen: _Seen) -> _Wish:
  logits_BE = -seen.scale * distance(seen.emb_BP, seen.prototypes_EP)
  return _Wish(logits_BE, logits_BE, {})


def _gumbel(seen: _Seen) -> _Wish:
  wish = _nearest(seen)
  if seen.key is None:
    return wish
  noise_BE = jax.random.gumbel(seen.key, wish.logits_BE.shape)
  return wish._replace(pick_BE=wish.logits_BE + noise_BE)


def _kmeans(seen: _Seen) -> _Wish:
  return _nearest(seen._replace(prototypes_EP=jax.lax.stop_gradient(seen.prototypes_EP)))


def _vq(seen: _Seen) -> _Wish:
  wish = _kmeans(seen)  # Codes move by the codebook loss alone.
  code_BP = seen.prototypes_EP[wish.pick_BE.argmax(-1)]
  codebook_B = jnp.square(jax.lax.stop_gradient(seen.emb_BP) - code_BP).mean(-1)
  commitment_B = jnp.square(seen.emb_BP - jax.lax.stop_gradient(code_BP)).mean(-1)
  return wish._replace(errors={"codebook_sq": codebook_B, "commitment_sq": commitment_B})


def _uniform(seen: _Seen) -> _Wish:
  logits_BE = jnp.zeros((*seen.emb_BP.shape[:-1], seen.prototypes_EP.shape[0]))
  return _Wish(logits_BE, logits_BE, {})


def _random(seen: _Seen) -> _Wish:
  """Rendezvous hashing: when an expert is disabled, its inputs alone move, evenly to the rest."""
  wish = _uniform(seen)
  seed_E = mix(jnp.arange(wish.logits_BE.shape[-1], dtype=jnp.uint32) + jnp.uint32(1))
  bits_BE = mix(seen.hash_B[..., None] ^ jnp.broadcast_to(seed_E, wish.logits_BE.shape))
  return wish._replace(pick_BE=(bits_BE >> 8).astype(jnp.float32) * 2.0**-24)


def _oracle(seen: _Seen) -> _Wish:
  """The domain's own expert; when it is disabled, the next one, in a circle."""
  shape = _uniform(seen).logits_BE.shape
  domain_BE = jnp.broadcast_to(seen.domain_B[..., None], shape)
  clipped_BE = jnp.clip(domain_BE, 0, shape[-1] - 1)
  steps_BE = (jnp.broadcast_to(jnp.arange(shape[-1]), shape) - clipped_BE) % shape[-1]
  pick_BE = -_SURE * steps_BE.astype(jnp.float32)
  return _Wish(jnp.where(domain_BE == clipped_BE, pick_BE, 0.0), pick_BE, {})


_KINDS: dict[str, Callable[[_Seen], _Wish]] = {
  "gumbel": _gumbel,
  "vq": _vq,
  "kmeans": _kmeans,
  "soft": _nearest,
  "hard": _nearest,
  "random": _random,
  "uniform": _uniform,
  "oracle": _oracle,
}


@jax.custom_jvp
def _forward_backward(hard_BE, soft_BE):
  """hard, with the gradient of soft: exact, where hard + soft - soft leaves rounding behind."""
  return hard_BE


@_forward_backward.defjvp
def _(primals, tangents):
  return primals[0], tangents[1]


def _pick(pick_BE, enabled_E, swap_E) -> Int32[Array, "*B"]:
  if enabled_E is not None:
    # The router's column e runs expert swap[e], so that is the one to be enabled.
    allowed_E = enabled_E if swap_E is None else enabled_E[swap_E]
    pick_BE = _redirect(pick_BE, allowed_E, None)
  index_B = pick_BE.argmax(-1)
  return (index_B if swap_E is None else swap_E[index_B]).astype(jnp.int32)


def _redirect(logits_BE, enabled_E, swap_E) -> Float[Array, "*B E"]:
  """The router's columns as the experts see them."""
  if swap_E is not None:
    logits_BE = logits_BE[..., jnp.argsort(swap_E)]
  if enabled_E is not None:
    logits_BE = jnp.where(jnp.broadcast_to(enabled_E, logits_BE.shape), logits_BE, -jnp.inf)
  return logits_BE


def _losses(wish: _Wish, row_mask_B) -> dict[str, Float[Array, ""]]:
  """Balance: E * sum_e f_e p_e, 1 when balanced (Fedus et al., arXiv 2101.03961, equation 4).

  The z-loss is the mean squared logsumexp, in nats^2 (Zoph et al., arXiv 2202.08906, equation 5).
  """
  n_experts = wish.logits_BE.shape[-1]
  served_BE = jax.nn.one_hot(wish.pick_BE.argmax(-1), n_experts)
  f_E = jax.lax.stop_gradient(masked_mean(served_BE, row_mask_B))
  p_E = masked_mean(jax.nn.softmax(wish.logits_BE), row_mask_B)
  z_B = jnp.square(jax.nn.logsumexp(wish.logits_BE, axis=-1))
  means = {"z_nats2": z_B} | wish.errors
  losses = {name: masked_mean(x_B[..., None], row_mask_B)[0] for name, x_B in means.items()}
  return {"balance_ratio": n_experts * (f_E * p_E).sum()} | losses
