"""The topology `around`: nothing goes past a message, and isolation holds as beside each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, build, jitted, tiny

from iclm import compose, losses
from iclm.config import InputError

AROUND = {
  "topology__kind": "around",
  "combine": "none",
  "model__trunk_layers": 0,
  "model__layers": 3,
  "router__reads": "embed",
  "router__kind": "oracle",
  "data__domains": ("a", "b", "c"),
  "loss__dependence": 0.0,
}


@pytest.fixture(scope="module")
def model():
  return build(tiny(**AROUND))


def test_experts_start_alike():
  for leaf in jax.tree.leaves(jitted(tiny(**AROUND)).init(jax.random.key(0))["domain"]):
    assert (leaf == leaf[:1]).all()


def test_layers_are_divided_between_domain_and_core():
  shapes = jax.eval_shape(
    jitted(tiny(**AROUND | {"topology__lower": 1, "topology__upper": 1})).init, jax.random.key(0)
  )
  assert shapes["domain"]["adapter"]["q"]["a"].shape[:2] == (3, 2)  # Experts, layers.
  assert shapes["invariant"]["adapter"]["q"]["a"].shape[0] == 1


def test_core_knows_what_the_message_says_and_no_more(model, batch):
  # With the domain's message given, another token anywhere changes nothing: not by one bit.
  apply, params = model[0].apply, model[1]
  messages = apply(params, batch).messages_SBTZ
  patch_SB = jnp.array([[False], [True]]) & jnp.ones((2, 8), bool)
  do = compose.Intervention(message_SBTZ=messages, patch_SB=patch_SB)
  other = batch._replace(tokens_BT=(batch.tokens_BT + 5) % VOCAB)
  same = apply(params, other, None, do).logits_BTV
  np.testing.assert_array_equal(same, apply(params, batch, None, do).logits_BTV)
  assert jnp.abs(apply(params, other).logits_BTV - same).max() > 1e-3


def test_answers_come_through_the_core_message(model, batch):
  apply, params = model[0].apply, model[1]
  messages = apply(params, batch).messages_SBTZ
  silenced_SB = jnp.array([[True], [False]]) & jnp.ones((2, 8), bool)
  silent = compose.Intervention(message_SBTZ=jnp.zeros_like(messages), patch_SB=silenced_SB)
  core = {"adapter": jax.tree.map(lambda x: x + 0.1, params["invariant"]["adapter"])}
  other = params | {"invariant": core | {"message": params["invariant"]["message"]}}
  one, two = (apply(p, batch, None, silent).logits_BTV for p in (params, other))
  np.testing.assert_array_equal(one, two)
  one, two = (apply(p, batch).logits_BTV for p in (params, other))
  assert jnp.abs(one - two).max() > 1e-3


def test_only_the_routed_expert_gets_a_gradient(model, batch):
  apply, params = model[0].apply, model[1]
  batch = batch._replace(domain_B=jnp.where(batch.domain_B == 1, 0, batch.domain_B))
  loss = lambda p: losses.next_token_xent(
    apply(p, batch, jax.random.key(0)).logits_BTV, batch.targets_BT, batch.loss_mask_BT
  )[0]
  for leaf in jax.tree.leaves(jax.grad(loss)(params)["domain"]):
    assert not leaf[1].any() and leaf[0].any() and leaf[2].any()


def test_a_row_feels_no_other_row(model, batch):
  apply, params = model[0].apply, model[1]
  others = batch._replace(tokens_BT=batch.tokens_BT.at[1:].set(5))
  before, after = (apply(params, b).logits_BTV[0] for b in (batch, others))
  np.testing.assert_array_equal(before, after)


def test_interventions_reach_it(model, batch):
  apply, params = model[0].apply, model[1]
  before = apply(params, batch).logits_BTV
  for do in (
    compose.Intervention(swap_E=jnp.array([1, 2, 0])),
    compose.Intervention(use_invariant=jnp.array(False)),
    compose.Intervention(speaker_SB=jnp.full((2, 8), -1)),
  ):
    assert jnp.abs(apply(params, batch, None, do).logits_BTV - before).max() > 1e-3


@pytest.mark.parametrize(
  "changes, told",
  [
    ({"combine": "residual"}, "contradict each other"),
    ({"topology__lower": 2}, "some of the 3 layers"),
    ({"topology__upper": 0}, "some of the 3 layers"),
    ({"bottleneck__kind": "none", "loss__beta": 0.0}, "bottleneck.kind other than 'none'"),
    ({"experts__invariant": False}, "experts.invariant = True"),
    ({"loss__aux": 0.1}, "loss.aux = 0"),
  ],
)
def test_what_around_cannot_do_is_told(changes, told):
  with pytest.raises(InputError, match=told):
    tiny(**AROUND | changes)
