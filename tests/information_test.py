"""Each estimator against a closed form, a direct computation, or a planted dependence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iclm import information
from iclm.config import InputError

KEY = jax.random.key(0)
N_FEATURES = 64


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@jax.jit
def nhsic(x_NZ, y_NZ, key=KEY):
  return information.nhsic(x_NZ, y_NZ, jnp.ones(x_NZ.shape[0]), key, N_FEATURES)


nhsic_and_grads = jax.jit(jax.value_and_grad(nhsic, argnums=(0, 1)))


@functools.partial(jax.jit, static_argnames="n_groups")
def dependence(x_NZ, y_NZ, groups_N, n_groups):
  mask_N = jnp.ones(x_NZ.shape[0])
  return information.dependence(x_NZ, y_NZ, mask_N, groups_N, n_groups, KEY, N_FEATURES)


# The rate.


def test_rate_by_hand():
  # KL = sum of (mu^2 + s^2 - 1) / 2 - ln s. First: 0. Second: (4 + 1 - 1) / 2 = 2 from mu = 2,
  # and (0 + 1/4 - 1) / 2 + ln 2 from s = 1/2.
  mu_NZ = jnp.array([[0.0, 0.0], [2.0, 0.0]])
  log_sigma_NZ = jnp.array([[0.0, 0.0], [0.0, -np.log(2)]])
  rate_N = information.gaussian_rate(mu_NZ, log_sigma_NZ)
  np.testing.assert_allclose(rate_N, [0.0, 2 - 0.375 + np.log(2)], rtol=1e-6)


def test_rate_is_precise_near_the_prior():
  # With log s = d, the rate is d^2 to second order: 1e-6 at d = 1e-3 (third order: 2/3 d^3).
  rate = information.gaussian_rate(jnp.zeros(1), jnp.full(1, 1e-3))
  np.testing.assert_allclose(rate, 1e-6, rtol=1e-2)


def test_samples_have_the_moments_and_no_key_is_the_mean():
  mu_NZ, log_sigma_NZ = jnp.full((20_000, 1), 3.0), jnp.full((20_000, 1), np.log(2.0))
  sample_NZ = information.sample_message(KEY, mu_NZ, log_sigma_NZ)
  # Standard errors: 2 / sqrt(n) = 0.014 of the mean, 2 / sqrt(2 n) = 0.01 of the deviation.
  assert abs(sample_NZ.mean() - 3) < 0.06 and abs(sample_NZ.std() - 2) < 0.04
  np.testing.assert_array_equal(information.sample_message(None, mu_NZ, log_sigma_NZ), mu_NZ)


# Dependence.


def test_hsic_is_the_u_statistic_of_song():
  # Song et al. 2012, equation 5, on Gram matrices without their diagonals, in float64. The
  # features are neither centred in it nor unit vectors: centring must not matter.
  n = 12
  x_NF, y_NF = normal(1, n, 5) + 1, normal(2, n, 3) * 2
  k_NN, l_NN = (np.asarray(z, np.float64) for z in (x_NF @ x_NF.T, y_NF @ y_NF.T))
  np.fill_diagonal(k_NN, 0)
  np.fill_diagonal(l_NN, 0)
  song = np.trace(k_NN @ l_NN) + k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2))
  song = (song - 2 / (n - 2) * (k_NN @ l_NN).sum()) / (n * (n - 3))
  centred = [z_NF - z_NF.mean(0, keepdims=True) for z_NF in (x_NF, y_NF)]
  ours_G = information._hsic_per_class(*centred, jnp.ones((n, 1)))
  np.testing.assert_allclose(ours_G, [song], rtol=1e-4)


def test_a_message_depends_on_itself_fully():
  x_NZ = normal(3, 100, 4)
  np.testing.assert_allclose(nhsic(x_NZ, x_NZ), 1.0, atol=1e-5)


def test_dependence_does_not_change_with_shift_and_scale():
  x_NZ, y_NZ = normal(4, 200, 3), normal(4, 200, 3)[:, ::-1] + normal(5, 200, 3)
  value = nhsic(x_NZ, y_NZ)
  assert value > 0.02
  np.testing.assert_allclose(nhsic(x_NZ * 100 + 7, y_NZ * 1e-3 - 5), value, rtol=2e-2)
  np.testing.assert_allclose(nhsic(y_NZ, x_NZ), value, rtol=1e-4)


def test_independent_messages_average_to_zero_at_small_n():
  # Unbiased: the mean of 2,000 draws at n = 8 lies within four standard errors of 0. The plug-in
  # estimator reads well above 0.5 there.
  keys = jax.random.split(jax.random.key(6), 2_000)

  @jax.jit
  @jax.vmap
  def draw(key):
    x_NZ, y_NZ = jax.random.normal(key, (2, 8, 3))
    return nhsic(x_NZ, y_NZ, jax.random.fold_in(key, 1))

  values = np.asarray(draw(keys))
  assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))


def common_cause(n, noise):
  """Both messages are noisy copies of a fair coin, the answer."""
  label_N = jax.random.bernoulli(KEY, 0.5, (n,)).astype(jnp.int32)
  answer_NZ = jnp.repeat(2.0 * label_N[:, None] - 1, 4, axis=1)
  return label_N, *(answer_NZ + noise * normal(seed, n, 4) for seed in (7, 8))


def test_common_cause_vanishes_given_the_label():
  label_N, x_NZ, y_NZ = common_cause(2_000, noise=1.4)
  assert 0.2 < dependence(x_NZ, y_NZ, None, 0).value < 0.3
  given = dependence(x_NZ, y_NZ, label_N, 2)
  assert abs(given.value) < 0.02
  assert given.n_used == 2 and given.n_skipped == 0


def test_collider_appears_given_the_label():
  # The answer is the exclusive or of two independent parts: given it, one part tells the other.
  a_N, b_N = jax.random.bernoulli(KEY, 0.5, (2, 2_000)).astype(jnp.int32)
  x_NZ, y_NZ = 2.0 * a_N[:, None] - 1, 2.0 * b_N[:, None] - 1
  assert abs(dependence(x_NZ, y_NZ, None, 0).value) < 0.02
  np.testing.assert_allclose(dependence(x_NZ, y_NZ, a_N ^ b_N, 2).value, 1.0, atol=1e-3)


def test_each_class_counts_as_it_would_alone():
  # 50 rows of one class, 40 of another, 31 of a third (skipped), 5 of an id outside of all.
  x_NZ, y_NZ = normal(9, 126, 3), normal(9, 126, 3) + normal(10, 126, 3)
  groups_N = jnp.repeat(jnp.arange(4), jnp.array([50, 40, 31, 5]), total_repeat_length=126)
  result = dependence(x_NZ, y_NZ, groups_N, 3)
  first, second = nhsic(x_NZ[:50], y_NZ[:50]), nhsic(x_NZ[50:90], y_NZ[50:90])
  np.testing.assert_allclose(result.value, (50 * first + 40 * second) / 90, rtol=1e-4)
  assert result.n_used == 2 and result.n_skipped == 1


def test_an_order_within_classes_changes_the_products_alone():
  # Classes of 50 and 40 rows, one left out, and rows of no class.
  x_NZ, y_NZ = normal(9, 126, 3), normal(9, 126, 3) ** 2 + normal(10, 126, 3)
  groups_N = np.repeat([0, 1, 2, -1], [50, 40, 31, 5])
  rows_GM = np.full((2, 50), 126)
  rows_GM[0], rows_GM[1, :40] = np.arange(50), np.arange(50, 90)
  order_PN = np.tile(np.arange(126), (3, 1))
  order_PN[1, :50], order_PN[2, 50:90] = np.arange(50)[::-1], np.roll(np.arange(50, 90), 7)
  by_order = jax.jit(information.dependence_by_order, static_argnames="n_features")
  found_P = by_order(x_NZ, y_NZ, groups_N, rows_GM, order_PN, KEY, N_FEATURES)
  wanted_P = [dependence(x_NZ, y_NZ[order_N], groups_N, 2).value for order_N in order_PN]
  np.testing.assert_allclose(found_P, wanted_P, rtol=1e-5, atol=1e-6)


def test_no_class_is_large_enough():
  result = dependence(normal(11, 40, 2), normal(12, 40, 2), jnp.arange(40) % 2, 2)
  assert result == (0.0, 0, 2)


def test_masked_rows_are_not_felt():
  x_NZ, y_NZ = normal(13, 60, 2), normal(14, 60, 2)
  mask_N = jnp.arange(60) < 45
  dirty_NZ = jnp.where(mask_N[:, None], x_NZ, jnp.nan)

  @jax.jit
  def masked(x_NZ):
    return information.dependence(x_NZ, y_NZ, mask_N, None, 0, KEY, N_FEATURES).value

  value, grad_NZ = jax.value_and_grad(masked)(dirty_NZ)
  np.testing.assert_allclose(value, nhsic(x_NZ[:45], y_NZ[:45]), atol=1e-5)
  assert jnp.isfinite(grad_NZ).all() and (grad_NZ[45:] == 0).all()


@pytest.mark.parametrize(
  "x_NZ",
  [
    jnp.zeros((40, 3)),
    jnp.full((40, 3), 1000.1),
    jnp.repeat(normal(15, 2, 3), 20, axis=0),
    jnp.zeros((40, 3)).at[0].set(1.0),
    normal(15, 40, 3) * 1e-6,
  ],
  ids=["constant", "offset", "duplicated", "outlier", "tiny"],
)
def test_gradients_are_finite_for_degenerate_messages(x_NZ):
  y_NZ = normal(16, 40, 3)
  for pair in ((x_NZ, y_NZ), (y_NZ, x_NZ), (x_NZ, x_NZ)):
    value, grads = nhsic_and_grads(*pair)
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in grads)
    assert -1.001 < value < 1.001


def test_descent_makes_messages_independent():
  x_NZ, y_NZ = normal(17, 128, 2), normal(17, 128, 2)
  step = jax.jit(lambda x, key: x - 20.0 * jax.grad(nhsic)(x, y_NZ, key))
  for i in range(100):
    x_NZ = step(x_NZ, jax.random.key(100 + i))
  assert nhsic(x_NZ, y_NZ) < 0.3  # From 1.


# Mutual information.


@jax.jit
def mi(p_NC, q_NC):
  return information.joint_mi(p_NC, q_NC, jnp.ones(p_NC.shape[0]))


def test_identical_fair_coins_share_ln_2():
  p_NC = jnp.eye(2)
  np.testing.assert_allclose(mi(p_NC, p_NC), np.log(2), rtol=1e-6)


def test_independent_symbols_share_nothing():
  # All nine pairs of three states, once each.
  i, j = jnp.meshgrid(jnp.arange(3), jnp.arange(3))
  value = mi(jax.nn.one_hot(i.ravel(), 3), jax.nn.one_hot(j.ravel(), 3))
  np.testing.assert_allclose(value, 0.0, atol=1e-6)


def test_a_known_joint():
  # Joint (1/2, 1/4; 0, 1/4): marginals (3/4, 1/4) and (1/2, 1/2), so
  # MI = 1/2 ln(4/3) + 1/4 ln(2/3) + 1/4 ln 2 = 0.2158 nats.
  p_NC = jax.nn.one_hot(jnp.array([0, 0, 0, 1]), 2)
  q_NC = jax.nn.one_hot(jnp.array([0, 0, 1, 1]), 2)
  exact = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
  np.testing.assert_allclose(mi(p_NC, q_NC), exact, rtol=1e-6)


def test_soft_symbols_share_what_their_joint_says():
  p_NC, q_NC = jax.nn.softmax(3 * normal(18, 30, 5)), jax.nn.softmax(3 * normal(19, 30, 4))
  joint = np.einsum("nc,nk->ck", p_NC, q_NC) / 30
  product = np.outer(joint.sum(1), joint.sum(0))
  np.testing.assert_allclose(mi(p_NC, q_NC), (joint * np.log(joint / product)).sum(), rtol=1e-4)


def test_near_uniform_states_have_a_value_and_a_gradient():
  # Where the clamp of the estimator before ours went flat. For p = q = softmax(a t) in two
  # states, a small and t = +-1, the joint correlates by a^2 and MI is about a^4 / 2.
  t_N1 = jnp.array([[1.0], [-1.0]])

  def shared(a):
    p_NC = jax.nn.softmax(a * jnp.concatenate([t_N1, -t_N1], 1))
    return mi(p_NC, p_NC)

  value, slope = jax.value_and_grad(shared)(0.1)
  np.testing.assert_allclose(value, 0.1**4 / 2, rtol=0.05)
  np.testing.assert_allclose(slope, 2 * 0.1**3, rtol=0.05)


def test_impossible_pairs_give_no_nan_and_masked_rows_are_not_felt():
  p_NC = jnp.eye(3).at[2].set(jnp.nan)
  value, grad_NC = jax.jit(jax.value_and_grad(information.joint_mi))(
    p_NC, jnp.eye(3), jnp.array([1.0, 1.0, 0.0])
  )
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  assert jnp.isfinite(grad_NC).all() and (grad_NC[2] == 0).all()
  assert information.joint_mi(p_NC, jnp.eye(3), jnp.zeros(3)) == 0


def test_descent_lowers_the_information():
  q_NC = jax.nn.softmax(4 * normal(20, 64, 8))
  x_NC = 4 * normal(20, 64, 8)
  before = mi(jax.nn.softmax(x_NC), q_NC)
  step = jax.jit(jax.value_and_grad(lambda x_NC: mi(jax.nn.softmax(x_NC), q_NC)))
  last = before + 1e-6
  for _ in range(50):
    value, grad_NC = step(x_NC)
    assert 0 <= value < last
    last, x_NC = value, x_NC - 10.0 * grad_NC
  assert last < before / 2


def test_too_many_states_are_refused():
  with pytest.raises(InputError, match="65"):
    mi(jnp.full((2, 65), 1 / 65), jnp.full((2, 2), 0.5))
