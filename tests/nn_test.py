"""The base model's parts, by hand-made numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, fresh, make_batch, tiny

from iclm.nn import attention, block, combine, lora, transformer


def test_rms_norm_by_hand():
  # rms of (3, 4) is sqrt(25 / 2).
  got = block.rms_normalise(jnp.array([3.0, 4.0]), 0.0)
  np.testing.assert_allclose(got, np.array([3, 4]) / np.sqrt(12.5), rtol=1e-6)


def test_the_mask_shows_the_context_and_the_own_segment_so_far():
  segment = jnp.array([[1, 1, 2, 2, 3, 0]])
  expected = [
    "100000",
    "110000",
    "111000",
    "111100",
    "110010",  # Segment 3 does not see segment 2.
  ]
  got = attention.own_mask(segment, None)[0].astype(int).tolist()
  shown = ["".join(map(str, row)) for row in got]
  assert shown[:5] == expected
  prefix = attention.own_mask(segment, segment == 1)[0].astype(int).tolist()
  assert ["".join(map(str, row)) for row in prefix][:2] == ["110000", "110000"]
  assert ["".join(map(str, row)) for row in prefix][2:5] == expected[2:]


def test_rotations_depend_on_the_distance_only():
  m = dataclasses.replace(tiny().model, head_size=8)
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

  def score(at_q, at_k):
    angle = lambda at: block.shared(m, jnp.array([[at]]), jnp.ones((1, 1, 1), bool), None)
    return (block._rotate(q, angle(at_q)) * block._rotate(k, angle(at_k))).sum()

  np.testing.assert_allclose(score(5, 2), score(13, 10), rtol=1e-5)
  assert abs(score(5, 2) - score(5, 3)) > 1e-3


@pytest.mark.parametrize("init", ["independent", "equal"])
def test_equal_heads_attend_to_their_like(init):
  _, params = fresh(tiny(model__heads=4, model__kv_heads=2, model__qk_init=init))
  for name in transformer.LAYERS:
    layers = params["base"][name]
    q, k = layers["q"], layers["k"]  # (layers, D, heads * 8)
    same = [np.allclose(k[..., :8], q[..., :8]), np.allclose(k[..., 8:], q[..., 16:24])]
    assert same == [init == "equal"] * 2


def test_lora_by_hand_gathered_and_block():
  x_BTD = jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])
  a = jnp.array([[[1.0], [0.0]], [[0.0], [1.0]]])  # Expert 0 reads the first, 1 the second.
  b = jnp.array([[[10.0]], [[100.0]]])
  np.testing.assert_allclose(lora.delta(x_BTD, a, b, None)[:, 0, 0], [10, 400])
  weights_BTE = jnp.array([[[0.5, 0.5]], [[1.0, 0.0]]])
  np.testing.assert_allclose(lora.delta(x_BTD, a, b, weights_BTE)[:, 0, 0], [105, 30])


def test_combines_by_hand():
  said = jnp.log(jnp.array([[[[0.5, 0.5]]], [[[0.1, 0.9]]]]))  # Two streams' logits.
  one, both = jnp.array([[1.0], [0.0]]), jnp.ones((2, 1))
  mix = combine.probas(said, None, None, lambda x: x)
  np.testing.assert_allclose(jnp.exp(mix(both))[0, 0], [0.3, 0.7], rtol=1e-6)
  np.testing.assert_allclose(jnp.exp(mix(one))[0, 0], [0.5, 0.5], rtol=1e-6)
  mix = combine.logits(said, None, None, lambda x: x)
  p = np.sqrt([0.05, 0.45])  # A product of experts: the geometric mean.
  np.testing.assert_allclose(jax.nn.softmax(mix(both))[0, 0], p / p.sum(), rtol=1e-6)
  base = jnp.ones((1, 1, 2))
  mix = combine.residual(said, base, None, lambda x: x)
  np.testing.assert_allclose(mix(one), base + said[0], rtol=1e-6)


def test_the_future_is_not_felt():
  c = tiny(experts__kind="none")
  model, params = fresh(c)
  batch = make_batch(0, 2, 20)
  other_B = (batch.tokens_BT[:, 5] + 1) % VOCAB
  changed = batch._replace(tokens_BT=batch.tokens_BT.at[:, 5].set(other_B))
  a, b = (model.apply(params, x).logits_BTV for x in (batch, changed))
  np.testing.assert_array_equal(a[:, :5], b[:, :5])
  assert (a[:, 5:10] != b[:, 5:10]).any()
