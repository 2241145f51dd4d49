"""Which expert runs: a router embedding in, a `Routing` out.

The learned kinds share one form, prototypes c_EP and logits_BE = -scale * mean_P (emb - c)^2: minus
the distance, so that the nearest expert wins. The given kinds do not look at the embedding. The
batch may have any leading dimensions, so that the same functions route tokens.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, ScalarLike, Shaped, UInt32

from iclm.config import InputError

LEARNED = ("gumbel", "vq", "kmeans", "soft", "hard")
GIVEN = ("random", "uniform", "oracle")
_MIXED = ("soft", "uniform")  # These give every enabled expert a share.
_SURE = 100.0  # The oracle's margin in nats: exp(-100) is 0 beside 1 in float32.


class Routing(NamedTuple):
  """What the router decided, and what it costs."""

  logits_BE: Float[Array, "*B E"]  # Without noise; -inf for a disabled expert.
  weights_BE: Float[Array, "*B E"]  # One-hot for the hard kinds, whatever their gradient.
  index_B: Int32[Array, "*B"]  # The expert that runs, or weighs most.
  confidence_B: Float[Array, "*B"]  # softmax(logits) of that expert, in [0, 1]; no gradient.
  score_B: Float[Array, "*B"]  # RMS distance to the nearest prototype; 0 for the given kinds.
  losses: dict[str, Float[Array, ""]]  # Of the router's own choice, before any intervention.


class _Seen(NamedTuple):
  """All that a kind may look at."""

  emb_BP: Array
  prototypes_EP: Array
  scale: Any
  key: Any  # The last three are None where no kind in use looks at them.
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
  hash_B: UInt32[Array, "*B"] | None = None,
  domain_B: Int[Array, "*B"] | None = None,
  enabled_E: Bool[Array, "E"] | None = None,
  route_B: Int[Array, "*B"] | None = None,
  swap_E: Int[Array, "E"] | None = None,
) -> Routing:
  """Each input's expert depends on that input alone; interventions act on the decision.

  Args:
    kind: one of `LEARNED` or `GIVEN`.
    emb_BP: router embedding, of the prompt only.
    prototypes_EP: one per expert; the given kinds take only E from them.
    scale: > 0, nats per unit of mean squared distance.
    tau: > 0, temperature of the soft weights and of the straight-through gradient.
    straight_through: whether the task's gradient passes the weights, as if they were soft.
    key: noise for `gumbel`; None is deterministic.
    row_mask_B: zero on the padding rows, which no loss counts; None counts all.
    hash_B: from `hash_tokens`, for `random`.
    domain_B: for `oracle`; clipped to [0, E), and outside of it the confidence is 1 / E.
    enabled_E: inputs of a disabled expert re-route; at least one must be enabled.
    route_B: the expert to run, -1 to leave alone; wins over all else and cuts the gradient.
    swap_E: a permutation; who would go to e goes to swap[e].

  Raises:
    InputError: an unknown kind, or one without the input that it needs.

  Source: Jang et al., arXiv 1611.01144 (gumbel); van den Oord et al., arXiv 1711.00937, equation 3
  (vq; deviation: the chosen weight carries the task gradient, not the code).
  """
  _check(kind, hash_B, domain_B)
  wish = _KINDS[kind](_Seen(emb_BP, prototypes_EP, scale, key, hash_B, domain_B))
  index_B = _pick(wish.pick_BE, enabled_E, swap_E)
  logits_BE = _redirect(wish.logits_BE, enabled_E, swap_E)
  hard_BE = jax.nn.one_hot(index_B, logits_BE.shape[-1])
  if kind in _MIXED:
    weights_BE = jax.nn.softmax(logits_BE / tau)
  else:
    soft_BE = jax.nn.softmax(_redirect(wish.pick_BE, enabled_E, swap_E) / tau)
    weights_BE = _forward_backward(hard_BE, soft_BE)
  if not straight_through:
    weights_BE = jax.lax.stop_gradient(weights_BE)
  if route_B is not None:
    index_B = jnp.where(route_B >= 0, route_B, index_B).astype(jnp.int32)
    forced_BE = jax.nn.one_hot(index_B, logits_BE.shape[-1])
    weights_BE = jnp.where((route_B >= 0)[..., None], forced_BE, weights_BE)
  belief_BE = jax.lax.stop_gradient(jax.nn.softmax(logits_BE))
  confidence_B = jnp.take_along_axis(belief_BE, index_B[..., None], axis=-1)[..., 0]
  score_B = jnp.zeros(index_B.shape)
  if kind in LEARNED:
    score_B = jax.lax.stop_gradient(jnp.sqrt(_distance(emb_BP, prototypes_EP).min(-1)))
  losses = _losses(wish, row_mask_B) if kind in LEARNED else {}
  return Routing(logits_BE, weights_BE, index_B, confidence_B, score_B, losses)


def temperature(
  step: ScalarLike, start: ScalarLike, end: ScalarLike, steps: int
) -> Float[Array, ""]:
  """Falls from start to end by an equal factor per step, then stays; both are above 0."""
  share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
  return jnp.asarray(start * (jnp.asarray(end) / start) ** share)


def pool(x_BTD: Float[Array, "*B T D"], mask_BT: Shaped[Array, "*B T"]) -> Float[Array, "*B D"]:
  """Mean over the masked positions in float32; what is not masked may be NaN and is not felt.

  Returns:
    0 where the mask is empty.
  """
  counts_BT = mask_BT > 0
  sum_BD = jnp.where(counts_BT[..., None], x_BTD.astype(jnp.float32), 0.0).sum(-2)
  return sum_BD / jnp.maximum(counts_BT.sum(-1, keepdims=True), 1)


def hash_tokens(
  tokens_BT: Int[Array, "*B T"], mask_BT: Shaped[Array, "*B T"]
) -> UInt32[Array, "*B"]:
  """A hash of the masked tokens in their order, whatever stands between or around them.

  A polynomial of the mixed tokens in an odd base, modulo 2^32: two prompts collide about once in
  2^32 draws. Not meant to withstand an adversary.
  """
  counts_BT = mask_BT > 0
  token_BT = _mix(tokens_BT.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
  factor_BT = jnp.where(counts_BT, jnp.uint32(0x01000193), jnp.uint32(1))
  power_BT = jnp.cumprod(factor_BT, axis=-1, dtype=jnp.uint32)
  return _mix(jnp.where(counts_BT, token_BT * power_BT, 0).sum(-1, dtype=jnp.uint32))


def update_usage(
  usage_E: Float[Array, "E"],
  index_B: Int[Array, "*B"],
  row_mask_B: Shaped[Array, "*B"] | None,
  decay: ScalarLike,
) -> Float[Array, "E"]:
  """Moving average of the share of the inputs that each expert serves; no rows, no change."""
  counts_B = jnp.ones(index_B.shape, bool) if row_mask_B is None else row_mask_B > 0
  share_E = _masked_mean(jax.nn.one_hot(index_B, usage_E.shape[0]), row_mask_B)
  return jnp.where(counts_B.any(), decay * usage_E + (1 - decay) * share_E, usage_E)


def effective_experts(usage_E: Float[Array, "E"]) -> Float[Array, ""]:
  """The exponential of the usage's entropy: E when all serve alike, 1 when one serves all."""
  share_E = usage_E / usage_E.sum()
  return jnp.exp(-jax.scipy.special.xlogy(share_E, share_E).sum())


def collapsed(usage_E: Float[Array, "E"], threshold: ScalarLike) -> Bool[Array, ""]:
  """Whether fewer than `threshold` experts, in (1, E], are effectively in use."""
  return effective_experts(usage_E) < threshold


def revive(
  prototypes_EP: Float[Array, "E P"],
  usage_E: Float[Array, "E"],
  emb_BP: Float[Array, "B P"],
  score_B: Float[Array, "B"],
  key: PRNGKeyArray,
  threshold: ScalarLike,
) -> tuple[Float[Array, "E P"], Bool[Array, "E"]]:
  """Moves the prototype of each dead expert onto an input that no prototype serves well.

  One rule for every learned kind. The dead take turns: each takes the worst-served input, which
  from then on serves its surroundings, so that several go to different places.

  Args:
    prototypes_EP, emb_BP, score_B: as given to and by `route`; rows whose score is not finite or
      is 0 are not taken, which is how the caller leaves out padding.
    usage_E: from `update_usage`; the caller sets it to 1 / E for the revived, as a new start.
    key: breaks ties.
    threshold: an expert is dead below this share of its equal share, in [0, 1].

  Returns:
    The prototypes, and which of them moved: fewer than the dead when inputs run out.
  """
  dead_E = usage_E < threshold / usage_E.shape[0]
  order_B = jax.random.permutation(key, score_B.shape[0])
  emb_BP = emb_BP[order_B]
  need_B = jnp.where(jnp.isfinite(score_B), score_B, 0.0)[order_B]

  def turn(need_B, expert):
    prototype_P, dead = expert
    worst = need_B.argmax()
    revived = dead & (need_B[worst] > 0)
    prototype_P = jnp.where(revived, emb_BP[worst], prototype_P)
    served_B = jnp.sqrt(_distance(emb_BP, emb_BP[worst][None])[:, 0])
    # Not a minimum: that would let the NaN of a row that is left out through.
    need_B = jnp.where(revived & (served_B < need_B), served_B, need_B)
    return need_B, (prototype_P, revived)

  _, (prototypes_EP, revived_E) = jax.lax.scan(turn, need_B, (prototypes_EP, dead_E))
  return prototypes_EP, revived_E


def fit_kmeans(
  key: PRNGKeyArray, emb_NP: Float[Array, "N P"], n_experts: int, n_iter: int, n_restarts: int
) -> Float[Array, "E P"]:
  """The best of several Lloyd runs from k-means++ seeds; the same key gives the same centres.

  Args:
    emb_NP: the inputs, at least `n_experts` of them.
    n_iter: Lloyd steps per restart.
    n_restarts: the lowest mean squared distance wins.

  Raises:
    InputError: fewer inputs than experts.

  Source: Arthur and Vassilvitskii, "k-means++", SODA 2007. An empty cluster keeps its centre.
  """
  if emb_NP.shape[0] < n_experts:
    raise InputError(f"k-means of {n_experts} experts needs as many inputs, got {emb_NP.shape[0]}")

  def add_seed(key, i, c_EP):
    taken_NE = jnp.broadcast_to(jnp.arange(n_experts) < i, (emb_NP.shape[0], n_experts))
    nearest_N = jnp.where(taken_NE, _distance(emb_NP, c_EP), jnp.inf).min(-1)
    # Before the first seed every distance is infinite: any input may be it.
    log_N = jnp.where(i == 0, 0.0, jnp.log(nearest_N))
    pick = jax.random.categorical(jax.random.fold_in(key, i), log_N)
    return c_EP.at[i].set(emb_NP[pick])

  def lloyd(_, c_EP):
    member_NE = jax.nn.one_hot(_distance(emb_NP, c_EP).argmin(-1), n_experts)
    n_E1 = member_NE.sum(0)[:, None]
    mean_EP = jnp.matmul(member_NE.T, emb_NP, precision="highest") / jnp.maximum(n_E1, 1.0)
    return jnp.where(n_E1 > 0, mean_EP, c_EP)

  def fit(key):
    start_EP = jnp.zeros((n_experts, emb_NP.shape[1]), emb_NP.dtype)
    seeds_EP = jax.lax.fori_loop(0, n_experts, functools.partial(add_seed, key), start_EP)
    c_EP = jax.lax.fori_loop(0, n_iter, lloyd, seeds_EP)
    return c_EP, _distance(emb_NP, c_EP).min(-1).mean()

  centres, costs = jax.lax.map(fit, jax.random.split(key, n_restarts))
  return centres[costs.argmin()]


def _nearest(seen: _Seen) -> _Wish:
  logits_BE = -seen.scale * _distance(seen.emb_BP, seen.prototypes_EP)
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
  seed_E = _mix(jnp.arange(wish.logits_BE.shape[-1], dtype=jnp.uint32) + jnp.uint32(1))
  bits_BE = _mix(seen.hash_B[..., None] ^ jnp.broadcast_to(seed_E, wish.logits_BE.shape))
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


def _check(kind, hash_B, domain_B):
  if kind not in _KINDS:
    raise InputError(f"router kind {kind!r} is unknown; there are {', '.join(_KINDS)}")
  if kind == "random" and hash_B is None:
    raise InputError("router kind 'random' needs hash_B, the hash of each prompt")
  if kind == "oracle" and domain_B is None:
    raise InputError("router kind 'oracle' needs domain_B, the domain of each input")


def _mix(bits: UInt32[Array, "*B"]) -> UInt32[Array, "*B"]:
  """The finaliser of MurmurHash3: a bijection in which each bit in sways each bit out."""
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)


def _distance(emb_BP, c_EP) -> Float[Array, "*B E"]:
  """Squared, mean over P. By differences: the GEMM form cancels just where inputs are served."""
  c_BEP = jnp.broadcast_to(c_EP.astype(jnp.float32), (*emb_BP.shape[:-1], *c_EP.shape))
  return jnp.square(emb_BP.astype(jnp.float32)[..., None, :] - c_BEP).mean(-1)


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


def _masked_mean(x_BE, row_mask_B) -> Float[Array, "E"]:
  """Mean over every leading dimension, of the rows that count; 0 when none does."""
  x_NE = x_BE.reshape(-1, x_BE.shape[-1])
  if row_mask_B is None:
    return x_NE.mean(0)
  counts_N1 = (row_mask_B > 0).reshape(-1, 1)
  return jnp.where(counts_N1, x_NE, 0.0).sum(0) / jnp.maximum(counts_N1.sum(), 1)


def _losses(wish: _Wish, row_mask_B) -> dict[str, Float[Array, ""]]:
  """Balance: E * sum_e f_e p_e, 1 when balanced (Fedus et al., arXiv 2101.03961, equation 4).

  The z-loss is the mean squared logsumexp, in nats^2 (Zoph et al., arXiv 2202.08906, equation 5).
  """
  n_experts = wish.logits_BE.shape[-1]
  served_BE = jax.nn.one_hot(wish.pick_BE.argmax(-1), n_experts)
  f_E = jax.lax.stop_gradient(_masked_mean(served_BE, row_mask_B))
  p_E = _masked_mean(jax.nn.softmax(wish.logits_BE), row_mask_B)
  z_B = jnp.square(jax.nn.logsumexp(wish.logits_BE, axis=-1))
  means = {"z_nats2": z_B} | wish.errors
  losses = {name: _masked_mean(x_B[..., None], row_mask_B)[0] for name, x_B in means.items()}
  return {"balance_ratio": n_experts * (f_E * p_E).sum()} | losses
