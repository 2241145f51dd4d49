"""The one apply: identity at the start, isolation, causality, interventions, and the oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OLD_EMITTER, QUICK, VOCAB, build, fresh, jitted, make_batch, tiny

from iclm import axes, compose, losses
from iclm.compose.cache import Passes

COMBINES = ("residual", "logits", "concat", "probas")
ALONE = {"loss__dependence": 0.0, "experts__invariant": False}


def nll(model, params, batch, key=None, do=compose.NOTHING):
  output = model.apply(params, batch, key, do)
  return losses.next_token_xent(output.logits_BTV, batch.targets_BT, batch.loss_mask_BT)[0]


@pytest.mark.parametrize("key", [None, 0])
def test_fresh_residual_model_is_its_base_bitwise(batch, key):
  model, params = fresh(tiny())
  plain = jitted(tiny(experts__kind="none"))
  key = None if key is None else jax.random.key(key)
  ours = model.apply(params, batch, key).logits_BTV
  np.testing.assert_array_equal(ours, plain.apply(params, batch).logits_BTV)


def test_first_gradient_of_a_fresh_residual_model_is_not_zero(batch):
  model, params = fresh(tiny())
  grads = jax.grad(lambda p: nll(model, p, batch))(params)
  for part in (axes.INVARIANT, axes.DOMAIN):
    assert jnp.abs(grads[part]["message"]["out"]).max() > 0


@pytest.mark.parametrize(
  "combine, kind, router",
  [
    *itertools.product(COMBINES, ("gaussian", "none"), ("gumbel",)),
    *(("residual", "gaussian", router) for router in ("vq", "hard", "random", "oracle")),
  ],
)
def test_oracle_every_expert_on_every_input_gives_the_routed_logits(batch, combine, kind, router):
  beta = {"loss__beta": 0.0} if kind == "none" else {}
  given = {"combine": combine, "bottleneck__kind": kind, "router__kind": router} | beta
  given |= {"data__domains": ("a", "b", "c"), "loss__dependence": 0.0}
  model, params = build(tiny(**given))
  everything = jitted(tiny(compute="all", **given))
  routed, oracle = (
    model.apply(params, batch, alone=True),
    everything.apply(params, batch, alone=True),
  )
  assert len(set(routed.routing.index_B.tolist())) > 1
  np.testing.assert_allclose(routed.logits_BTV, oracle.logits_BTV, atol=1e-5)
  if kind == "gaussian":  # One listens to another input, one is silent, the others to themselves.
    heard_SB = jnp.tile(jnp.arange(8), (2, 1)).at[:, 0].set(5).at[1, 3].set(-1)
    heard = compose.Intervention(speaker_SB=heard_SB)
    one, all_ = (m.apply(params, batch, None, heard) for m in (model, everything))
    np.testing.assert_allclose(one.logits_BTV, all_.logits_BTV, atol=1e-5)
    np.testing.assert_allclose(one.messages_SBTZ, all_.messages_SBTZ, atol=1e-5)
  np.testing.assert_allclose(routed.alone_SBTV, oracle.alone_SBTV, atol=1e-5)
  if kind == "gaussian":
    np.testing.assert_allclose(routed.messages_SBTZ, oracle.messages_SBTZ, atol=1e-5)
    np.testing.assert_allclose(routed.rate_SBT, oracle.rate_SBT, atol=1e-5)


def test_oracle_block_adapters_give_the_gathered_logits(batch):
  model, params = build(tiny())
  block = jitted(tiny(router__gradient="all"))
  gathered = model.apply(params, batch).logits_BTV
  np.testing.assert_allclose(gathered, block.apply(params, batch).logits_BTV, atol=1e-4)


@pytest.mark.parametrize("combine", COMBINES)
def test_every_combine_uses_every_stream(batch, combine):
  model, params = build(tiny(combine=combine))
  before = model.apply(params, batch).logits_BTV
  for part in axes.STREAMS:
    moved = jax.tree.map(lambda x: x + 0.1, params[part])
    after = model.apply(params | {part: moved}, batch).logits_BTV
    assert jnp.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("attention", ["causal", "prefix"])
def test_a_question_sees_the_context_and_its_own_past_only(attention):
  batch = make_batch(1, 4, 20)
  model, params = build(
    tiny(model__attention=attention, router__kind="oracle", data__domains=("a", "b", "c"))
  )
  base = np.asarray(model.apply(params, batch).logits_BTV)
  for t in range(20):
    tokens = batch.tokens_BT.at[:, t].set((batch.tokens_BT[:, t] + 1) % VOCAB)
    moved = np.asarray(model.apply(params, batch._replace(tokens_BT=tokens)).logits_BTV)
    changed_BT = np.abs(moved - base).max(-1) > 0
    segment = np.asarray(batch.segment_BT)
    for b in range(4):
      if segment[b, t] == 0:
        assert not changed_BT[b, segment[b] > 0].any()
      elif segment[b, t] > 1:
        allowed = (segment[b] == segment[b, t]) & (np.arange(20) >= t)
        assert not changed_BT[b, ~allowed].any()
      elif attention == "causal":
        assert not changed_BT[b, :t].any()


def test_gaps_between_positions_are_drawn_in_training_and_their_mean_otherwise(batch):
  plain = {"experts__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0}
  model, params = build(tiny(**plain))
  gaps = jitted(tiny(**plain, model__position_gap=3))
  # Steps of 1, 2 or 3: their mean is 2.
  wide = batch._replace(position_BT=batch.position_BT * 2)
  expected = model.apply(params, wide).logits_BTV
  np.testing.assert_array_equal(gaps.apply(params, batch).logits_BTV, expected)
  one, same, other = (gaps.apply(params, batch, jax.random.key(k)).logits_BTV for k in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert jnp.abs(one - other).max() > 1e-3
  # Questions lie behind one drawn context: two that are alike are answered alike.
  n = int((batch.segment_BT[0] == 1).sum())
  twice = jnp.array([1] * n + [2, 2, 3, 3] + [0] * (20 - n - 4))
  asked = jnp.array([7, 8, 7, 8])
  row = batch._replace(
    tokens_BT=batch.tokens_BT[:1].at[0, n : n + 4].set(asked),
    segment_BT=twice[None],
    position_BT=jnp.arange(20)[None].at[0, n : n + 4].set(jnp.array([n, n + 1, n, n + 1])),
  )
  found = gaps.apply(params, row, jax.random.key(0)).logits_BTV[0]
  np.testing.assert_allclose(found[n : n + 2], found[n + 2 : n + 4], atol=1e-5)


def test_no_token_of_answer_or_padding_changes_a_route(batch):
  for reads in ("embed", "trunk", "base"):
    model, params = build(tiny(router__reads=reads))
    before = model.apply(params, batch).routing
    tokens = jnp.where(batch.prompt_mask_BT, batch.tokens_BT, (batch.tokens_BT + 7) % VOCAB)
    after = model.apply(params, batch._replace(tokens_BT=tokens)).routing
    np.testing.assert_array_equal(before.logits_BE, after.logits_BE)


def test_an_expert_gets_no_gradient_from_inputs_of_others(batch):
  model, params = build(tiny())
  index_B = model.apply(params, batch).routing.index_B
  for e in range(3):
    rest = batch._replace(loss_mask_BT=batch.loss_mask_BT * (np.asarray(index_B) != e)[:, None])
    grads = jax.grad(lambda p, rest=rest: nll(model, p, rest))(params)["domain"]
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf[e], 0.0)


def test_a_nan_expert_is_not_felt_by_inputs_of_others(batch):
  model, params = build(tiny())
  before = model.apply(params, batch)
  e = int(before.routing.index_B[0])
  poisoned = jax.tree.map(lambda x: x.at[e].set(jnp.nan), params["domain"])
  after = model.apply(params | {"domain": poisoned}, batch)
  others = np.asarray(before.routing.index_B) != e
  assert others.any()
  np.testing.assert_array_equal(before.logits_BTV[others], after.logits_BTV[others])
  assert jnp.isnan(after.logits_BTV[~others]).all(axis=(1, 2)).any()


def test_logits_of_a_row_do_not_depend_on_its_batch(batch):
  model, params = build(tiny())
  other = make_batch(5, 8, 20)
  mixed = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[1:]]), batch, other)
  np.testing.assert_array_equal(
    model.apply(params, batch).logits_BTV[0], model.apply(params, mixed).logits_BTV[0]
  )


def test_the_chosen_weight_leads_the_task_gradient_to_the_router(batch):
  model, params = build(tiny())
  grads = jax.grad(lambda p: nll(model, p, batch, jax.random.key(0)))(params)["router"]
  assert jnp.abs(grads["prototypes_EP"]).max() > 0
  model, params = build(tiny(router__straight_through=False))
  grads = jax.grad(lambda p: nll(model, p, batch, jax.random.key(0)))(params)["router"]
  np.testing.assert_array_equal(grads["prototypes_EP"], 0.0)


def test_interventions_on_routes(batch):
  model, params = build(tiny())
  free = model.apply(params, batch)
  index_B = np.asarray(free.routing.index_B)
  for e in range(3):
    forced = model.apply(params, batch, None, compose.Intervention(route_B=jnp.full(8, e)))
    np.testing.assert_array_equal(forced.routing.index_B, e)
    same = index_B == e
    np.testing.assert_array_equal(forced.logits_BTV[same], free.logits_BTV[same])
  off = model.apply(
    params, batch, None, compose.Intervention(enabled_E=jnp.arange(3) != index_B[0])
  )
  assert (np.asarray(off.routing.index_B) != index_B[0]).all()
  swap = jnp.array([1, 2, 0])
  swapped = model.apply(params, batch, None, compose.Intervention(swap_E=swap))
  np.testing.assert_array_equal(swapped.routing.index_B, swap[index_B])
  nothing = compose.Intervention(
    route_B=jnp.full(8, -1), enabled_E=jnp.ones(3, bool), use_invariant=jnp.array(True),
    swap_E=jnp.arange(3), message_SBTZ=jnp.zeros((2, 8, 20, 4)), patch_SB=jnp.zeros((2, 8), bool),
  )  # fmt: skip
  same = model.apply(params, batch, None, nothing)
  np.testing.assert_allclose(same.logits_BTV, free.logits_BTV, atol=1e-6)


@pytest.mark.parametrize("combine", COMBINES)
def test_interventions_on_streams(batch, combine):
  model, params = build(tiny(combine=combine))
  free = model.apply(params, batch, alone=True)
  no_invariant = compose.Intervention(use_invariant=jnp.array(False))
  silenced = model.apply(params, batch, None, no_invariant)
  np.testing.assert_allclose(silenced.logits_BTV, free.alone_SBTV[1], atol=1e-5)
  # Interchange: input 0 speaks with input 1's messages, the others with their own.
  messages = free.messages_SBTZ.at[:, 0].set(free.messages_SBTZ[:, 1])
  patch = compose.Intervention(message_SBTZ=messages, patch_SB=jnp.ones((2, 8), bool))
  patched = model.apply(params, batch, None, patch)
  np.testing.assert_array_equal(patched.messages_SBTZ, messages)
  np.testing.assert_allclose(patched.logits_BTV[1:], free.logits_BTV[1:], atol=1e-5)
  assert jnp.abs(patched.logits_BTV[0] - free.logits_BTV[0]).max() > 1e-3


@pytest.mark.parametrize("given", [
  {"router__kind": "soft"}, {"router__kind": "uniform"}, {"router__level": "token"},
  {"router__gradient": "all"}, {"experts__dropout": 0.3}, ALONE, {"model__remat": "full"},
  {"model__tied": True}, {"model__dtype": "bfloat16"}, {"model__trunk_layers": 0},
  {"router__reads": "base", "router__detach": True},
  {"experts__projections": ("q", "k", "v", "o", "gate", "up", "down")},
])  # fmt: skip
def test_every_option_runs_forward_and_backward(batch, given):
  model, params = build(tiny(**given))
  value, grads = jax.value_and_grad(lambda p: nll(model, p, batch, jax.random.key(0)))(params)
  assert jnp.isfinite(value)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


ONE_CAUSAL = {"model__attention": "causal", "data__questions_per_row": 1}


def test_a_kernel_that_knows_what_is_causal_needs_no_mask(monkeypatch):
  batch = make_batch(0, 8, 20, n_questions=1)
  model, params = build(tiny(**ONE_CAUSAL))
  masked = model.apply(params, batch)
  monkeypatch.setattr(compose.model, "_mask", lambda *_: None)
  told = jitted(tiny(**ONE_CAUSAL)).apply(params, batch)
  real_BT = np.asarray(batch.segment_BT) > 0
  np.testing.assert_allclose(told.logits_BTV[real_BT], masked.logits_BTV[real_BT], atol=2e-5)
  np.testing.assert_array_equal(told.routing.index_B, masked.routing.index_B)


@pytest.mark.parametrize("changes", [
  {}, {"data__questions_per_row": 2}, {"model__window": 4}, {"model__attention": "prefix"},
])  # fmt: skip
def test_the_mask_is_left_out_only_where_it_is_causal(batch, changes):
  given = ONE_CAUSAL | {"model__kernel": "cudnn", "model__dtype": "bfloat16"}
  mask = lambda cache, **more: compose.model._mask(
    tiny(**given | changes | more), batch, Passes(lambda x: x, cache)
  )
  assert (mask(None) is None) == (not changes)
  assert mask(None, model__kernel="xla", model__dtype="float32") is not None
  assert mask(compose.empty_cache(*batch.tokens_BT.shape)) is not None


def test_a_run_of_a_gpu_is_read_where_there_is_none(batch):
  given = {"model__dtype": "bfloat16", "data__questions_per_row": 2}
  model, params = build(tiny(**given))
  expected = model.apply(params, batch).logits_BTV
  told = jitted(tiny(model__kernel="cudnn", **given)).apply(params, batch).logits_BTV
  np.testing.assert_array_equal(told, expected)


def test_what_is_computed_again_is_the_same(batch):
  # By the kernels of a run: those of the tests round a sum in the order of its program.
  kernels = {"xla_cpu_use_fusion_emitters": True} if OLD_EMITTER in QUICK else {}
  atol = 1e-6 if kernels else 1e-4  # Later ones round by 3e-5; the largest is 22.
  of = lambda model: jax.jit(jax.grad(lambda p: nll(model, p, batch)), compiler_options=kernels)
  model, params = build(tiny())
  expected = of(model)(params)
  for kind in ("light", "full"):
    again = of(jitted(tiny(model__remat=kind)))(params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), again, expected
    )


def test_of_drawn_messages_alone_nothing_else_is_drawn(batch):
  noisy = {"experts__dropout": 0.5, "model__position_gap": 3, "router__kind": "gumbel"}
  silent = {"bottleneck__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0}
  model, params = build(tiny(**noisy | silent))
  key, still = jax.random.key(0), model.apply(params, batch)
  only = model.apply(params, batch, compose.Draws(message=key))
  np.testing.assert_array_equal(only.logits_BTV, still.logits_BTV)  # There are no messages.
  assert (model.apply(params, batch, key).logits_BTV != still.logits_BTV).any()
  model, params = build(tiny(**noisy))
  only, still = (model.apply(params, batch, d) for d in (compose.Draws(message=key), None))
  np.testing.assert_array_equal(only.routing.index_B, still.routing.index_B)
  np.testing.assert_array_equal(only.rate_SBT, still.rate_SBT)  # Of what is said, not of its noise.
  assert (only.messages_SBTZ != still.messages_SBTZ).any()
