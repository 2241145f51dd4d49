"""Which parameters move: groups, single experts, matrices alone, and what the config says."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optim_test import ALL, N_EXPERTS, build, moved, same_bits, step, take, tree

from configs import base
from iclm import config, optim


def test_frozen_groups_are_bitwise_still_and_have_no_moments():
  frozen = ("base", "domain")
  tx, params = build(trainable=ALL | dict.fromkeys(frozen, False)), tree(0)
  params["base"]["upper_layers"]["up"] = jnp.full((2, 4, 5), -0.0)
  params["domain"]["a"] = jnp.full((N_EXPERTS, 4, 2), 1e-40)
  state = tx.init(params)
  after, _ = step(tx)(params, state, tree(1))
  for group in frozen:
    same_bits(params[group], after[group])
    assert not jax.tree.leaves(state[group])
  for group in ("invariant", "router", "combine"):
    assert moved(params[group], after[group])


def test_partial_update_moves_the_named_expert_alone():
  trainable = dict.fromkeys(optim.GROUPS, False) | {"domain": (2,)}
  tx, params = build(trainable=trainable), tree(0)
  state = tx.init(params)
  after, later = step(tx)(params, state, tree(1))
  for e in (0, 1):
    same_bits(take(params["domain"], e), take(after["domain"], e))
  assert moved(take(params["domain"], 2), take(after["domain"], 2))
  np.testing.assert_array_equal(later["domain"].count_E, [1])
  # Moments are those of the one expert.
  size = lambda part: sum(x.size for x in jax.tree.leaves(part))
  assert size((later["domain"].mu, later["domain"].nu)) == 2 * size(take(params["domain"], 2))
  for group in ("base", "invariant", "router", "combine"):
    same_bits(params[group], after[group])


def test_an_optimizer_that_was_first_called_in_a_trace_serves_outside_of_it():
  tx, params = build(trainable=ALL | {"domain": (2,)}), tree(0)
  assert jax.eval_shape(tx.init, params)["domain"].count_E.shape == (1,)
  after, _ = step(tx)(params, tx.init(params), tree(1))
  assert moved(take(params["domain"], 2), take(after["domain"], 2))


def test_the_named_expert_learns_as_if_all_did():
  full, partial = build(), build(trainable=ALL | {"domain": (2,)})
  a, b = tree(0), tree(0)
  all_of, some_of = full.init(a), partial.init(b)
  for seed in (1, 2):
    a, all_of = step(full)(a, all_of, tree(seed))
    b, some_of = step(partial)(b, some_of, tree(seed))
  same_bits(take(a["domain"], 2), take(b["domain"], 2))
  same_bits(take(all_of["domain"].nu, 2), take(some_of["domain"].nu, 0))


def test_decay_is_on_matrices_alone():
  mask = optim.decayed(tree(0))
  assert mask["base"]["upper_layers"] == {"norm": {"gain": False}, "up": True}
  assert mask["invariant"] == {"a": True, "bias": False}
  assert mask["domain"] == {"a": True, "deep": {"log_sigma_bias": False}}
  assert mask["router"] == {"projection_DP": True, "prototypes_EP": False}
  # An active expert's undecayed leaf with a zero gradient stands still; a decayed one shrinks by
  # lr * weight_decay = 0.05.
  tx, params = build(), tree(0)
  grads = jax.tree.map(jnp.zeros_like, params)
  grads["domain"]["a"] = grads["domain"]["a"].at[:, 0, 0].set(1.0)
  after, _ = step(tx)(params, tx.init(params), grads)
  same_bits(params["domain"]["deep"], after["domain"]["deep"])
  still = params["domain"]["a"][:, 1:]
  np.testing.assert_allclose(after["domain"]["a"][:, 1:], 0.95 * still, rtol=1e-5)
  np.testing.assert_allclose(
    after["router"]["projection_DP"], 0.95 * params["router"]["projection_DP"], rtol=1e-5
  )
  same_bits(params["router"]["prototypes_EP"], after["router"]["prototypes_EP"])


def test_the_router_has_a_rate_of_its_own():
  params, grads = tree(0), tree(1)
  results = {}
  for scale in (1.0, 0.5):
    tx = build(router_lr=scale)
    after, _ = step(tx)(params, tx.init(params), grads)
    results[scale] = jax.tree.map(lambda a, b: a - b, after, params)
  for group in optim.GROUPS:
    factor = 0.5 if group == "router" else 1.0
    jax.tree.map(
      lambda half, full, f=factor: np.testing.assert_allclose(half, f * full, atol=1e-6),
      results[0.5][group],
      results[1.0][group],
    )


def test_moments_keep_the_boxes():
  box = lambda x: nn.LogicallyPartitioned(x, ("expert",) + (None,) * (x.ndim - 1))
  boxed = jax.tree.map(box, tree(0))
  state = jax.eval_shape(build(trainable=ALL | {"router": False}).init, boxed)
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for mu in (state["domain"].mu, optax.tree.get(state["base"], "mu")):
    assert all(is_box(x) for x in jax.tree.leaves(mu, is_leaf=is_box))
  specs = nn.get_partition_spec(state)
  assert specs["domain"].mu["a"] == jax.sharding.PartitionSpec("expert", None, None)
  assert specs["domain"].count_E == jax.sharding.PartitionSpec()
  shapes = lambda t: jax.tree.map(lambda x: x.shape, nn.meta.unbox(t))
  assert shapes(state["domain"].nu) == shapes(boxed["domain"])
  # One expert of several does not divide over their devices: its moments are on each of them.
  one = jax.eval_shape(build(trainable=ALL | {"domain": (1,)}).init, boxed)
  assert nn.get_partition_spec(one)["domain"].mu["a"] == jax.sharding.PartitionSpec()
  assert one["domain"].mu["a"].shape == (1, *boxed["domain"]["a"].value.shape[1:])


def test_the_optimizer_of_a_config_follows_what_it_trains():
  cfg = base.get_config()
  cfg.trains.base, cfg.trains.only_experts, cfg.optimizer.warmup = False, (1,), 1
  cfg.trains.combine = False
  cfg.optimizer.router_lr = 0.5
  tx, params = optim.from_config(config.from_config_dict(cfg)), tree(0)
  after, state = step(tx)(params, tx.init(params), tree(1))
  for group in ("base", "combine"):  # By decay too, which needs no gradient.
    same_bits(params[group], after[group])
  np.testing.assert_array_equal(state["domain"].count_E, [1])
  # A first step is lr * sign(g), without decay: half of it for the router.
  move = jnp.abs(after["router"]["prototypes_EP"] - params["router"]["prototypes_EP"])
  np.testing.assert_allclose(move, 0.5 * cfg.optimizer.lr, rtol=1e-2)
