"""Folders at fault are refused in one sentence, before a weight is read; nothing half-written."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from hf_families import GOLDEN, LLAMA3
from hf_test import load, model_of, one_device
from safetensors.numpy import load_file, save_file

from iclm import axes, config, hf
from iclm.config import InputError
from iclm.data import tokenizer

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(GOLDEN / "llama_sharded", tmp_path / "theirs"))


def refused(folder: pathlib.Path, match: str, model: config.Model | None = None) -> None:
  model = model or model_of(GOLDEN / "llama_sharded")
  with pytest.raises(InputError, match=match) as told:
    hf.load_base(folder, model, one_device(), fsdp=False)
  assert "\n" not in str(told.value)


def rewrite(folder: pathlib.Path, file: str, change) -> None:
  held = load_file(folder / file)
  change(held)
  save_file(held, folder / file)


def edit_json(path: pathlib.Path, change) -> None:
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def holding(folder: pathlib.Path, file: str, part: str) -> str:
  return next(name for name in sorted(load_file(folder / file)) if part in name)


def test_a_missing_shard(folder):
  (folder / SHARD).unlink()
  refused(folder, f"{SHARD} is missing, which model.safetensors.index.json names")


def test_a_single_file_counts_before_an_old_index(folder):
  """As in transformers, which saves again as one file and leaves the index where it is."""
  held = {k: v for path in folder.glob("model-*") for k, v in load_file(path).items()}
  read = lambda: hf.load_base(folder, model_of(folder), one_device(), fsdp=False)
  before = read()
  save_file({k: v + 1 for k, v in held.items()}, folder / "model.safetensors")
  (folder / SHARD).unlink()
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, b), before, read())


@pytest.mark.parametrize("kept", [3, 100, -4])
def test_a_truncated_file(folder, kept):
  whole = (folder / SHARD).read_bytes()
  (folder / SHARD).write_bytes(whole[:kept])
  refused(folder, f"{SHARD} is no whole safetensors file: ")


def test_a_tensor_that_is_missing_unexpected_or_elsewhere(folder):
  name = holding(folder, SHARD, "weight")
  rewrite(folder, SHARD, lambda held: held.pop(name))
  refused(folder, f"tensor {name} is in model.safetensors.index.json and not in {SHARD}")
  index = folder / "model.safetensors.index.json"
  edit_json(index, lambda value: value["weight_map"].pop(name))
  refused(folder, f"tensor {name} is missing, of shape .*; did you mean 'model.layers")
  rewrite(folder, SHARD, lambda held: held.update({f"{name}s": np.zeros((2, 3), np.float32)}))
  refused(folder, f"tensor {name}s is in {SHARD} and not in model.safetensors.index.json")


def test_config_and_weights_that_disagree(folder):
  write = lambda **given: edit_json(folder / "config.json", lambda value: value.update(given))
  write(num_hidden_layers=1)
  model = model_of(folder, model__trunk_layers=0)
  refused(folder, r"model\.layers\.1\..*, of shape .* has no place in the model of config", model)
  write(num_hidden_layers=10**8)
  refused(folder, "num_hidden_layers = 100000000, and the folder holds .* in all", model_of(folder))
  write(num_hidden_layers=3)
  refused(folder, r"tensor model\.layers\.2\..* is missing", model_of(folder))
  write(num_hidden_layers=2, intermediate_size=28)
  told = r"down_proj\.weight has shape \[16, 24\], where config\.json asks for \[16, 28\]"
  refused(folder, told, model_of(folder))
  told = r"config\.model\.d_ff = 24 does not agree with .*config.json, which has 28"
  refused(folder, told, model_of(GOLDEN / "llama_sharded"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite(folder, value):
  name = holding(folder, SHARD, "proj.weight")

  def spoil(held):
    held[name] = np.array(held[name])
    held[name][1, 2] = value

  rewrite(folder, SHARD, spoil)
  refused(folder, rf"{SHARD}: tensor {name} is not finite")


def test_a_dtype_that_is_not_read(folder):
  name = holding(folder, SHARD, "weight")
  rewrite(folder, SHARD, lambda held: held.update({name: held[name].astype(np.int8)}))
  refused(folder, f"tensor {name} is of dtype I8; only F32, F16, BF16 are read")


def test_a_head_beside_a_tied_embedding(tmp_path):
  folder = pathlib.Path(shutil.copytree(GOLDEN / "qwen2", tmp_path / "theirs"))
  file, model = "model.safetensors", model_of(GOLDEN / "qwen2")
  theirs = load_file(folder / file)
  embedding = theirs["model.embed_tokens.weight"]
  put = lambda **held: save_file(theirs | held, folder / file)
  put(**{"lm_head.weight": embedding})
  same = hf.load_base(folder, model, one_device(), fsdp=False)
  jax.tree.map(np.testing.assert_array_equal, same, load(GOLDEN / "qwen2")[1])
  for head, told in (
    (embedding + 1, "lm_head.weight is not model.embed_tokens.weight"),
    (embedding[1:], "lm_head.weight is not model.embed_tokens.weight"),
    (embedding.astype(jnp.float8_e4m3fn), "lm_head.weight is of dtype F8_E4M3; only F32, F16, BF"),
  ):
    put(**{"lm_head.weight": head})
    refused(folder, told, model)
    with pytest.raises(InputError, match=told):  # Before a run has a folder.
      hf.check_base(folder, model)
  half = embedding.astype(jnp.bfloat16)
  put(**{"lm_head.weight": half, "model.embed_tokens.weight": half.astype(np.float32)})
  hf.check_base(folder, model)


def test_pickles_and_empty_folders(tmp_path):
  shutil.copy(GOLDEN / "llama" / "config.json", tmp_path)
  model = model_of(GOLDEN / "llama")
  refused(tmp_path, "holds neither model.safetensors nor model.safetensors.index.json", model)
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  refused(tmp_path, "pytorch_model.bin is pickled, and never read", model)
  (tmp_path / "model.safetensors.index.json").write_text("[]")
  refused(tmp_path, "is no index of safetensors files: it has no weight_map", model)
  with pytest.raises(InputError, match=r"holds no config\.json"):
    hf.read_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"architectures": ["LlamaModel"]}, "'LlamaModel' is not supported; did you mean 'LlamaFor"),
    ({"architectures": ["Gemma"], "model_type": "gemma"}, "'Gemma' is not supported"),
    ({"architectures": [{}]}, r"architectures = \[\{\}\] must be a list of names, or null"),
    ({"architectures": [["x"]]}, r"architectures = \[\['x'\]\] must be a list of names"),
    ({"architectures": {"a": 1}}, r"architectures = \{'a': 1\} must be a list of names"),
    ({"model_type": []}, r"model_type = \[\] must be a name, or null"),
    ({"model_type": {}}, r"model_type = \{\} must be a name, or null"),
    ({"model_type": "qwen2"}, "model_type = 'qwen2' is not that of LlamaForCausalLM, 'llama'"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; only 'silu' is"),
    ({"attention_bias": True}, "attention_bias = True is not supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not supported"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers = '2' must be a positive whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0 must be a positive whole number"),
    (
      {"vocab_size": 10**20},
      "vocab_size = 10* must be a positive whole number of at most 21474836",
    ),
    ({"hidden_size": None}, "hidden_size = None must be a positive whole number"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small' must be a positive finite number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan must be a positive finite number"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05 must be a positive finite number"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_theta = 0 must be a positive finite number"),
    ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta = 10+ must be a positive finite"),
    ({"num_key_value_heads": 3}, "num_attention_heads = 4 is no multiple of num_key_value_heads"),
    ({"head_dim": None, "num_attention_heads": 6}, "hidden_size = 16 does not divide into"),
    ({"head_dim": 5}, "head_dim = 5 must be even for RoPE"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not supported; valid are"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, "lacks factor"),
    ({"rope_parameters": [1]}, "must be an object"),
    (
      {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
      "rope_scaling and rope_parameters disagree; leave one of them out",
    ),
    (
      {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
      "RoPE of its own for full_attention is not supported",
    ),
    (
      {"rope_parameters": {"factor": 2.0}},
      "RoPE has a factor and no rope_type; known are default, linear, llama3",
    ),
    (
      {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
      "original_max_position_embeddings = 32, and 48 in the object on RoPE",
    ),
  ],
)
def test_what_a_config_may_not_say(folder, changes, told):
  edit_json(folder / "config.json", lambda value: value.update(changes))
  with pytest.raises(InputError, match=told):
    hf.read_model(folder)


def test_a_config_that_is_no_json_or_lacks_a_key(folder):
  edit_json(folder / "config.json", lambda value: value.pop("vocab_size"))
  with pytest.raises(InputError, match="lacks vocab_size: a positive whole number is needed"):
    hf.read_model(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(InputError, match="cannot be read as JSON"):
    hf.read_model(folder)
  (folder / "config.json").write_text("[]")
  with pytest.raises(InputError, match="one JSON object, not list"):
    hf.read_model(folder)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"layer_types": None, "max_window_layers": 1}, "sliding_window holds for some layers only"),
    ({"layer_types": None, "max_window_layers": None}, "max_window_layers = None must be a whole"),
    ({"layer_types": None, "max_window_layers": "1"}, "max_window_layers = '1' must be a whole"),
    ({"layer_types": 5}, "layer_types = 5 must name the type of 2 layers"),
    ({"layer_types": [["a"], ["a"]]}, "layer_types = .* must name the type of 2 layers"),
    ({"layer_types": ["sliding_attention"]}, "layer_types = .* must name the type of 2 layers"),
    ({"use_sliding_window": 1}, "use_sliding_window = 1 must be true or false"),
    ({"sliding_window": 0}, "sliding_window = 0 must be a positive whole number"),
  ],
)
def test_a_window_that_is_not_of_all_layers(changes, told, tmp_path):
  folder = pathlib.Path(shutil.copytree(GOLDEN / "qwen2_window", tmp_path / "theirs"))
  edit_json(folder / "config.json", lambda value: value.update(changes))
  with pytest.raises(InputError, match=told):
    hf.read_model(folder)


def test_a_mistral_may_tell_the_type_of_its_layers_too(tmp_path):
  folder = pathlib.Path(shutil.copytree(GOLDEN / "mistral", tmp_path / "theirs"))
  window, wide, near = hf.read_model(folder)["window"], "full_attention", "sliding_attention"
  assert window > 0
  for types, seen in ((None, window), ([near] * 2, window), ([wide] * 2, 0)):
    edit_json(folder / "config.json", lambda value, told=types: value.update(layer_types=told))
    assert hf.read_model(folder)["window"] == seen
  edit_json(folder / "config.json", lambda value: value.update(layer_types=[wide, near]))
  with pytest.raises(InputError, match="sliding_window holds for some layers only"):
    hf.read_model(folder)


@pytest.mark.parametrize(
  ("about", "model", "told"),
  [
    (
      {"eos_token": "<eso>"},
      {},
      "no token '<eso>', which is named as its eos; did you mean '<eos>'",
    ),
    ({"pad_token": {"content": 3}}, {}, "pad_token = {'content': 3} must be a text, or hold one"),
    ({}, {"bos_token_id": 999}, "no token 999, which is named as its bos; valid are <bos>"),
    ({}, {"eos_token_id": []}, r"eos_token_id = \[\] must be an id, or a list of ids"),
    ({}, {"eos_token_id": ["2"]}, r"eos_token_id = \['2'\] must be an id, or a list of ids"),
  ],
)
def test_special_tokens_that_there_are_not(about, model, told, tmp_path):
  made = tokenizer.train(["one two"], 259, tokenizer.WORDS)
  (tmp_path / "tokenizer.json").write_text(made.to_json())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
  (tmp_path / "config.json").write_text(json.dumps(model))
  with pytest.raises(InputError, match=told):
    hf.load_tokenizer(tmp_path)


def test_sizes_that_do_not_divide_over_the_mesh():
  devices = np.asarray([jax.devices()[0]] * 3).reshape(1, 1, 3)
  mesh = jax.sharding.Mesh(devices, axes.MESH)
  with pytest.raises(InputError, match=r"does not fit the mesh .*'model': 3.*change config.mesh"):
    hf.load_base(GOLDEN / "llama", model_of(GOLDEN / "llama"), mesh, fsdp=False)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"rope_scaling.factor": 0.5}, "factor = 0.5 is less than 1"),
    ({"rope_scaling.low_freq_factor": 4.0}, "needs 0 < low_freq_factor"),
    ({"window": -1}, "window = -1 must not be negative"),
    ({"context": 64}, "is longer than config.model.context = 64"),
  ],
)
def test_config_keys_that_contradict_each_other(changes, told):
  with pytest.raises(InputError, match=told):
    tiny(**{f"model__{key.replace('.', '__')}": value for key, value in changes.items()})


def test_a_model_that_does_not_say_how_many_rows_it_has_is_told_those_of_the_folder():
  model = model_of(GOLDEN / "llama", model__vocab_size=0)
  with pytest.raises(InputError, match=r"config\.model\.vocab_size = 0 does not agree .* has 32"):
    hf.check_base(GOLDEN / "llama", model)
