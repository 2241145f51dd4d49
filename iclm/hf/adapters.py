"""LoRA adapters from and to folders of `peft`: one expert, without what PEFT cannot express.

A folder holds adapter_config.json and adapter_model.safetensors. Which matrices there are, both say
alike; the config says their scale, and whether they are all that there is.
"""

import pathlib
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors.numpy import save_file

from iclm import axes, config, outputs
from iclm.config import Config, InputError
from iclm.hf import names, objects, targets
from iclm.hf import tensors as files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "iclm_base_sha256"  # In the metadata of the weights, which PEFT does not read.
_TENSOR = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.\w+\.\w+)\.lora_([AB])\.weight")

# Keys of adapter_config.json that change what an adapter does, and the values that we have it in;
# `None` stands for everything that is empty.
_ONLY: dict[str, tuple[Any, ...]] = {
  "peft_type": ("LORA",),
  "task_type": ("CAUSAL_LM", None),
  "bias": ("none",),
  # The others change the base's weights, or start somewhere and then are plain LoRA.
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
# Keys that change nothing once an adapter is trained, or that its tensors and scale stand for.
_TOLD = {
  *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "target_modules"),
  *("exclude_modules", "layers_to_transform"),
  *("layers_pattern", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout"),
  # Of other kinds of adapters, which are refused by keys of their own.
  *("megatron_core", "qalora_group_size"),
  *("auto_mapping", "peft_version", "loftq_config", "eva_config", "ensure_weight_tying"),
}
_FLAGS = {
  *("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "inference_mode"),
  "ensure_weight_tying",
}


class Adapter(NamedTuple):
  """What one expert changes: projection -> {"a": (L, D, R), "b": (L, R, F)}; see `lora.delta`.

  Of an expert of kind `full`, projection -> {"delta": (L, D, F)}. Layers are those above the trunk.
  """

  layers: dict[str, dict[str, Array]]
  scale: float  # Of every product of a and b: alpha / rank.


class Read(NamedTuple):
  """What a folder of PEFT holds for an expert."""

  layers: dict[str, dict[str, np.ndarray]]
  base_sha256: str | None  # Of the base that it was made for; None where PEFT alone wrote it.
  base_name: str | None  # What it calls that base.


def adapter_of(c: Config, params: Any, expert: int | Literal["invariant"]) -> Adapter:
  """What one expert changes.

  Raises:
    InputError: there is no such expert.
  """
  n = c.experts.count if c.experts.kind != "none" else 0
  named = (
    range(n) if expert != axes.INVARIANT else [axes.INVARIANT] * (n > 0 and c.experts.invariant)
  )
  if expert not in named:
    also = ", and invariant" if n and c.experts.invariant else ""
    there = f"experts are 0..{n - 1}{also}" if n else "the run is a plain base"
    raise InputError(f"there is no expert {expert}; {there}")
  part = params[axes.INVARIANT if expert == axes.INVARIANT else axes.DOMAIN]["adapter"]
  if expert != axes.INVARIANT:
    part = jax.tree.map(lambda x: x[expert], part)
  return Adapter(part, c.experts.alpha / c.experts.rank)


def exportable(c: Config, params: Any, expert: int | Literal["invariant"]) -> Adapter:
  """What one expert changes, where that is all that its stream adds to the base.

  Raises:
    InputError: there is no such expert, or an adapter cannot express it.
  """
  adapter = adapter_of(c, params, expert)
  for key, value, only in (
    ("bottleneck.kind", c.bottleneck.kind, "none"),
    ("topology.kind", c.topology.kind, "parallel"),
  ):
    if value != only:
      raise InputError(
        f"config.{key} = {value!r}: an adapter cannot express what such an expert says; only "
        f"config.{key} = {only!r} can be exported"
      )
  if c.combine == "concat":
    raise InputError(
      "config.combine = 'concat' has a head of its own, which an adapter of the base cannot "
      "express; 'residual', 'logits' and 'probas' can be exported"
    )
  return adapter


def _check_lora(c: Config, instead: str) -> None:
  if c.experts.kind == "full":
    raise InputError(
      f"config.experts.kind = 'full': an expert has whole matrices, which are no adapter; {instead}"
    )


def save_adapter(
  adapter: Adapter, c: Config, folder: str | pathlib.Path, *, base_sha256: str, base_name: str
) -> None:
  """Writes a folder that `peft` loads on the exported base; whole, or not at all.

  Args:
    adapter: see `adapter_of`.
    base_sha256: of the base that it belongs to, see `base_sha256`.
    base_name: where `peft` is to look for that base; empty where it is in no folder yet.

  Raises:
    InputError: the expert has whole matrices; the folder exists, or cannot be written.
  """
  _check_lora(c, "only merged into its base (--merged) can it be exported")
  held, first = {}, c.model.trunk_layers
  for name, pair in adapter.layers.items():
    for i in range(len(pair["a"])):
      key = f"base_model.model.{names.module(name, first + i)}"
      held[f"{key}.lora_A.weight"] = np.ascontiguousarray(np.asarray(pair["a"][i]).T)
      held[f"{key}.lora_B.weight"] = np.ascontiguousarray(np.asarray(pair["b"][i]).T)
  told = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_name,
    "r": c.experts.rank,
    "lora_alpha": c.experts.alpha,
    "lora_dropout": c.experts.dropout,
    "target_modules": sorted(names.module(name, 0).rpartition(".")[2] for name in adapter.layers),
    "layers_to_transform": list(range(first, c.model.layers)) if first else None,
    "bias": "none",
    "use_rslora": False,
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  with outputs.folder(folder) as beside:
    metadata = {"format": "pt", BASE: base_sha256}
    save_file(held, beside / WEIGHTS, metadata=metadata)
    objects.write_json(beside / CONFIG, told)


def load_adapter(
  folder: str | pathlib.Path, c: Config, old: Adapter, base_sha256: str | None
) -> Read:
  """Reads a folder of `peft` into the shape of an expert; what it computes stays the same.

  A smaller rank is filled up: with the columns that `old` has in `a`, so that they can be trained,
  and with zeros in `b`, so that they say nothing. So is a projection or a layer that it lacks.

  Args:
    old: the adapters in whose place it comes.
    base_sha256: of the base that it is to run on; None does not compare.

  Raises:
    InputError: it is no LoRA, or changes more than the products of its matrices do; a tensor is
      missing, unexpected or of another shape; the config names other modules than the tensors; it
      is for another base; a file is truncated; or the run's experts are no adapters.
  """
  _check_lora(c, "no adapter can take its place")
  folder = config.path(folder)
  told = _read_config(folder)
  with files.Tensors(folder, WEIGHTS) as tensors:
    theirs = tensors.metadata(WEIGHTS).get(BASE)
    if base_sha256 is not None and theirs not in (None, base_sha256):
      raise InputError(
        f"{folder} is for another base: its SHA-256 is {theirs}, and that of this run's base is "
        f"{base_sha256}"
      )
    layers = _read_layers(folder, tensors, told, c, old)
    adapted = {match[1] for match in map(_TENSOR.fullmatch, tensors.found) if match}
  layer_of = {names.module(name, i): i for name in names.MODULES for i in range(c.model.layers)}
  targets.check(objects.Reader(folder / CONFIG, told), adapted, layer_of)
  return Read(layers, theirs, told.get("base_model_name_or_path"))


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The config of an adapter that is nothing but LoRA."""
  path = folder / CONFIG
  told = objects.read_json(path, "peft")
  for key, value in ({"peft_type": None} | told).items():
    only = _ONLY.get(key)
    if key in _TOLD or (only is None and not value) or (only is not None and value in only):
      continue
    can = f"only {', '.join(map(repr, only))} is" if only else "an expert cannot express it"
    raise InputError(f"{path}: {key} = {value!r} is not supported; {can}")
  said = objects.Reader(path, told)
  said.size("r")
  said.number("lora_alpha")
  for key in sorted(_FLAGS & told.keys()):
    said.flag(key)
  return told


def _read_layers(
  folder: pathlib.Path, tensors: files.Tensors, told: dict[str, Any], c: Config, old: Adapter
) -> dict[str, dict[str, np.ndarray]]:
  path, strength = folder / WEIGHTS, targets.strengths(objects.Reader(folder / CONFIG, told))
  if not tensors.found:
    raise InputError(f"{path} holds no tensor: there is no adapter in it")
  layers = {
    name: {"a": np.array(pair["a"], np.float32), "b": np.zeros(pair["b"].shape, np.float32)}
    for name, pair in old.layers.items()
  }
  ours = {names.module(name, i): (name, i) for name in names.MODULES for i in range(c.model.layers)}
  for tensor in tensors.found:
    match = _TENSOR.fullmatch(tensor)
    if match is None or match[1] not in ours:
      near = config.nearest(tensor, [f"base_model.model.{m}.lora_A.weight" for m in ours])
      raise InputError(f"{path}: tensor {tensor} has no place in this base; {near}")
    name, layer = ours[match[1]]
    _check_room(f"{path}: tensor {tensor}", name, layer, layers, c)
    side, (rank, scale) = match[3].lower(), strength(match[1])
    if rank > c.experts.rank:
      raise InputError(
        f"{folder / CONFIG}: rank {rank} of {match[1]} is more than config.experts.rank = "
        f"{c.experts.rank}; a run with config.experts.rank = {rank} has room for it"
      )
    other = tensor.replace(f".lora_{match[3]}.", ".lora_B." if side == "a" else ".lora_A.")
    if other not in tensors.found:
      raise InputError(f"{path}: tensor {other} is missing, of which {tensor} is the other half")
    at, wide = layer - c.model.trunk_layers, layers[name][side].shape[1:]
    if side == "a":
      layers[name]["a"][at, :, :rank] = _read(tensors, path, tensor, (rank, wide[0]), 1.0)
    else:
      own = scale / old.scale
      layers[name]["b"][at, :rank] = _read(tensors, path, tensor, (wide[1], rank), own)
  return layers


def _check_room(what: str, name: str, layer: int, layers: Any, c: Config) -> None:
  """Raises InputError where the experts of this run do not adapt what a tensor does."""
  if name not in layers:
    raise InputError(
      f"{what} adapts {name}, and config.experts.projections = {c.experts.projections} does not; "
      f"a run with {name!r} among them has room for it"
    )
  if layer < c.model.trunk_layers:
    raise InputError(
      f"{what} is of layer {layer}, and config.model.trunk_layers = {c.model.trunk_layers} leaves "
      f"that one without adapters; a run with trunk_layers <= {layer} has room for it"
    )


def _read(
  tensors: files.Tensors, path: pathlib.Path, tensor: str, shape: tuple[int, int], scale: float
) -> np.ndarray:
  """A tensor of this shape, transposed and scaled, which has to be finite then."""
  about = tensors.found[tensor]
  if about.shape != shape or about.dtype not in files.DTYPES:
    raise InputError(
      f"{path}: tensor {tensor} has shape {list(about.shape)} and dtype {about.dtype}, where "
      f"{list(shape)} and one of {', '.join(files.DTYPES)} are expected"
    )
  value = np.asarray(tensors.read(tensor, (slice(None), slice(None))), np.float32).T
  with np.errstate(over="ignore", invalid="ignore"):
    value = value * np.float32(scale)
  if not np.isfinite(value).all():
    raise InputError(f"{path}: tensor {tensor} is not finite, or too large at a scale of {scale:g}")
  return value


def merged(base_DF: np.ndarray, adapter: Adapter, name: str, layer: int) -> np.ndarray:
  """A projection of the base with an expert's own part in it; `layer` counts from the trunk on."""
  own = {side: np.asarray(x[layer], np.float32) for side, x in adapter.layers[name].items()}
  delta_DF = own["delta"] if "delta" in own else own["a"] @ own["b"] * np.float32(adapter.scale)
  return np.asarray(base_DF, np.float32) + delta_DF


def into(params: Any, expert: int | Literal["invariant"], layers: Any) -> Any:
  """The parameters with one expert's adapters replaced; all else is as it was."""
  group = axes.INVARIANT if expert == axes.INVARIANT else axes.DOMAIN
  part, at = params[group], () if expert == axes.INVARIANT else expert
  put = lambda old, new: jax.device_put(old.at[at].set(jnp.asarray(new, old.dtype)), old.sharding)
  part = part | {"adapter": jax.tree.map(put, part["adapter"], layers)}
  return params | {group: part}
