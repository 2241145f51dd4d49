"""Where few positions are asked for, the last layer computes those few, and they come out alike."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, build, tiny

from iclm.audit import flops

AROUND = {"topology__kind": "around", "combine": "none", "model__layers": 4}
# Not told who sees whom, where each sees all before it.
UNTOLD = {"model__kernel": "cudnn", "model__dtype": "bfloat16", "data__questions_per_row": 1}


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"model__attention": "prefix", "model__window": 3},
    UNTOLD,
    {"model__remat": "light"},
    {"model__remat": "full", "model__qk_norm": True, "model__qkv_bias": True},
    {"router__reads": "base"},
    {"router__reads": "base", "router__level": "token", "combine": "logits"},
    {"router__gradient": "all"},
    {"compute": "all", "combine": "probas"},
    {"experts__kind": "full"},
    {"bottleneck__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0},
    {"model__trunk_layers": 0, "model__layers": 1},
    AROUND | {"topology__lower": 1, "topology__upper": 1},
    AROUND | {"topology__lower": 1, "topology__upper": 0},
    {"experts__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0},
    {"experts__kind": "none", "model__trunk_layers": 3, "loss__beta": 0.0, "loss__dependence": 0.0},
  ],
)
def test_what_is_asked_for_is_what_it_is_among_all(batch, changes):
  c = tiny(**changes)
  model, params = build(c)
  rng, (n_rows, n_tokens) = np.random.default_rng(0), batch.tokens_BT.shape
  at_BC = np.array([rng.permutation(n_tokens)[:3] for _ in range(n_rows)])  # In any order.
  alone = c.topology.kind == "parallel" and c.experts.kind != "none"
  every = model.apply(params, batch, alone=alone)
  few = model.apply(params, batch, alone=alone, at_BC=jnp.asarray(at_BC))
  at = np.arange(n_rows)[:, None], at_BC
  wanted = {"logits_BTV": np.asarray(every.logits_BTV)[at]}
  for name in ("messages_SBTZ", "rate_SBT", "alone_SBTV"):
    if getattr(every, name) is not None:
      wanted[name] = np.asarray(getattr(every, name))[:, *at]
  assert alone == ("alone_SBTV" in wanted)
  # Of bfloat16 the width of two steps, and rates go by squares.
  rtol, atol = (0.1, 0.05) if changes is UNTOLD else (1e-5, 1e-5)
  for name, value in wanted.items():
    np.testing.assert_allclose(getattr(few, name), value, rtol=rtol, atol=atol, err_msg=name)


def test_of_the_last_layer_all_positions_have_keys_and_values_alone(batch):
  c = tiny(experts__kind="none", loss__beta=0.0, loss__dependence=0.0)
  model, params = build(c)
  ask = lambda n: flops.of(functools.partial(model.apply, at_BC=at(n)), params, batch)
  at = lambda n: jnp.zeros((len(batch.tokens_BT), n), jnp.int32)
  n_rows, n_tokens = batch.tokens_BT.shape
  # Width 16, two heads of 8 on one of keys, 24 hidden, 23 words; queries see every token's key.
  matrices, attention, head = 2 * 16 * 16 + 3 * 16 * 24, 2 * 16 * n_tokens, 16 * VOCAB
  assert ask(5) - ask(2) == n_rows * 3 * 2 * (matrices + attention + head)
