"""The train step: what moves, what stands still, and that the layout does not matter."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, on_eight_devices, tiny

from iclm import compose, optim, sharding, step
from iclm.config import InputError, Mesh
from iclm.step import advance as advancing
from iclm.step import terms


@functools.cache
def start():
  """A fresh state of the tiny config; reused, since drawing it takes seconds to compile."""
  c = tiny()
  mesh = sharding.make_mesh(c.mesh)
  model = compose.build(c, VOCAB, mesh)
  return step.init_state(c, model, optim.from_config(c), mesh, jax.random.key(0))


def runner(c):
  """The jitted step of a config, and a state to start from."""
  mesh = sharding.make_mesh(c.mesh)
  model, tx = compose.build(c, VOCAB, mesh), optim.from_config(c)
  state = start()
  state = state._replace(opt_state=tx.init(state.params))
  return jax.jit(functools.partial(step.train_step, config=c, model=model, tx=tx)), state


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_golden_first_loss(batch):
  # A fresh residual model is its base, so the first loss is that of the base: about ln V, since
  # a fresh base knows nothing. Renew the digits by running this test and copying what it prints.
  advance, state = runner(tiny())
  _, metrics = advance(state, batch, jax.random.key(1))
  assert abs(float(metrics["answer_nats"]) - np.log(VOCAB)) < 1.0
  plain = compose.build(tiny(experts__kind="none"), VOCAB)
  logits = plain.apply(state.params, batch).logits_BTV
  logp = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(logp, batch.targets_BT[..., None], axis=-1)[..., 0]
  expected = -(picked * batch.loss_mask_BT).sum() / batch.loss_mask_BT.sum()
  np.testing.assert_allclose(metrics["answer_nats"], expected, rtol=1e-5)


def test_an_idle_expert_stands_still(batch):
  advance, state = runner(tiny(router__kind="oracle", data__domains=("a", "b", "c"),
                               loss__balance=0.0, loss__zloss=0.0))  # fmt: skip
  batch = batch._replace(domain_B=jnp.where(batch.domain_B == 1, 0, batch.domain_B))
  before = jax.tree.map(np.asarray, state)
  for _ in range(3):
    state, _ = advance(state, batch, jax.random.key(1))
  idle = lambda tree: jax.tree.map(lambda x: x[1], tree)
  same(idle(before.params["domain"]), idle(state.params["domain"]))
  old, new = before.opt_state["domain"], state.opt_state["domain"]
  same((idle(old.mu), idle(old.nu), old.count_E[1]), (idle(new.mu), idle(new.nu), new.count_E[1]))
  moved = jax.tree.map(
    lambda a, b: np.abs(a[0] - b[0]).max(), before.params["domain"], state.params["domain"]
  )
  assert moved["message"]["out"] > 0


@pytest.mark.parametrize("kind", ["gumbel", "random"])
def test_usage_is_of_what_the_router_chose_whoever_was_made_to_serve(batch, kind):
  def usage(swap):
    changes = {"router__kind": kind, "router__usage_decay": 0.0, "perturb__swap": swap}
    advance, state = runner(tiny(**changes))
    return np.asarray(advance(state, batch, jax.random.key(1))[0].usage_E)

  chosen_E = usage(0.0)
  assert len(set(chosen_E.tolist())) > 1
  same(usage(0.9), chosen_E)


def test_padding_is_no_token_that_a_router_chose_for(batch):
  by_token = tiny(router__level="token", router__kind="soft")
  routed = types.SimpleNamespace(own_B=batch.tokens_BT, score_B=batch.tokens_BT)
  output = compose.Output(batch.tokens_BT, routing=routed, prompt_BP=batch.tokens_BT)
  seen = terms._seen(by_token, output, batch)
  same(seen.mask_B, batch.segment_BT > 0)
  assert not seen.mask_B.all()


def test_an_answer_starts_where_it_is_predicted_first_though_all_targets_count(batch):
  c = tiny(data__loss="all", data__question="none", data__questions_per_row=1)
  # A prompt of three, whose last token is its question; an answer of two, and padding.
  segment_BT = jnp.array([[1, 1, 2, 2, 2, 0]])
  mask_BT = (segment_BT > 0) * 1.0
  zeros_BT = jnp.zeros_like(segment_BT)
  row = batch._replace(segment_BT=segment_BT, loss_mask_BT=mask_BT, targets_BT=zeros_BT)
  assert terms._counted(c, row).starts_BC[0].tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("part", ["base", "invariant", "router", "domain"])
def test_what_is_frozen_does_not_move_by_one_bit(batch, part):
  advance, state = runner(tiny(**{f"trains__{part}": False, "optimizer__weight_decay": 0.5}))
  after, _ = advance(state, batch, jax.random.key(1))
  same(state.params[part], after.params[part])
  assert not jax.tree.leaves(after.opt_state[part])
  others = {k: v for k, v in state.params.items() if k != part}
  for name, old in others.items():
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), old, after.params[name])
    assert max(jax.tree.leaves(moved)) > 0, name


def test_of_a_base_the_upper_layers_alone_can_move(batch):
  for kind in ("adamw", "muon"):
    advance, state = runner(tiny(trains__lower=False, optimizer__kind=kind))
    after, metrics = advance(state, batch, jax.random.key(1))
    old, new = state.params["base"], after.params["base"]
    for name in ("embedding", "trunk_layers"):
      same(old[name], new[name])
    for name in ("upper_layers", "last_layer", "norm", "head"):
      moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), old[name], new[name])
      assert max(jax.tree.leaves(moved)) > 0, name
    moments = [x.shape for x in jax.tree.leaves(after.opt_state["base"])]
    assert old["embedding"].shape not in moments and metrics["grad_norm/base"] > 0


def test_only_the_named_expert_moves(batch):
  frozen = {f"trains__{name}": False for name in ("base", "invariant", "router")}
  advance, state = runner(tiny(trains__only_experts=(2,), router__kind="oracle",
                               data__domains=("a", "b", "c"), loss__balance=0.0, loss__zloss=0.0,
                               **frozen))  # fmt: skip
  after, _ = advance(state, batch, jax.random.key(1))
  rest = lambda params: params | {"domain": jax.tree.map(lambda x: x[:2], params["domain"])}
  same(rest(state.params), rest(after.params))
  assert float(jnp.abs(after.params["domain"]["message"]["out"][2]).max()) > 0


def test_a_non_finite_step_leaves_the_state_and_is_counted(batch):
  advance, state = runner(tiny())
  bad = batch._replace(loss_mask_BT=batch.loss_mask_BT)
  poisoned = state._replace(params=jax.tree.map(lambda x: x, state.params))
  norm = poisoned.params["base"]["norm"]["gain"].at[0].set(jnp.nan)
  poisoned = poisoned._replace(
    params=state.params | {"base": state.params["base"] | {"norm": {"gain": norm}}}
  )
  after, metrics = advance(poisoned, bad, jax.random.key(1))
  same(
    (poisoned.params, poisoned.opt_state, poisoned.usage_E),
    (after.params, after.opt_state, after.usage_E),
  )
  assert (int(after.step), int(after.skipped), int(metrics["skipped_in_a_row"])) == (1, 1, 1)
  good, metrics = advance(after._replace(params=state.params), batch, jax.random.key(1))
  assert (int(good.skipped), int(metrics["skipped_in_a_row"])) == (1, 0)


def test_accumulation_gives_the_gradient_of_the_whole_batch(batch):
  # Rows have equal numbers of answer tokens here, and no term couples rows; noise is switched off
  # by a zero message width's worth of freedom: the oracle router and a frozen bottleneck.
  zero = dict.fromkeys(("balance", "zloss", "dependence", "beta"), 0.0)
  c = tiny(
    router__kind="oracle",
    data__domains=("a", "b", "c"),
    bottleneck__kind="none",
    **{f"loss__{name}": weight for name, weight in zero.items()},
  )
  model = compose.build(c, VOCAB)
  params = {k: v for k, v in start().params.items()}
  for part in ("invariant", "domain"):
    params[part] = {"adapter": params[part]["adapter"]}
  grads = {}
  for n in (1, 4):
    loss = functools.partial(terms.loss, config=c, model=model, state=start(), tau=1.0)
    grads[n], _, _ = jax.jit(functools.partial(advancing._accumulate, loss, n=n))(
      params, batch, jax.random.key(0)
    )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads[1], grads[4])


def test_a_model_without_a_bottleneck_has_rates_of_zero(batch):
  c = tiny(bottleneck__kind="none", loss__beta=0.0, loss__dependence=0.0)
  model = compose.build(c, VOCAB)
  score = jax.jit(functools.partial(step.eval_step, config=c, model=model))
  found = score(start().params, batch, None, compose.NOTHING)
  assert found.rate_SBT.shape == (2, *batch.tokens_BT.shape) and not found.rate_SBT.any()


SHARDED = """
import json, sys
import jax
from iclm import axes, compose, optim, sharding, step
from tests.conftest import VOCAB, make_batch, tiny

found = {}
for sizes in ((1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)):
  mesh = {f"mesh__{name}": size for name, size in zip(axes.MESH, sizes)}
  more = {"fsdp": sizes == (2, 2, 2), "steps": 20, "optimizer__warmup": 2}
  if sys.argv[1] == "full":
    more |= {"experts__kind": "full", "experts__projections": ("q", "down")}
  c = tiny(experts__count=4, model__kv_heads=2, **more, **mesh)
  mesh = sharding.make_mesh(c.mesh)
  model, tx = compose.build(c, VOCAB, mesh), optim.from_config(c)
  state, losses = step.init_state(c, model, tx, mesh, jax.random.key(0)), []
  advance = step.make_train_step(c, model, tx, mesh)
  for i in range(20):
    batch = sharding.put_batch(make_batch(i, 8, 20), mesh)
    state, metrics = advance(state, batch, jax.random.key(1))
    losses.append(float(metrics["loss_nats"]))
  shard = lambda x: x.addressable_shards[0].data.shape
  found[str(sizes)] = {
    "losses": losses,
    "compiled": advance._cache_size(),
    "domain": shard(state.params["domain"]["message"]["out"]),
    "moment": shard(state.opt_state["domain"].mu["message"]["out"]),
    "q": shard(state.params["base"]["upper_layers"]["q"]),
    "own": shard(jax.tree.leaves(state.params["domain"]["adapter"]["q"])[0]),
  }
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_eight_devices_give_the_losses_of_one_and_hold_their_part_only(kind):
  found = on_eight_devices(SHARDED, kind)
  one = found["(1, 1, 1)"]["losses"]
  for sizes, run in found.items():
    np.testing.assert_allclose(run.pop("losses"), one, rtol=1e-5, err_msg=sizes)
    assert run.pop("compiled") == 1  # The state that comes out is of the kind that goes in.
  # Of experts (E, layers, D, R) = (4, 2, 16, 2), or (E, layers, D, heads * head size).
  own = {"lora": ([4, 2, 16, 2], [1, 2, 16, 2], [2, 2, 16, 2])}
  own["full"] = [4, 2, 16, 16], [1, 2, 16, 16], [2, 2, 8, 8]
  assert tuple(found[str(s)].pop("own") for s in ((8, 1, 1), (2, 4, 1), (2, 2, 2))) == own[kind]
  # (E, Z, D) = (4, 4, 16) and (layers, D, heads * head size) = (1, 16, 16) on one device.
  assert found["(8, 1, 1)"] == {"domain": [4, 4, 16], "moment": [4, 4, 16], "q": [1, 16, 16]}
  assert found["(2, 4, 1)"] == {"domain": [1, 4, 16], "moment": [1, 4, 16], "q": [1, 16, 16]}
  assert found["(2, 2, 2)"] == {"domain": [2, 4, 16], "moment": [2, 4, 16], "q": [1, 8, 8]}


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(InputError, match="needs 4096 devices"):
    sharding.make_mesh(Mesh(data=16, expert=16, model=16))


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"combine": "logits"},
    {"combine": "concat", "loss__aux": 0.5},
    {"router__level": "token", "router__kind": "soft", "router__straight_through": False},
    {"experts__kind": "none"},
  ],
)
def test_heads_at_the_counted_positions_alone_change_no_gradient(batch, changes):
  # Without messages there is no noise, whose draws go by the shape.
  changes = {"bottleneck__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0} | changes
  most = int(batch.loss_mask_BT.sum(axis=1).max())
  assert most < batch.tokens_BT.shape[1] / 2
  found = []
  for counted in (0, most + 1):
    c = tiny(data__counted=counted, **changes)
    model = compose.build(c, VOCAB)
    params = sharding.unbox(model.init(jax.random.key(0)))
    state = start()._replace(params=params)
    loss = functools.partial(terms.loss, config=c, model=model, state=state, tau=1.0)
    n_tokens = batch.loss_mask_BT.sum()
    grads, (metrics, _) = jax.jit(jax.grad(loss, has_aux=True))(
      params, batch, jax.random.key(1), n_tokens
    )
    found.append((grads, metrics))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *found)


def test_a_domain_that_a_batch_lacks_keeps_its_weight():
  c = tiny(loss__group_dro=0.5, data__domains=("a", "b", "c"))
  nats = {"domain_nats/a": 2.0, "domain_nats/b": 0.0, "domain_nats/c": jnp.nan}
  after = advancing._weigh_domains(c, jnp.array([0.2, 0.2, 0.6]), nats)
  # The two that are there share their 0.4 as e^(0.5 * 2) : 1.
  np.testing.assert_allclose(after, [0.4 * np.e / (np.e + 1), 0.4 / (np.e + 1), 0.6], rtol=1e-6)
