"""Experts with matrices of their own: what adapters promise, held by them too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build, fresh, jitted, make_batch, tiny

from experiments import baselines
from iclm import axes, compose, losses
from iclm.config import InputError
from iclm.nn import gathered

EVERY = ("q", "k", "v", "o", "gate", "up", "down")


def full(**changes):
  return tiny(**({"experts__kind": "full", "experts__projections": EVERY} | changes))


def nll(model, params, batch):
  logits_BTV = model.apply(params, batch).logits_BTV
  return losses.next_token_xent(logits_BTV, batch.targets_BT, batch.loss_mask_BT)[0]


def test_rows_pick_from_stacks_behind_each_other_by_hand():
  stacks = jnp.array([[1.0]]), jnp.array([[2.0], [3.0]])
  index_N = jnp.array([2, -1, 0, 1, 2, 3])
  np.testing.assert_array_equal(gathered.pick(stacks, index_N)[:, 0], [3, 0, 1, 2, 3, 0])
  # Each row's gradient goes where it picked, and to nobody else.
  weight_N = jnp.array([1.0, 10, 100, 1000, 10_000, 100_000])
  grads = jax.grad(lambda s: (gathered.pick(s, index_N)[:, 0] * weight_N).sum())(stacks)
  np.testing.assert_array_equal(grads[0], [[100]])
  np.testing.assert_array_equal(grads[1], [[1000], [10_001]])
  # What nobody picks is not felt.
  poisoned = stacks[0], stacks[1].at[0].set(jnp.nan)
  found = gathered.pick(poisoned, jnp.array([0, 2, -1]))
  np.testing.assert_array_equal(found[:, 0], [1, 3, 0])


def test_a_product_of_picked_rows_is_that_of_each_alone():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x_NTD, w_DF, stack = draw(3, 5, 4), draw(4, 6), draw(2, 4, 6)
  found = gathered.product(x_NTD, w_DF, gathered.Gathered((stack,), jnp.array([1, -1, 0])))
  expected = [x_NTD[0] @ (w_DF + stack[1]), x_NTD[1] @ w_DF, x_NTD[2] @ (w_DF + stack[0])]
  np.testing.assert_allclose(found, jnp.stack(expected), atol=1e-5)


def test_a_fresh_model_is_its_base_bitwise(batch):
  model, params = fresh(full())
  ours = model.apply(params, batch)
  plain = jitted(tiny(experts__kind="none")).apply({"base": params["base"]}, batch)
  np.testing.assert_array_equal(ours.logits_BTV, plain.logits_BTV)
  assert not any(x.any() for x in jax.tree.leaves(params["domain"]["adapter"]))


@pytest.mark.parametrize("combine", ["residual", "logits"])
def test_it_is_the_adapters_whose_products_its_matrices_are(batch, combine):
  given = {"combine": combine, "experts__projections": EVERY}
  c = tiny(**given)
  model, params = build(c)
  scale = c.experts.alpha / c.experts.rank
  product = lambda pair: {"delta": jnp.einsum("...dr,...rf->...df", pair["a"], pair["b"]) * scale}
  whole = dict(params)
  for part in axes.STREAMS:
    adapter = {name: product(pair) for name, pair in params[part]["adapter"].items()}
    whole[part] = params[part] | {"adapter": adapter}
  ours, theirs = jitted(full(combine=combine)).apply(whole, batch), model.apply(params, batch)
  assert len(set(ours.routing.index_B.tolist())) > 1
  np.testing.assert_allclose(ours.logits_BTV, theirs.logits_BTV, atol=1e-4)
  np.testing.assert_allclose(ours.messages_SBTZ, theirs.messages_SBTZ, atol=1e-4)


@pytest.mark.parametrize("given", [{}, {"experts__invariant": False, "loss__dependence": 0.0}])
def test_every_expert_on_every_input_gives_the_routed_logits(batch, given):
  model, params = build(full(**given))
  every = jitted(full(compute="all", **given))
  routed, oracle = model.apply(params, batch), every.apply(params, batch)
  np.testing.assert_allclose(routed.logits_BTV, oracle.logits_BTV, atol=1e-5)


def test_an_expert_feels_its_own_inputs_only_and_is_felt_by_them_only(batch):
  model, params = build(full())
  free = model.apply(params, batch)
  index_B = np.asarray(free.routing.index_B)
  e = int(index_B[0])
  rest = batch._replace(loss_mask_BT=batch.loss_mask_BT * (index_B != e)[:, None])
  grads = jax.grad(lambda p: nll(model, p, rest))(params)["domain"]
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_array_equal(leaf[e], 0.0)
  assert all(leaf.any() for leaf in jax.tree.leaves(grads["adapter"]))
  poisoned = jax.tree.map(lambda x: x.at[e].set(jnp.nan), params["domain"])
  after = model.apply(params | {"domain": poisoned}, batch)
  np.testing.assert_array_equal(after.logits_BTV[index_B != e], free.logits_BTV[index_B != e])
  assert jnp.isnan(after.logits_BTV[index_B == e]).any()


def test_logits_of_a_row_do_not_depend_on_its_batch(batch):
  model, params = build(full())
  mixed = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[1:]]), batch, make_batch(5, 8, 20))
  np.testing.assert_array_equal(
    model.apply(params, batch).logits_BTV[0], model.apply(params, mixed).logits_BTV[0]
  )


def test_it_has_gradients_under_remat_in_bfloat16(batch):
  model, params = build(full(model__remat="full", model__dtype="bfloat16"))
  grads = jax.grad(lambda p: nll(model, p, batch))(params)
  for part in axes.STREAMS:
    assert all(jnp.isfinite(g).all() and g.any() for g in jax.tree.leaves(grads[part]["adapter"]))


def test_what_would_mix_whole_experts_is_refused():
  for given, told in (
    ({"router__level": "token"}, "needs config.router.level = 'input'"),
    ({"router__kind": "soft"}, "needs config.router.kind that is hard"),
    ({"router__gradient": "all"}, "needs config.router.gradient = 'chosen'"),
    ({"experts__dropout": 0.1}, "needs config.experts.dropout = 0"),
    ({"topology__kind": "around", "combine": "none", "model__trunk_layers": 0,
      "router__reads": "embed"}, "needs config.topology.kind = 'parallel'"),
  ):  # fmt: skip
    with pytest.raises(InputError, match=told):
      full(**given)
  with pytest.raises(InputError, match="has no rank that a dense LoRA could match"):
    baselines.dense_lora(full())


def test_interventions_reach_it(batch):
  model, params = build(full())
  free = model.apply(params, batch)
  index_B = np.asarray(free.routing.index_B)
  forced = model.apply(params, batch, None, compose.Intervention(route_B=jnp.full(8, 1)))
  np.testing.assert_array_equal(forced.logits_BTV[index_B == 1], free.logits_BTV[index_B == 1])
  assert jnp.abs(forced.logits_BTV[index_B != 1] - free.logits_BTV[index_B != 1]).max() > 1e-3
