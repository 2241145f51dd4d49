"""Weights of a base as a folder that `transformers` loads; whole, or not at all."""

import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array
from safetensors.numpy import save_file
from tokenizers import processors

from iclm import config, outputs
from iclm.config import InputError
from iclm.data import chat
from iclm.data.tokenizer import Tokenizer
from iclm.hf import description, names, objects
from iclm.hf import tensors as files
from iclm.hf.adapters import Adapter, merged

Dtype = Literal["float32", "bfloat16", "float16"]


def save_base(
  params: Any,
  model: config.Model,
  folder: str | pathlib.Path,
  *,
  dtype: Dtype,
  max_bytes: int,
  tokenizer: Tokenizer | None,
  adapter: Adapter | None = None,
) -> None:
  """Writes config.json, safetensors and, where given, the tokenizer, as `transformers` reads them.

  The folder appears under its name once it is complete. Host memory holds at most one file's
  tensors, twice, and the float32 of one more tensor.

  Args:
    params: `params["base"]`, all of it addressable by this process.
    folder: must not exist, or be empty.
    dtype: of the saved weights; what was loaded from a file of that dtype is written bitwise.
    max_bytes: of the tensors in one file; a tensor above it gets a file of its own.
    adapter: an expert that is merged into the weights.

  Raises:
    InputError: no family of `transformers` computes what this model does, the parameters are not
      those of `model`, or the folder exists or cannot be written.
  """
  vocab_size = params["embedding"].shape[0]
  told = description.describe(model, vocab_size, dtype)
  if not told["max_position_embeddings"]:
    raise InputError(
      "config.model.context = 0: say how long an input the exported base is made for"
    )
  boxed = names.abstract(model, vocab_size)
  parameters = names.parameters(model, boxed)
  _check_same(params, parameters)
  with outputs.folder(folder) as beside:
    _write_tensors(beside, _parts(params, parameters, model, adapter), jnp.dtype(dtype), max_bytes)
    if tokenizer is not None:
      told |= _write_tokenizer(beside, tokenizer)
    objects.write_json(beside / description.CONFIG, told)


def base_sha256(params: Any, model: config.Model) -> str:
  """SHA-256 of a base: of the name, shape and float32 bytes of each tensor that is exported.

  Where the trunk ends makes no difference, and neither does the dtype of a file that holds every
  bit of it. `params` as for `save_base`.
  """
  parameters = names.parameters(model, names.abstract(model, params["embedding"].shape[0]))
  total = hashlib.sha256()
  for part in sorted(_parts(params, parameters, model, None)):
    tensor = part.tensor(np.dtype(np.float32))
    total.update(f"{part.name} {list(tensor.shape)}\n".encode())
    total.update(tensor.tobytes())
  return total.hexdigest()


def _check_same(params: Any, parameters: Any) -> None:
  path = lambda p: jax.tree_util.keystr(p, simple=True, separator="/")
  shapes = lambda tree: {path(p): tuple(x.shape) for p, x in jax.tree.leaves_with_path(tree)}
  ours, wanted = shapes(params), shapes(parameters)
  for name in sorted(ours.keys() | wanted.keys()):
    have, want = ours.get(name), wanted.get(name)
    if have != want:
      told = ["absent" if x is None else list(x) for x in (have, want)]
      raise InputError(f"parameter {name} is {told[0]}, where config.model asks for {told[1]}")


class _Part(NamedTuple):
  """A tensor to be written: a parameter, or one layer of it."""

  name: str
  of: names.Parameter
  value: Array
  layer: int
  merge: Callable[[np.ndarray], np.ndarray] | None  # What else goes into it.

  def tensor(self, dtype: np.dtype) -> np.ndarray:
    one = np.asarray(self.value[self.layer] if self.of.stacked else self.value)
    if self.merge is not None:
      one = self.merge(one)
    with np.errstate(over="ignore"):
      told = np.ascontiguousarray(one.T if self.of.transposed else one, dtype)
    if np.isinf(told).any() and not np.isinf(one).any():
      raise InputError(
        f"{self.name} holds {np.abs(one).max():g}, which is too large for {dtype}; bfloat16 and "
        "float32 have room for it"
      )
    return told


def _parts(
  params: Any, parameters: Any, model: config.Model, adapter: Adapter | None
) -> list[_Part]:
  parts = []
  for (path, p), x in zip(
    jax.tree.leaves_with_path(parameters), jax.tree.leaves(params), strict=True
  ):
    leaf = str(path[-1].key)
    for i, name in enumerate(p.tensors):
      merge, layer = None, p.first + i - model.trunk_layers
      if adapter is not None and leaf in adapter.layers and layer >= 0:
        merge = functools.partial(merged, adapter=adapter, name=leaf, layer=layer)
      parts.append(_Part(name, p, x, i, merge))
  return parts


def _write_tensors(
  folder: pathlib.Path, parts: list[_Part], dtype: np.dtype, max_bytes: int
) -> None:
  size = lambda part: math.prod(part.of.tensor_shape) * dtype.itemsize
  groups, filled = [[]], 0
  for part in parts:
    if groups[-1] and filled + size(part) > max_bytes:
      groups, filled = [*groups, []], 0
    groups[-1].append(part)
    filled += size(part)
  weight_map = {}
  for g, group in enumerate(groups):
    file = f"model-{g + 1:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else files.SINGLE
    held = {part.name: part.tensor(dtype) for part in group}
    save_file(held, folder / file, metadata={"format": "pt"})  # Transformers insists on it.
    weight_map |= dict.fromkeys(held, file)
  if len(groups) > 1:
    about = {"total_size": sum(map(size, parts))}
    objects.write_json(folder / files.INDEX, {"metadata": about, "weight_map": weight_map})


def _write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer) -> dict[str, Any]:
  """The tokenizer's files. Returns its special ids, for config.json."""
  ids: dict[str, Any] = {n: getattr(tokenizer, f"{n}_id") for n in ("bos", "eos", "pad")}
  spelt = {added["id"]: added["content"] for added in json.loads(tokenizer.json)["added_tokens"]}
  spelt[None] = None  # A tokenizer without a bos says so.
  (folder / "tokenizer.json").write_text(_with_bos(tokenizer, spelt), "utf-8")
  named = {f"{name}_token": spelt[i] for name, i in ids.items() if i in spelt}
  if tokenizer.chat is not None:
    named |= dict(tokenizer.chat.names)
    (folder / chat.TEMPLATE).write_text(tokenizer.chat.source, "utf-8")
    bos = named.get("bos_token")  # That the template writes, where it writes one.
    ids["bos"] = next((i for i, token in spelt.items() if bos is not None and token == bos), None)
  if tokenizer.ends:
    ids["eos"] = list(tokenizer.end_ids)
  about = {"tokenizer_class": "PreTrainedTokenizerFast"}
  objects.write_json(folder / "tokenizer_config.json", about | named)
  return {f"{name}_token_id": i for name, i in ids.items()}


def _with_bos(tokenizer: Tokenizer, spelt: dict[int | None, str | None]) -> str:
  """The tokenizer's JSON, which says to begin a text with bos where our rows begin with it, and not
  to where they do not."""
  backend = tokenizers.Tokenizer.from_str(tokenizer.json)
  bos = spelt.get(tokenizer.bos_id)
  has = Tokenizer.from_json(tokenizer.json).bos_id if backend.post_processor is not None else None
  if tokenizer.chat is not None or has == tokenizer.bos_id:
    return tokenizer.json
  if bos is None:
    backend.post_processor = None
    return backend.to_str()
  backend.post_processor = processors.TemplateProcessing(
    single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, tokenizer.bos_id)]
  )
  return backend.to_str()
