"""The contract of the cache: token by token from a cache equals the whole sequence at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, build, tiny

from iclm import compose
from iclm.data.pipeline import Batch
from iclm.generate import GREEDY, make_decoding

T, PROMPT, SAID = 14, 10, 4  # Slots of a prompt, and tokens that follow it.
OFF = {"loss__dependence": 0.0, "loss__beta": 0.0}
AROUND = OFF | {
  "topology__kind": "around", "combine": "none", "model__trunk_layers": 0, "router__reads": "embed",
}  # fmt: skip
ORACLE = {"router__kind": "oracle", "data__domains": ("a", "b", "c")}
MODELS = {
  "residual": {},
  "logits": {"combine": "logits"},
  "concat": {"combine": "concat"},
  "probas": {"combine": "probas"},
  "no bottleneck": OFF | {"bottleneck__kind": "none"},
  "no trunk": {"model__trunk_layers": 0, "router__reads": "embed"},
  "domain alone": OFF | {"experts__invariant": False},
  "prefix": {"model__attention": "prefix"},
  "window": {"model__window": 3},
  "Qwen": OFF
  | ORACLE
  | {"model__qkv_bias": True, "model__qk_norm": True, "model__rope_scaling__kind": "llama3"},
  "gaps": {"model__position_gap": 4, "model__attention": "prefix"},
  "around": AROUND | ORACLE,
  "around, lower": AROUND | ORACLE | {"topology__lower": 1},
  "plain": OFF | {"experts__kind": "none"},
  "block": {"router__gradient": "all"},
  "soft": {"router__kind": "soft"},
  "full": {"experts__kind": "full", "experts__projections": ("q", "down")},
  "every expert": {"compute": "all"},
  "reads the base": {"router__reads": "base", "combine": "logits"},
  "by token": {"router__level": "token", "router__reads": "base", "combine": "logits"},
}


def ragged(seed: int = 0, n_rows: int = 6) -> tuple[Batch, Batch, np.ndarray]:
  """Prompts of many lengths with padding behind, the same with tokens that follow, and lengths."""
  rng = np.random.default_rng(seed)
  n_B = rng.integers(3, PROMPT + 1, n_rows)
  at_BT = np.broadcast_to(np.arange(T), (n_rows, T))
  own_B = n_B - rng.integers(1, 3, n_rows)  # The question's first token.
  segment_BT = np.where(at_BT < own_B[:, None], 1, 2)
  whole_BT = at_BT < (n_B + SAID)[:, None]
  tokens_BT = rng.integers(3, VOCAB, (n_rows, T))

  def batch(there_BT, n_tokens):
    cut = lambda x_BT: jnp.asarray(np.where(there_BT, x_BT, 0)[:, :n_tokens], jnp.int32)
    segment = cut(segment_BT)
    return Batch(
      cut(tokens_BT), cut(tokens_BT), segment, cut(at_BT), jnp.zeros(segment.shape), segment == 1,
      jnp.asarray(rng.integers(0, 3, n_rows), jnp.int32),
    )  # fmt: skip

  prompts = batch(at_BT < n_B[:, None], PROMPT)
  return prompts, batch(whole_BT, T)._replace(domain_B=prompts.domain_B), n_B


def tokens_at(whole: Batch, first_B: np.ndarray, n: int) -> Batch:
  at_BN = jnp.asarray(first_B[:, None] + np.arange(n))
  take = lambda x: jnp.take_along_axis(x, at_BN, axis=1)
  of_tokens = [name for name in Batch._fields if name.endswith("_BT")]
  return whole._replace(**{name: take(getattr(whole, name)) for name in of_tokens})._replace(
    prompt_mask_BT=jnp.zeros(at_BN.shape, bool)
  )


# One by one; and several at a time, of one model with each kind of pass.
ASKED = [(name, (1,) * SAID) for name in MODELS] + [
  (name, chunks)
  for name in ("residual", "no trunk", "around", "plain")
  for chunks in ((2, 1, 1), (1, 3))
]


def of_whole_and_cached(changes, chunks):
  """The logits of prompts' last tokens and of those that follow, [B, 1 + SAID, V], both ways."""
  model, params = build(tiny(**changes))
  prompts, whole, n_B = ragged()
  rows_B, at_BN = np.arange(len(n_B))[:, None], n_B[:, None] - 1 + np.arange(1 + SAID)
  right = np.asarray(model.apply(params, whole).logits_BTV, np.float32)[rows_B, at_BN]
  output = model.apply(params, prompts, cache=compose.empty_cache(len(n_B), PROMPT + SAID))
  first, got = output.routing, [np.asarray(output.logits_BTV, np.float32)[rows_B, at_BN[:, :1]]]
  if first is not None and first.index_B.ndim == 1:
    assert len(set(first.index_B.tolist())) > 1  # Routes are mixed.
  for i, n in zip(np.cumsum((0, *chunks)), chunks, strict=False):
    output = model.apply(params, tokens_at(whole, n_B + i, n), cache=output.cache)
    got.append(np.asarray(output.logits_BTV, np.float32))
  assert int(output.cache.used) == PROMPT + SAID
  return right, np.concatenate(got, axis=1)


@pytest.mark.parametrize(("name", "chunks"), ASKED)
def test_token_by_token_gives_the_logits_of_the_whole(name, chunks):
  right, got = of_whole_and_cached(MODELS[name], chunks)
  np.testing.assert_allclose(got, right, atol=1e-4)


@pytest.mark.parametrize(
  ("name", "kv_heads"), [("residual", 1), ("no trunk", 2), ("around", 2), ("plain", 2)]
)
def test_token_by_token_in_bfloat16_where_heads_share_keys(name, kv_heads):
  changes = MODELS[name] | {"model__dtype": "bfloat16", "model__kv_heads": kv_heads}
  right, got = of_whole_and_cached(changes, (1, 3))
  np.testing.assert_allclose(got, right, atol=0.05)


@pytest.mark.parametrize("name", ["residual", "no trunk", "plain"])
def test_a_token_is_said_without_a_copy_of_what_was_read(name):
  # With one head of keys for all, the CPU's compiler writes before it reads, and copies.
  model, params = build(tiny(**MODELS[name], model__kv_heads=2))
  prompts, _, n_B = ragged()
  left_B, key_B = np.full(len(n_B), SAID, np.int32), jax.random.split(jax.random.key(0), len(n_B))
  given = GREEDY, compose.NOTHING, -1
  decoding = make_decoding(model)
  decoded, _ = decoding.prefill(params, prompts, left_B, key_B, *given, room=SAID)
  program = decoding.decode.lower(params, decoded, *given, SAID - 1).compile().as_text()
  shapes = {"f32[" + ",".join(map(str, x.shape)) + "]" for x in jax.tree.leaves(decoded.cache.past)}
  copies = re.findall(r"= (f32\[[0-9,]+\])\S* copy\(", program)
  assert shapes and shapes.isdisjoint(copies)
