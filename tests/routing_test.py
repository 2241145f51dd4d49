"""What each router kind promises, and what interventions do to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iclm import routing
from iclm.config import GIVEN, LEARNED

KEY = jax.random.key(0)
HARD = ("gumbel", "vq", "kmeans", "hard", "random", "oracle")
KINDS = LEARNED + GIVEN
B, E, P = 32, 4, 6


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


EMB_BP, PROTOTYPES_EP = normal(1, B, P), normal(2, E, P)
HASH_B = jax.random.bits(KEY, (B,))
DOMAIN_B = jnp.arange(B) % E
INPUTS = {"hash_B": HASH_B, "domain_B": DOMAIN_B}


def route(kind, emb_BP=EMB_BP, prototypes_EP=PROTOTYPES_EP, straight_through=True, **changes):
  given = {"scale": 1.0, "tau": 1.0, "key": None, "row_mask_B": None} | INPUTS | changes
  return routing.route(kind, emb_BP, prototypes_EP, straight_through=straight_through, **given)


# What every kind promises.


def test_the_nearest_expert_wins_and_the_numbers_are_right_by_hand():
  # Prototypes at 0 and 3 in two dimensions, an input at 1: mean squared distances 1 and 4,
  # logits -2 and -8 at scale 2, confidence sigmoid(6), RMS distance 1.
  c_EP = jnp.array([[0.0, 0.0], [3.0, 3.0]])
  result = route("hard", jnp.array([[1.0, 1.0]]), c_EP, scale=2.0, hash_B=None, domain_B=None)
  np.testing.assert_allclose(result.logits_BE, [[-2.0, -8.0]])
  assert result.index_B == 0 and result.index_B.dtype == jnp.int32
  np.testing.assert_allclose(result.confidence_B, [1 / (1 + np.exp(-6))], rtol=1e-6)
  np.testing.assert_allclose(result.score_B, [1.0])
  np.testing.assert_allclose(result.losses["z_nats2"], np.log(np.exp(-2) + np.exp(-8)) ** 2)


@pytest.mark.parametrize("kind", HARD)
def test_hard_weights_are_exactly_one_hot(kind):
  compiled = jax.jit(lambda emb_BP, tau: route(kind, emb_BP, tau=tau, key=KEY)[1:3])
  for tau in (1.0, 0.03):
    weights_BE, index_B = compiled(30 * EMB_BP, tau)
    np.testing.assert_array_equal(weights_BE, np.eye(E, dtype=np.float32)[index_B])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_route_as_rows_do(kind):
  flat = route(kind)
  folded = {name: x_B.reshape(8, 4) for name, x_B in INPUTS.items()}
  tokens = route(kind, EMB_BP.reshape(8, 4, P), **folded)
  for name in ("logits_BE", "weights_BE", "index_B", "confidence_B", "score_B"):
    one, other = getattr(flat, name), getattr(tokens, name)
    np.testing.assert_allclose(other, one.reshape(8, 4, *one.shape[1:]), rtol=1e-6)
  for name, loss in flat.losses.items():
    np.testing.assert_allclose(tokens.losses[name], loss, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind):
  other = route(
    kind,
    EMB_BP.at[1:].set(normal(3, B - 1, P)),
    hash_B=HASH_B.at[1:].add(1),
    domain_B=DOMAIN_B.at[1:].set(0),
  )
  for one, two in zip(route(kind)[:5], other[:5], strict=True):
    np.testing.assert_array_equal(one[0], two[0])


@pytest.mark.parametrize("kind", LEARNED)
def test_the_task_gradient_passes_only_when_asked(kind):
  def task(emb_BP, straight_through):
    weights_BE = route(kind, emb_BP, straight_through=straight_through, key=KEY).weights_BE
    return (weights_BE * normal(4, B, E)).sum()

  assert (jnp.abs(jax.grad(task)(EMB_BP, True)).sum(-1) > 0).all()
  assert (jax.grad(task)(EMB_BP, False) == 0).all()


def test_the_straight_through_gradient_is_that_of_soft_weights():
  def task(emb_BP, kind):
    return (route(kind, emb_BP, tau=0.7).weights_BE * normal(5, B, E)).sum()

  soft, hard = jax.grad(task)(EMB_BP, "soft"), jax.grad(task)(EMB_BP, "hard")
  np.testing.assert_allclose(hard, soft, rtol=1e-5, atol=1e-7)


# Kind by kind.


def test_gumbel_draws_from_its_softmax():
  # Two experts at odds 3 : 1, whatever tau is: 4,000 draws, standard error 0.007.
  c_EP = jnp.array([[0.0], [jnp.sqrt(jnp.log(3.0))]])
  for tau in (1.0, 0.1):
    result = route(
      "gumbel", jnp.zeros((4_000, 1)), c_EP, tau=tau, key=KEY, hash_B=None, domain_B=None
    )
    assert abs((result.index_B == 0).mean() - 0.75) < 0.03
  np.testing.assert_allclose(result.confidence_B[result.index_B == 0][0], 0.75, rtol=1e-5)
  np.testing.assert_array_equal(route("gumbel").index_B, route("hard").index_B)


def test_a_low_temperature_makes_soft_weights_one_hot():
  low, base = route("soft", tau=1e-4), route("hard")
  np.testing.assert_allclose(low.weights_BE, base.weights_BE, atol=1e-6)
  np.testing.assert_allclose(route("soft").weights_BE.sum(-1), 1.0, rtol=1e-6)


def test_vq_losses_and_who_moves():
  # One input at 1, its code at 0, in two dimensions: both terms are 1 per dimension. Slopes:
  # d/dc mean (1 - c)^2 = -1 per dimension, and +1 for the embedding.
  emb_BP, c_EP = jnp.ones((1, 2)), jnp.array([[0.0, 0.0], [9.0, 9.0]])

  def losses(emb_BP, c_EP):
    return route("vq", emb_BP, c_EP, hash_B=None, domain_B=None).losses

  terms = losses(emb_BP, c_EP)
  assert terms["codebook_sq"] == 1 and terms["commitment_sq"] == 1
  slopes = jax.jit(jax.jacobian(losses, argnums=(0, 1)))(emb_BP, c_EP)
  np.testing.assert_allclose(slopes["codebook_sq"][0], [[0.0, 0.0]])
  np.testing.assert_allclose(slopes["codebook_sq"][1], [[-1.0, -1.0], [0.0, 0.0]])
  np.testing.assert_allclose(slopes["commitment_sq"][0], [[1.0, 1.0]])
  np.testing.assert_allclose(slopes["commitment_sq"][1], np.zeros((2, 2)))


@pytest.mark.parametrize("kind", ["vq", "kmeans"])
def test_the_task_does_not_move_fixed_prototypes(kind):
  def task(c_EP):
    result = route(kind, prototypes_EP=c_EP)
    return (result.weights_BE * normal(6, B, E)).sum() + result.losses["balance_ratio"]

  assert (jax.grad(task)(PROTOTYPES_EP) == 0).all()


def test_random_is_a_balanced_partition_by_hash_alone():
  hash_B = jnp.arange(8_000, dtype=jnp.uint32)
  result = route("random", jnp.zeros((8_000, P)), hash_B=hash_B, domain_B=None)
  # 2,000 each, standard error sqrt(8000 * 3/16) = 39.
  assert np.abs(np.bincount(result.index_B, minlength=E) - 2_000).max() < 160
  np.testing.assert_allclose(result.confidence_B, 1 / E)
  # Who leaves a disabled expert is spread; everybody else stays.
  enabled_E = jnp.arange(E) != 1
  other = route("random", jnp.zeros((8_000, P)), hash_B=hash_B, domain_B=None, enabled_E=enabled_E)
  stays_B = result.index_B != 1
  np.testing.assert_array_equal(other.index_B[stays_B], result.index_B[stays_B])
  moved = np.bincount(other.index_B[~stays_B], minlength=E)
  assert moved[1] == 0 and moved[[0, 2, 3]].min() > 500  # 667 each, standard error 21.


def test_uniform_shares_among_the_enabled():
  np.testing.assert_allclose(route("uniform").weights_BE, np.full((B, E), 0.25))
  weights_BE = route("uniform", enabled_E=jnp.array([True, False, True, False])).weights_BE
  np.testing.assert_allclose(weights_BE[0], [0.5, 0, 0.5, 0])


def test_oracle_follows_the_domain_and_shows_what_it_clipped():
  result = route("oracle", domain_B=DOMAIN_B.at[0].set(7).at[1].set(-1))
  np.testing.assert_array_equal(result.index_B, DOMAIN_B.at[0].set(3).at[1].set(0))
  np.testing.assert_allclose(result.confidence_B, np.where(np.arange(B) < 2, 1 / E, 1.0))
  moved = route("oracle", enabled_E=jnp.arange(E) != 3).index_B
  np.testing.assert_array_equal(moved, DOMAIN_B % 3)  # 3 goes to the next in the circle, 0.


# Losses.


def test_balance_is_1_when_balanced_and_e_when_collapsed():
  c_EP = 10 * jnp.eye(E, P)
  emb_BP = jnp.repeat(c_EP, B // E, axis=0)

  def balance(emb_BP, **changes):
    return route("hard", emb_BP, c_EP, **changes).losses["balance_ratio"]

  np.testing.assert_allclose(balance(emb_BP), 1.0, rtol=1e-5)
  np.testing.assert_allclose(balance(jnp.broadcast_to(emb_BP[:1], (B, P))), E, rtol=1e-5)
  # Two of four serve: E * (1/2 * 1/2 + 1/2 * 1/2) = 2. The other half is padding, some of it NaN.
  dirty_BP = emb_BP.at[B - 1].set(jnp.nan)
  np.testing.assert_allclose(balance(dirty_BP, row_mask_B=jnp.arange(B) < B // 2), 2.0, rtol=1e-5)


def test_padding_rows_add_to_no_loss():
  mask_B = jnp.arange(B) < 20
  clean = route("vq", row_mask_B=mask_B)
  dirty = route("vq", EMB_BP.at[20:].multiply(jnp.inf), row_mask_B=mask_B)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, clean.losses, dirty.losses))
  assert clean.losses["z_nats2"] != route("vq").losses["z_nats2"]
  empty = route("vq", row_mask_B=jnp.zeros(B))
  assert all(loss == 0 for loss in empty.losses.values())


def test_interventions_leave_the_losses_alone():
  changed = route("vq", enabled_E=jnp.arange(E) > 0, swap_E=jnp.arange(E)[::-1])
  assert jax.tree.all(jax.tree.map(jnp.array_equal, changed.losses, route("vq").losses))


# Interventions.


@pytest.mark.parametrize("kind", KINDS)
def test_neutral_interventions_change_nothing(kind):
  neutral = route(
    kind,
    enabled_E=jnp.ones(E, bool),
    route_B=jnp.full(B, -1),
    swap_E=jnp.arange(E),
  )
  assert jax.tree.all(jax.tree.map(jnp.array_equal, neutral, route(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_disabled_expert_gets_no_input_and_others_keep_theirs(kind):
  base, result = route(kind, key=KEY), route(kind, key=KEY, enabled_E=jnp.arange(E) != 2)
  assert (result.index_B != 2).all() and (result.weights_BE[:, 2] == 0).all()
  assert (result.logits_BE[:, 2] == -jnp.inf).all()
  np.testing.assert_allclose(result.weights_BE.sum(-1), 1.0, rtol=1e-6)
  stays_B = base.index_B != 2
  np.testing.assert_array_equal(result.index_B[stays_B], base.index_B[stays_B])


@pytest.mark.parametrize("kind", KINDS)
def test_a_swap_renames_the_choice(kind):
  swap_E = jnp.array([1, 2, 0, 3])
  base, result = route(kind, key=KEY), route(kind, key=KEY, swap_E=swap_E)
  np.testing.assert_array_equal(result.index_B, swap_E[base.index_B])
  np.testing.assert_allclose(result.weights_BE[:, swap_E], base.weights_BE, rtol=1e-6)
  np.testing.assert_array_equal(result.logits_BE[:, swap_E], base.logits_BE)
  # Together with a disabled expert: nobody lands on it.
  both = route(kind, key=KEY, swap_E=swap_E, enabled_E=jnp.arange(E) != 2)
  assert (both.index_B != 2).all() and (both.weights_BE[:, 2] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_force_wins_and_cuts_the_gradient(kind):
  route_B = jnp.where(jnp.arange(B) < 5, 2, -1)

  def task(emb_BP):
    result = route(kind, emb_BP, route_B=route_B, enabled_E=jnp.arange(E) != 2)
    return (result.weights_BE * normal(7, B, E)).sum(), result

  grad_BP, result = jax.grad(task, has_aux=True)(EMB_BP)
  assert (result.index_B[:5] == 2).all() and (result.index_B[5:] != 2).all()
  np.testing.assert_array_equal(result.weights_BE[:5], np.eye(E)[[2] * 5])
  assert (result.confidence_B[:5] == 0).all()
  assert jnp.isfinite(grad_BP).all() and (grad_BP[:5] == 0).all()
  if kind in LEARNED:
    assert (jnp.abs(grad_BP[5:]).sum(-1) > 0).all()
