"""Configs of models as folders of transformers write them, old and new, read and written."""

import json
import pathlib

import pytest
from conftest import tiny

from iclm import hf
from iclm.hf import description

OLD = {  # As Llama 3.1 and Mistral came out.
  "architectures": ["LlamaForCausalLM"],
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "max_position_embeddings": 131072,
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "rope_theta": 500000.0,
  "vocab_size": 128256,
}


def described(folder: pathlib.Path, **changes) -> dict:
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(OLD | changes))
  return hf.read_model(folder)


def test_config_files_of_older_releases_are_read(tmp_path):
  got = described(tmp_path / "x")
  assert got["head_size"] == 128 and got["rope_theta"] == 5e5 and not got["tied"]
  assert got["rope_scaling"]["original_length"] == 8192 and got["window"] == 0
  assert described(tmp_path / "x", sliding_window=8)["window"] == 0  # Of no effect in a Llama.
  got = described(tmp_path / "x", architectures=["MistralForCausalLM"], rope_scaling=None)
  assert got["window"] == 4096 and got["rope_scaling"] == {"kind": "none"}
  got = described(
    tmp_path / "x", architectures=["Qwen2ForCausalLM"], rope_scaling={"type": "linear", "factor": 2}
  )
  assert got["window"] == 0 and got["qkv_bias"]
  assert got["rope_scaling"] == {"kind": "linear", "factor": 2.0}
  assert described(tmp_path / "x", architectures=None, model_type="qwen3")["qk_norm"]
  # The same in both places, and the length outside of the object that the rest stands in.
  both = OLD["rope_scaling"]
  inner = {key: value for key, value in both.items() if key != "original_max_position_embeddings"}
  for changes in (
    {"rope_parameters": both, "original_max_position_embeddings": 8192},
    {"rope_scaling": inner, "original_max_position_embeddings": 8192},
  ):
    assert described(tmp_path / "x", **changes) == described(tmp_path / "x")


@pytest.mark.parametrize(
  ("changes", "architecture"),
  [
    ({}, "Llama"),
    ({"window": 4}, "Mistral"),
    ({"heads": 3, "kv_heads": 3, "head_size": 4}, "Mistral"),  # 16 does not divide into 3.
    ({"qkv_bias": True, "window": 4}, "Qwen2"),
    ({"qk_norm": True, "tied": True}, "Qwen3"),
  ],
)
def test_a_model_of_ours_finds_its_family(changes, architecture, tmp_path):
  model = tiny(
    **{f"model__{key}": value for key, value in changes.items()}, model__context=128
  ).model
  told = description.describe(model, 23, "float32")
  assert told["architectures"] == [f"{architecture}ForCausalLM"]
  (tmp_path / "config.json").write_text(json.dumps(told))
  for key, value in hf.read_model(tmp_path).items():
    if key not in ("rope_scaling", "vocab_size"):
      assert getattr(model, key) == value, key
