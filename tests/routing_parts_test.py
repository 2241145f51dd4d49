"""Around the choice: how the prompt is read, how use is counted, how prototypes are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_test import EMB_BP, KEY, PROTOTYPES_EP, B, E, normal

from iclm import routing
from iclm.config import InputError


def test_pool_averages_what_the_mask_shows():
  x_BTD = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]], [[jnp.nan] * 2] * 3])
  mask_BT = jnp.array([[1, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(routing.pool(x_BTD, mask_BT), [[2.0, 4.0], [0.0, 0.0]])
  grad_BTD = jax.grad(lambda x: routing.pool(x, mask_BT).sum())(x_BTD)
  np.testing.assert_array_equal(grad_BTD[..., 0], [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def test_the_hash_sees_the_masked_tokens_in_order_and_nothing_else():
  def hash_of(tokens, mask):
    return int(routing.hash_tokens(jnp.array([tokens]), jnp.array([mask]))[0])

  base = hash_of([5, 0, 7], [1, 1, 1])
  for tokens, mask in (
    ([5, 0, 7, 9, 9], [1, 1, 1, 0, 0]),
    ([3, 5, 0, 7], [0, 1, 1, 1]),
    ([5, 8, 0, 7, 2], [1.0, 0.0, 1.0, 1.0, 0.0]),
  ):
    assert hash_of(tokens, mask) == base
  others = [[7, 0, 5], [5, 7, 0], [5, 0, 7, 0], [0, 5, 0, 7], [5, 7], [5, 0, 8]]
  hashes = [hash_of(tokens, [1] * len(tokens)) for tokens in others]
  assert len({base, *hashes}) == len(others) + 1


def test_hashes_do_not_collide_in_a_corpus():
  # 20,000 pairs of tokens: 20000^2 / 2 / 2^32 = 0.05 collisions expected.
  tokens_BT = jnp.stack(jnp.divmod(jnp.arange(20_000), 150), -1)
  assert len(np.unique(routing.hash_tokens(tokens_BT, jnp.ones((20_000, 2))))) == 20_000


def test_temperature_falls_by_equal_factors():
  # From 1 to 1/100 in 100 steps: 1/10 half-way.
  values = [routing.temperature(jnp.array(step), 1.0, 0.01, 100) for step in (0, 50, 100, 500)]
  np.testing.assert_allclose(values, [1.0, 0.1, 0.01, 0.01], rtol=1e-5)


# Upkeep of the prototypes.


def test_usage_is_a_moving_average_of_shares():
  usage_E = jnp.array([0.5, 0.5])
  index_B, mask_B = jnp.array([0, 0, 0, 1, 1]), jnp.array([1, 1, 1, 1, 0])
  # Shares 3/4 and 1/4: 0.8 * 0.5 + 0.2 * 0.75 = 0.55.
  np.testing.assert_allclose(routing.update_usage(usage_E, index_B, mask_B, 0.8), [0.55, 0.45])
  np.testing.assert_array_equal(routing.update_usage(usage_E, index_B, jnp.zeros(5), 0.8), usage_E)


def test_effective_experts_count_those_in_use():
  np.testing.assert_allclose(routing.effective_experts(jnp.full(4, 0.25)), 4.0, rtol=1e-6)
  np.testing.assert_allclose(routing.effective_experts(jnp.array([1.0, 0.0, 0.0])), 1.0)
  np.testing.assert_allclose(routing.effective_experts(jnp.array([0.5, 0.5, 0.0])), 2.0)


def test_the_dead_move_to_the_worst_served_places():
  # Experts 1 and 3 are dead (below 0.1 / 4). Worst served: the twins at 50, then 20; the
  # padding row has no score. One expert serves both twins, so the other goes to 20.
  c_EP = jnp.array([[0.0], [1.0], [2.0], [3.0]])
  emb_BP = jnp.array([[0.1], [50.0], [20.0], [50.0], [jnp.nan]])
  score_B = jnp.array([0.1, 47.0, 17.0, 47.0, jnp.nan])
  usage_E = jnp.array([0.5, 0.01, 0.48, 0.01])
  new_EP, revived_E = routing.revive(c_EP, usage_E, emb_BP, score_B, KEY, 0.1)
  np.testing.assert_array_equal(revived_E, [False, True, False, True])
  np.testing.assert_array_equal(new_EP, [[0.0], [50.0], [2.0], [20.0]])


def test_revival_stops_when_inputs_run_out():
  c_EP, usage_E = jnp.zeros((3, 2)), jnp.array([1.0, 0.0, 0.0])
  emb_BP = jnp.full((4, 2), 5.0)
  new_EP, revived_E = routing.revive(c_EP, usage_E, emb_BP, jnp.full(4, 5.0), KEY, 0.5)
  np.testing.assert_array_equal(revived_E, [False, True, False])
  np.testing.assert_array_equal(new_EP, [[0, 0], [5, 5], [0, 0]])


def test_nobody_is_revived_while_all_live():
  new_EP, revived_E = routing.revive(
    PROTOTYPES_EP, jnp.full(E, 1 / E), EMB_BP, jnp.ones(B), KEY, 0.5
  )
  assert not revived_E.any()
  np.testing.assert_array_equal(new_EP, PROTOTYPES_EP)


def test_kmeans_finds_planted_clusters():
  # Eight clusters of deviation 0.1, centres 10 apart on a cube's corners: 30 inputs each.
  corner_EP = 10.0 * ((jnp.arange(8)[:, None] >> jnp.arange(3)[None]) & 1)
  emb_NP = jnp.repeat(corner_EP, 30, axis=0) + 0.1 * normal(8, 240, 3)
  fit = jax.jit(routing.fit_kmeans, static_argnums=(2, 3, 4))
  c_EP = fit(KEY, emb_NP, 8, 10, 4)
  order = jnp.argsort(jnp.round(c_EP / 10) @ jnp.array([1, 2, 4]))
  np.testing.assert_allclose(c_EP[order], emb_NP.reshape(8, 30, 3).mean(1), atol=1e-4)
  np.testing.assert_array_equal(fit(KEY, emb_NP, 8, 10, 4), c_EP)


def test_kmeans_needs_as_many_inputs_as_experts():
  with pytest.raises(InputError, match=r"5 experts.*got 3"):
    routing.fit_kmeans(KEY, jnp.zeros((3, 2)), 5, 1, 1)
