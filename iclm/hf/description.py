"""config.json of `transformers` and our `config.model` say the same, key by key, or are refused.

What changes the function of the model and has no key of ours is refused by name; what does not
(dropout of training, caching, initialisation) is ignored. Where a file leaves a key out, the value
is the one that `transformers` 5 takes, and stands here in `FAMILIES`.
"""

import pathlib
from typing import Any, NamedTuple

from iclm import config
from iclm.config import InputError
from iclm.hf import objects
from iclm.hf.objects import Reader

CONFIG = "config.json"


class Family(NamedTuple):
  """One architecture of `transformers`; see `FAMILIES`."""

  model_type: str
  qkv_bias: bool
  qk_norm: bool
  absent: dict[str, Any]  # Values of keys that a file may leave out.


_COMMON = {"hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10_000.0}
_LLAMA = _COMMON | {"num_key_value_heads": None, "head_dim": None}
_QWEN = _COMMON | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

# TinyLlama is a Llama, Qwen 2.5 is a Qwen 2.
FAMILIES = {
  "LlamaForCausalLM": Family("llama", False, False, _LLAMA),
  "MistralForCausalLM": Family(
    "mistral", False, False, _COMMON | {"head_dim": None, "sliding_window": 4096}
  ),
  "Qwen2ForCausalLM": Family("qwen2", True, False, _QWEN | {"head_dim": None}),
  "Qwen3ForCausalLM": Family("qwen3", False, True, _QWEN | {"head_dim": 128}),
}

# Ours -> theirs, where both hold the same whole number.
SIZES = {
  "layers": "num_hidden_layers",
  "d_model": "hidden_size",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
  "head_size": "head_dim",
  "d_ff": "intermediate_size",
  "context": "max_position_embeddings",
  "vocab_size": "vocab_size",
}
# What would change the function of the model, and the only value that we have it in.
_ONLY = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "quantization_config": None,
  "partial_rotary_factor": 1.0,
}
_ROPES = ("default", "linear", "llama3")
_LLAMA3 = {
  "low_freq_factor": "low_freq_factor",
  "high_freq_factor": "high_freq_factor",
  "original_length": "original_max_position_embeddings",
}


def is_folder(folder: str | pathlib.Path) -> bool:
  """Whether this is a folder of `transformers`, at fault or not: its config.json says so."""
  path = config.path(folder) / CONFIG
  return path.is_file() and not {"architectures", "model_type"}.isdisjoint(
    objects.read_json(path, "transformers")
  )


def read_model(folder: str | pathlib.Path) -> dict[str, Any]:
  """What a folder's config.json says of `config.model`: the keys that it settles, and no others.

  `c.model.update(read_model(folder))` makes a ConfigDict's model that of the folder; how it is
  computed (trunk_layers, attention, kernel, dtype, remat) stays as it is.

  Raises:
    InputError: there is no config.json, a key is missing or of another type, the architecture is
      not supported (the nearest one is named), or it asks for what our decoder has not.
  """
  path = config.path(folder) / CONFIG
  given = objects.read_json(path, "transformers")
  family = FAMILIES[_architecture(path, given)]
  said = Reader(path, family.absent | given)
  for key, only in _ONLY.items():
    value = said.values.get(key, only)
    if value != only:
      raise InputError(f"{path}: {key} = {value!r} is not supported; only {only!r} is")
  sizes = _sizes(said)
  rope = Reader(path, family.absent | given | _rope(path, given))
  return sizes | {
    "rope_theta": rope.number("rope_theta"),
    "rope_scaling": _scaling(rope),
    "norm_eps": said.number("rms_norm_eps"),
    "tied": said.flag("tie_word_embeddings"),
    "qkv_bias": family.qkv_bias,
    "qk_norm": family.qk_norm,
    "window": _window(said, family, sizes["layers"]),
  }


def describe(model: config.Model, vocab_size: int, dtype: str) -> dict[str, Any]:
  """The config.json of a base: the inverse of `read_model`.

  Args:
    vocab_size: rows of the embedding.
    dtype: of the weights, as `transformers` is to read them.

  Raises:
    InputError: no family of `transformers` computes what this model does.
  """
  architecture = _architecture_of(model)
  family, s = FAMILIES[architecture], model.rope_scaling
  scaling: dict[str, Any] | None = None
  if s.kind != "none":
    scaling = {"rope_type": s.kind, "factor": s.factor}
  if scaling and s.kind == "llama3":
    scaling |= {theirs: getattr(s, ours) for ours, theirs in _LLAMA3.items()}
  told = {theirs: getattr(model, ours) for ours, theirs in SIZES.items()} | {
    "architectures": [architecture],
    "model_type": family.model_type,
    "vocab_size": vocab_size,
    "rope_theta": model.rope_theta,
    "rope_scaling": scaling,
    "rms_norm_eps": model.norm_eps,
    "tie_word_embeddings": model.tied,
    "hidden_act": "silu",
    "torch_dtype": dtype,  # `dtype` in newer releases, which read this one too.
  }
  if "sliding_window" in family.absent:
    told["sliding_window"] = model.window or None
  if "use_sliding_window" in family.absent:
    told |= {"use_sliding_window": model.window > 0, "max_window_layers": 0}
  return told


def check_agreement(model: config.Model, folder: pathlib.Path) -> None:
  """Raises InputError at the first key of `config.model` in which the folder is another model."""
  for key, theirs in read_model(folder).items():
    mine: Any = getattr(model, key)
    if key == "rope_scaling":
      mine = {name: getattr(mine, name) for name in theirs}
    if mine != theirs and key != "context":  # Of the inputs, not of the weights.
      raise InputError(
        f"config.model.{key} = {mine!r} does not agree with {folder / CONFIG}, which has "
        f"{theirs!r}; c.model.update(hf.read_model(folder)) in the config takes all from there"
      )


def _architecture(path: pathlib.Path, given: dict[str, Any]) -> str:
  types = {family.model_type: name for name, family in FAMILIES.items()}
  named, kind = given.get("architectures"), given.get("model_type")
  if named is not None and not _are_texts(named):
    raise InputError(f"{path}: architectures = {named!r} must be a list of names, or null")
  if kind is not None and not isinstance(kind, str):
    raise InputError(f"{path}: model_type = {kind!r} must be a name, or null")
  name = named[0] if named else types.get(kind or "")
  if name not in FAMILIES:
    name = name or kind or "none"
    raise InputError(
      f"{path}: architecture {name!r} is not supported; {config.nearest(name, FAMILIES)}"
    )
  if kind not in (None, FAMILIES[name].model_type):
    raise InputError(
      f"{path}: model_type = {kind!r} is not that of {name}, {FAMILIES[name].model_type!r}"
    )
  return name


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _sizes(said: Reader) -> dict[str, int]:
  d_model, heads = said.size("hidden_size"), said.size("num_attention_heads")
  values = dict(said.values)
  if values.get("num_key_value_heads", 0) is None:
    values["num_key_value_heads"] = heads
  if values["head_dim"] is None:
    if d_model % heads:
      raise InputError(
        f"{said.path}: hidden_size = {d_model} does not divide into num_attention_heads = {heads}, "
        "and head_dim is not given"
      )
    values["head_dim"] = d_model // heads
  filled = Reader(said.path, values)
  sizes = {ours: filled.size(theirs) for ours, theirs in SIZES.items()}
  if heads % sizes["kv_heads"]:
    raise InputError(
      f"{said.path}: num_attention_heads = {heads} is no multiple of num_key_value_heads = "
      f"{sizes['kv_heads']}"
    )
  if sizes["head_size"] % 2:
    raise InputError(f"{said.path}: head_dim = {sizes['head_size']} must be even for RoPE")
  return sizes


def _rope(path: pathlib.Path, given: dict[str, Any]) -> dict[str, Any]:
  """Everything on RoPE: `rope_parameters` of transformers 5, `rope_scaling` of those before it."""
  old, new = given.get("rope_scaling"), given.get("rope_parameters")
  if old and new and old != new:
    raise InputError(f"{path}: rope_scaling and rope_parameters disagree; leave one of them out")
  found = old or new or {}
  if not isinstance(found, dict):
    raise InputError(f"{path}: rope_scaling = {found!r} must be an object, or null")
  for key, value in found.items():
    if isinstance(value, dict):
      raise InputError(
        f"{path}: RoPE of its own for {key} is not supported: all layers must have the same"
      )
  if found.get("partial_rotary_factor", 1.0) != 1.0:
    raise InputError(
      f"{path}: partial_rotary_factor is not supported: every element of a head turns"
    )
  if "factor" in found and not {"rope_type", "type"} & found.keys():
    raise InputError(f"{path}: RoPE has a factor and no rope_type; known are {', '.join(_ROPES)}")
  length = _LLAMA3["original_length"]
  above, within = given.get(length), found.get(length)
  if None not in (above, within) and above != within:
    raise InputError(
      f"{path}: {length} = {above!r}, and {within!r} in the object on RoPE; leave one of them out"
    )
  return found | {"rope_type": found.get("rope_type", found.get("type", _ROPES[0]))}


def _scaling(rope: Reader) -> dict[str, Any]:
  kind = rope.values["rope_type"]
  if kind == _ROPES[0]:
    return {"kind": "none"}
  if kind not in _ROPES:
    known = config.nearest(str(kind), _ROPES)
    raise InputError(f"{rope.path}: rope_type = {kind!r} is not supported; {known}")
  found: dict[str, Any] = {"kind": kind, "factor": rope.number("factor")}
  if kind == "llama3":
    found |= {"original_length": rope.size(_LLAMA3["original_length"])}
    found |= {key: rope.number(key) for key in ("low_freq_factor", "high_freq_factor")}
  return found


def _window(said: Reader, family: Family, layers: int) -> int:
  """How far back all layers see; 0 where they see everything."""
  if "sliding_window" not in family.absent:  # The Llama of transformers does not read it.
    return 0
  of_some = "use_sliding_window" in family.absent  # Each layer of a Qwen is of a type, told or not.
  if (of_some and not said.flag("use_sliding_window")) or said.values["sliding_window"] is None:
    return 0
  window, types = said.size("sliding_window"), said.values.get("layer_types")
  if types is None and not of_some:
    return window
  if types is None:
    first = said.get("max_window_layers", int, "a whole number")
    types = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
  if not _are_texts(types) or len(types) != layers:
    raise InputError(f"{said.path}: layer_types = {types!r} must name the type of {layers} layers")
  if set(types) == {"full_attention"}:
    return 0
  if set(types) != {"sliding_attention"}:
    raise InputError(
      f"{said.path}: sliding_window holds for some layers only (max_window_layers, layer_types), "
      "which is not supported: all layers must have it, or none"
    )
  return window


def _architecture_of(model: config.Model) -> str:
  """The family that computes what this model does."""
  if model.attention != "causal":
    raise InputError(
      f"config.model.attention = {model.attention!r}: no family has it, only 'causal'"
    )
  if model.position_gap != 1:
    raise InputError(f"config.model.position_gap = {model.position_gap}: no family has it, only 1")
  if model.qkv_bias and model.qk_norm:
    raise InputError("config.model.qkv_bias and qk_norm are both on: no family has both, only one")
  if model.qk_norm:
    return "Qwen3ForCausalLM"
  if model.qkv_bias:
    return "Qwen2ForCausalLM"
  # The Llama of transformers has no window, and wants the width to divide into its heads.
  if model.window or model.d_model % model.heads:
    return "MistralForCausalLM"
  return "LlamaForCausalLM"
