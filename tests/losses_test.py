"""Cross-entropy against hand-computed nats, and a total that ignores nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iclm import losses
from iclm.config import InputError


def test_cross_entropy_by_hand():
  # Odds 3:1 and 1:1, the third token is padding: (ln 4/3 + ln 2) / 2 nats.
  logits_BTV = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [9.0, 1.0]]]))
  loss, n_tokens = losses.next_token_xent(
    logits_BTV, jnp.array([[0, 1, 1]]), jnp.array([[1.0, 1.0, 0.0]])
  )
  np.testing.assert_allclose(loss, (np.log(4 / 3) + np.log(2)) / 2, rtol=1e-6)
  assert n_tokens == 2


def test_uniform_logits_cost_ln_v_in_bfloat16_too():
  logits_BTV = jnp.full((2, 3, 7), 5.0, jnp.bfloat16)
  loss, _ = losses.next_token_xent(logits_BTV, jnp.zeros((2, 3), int), jnp.ones((2, 3)))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, np.log(7), rtol=1e-6)


def test_an_empty_mask_costs_nothing():
  loss, n_tokens = losses.next_token_xent(
    jnp.ones((1, 2, 3)), jnp.zeros((1, 2), int), jnp.zeros((1, 2))
  )
  assert loss == 0 and n_tokens == 0


def test_what_does_not_count_is_not_felt():
  # Token 1 holds NaN and a target outside of the vocabulary.
  logits_BTV = jnp.array([[[1.0, 0.0], [jnp.nan, jnp.inf]]])
  targets_BT, mask_BT = jnp.array([[1, -100]]), jnp.array([[1, 0]])
  loss, grad_BTV = jax.value_and_grad(lambda x: losses.next_token_xent(x, targets_BT, mask_BT)[0])(
    logits_BTV
  )
  # -log sigmoid(-1) = ln(1 + e); its gradient is softmax minus one-hot.
  np.testing.assert_allclose(loss, np.log1p(np.e), rtol=1e-6)
  p = np.e / (1 + np.e)
  np.testing.assert_allclose(grad_BTV[0], [[p, -p], [0, 0]], rtol=1e-6)


def test_total_is_the_weighted_sum_with_every_part_on_record():
  terms = {"answer_nats": jnp.array(2.0), "rate_nats": jnp.array(10.0)}
  loss, metrics = losses.total(terms, {"answer_nats": 1.0, "rate_nats": 0.5})
  assert loss == 7.0  # 1 * 2 + 0.5 * 10
  assert {name: float(x) for name, x in metrics.items()} == {
    "answer_nats": 2.0,
    "weighted/answer_nats": 2.0,
    "rate_nats": 10.0,
    "weighted/rate_nats": 5.0,
  }


@pytest.mark.parametrize(
  ("terms", "weights", "named"),
  [({"a": 1.0, "b": 1.0}, {"a": 1.0}, "'b'"), ({"a": 1.0}, {"a": 1.0, "c": 1.0}, "'c'")],
)
def test_total_refuses_what_would_be_ignored(terms, weights, named):
  with pytest.raises(InputError, match=named):
    losses.total(terms, weights)
