"""Weights in and out of folders of transformers, held against its answers without torch."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from conftest import on_eight_devices, tiny
from hf_families import FAMILIES, GOLDEN, expected
from safetensors.numpy import load_file

from iclm import config, hf, sharding
from iclm.config import InputError
from iclm.data import chat, tokenizer
from iclm.nn import attention, block, rope, transformer

TOLERANCE = 2e-4  # Of logits and states, absolute, float32 on a CPU.


def one_device():
  return sharding.make_mesh(config.Mesh(data=1, expert=1, model=1))


def model_of(folder: pathlib.Path, **changes) -> config.Model:
  """The folder's model; its lowest layer is the trunk."""
  flat = {
    f"model__{key}": value for key, value in hf.read_model(folder).items() if key != "rope_scaling"
  }
  scaling = hf.read_model(folder)["rope_scaling"]
  flat |= {f"model__rope_scaling__{key}": value for key, value in scaling.items()}
  return tiny(**{"model__trunk_layers": 1, "data__seq_len": 32} | flat | changes).model


@functools.cache
def load(folder: pathlib.Path):
  model = model_of(folder)
  return model, hf.load_base(folder, model, one_device(), fsdp=False)


def answer(model: config.Model, params, tokens_BT) -> tuple[np.ndarray, np.ndarray]:
  """Logits, and the states that transformers tells: embedded, after each layer, the last normed."""
  b, t = tokens_BT.shape
  decoder = transformer.Decoder(model, model.vocab_size, 0.0)
  call = lambda method, *args: decoder.apply({"params": params}, *args, method=method)
  position_BT = jnp.broadcast_to(jnp.arange(t)[None], (b, t))
  mask_BTT = attention.own_mask(jnp.ones((b, t), jnp.int32), None)
  mask_BTT = attention.within(mask_BTT, position_BT, position_BT, model.window)
  shared = block.shared(model, position_BT, mask_BTT, None)
  embedded_BTD = call("embed", tokens_BT)
  trunk_BTD = call("trunk", embedded_BTD, shared)
  last_BTD = call("upper", trunk_BTD, {}, shared)
  normed_BTD = block.rms_normalise(last_BTD, model.norm_eps) * params["norm"]["gain"][None, None]
  return call("unembed", last_BTD), np.stack([embedded_BTD, trunk_BTD, normed_BTD])


def bitwise(folder: pathlib.Path, other: pathlib.Path) -> None:
  """The same tensors under the same names, dtypes and all."""
  ours, theirs = (
    {name: x for file in f.glob("model*.safetensors") for name, x in load_file(file).items()}
    for f in (folder, other)
  )
  assert ours.keys() == theirs.keys()
  for name in ours:
    assert ours[name].dtype == theirs[name].dtype, name
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_in_transformers(name):
  folder = GOLDEN / name
  model, params = load(folder)
  want = expected(folder)
  logits_BTV, states_LBTD = answer(model, params, jnp.asarray(want["tokens_BT"]))
  np.testing.assert_allclose(states_LBTD, want["states_LBTD"], rtol=0, atol=TOLERANCE)
  np.testing.assert_allclose(logits_BTV, want["logits_BTV"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
  model, params = load(GOLDEN / name)
  hf.save_base(params, model, tmp_path / "out", dtype="float32", max_bytes=8_000, tokenizer=None)
  bitwise(tmp_path / "out", GOLDEN / name)
  assert hf.read_model(tmp_path / "out") == hf.read_model(GOLDEN / name)
  again = hf.load_base(tmp_path / "out", model, one_device(), fsdp=False)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  assert len(set(index["weight_map"].values())) > 1


def test_half_precision_comes_back_bitwise(tmp_path):
  model, params = load(GOLDEN / "qwen2")
  kinds = {"max_bytes": 10**9, "tokenizer": None}
  for dtype in ("bfloat16", "float16"):
    one, two = tmp_path / dtype, tmp_path / f"{dtype}_again"
    hf.save_base(params, model, one, dtype=dtype, **kinds)
    rounded = hf.load_base(one, model, one_device(), fsdp=False)
    assert {x.dtype for x in jax.tree.leaves(rounded)} == {np.dtype("float32")}
    hf.save_base(rounded, model, two, dtype=dtype, **kinds)
    bitwise(one, two)


def test_the_tokenizer_goes_along(tmp_path):
  model, params = load(GOLDEN / "llama")
  made = tokenizer.train(["one two"], 259, tokenizer.WORDS)
  hf.save_base(params, model, tmp_path / "out", dtype="float32", max_bytes=10**9, tokenizer=made)
  got = hf.load_tokenizer(tmp_path / "out")
  assert (got.bos_id, got.eos_id, got.pad_id) == (made.bos_id, made.eos_id, made.pad_id)
  assert got.encode("one two") == made.encode("one two")
  # Served elsewhere, a text begins as our rows do.
  served = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  assert served.encode("one two").ids == [made.bos_id, *made.encode("one two")]
  about = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert (about["bos_token"], about["eos_token"], about["pad_token"]) == ("<bos>", "<eos>", "<pad>")
  assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(
  ("about", "model", "eos", "bos"),
  [
    ({}, {}, "<eos>", "<bos>"),
    ({"eos_token": "<bos>"}, {"eos_token_id": 0}, "<bos>", "<bos>"),
    ({"eos_token": {"content": "<pad>"}, "bos_token": None}, {"bos_token_id": 0}, "<pad>", None),
    ({"eos_token": None}, {"eos_token_id": [1, 2], "bos_token_id": 0}, "<bos>", "<pad>"),
    ({"bos_token": "<bos>", "add_bos_token": False}, {"bos_token_id": 1}, "<eos>", None),
  ],
)
def test_a_folder_names_its_special_tokens(about, model, eos, bos, tmp_path):
  made = tokenizer.train(["one two"], 259, tokenizer.WORDS)
  (tmp_path / "tokenizer.json").write_text(made.to_json())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
  (tmp_path / "config.json").write_text(json.dumps(model))
  got = hf.load_tokenizer(tmp_path)
  ids = {"<pad>": 0, "<bos>": 1, "<eos>": 2, None: None}
  assert (got.eos_id, got.bos_id, got.pad_id) == (ids[eos], ids[bos], 0)
  # And goes out with what was named.
  base, params = load(GOLDEN / "llama")
  hf.save_base(params, base, tmp_path / "out", dtype="float32", max_bytes=10**9, tokenizer=got)
  again = hf.load_tokenizer(tmp_path / "out")
  assert (again.end_ids, again.bos_id, again.pad_id) == (got.end_ids, got.bos_id, got.pad_id)
  told = json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"]
  assert told == (list(got.end_ids) if len(got.end_ids) > 1 else got.eos_id)


def test_special_tokens_may_have_a_file_of_their_own(tmp_path):
  made = tokenizer.train(["one two"], 259, tokenizer.WORDS)
  (tmp_path / "tokenizer.json").write_text(made.to_json())
  named = {"eos_token": {"content": "<pad>"}, "bos_token": "<bos>"}
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
  template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
  about = tmp_path / "tokenizer_config.json"
  for told, eos in (({}, "<pad>"), ({"eos_token": "<eos>"}, "<eos>")):
    about.write_text(json.dumps({"chat_template": template} | told))
    got = hf.load_tokenizer(tmp_path)
    assert (got.bos_id, got.eos_id) == (1, {"<pad>": 0, "<eos>": 2}[eos])
    rendered = chat.load(tmp_path, "2024-07-26").render([{"role": "user", "content": "one"}])
    assert rendered == f"<bos>one{eos}"


def test_a_folder_that_adds_no_bos_goes_out_so(tmp_path):
  made = tokenizer.train(["one two"], 259, tokenizer.WORDS)
  backend = tokenizers.Tokenizer.from_str(made.json)
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single=["<bos>", "$A"], special_tokens=[("<bos>", 1)]
  )
  backend.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
  got = hf.load_tokenizer(tmp_path)
  assert got.bos_id is None and tokenizer.load(tmp_path / "tokenizer.json").bos_id == 1
  model, params = load(GOLDEN / "llama")
  hf.save_base(params, model, tmp_path / "out", dtype="float32", max_bytes=10**9, tokenizer=got)
  served = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  assert served.encode("one two").ids == got.encode("one two")


def test_an_answer_ends_at_every_id_that_a_folder_names(tmp_path):
  made = tokenizer.train(["one two"], 259, tokenizer.WORDS)
  (tmp_path / "tokenizer.json").write_text(made.to_json())
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
  assert hf.load_tokenizer(tmp_path).end_ids == (2,)
  # What generation goes by has the last word.
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 1]}))
  got = hf.load_tokenizer(tmp_path)
  assert got.end_ids == (2, 1) and tokenizer.Tokenizer.from_json(got.to_json()) == got
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, "2"]}))
  with pytest.raises(InputError, match=r"generation_config.json: eos_token_id = .* must be an id"):
    hf.load_tokenizer(tmp_path)


def test_llama3_slows_the_slow_pairs_by_hand():
  # 2 pi turns fit in 48 tokens 7.64 times, of speeds 50^(-i/4): 7.64, 2.87, 1.08 and 0.406 turns.
  # Kept: all of the first, (2.87 - 1) / 3 = 0.624, 0.027 and nothing; the rest goes at 1/8.
  got = rope.slowed(model_of(GOLDEN / "llama3"))
  want = [1.0, 0.624 + 0.376 / 8, 0.027 + 0.973 / 8, 1 / 8]
  np.testing.assert_allclose(got, want, atol=1e-3)
  np.testing.assert_array_equal(rope.slowed(model_of(GOLDEN / "llama_linear")), [0.25, 0.25])


def test_a_window_hides_what_lies_further_back():
  mask_BTT = attention.own_mask(jnp.ones((1, 4), jnp.int32), None)
  places = jnp.arange(4)[None]
  seen = attention.within(mask_BTT, places, places, 2)[0].astype(int)
  assert ["".join(map(str, row)) for row in seen.tolist()] == ["1000", "1100", "0110", "0011"]
  assert attention.within(mask_BTT, places, places, 0) is mask_BTT


SHARDED = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from iclm import config, hf, sharding
from iclm.hf import names
from tests.hf_families import GOLDEN
from hf_test import model_of

found = {}
for name in ("llama_sharded", "qwen2", "qwen3"):
  model, held = model_of(GOLDEN / name), []
  for sizes, fsdp in (((1, 1, 1), False), ((8, 1, 1), True), ((2, 2, 2), True), ((4, 1, 2), False)):
    if model.kv_heads % sizes[2]:
      continue
    mesh = sharding.make_mesh(config.Mesh(*sizes))
    params = hf.load_base(GOLDEN / name, model, mesh, fsdp=fsdp)
    held.append(jax.tree.map(np.asarray, params))
    jax.tree.map(np.testing.assert_array_equal, held[0], held[-1])
    places = names.shardings(names.abstract(model, model.vocab_size), mesh, fsdp)
    assert jax.tree.map(lambda x: x.sharding, params) == places
    layers = params["last_layer"]
    every = layers["q"], layers["down"], params["embedding"]
    found[f"{name} {sizes}"] = [x.addressable_shards[0].data.shape for x in every]
print(json.dumps(found))
"""


def test_eight_devices_hold_their_part_of_the_same_weights():
  found = on_eight_devices(SHARDED)
  # q is (layers, D, heads * head size) = (1, 16, 16), down (1, 24, 16), the embedding (32, 16).
  assert found["llama_sharded (1, 1, 1)"] == [[1, 16, 16], [1, 24, 16], [32, 16]]
  assert found["llama_sharded (2, 2, 2)"] == [[1, 8, 8], [1, 12, 8], [32, 8]]
  assert found["llama_sharded (8, 1, 1)"] == [[1, 2, 16], [1, 24, 2], [32, 2]]
  assert found["llama_sharded (4, 1, 2)"] == [[1, 16, 8], [1, 12, 16], [32, 16]]
