"""Where prototypes start, how far they are, and how dead ones come back."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, ScalarLike

from iclm.config import InputError


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
    nearest_N = jnp.where(taken_NE, distance(emb_NP, c_EP), jnp.inf).min(-1)
    # Before the first seed every distance is infinite: any input may be it.
    log_N = jnp.where(i == 0, 0.0, jnp.log(nearest_N))
    pick = jax.random.categorical(jax.random.fold_in(key, i), log_N)
    return c_EP.at[i].set(emb_NP[pick])

  def lloyd(_, c_EP):
    member_NE = jax.nn.one_hot(distance(emb_NP, c_EP).argmin(-1), n_experts)
    n_E1 = member_NE.sum(0)[:, None]
    mean_EP = jnp.matmul(member_NE.T, emb_NP, precision="highest") / jnp.maximum(n_E1, 1.0)
    return jnp.where(n_E1 > 0, mean_EP, c_EP)

  def fit(key):
    start_EP = jnp.zeros((n_experts, emb_NP.shape[1]), emb_NP.dtype)
    seeds_EP = jax.lax.fori_loop(0, n_experts, functools.partial(add_seed, key), start_EP)
    c_EP = jax.lax.fori_loop(0, n_iter, lloyd, seeds_EP)
    return c_EP, distance(emb_NP, c_EP).min(-1).mean()

  centres, costs = jax.lax.map(fit, jax.random.split(key, n_restarts))
  return centres[costs.argmin()]


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
    served_B = jnp.sqrt(distance(emb_BP, emb_BP[worst][None])[:, 0])
    # Not a minimum: that would let the NaN of a row that is left out through.
    need_B = jnp.where(revived & (served_B < need_B), served_B, need_B)
    return need_B, (prototype_P, revived)

  _, (prototypes_EP, revived_E) = jax.lax.scan(turn, need_B, (prototypes_EP, dead_E))
  return prototypes_EP, revived_E


def distance(emb_BP, c_EP) -> Float[Array, "*B E"]:
  """Squared, mean over P. By differences: the GEMM form cancels just where inputs are served."""
  c_BEP = jnp.broadcast_to(c_EP.astype(jnp.float32), (*emb_BP.shape[:-1], *c_EP.shape))
  return jnp.square(emb_BP.astype(jnp.float32)[..., None, :] - c_BEP).mean(-1)
