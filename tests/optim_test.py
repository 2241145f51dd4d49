"""Isolation of what the optimizer moves, and Adam's first steps by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iclm import config, optim

ALL = dict.fromkeys(optim.GROUPS, True)
N_EXPERTS = 3


def build(trainable=ALL, still=(), lr=None, **changes):
  settings = {
    "kind": "adamw", "lr": 0.1, "schedule": "constant", "warmup": 1, "decay": 0.3, "end": 0.0,
    "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.5, "clip": 1.0, "router_lr": 1.0,
  }  # fmt: skip
  lr = optax.constant_schedule(0.1) if lr is None else lr
  o = config.Optimizer(**(settings | changes))
  return optim.make(o, lr, trainable=trainable, still=still)


def tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
  return {
    "base": {"upper_layers": {"norm": {"gain": draw(2, 4)}, "up": draw(2, 4, 5)}},
    "invariant": {"a": draw(4, 2), "bias": draw(1, 2)},
    "domain": {"a": draw(N_EXPERTS, 4, 2), "deep": {"log_sigma_bias": draw(N_EXPERTS, 1, 2)}},
    "router": {"projection_DP": draw(4, 3), "prototypes_EP": draw(N_EXPERTS, 3)},
    "combine": {"head_CV": draw(4, 6)},
  }


def take(stacked, e):
  return jax.tree.map(lambda x: x[e], stacked)


def bits(x):
  return np.atleast_1d(np.asarray(x)).view(np.uint8)


def same_bits(left, right):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), left, right)


def moved(left, right):
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).all()), left, right)))


def without(grads, *idle):
  mask = jnp.array([e not in idle for e in range(N_EXPERTS)])
  silence = lambda g: jnp.where(mask.reshape(-1, *(1,) * (g.ndim - 1)), g, 0.0)
  return grads | {"domain": jax.tree.map(silence, grads["domain"])}


@functools.cache
def step(tx):
  @jax.jit
  def one(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optim.apply_updates(params, updates), state

  return one


def test_first_two_steps_by_hand():
  # g = 2, then 1, no clipping, no decay, b1 = 0.9, b2 = 0.99, lr = 0.1, p = 1.
  # Step 1: m = 0.2, v = 0.04; m_hat = 0.2 / 0.1 = 2, v_hat = 0.04 / 0.01 = 4; move 0.1 * 2 / 2.
  # Step 2: m = 0.9 * 0.2 + 0.1 = 0.28, v = 0.99 * 0.04 + 0.01 = 0.0496;
  #   m_hat = 0.28 / (1 - 0.81) = 1.473684, v_hat = 0.0496 / (1 - 0.9801) = 2.492462;
  #   move 0.1 * 1.473684 / 1.578753 = 0.0933448.
  tx = build(weight_decay=0.0, clip=math.inf)
  for group, leaf in (("base", jnp.ones((1, 1))), ("domain", jnp.ones((1, 1)))):
    params = {group: {"w": leaf}}
    params, state = step(tx)(params, tx.init(params), {group: {"w": 2 * leaf}})
    np.testing.assert_allclose(params[group]["w"], 0.9, atol=1e-6)
    params, _ = step(tx)(params, state, {group: {"w": leaf}})
    np.testing.assert_allclose(params[group]["w"], 0.9 - 0.0933448, atol=1e-6)


def test_bias_correction_counts_the_experts_own_steps():
  # Expert 1 first runs at step 3: its move must be a first step's, lr * sign(g) = 0.1, where a
  # shared count would give m_hat = 0.1 g / (1 - 0.9^3) = 0.369 g, v_hat = 0.01 g^2 / 0.029701:
  # a move of 0.1 * 0.369 / 0.580 = 0.0636.
  tx = build(weight_decay=0.0)
  params = {"domain": {"w": jnp.zeros((2, 1))}}
  state = tx.init(params)
  for g in ([[0.5], [0.0]], [[0.5], [0.0]], [[0.5], [0.5]]):
    params, state = step(tx)(params, state, {"domain": {"w": jnp.array(g)}})
  np.testing.assert_allclose(params["domain"]["w"][1], -0.1, rtol=1e-5)
  np.testing.assert_array_equal(state["domain"].count_E, [3, 1])
  assert state["domain"].step == 3


def test_muon_turns_the_gradient_of_every_layer_into_an_orthogonal_move():
  # The move is 0.1 * 0.2 * sqrt(5) times a (4, 5) matrix; five Newton-Schulz iterations take its
  # singular values to about 0.68..1.13. It does not know how large another layer's gradient is.
  tx, params, grads = build(kind="muon", weight_decay=0.0), tree(0), tree(1)
  up = grads["base"]["upper_layers"]["up"]
  loud = grads | {"base": {"upper_layers": grads["base"]["upper_layers"] | {"up": up.at[1].mul(9)}}}
  moves = []
  for given in (grads, loud):
    after, _ = step(tx)(params, tx.init(params), given)
    move = jax.tree.map(jnp.subtract, after["base"], params["base"])["upper_layers"]
    values = jnp.linalg.svd(move["up"] / (0.1 * 0.2 * math.sqrt(5)), compute_uv=False)
    assert ((0.6 < values) & (values < 1.3)).all()
    assert (
      jnp.sign(move["norm"]["gain"]) == -jnp.sign(given["base"]["upper_layers"]["norm"]["gain"])
    ).all()
    moves.append(move["up"])
  np.testing.assert_allclose(moves[0][0], moves[1][0], rtol=1e-3, atol=1e-5)


def test_muon_leaves_all_but_the_base_to_adamw():
  params, grads = tree(0), tree(1)
  muon, adamw = (build(kind=kind) for kind in ("muon", "adamw"))
  a, b = (step(tx)(params, tx.init(params), grads)[0] for tx in (muon, adamw))
  for group in ("invariant", "domain", "router", "combine"):
    same_bits(a[group], b[group])
  frozen = build(kind="muon", trainable=ALL | {"base": False})
  after, _ = step(frozen)(params, frozen.init(params), grads)
  same_bits(params["base"], after["base"])


@pytest.mark.parametrize("clip", [0.3, math.inf])
def test_an_always_active_expert_is_adamw(clip):
  lr = optim.schedule("cosine", lr=0.1, warmup=3, steps=9, decay=0.2, end=0.1)
  lazy = build(clip=clip, lr=lr)
  plain = optax.chain(
    optax.clip_by_global_norm(clip),
    optax.adamw(lr, 0.9, 0.99, 1e-8, weight_decay=0.5, mask=optim.decayed),
  )
  params = {"domain": jax.tree.map(lambda x: x[:1], tree(0)["domain"])}
  plain_update = jax.jit(plain.update)
  alone, state, plain_state = params["domain"], lazy.init(params), plain.init(params["domain"])
  for seed in range(9):
    grads = {"domain": jax.tree.map(lambda x: x[:1], tree(seed + 1)["domain"])}
    params, state = step(lazy)(params, state, grads)
    updates, plain_state = plain_update(grads["domain"], plain_state, alone)
    alone = optax.apply_updates(alone, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params["domain"], alone)


def test_an_idle_expert_is_bitwise_still():
  tx, params = build(), tree(0)
  params, state = step(tx)(params, tx.init(params), tree(1))
  # Signed zeros and subnormals are what a sum would not keep.
  a = params["domain"]["a"].at[1, 0].set(jnp.array([-0.0, 1e-40]))
  params = params | {"domain": params["domain"] | {"a": a}}
  after, later = step(tx)(params, state, without(tree(2), 1))
  old, new = state["domain"], later["domain"]
  same_bits(take(params["domain"], 1), take(after["domain"], 1))
  same_bits(take((old.mu, old.nu, old.count_E), 1), take((new.mu, new.nu, new.count_E), 1))
  for e in (0, 2):
    assert moved(take(params["domain"], e), take(after["domain"], e))
  np.testing.assert_array_equal(new.count_E, [2, 1, 2])


def test_an_experts_gradient_in_one_leaf_makes_it_active():
  tx, params = build(), tree(0)
  grads = without(tree(1), 0, 1, 2)
  grads["domain"]["a"] = grads["domain"]["a"].at[2, 0, 0].set(1.0)
  after, state = step(tx)(params, tx.init(params), grads)
  np.testing.assert_array_equal(state["domain"].count_E, [0, 0, 1])
  assert moved(params["domain"]["a"][2], after["domain"]["a"][2])  # By weight decay.


def test_a_nan_gradient_is_not_taken_for_idle():
  tx, params = build(), tree(0)
  grads = without(tree(1), 1)
  grads["domain"]["a"] = grads["domain"]["a"].at[1].set(jnp.nan)
  after, _ = step(tx)(params, tx.init(params), grads)
  assert jnp.isnan(after["domain"]["a"][1]).all()
  assert all(jnp.isfinite(x[0]).all() for x in jax.tree.leaves(after["domain"]))


def test_a_huge_gradient_is_felt_by_its_own_group_and_expert_alone():
  tx, params = build(), tree(0)
  calm = tree(1)
  wild = jax.tree.map(lambda g: g, calm)
  wild["domain"] = jax.tree.map(lambda g: g.at[0].multiply(1e6), calm["domain"])
  wild["base"] = jax.tree.map(lambda g: g * 1e6, calm["base"])
  results = []
  for first in (calm, wild):  # The moments of the first step tell the clip apart in the second.
    after, state = step(tx)(params, tx.init(params), first)
    results.append(step(tx)(after, state, tree(2, 1e-2))[0])
  for group in ("invariant", "router", "combine"):
    same_bits(results[0][group], results[1][group])
  for e in (1, 2):
    same_bits(take(results[0]["domain"], e), take(results[1]["domain"], e))


def test_each_expert_is_clipped_to_its_own_norm():
  # After one step mu = 0.1 * clipped gradient: norms 10 and 0.5 become 1 (the clip) and 0.5.
  tx = build()
  params = {"domain": {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 1))}}
  grads = {"domain": {"a": jnp.array([[6.0, 0.0], [0.3, 0.0]]), "b": jnp.array([[8.0], [0.4]])}}
  _, state = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(optim.expert_norms(state["domain"].mu), [0.1, 0.05], rtol=1e-6)
  np.testing.assert_allclose(optim.expert_norms(grads["domain"]), [10.0, 0.5], rtol=1e-6)


def test_schedules():
  # Warm-up of 4 to 0.8: 0.2, 0.4, 0.6, 0.8; then the shape over the remaining 8 of 12 steps.
  at = lambda kind, t: float(
    optim.schedule(kind, lr=0.8, warmup=4, steps=12, decay=1 / 3, end=0.1)(t)
  )
  for kind in ("constant", "cosine", "wsd"):
    np.testing.assert_allclose([at(kind, t) for t in range(5)], [0.2, 0.4, 0.6, 0.8, 0.8])
  assert at("constant", 11) == pytest.approx(0.8)
  # Cosine: halfway (t = 8) the mean of 0.8 and 0.08; at 12 the end.
  assert at("cosine", 8) == pytest.approx(0.44)
  assert at("cosine", 12) == pytest.approx(0.08)
  # wsd: stable until 12 - 4 = 8, halfway down at 10.
  assert [at("wsd", t) for t in (8, 10, 12)] == pytest.approx([0.8, 0.44, 0.08])
  none = optim.schedule("constant", lr=0.8, warmup=0, steps=2, decay=1.0, end=0.0)
  one = optim.schedule("constant", lr=0.8, warmup=1, steps=2, decay=1.0, end=0.0)
  assert float(none(0)) == float(one(0)) == pytest.approx(0.8)


def test_norms_per_group():
  grads = {"base": {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, "router": {"a": jnp.ones(4)}}
  assert optim.group_norms(grads) == {"base": 5.0, "router": 2.0}
