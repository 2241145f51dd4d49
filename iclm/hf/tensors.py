"""The tensors of a folder's safetensors files: all of them are known before the first is read."""

import contextlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import safetensors

from iclm import config
from iclm.config import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What is cast to our float32 without loss.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Tensor(NamedTuple):
  """Where a tensor lies, and what its header says of it."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: str  # As safetensors spells it.


class Tensors:
  """Reads slices of the tensors of a folder; files stay open until the end of the context."""

  def __init__(self, folder: pathlib.Path, only: str | None = None):
    """Reads the headers of all files, or of the `only` one.

    Raises:
      InputError: there is no file, a shard is missing or truncated, or the index and the files
        disagree.
    """
    self._stack, self._open = contextlib.ExitStack(), {}
    self.found: dict[str, Tensor] = {}
    try:
      for path, names in ({folder / only: None} if only else _files(folder)).items():
        self._read_header(path, names)
    except BaseException:
      self._stack.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def close(self) -> None:
    self._stack.close()

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A part of a tensor, in the dtype of the file."""
    path = self.found[name].file
    try:
      return self._open[path].get_slice(name)[index]
    except safetensors.SafetensorError as error:
      raise InputError(f"{path}: {name} cannot be read: {error}") from None

  def metadata(self, file: str) -> dict[str, str]:
    """What the header of a file says besides its tensors."""
    return next(f.metadata() or {} for path, f in self._open.items() if path.name == file)

  def _read_header(self, path: pathlib.Path, names: list[str] | None) -> None:
    try:
      file = self._stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except FileNotFoundError:
      why = "" if names is None else f", which {INDEX} names"
      raise InputError(f"{path} is missing{why}") from None
    except (OSError, safetensors.SafetensorError) as error:
      raise InputError(f"{path} is no whole safetensors file: {error}") from None
    self._open[path] = file
    held = list(file.keys())
    if names is not None and sorted(names) != sorted(held):
      name = sorted(set(names) ^ set(held))[0]
      where = (INDEX, path.name) if name in names else (path.name, INDEX)
      raise InputError(f"{path.parent}: tensor {name} is in {where[0]} and not in {where[1]}")
    for name in held:
      part = file.get_slice(name)
      self.found[name] = Tensor(path, tuple(part.get_shape()), part.get_dtype())


def _files(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  """File -> the tensors that the index promises in it; None where there is no index.

  A single file counts before any index, as in transformers, which leaves an old index behind where
  shards are saved again as one file.
  """
  index, single = folder / INDEX, folder / SINGLE
  if single.exists():
    return {single: None}
  if not index.exists():
    others = sorted(
      path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth")
    )
    told = f"; {others[0]} is pickled, and never read: save it as safetensors" if others else ""
    raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}{told}")
  try:
    named: Any = json.loads(index.read_text("utf-8"))["weight_map"]
    files: dict[pathlib.Path, list[str] | None] = {}
    for name, file in named.items():
      if pathlib.PurePath(file).name != file:
        raise InputError(f"{index}: {name} lies in {file!r}, outside of the folder")
      names = files.setdefault(folder / file, [])
      assert names is not None
      names.append(name)
  except InputError:
    raise
  except (OSError, ValueError) as error:
    raise InputError(f"{index} is no index of safetensors files: {error}") from None
  except (KeyError, TypeError, AttributeError):
    told = "it has no weight_map, from the names of tensors to those of files"
    raise InputError(f"{index} is no index of safetensors files: {told}") from None
  return files


def check(
  tensors: Tensors, expected: dict[str, tuple[int, ...]], ignored: set[str], folder: pathlib.Path
) -> None:
  """Every expected tensor is there in its shape, in a dtype that we read, and nothing else.

  Raises:
    InputError: names the first tensor that is not so, what was expected and what was found.
  """
  found = tensors.found
  for name, shape in expected.items():
    if name not in found:
      near = config.nearest(name, found)
      raise InputError(f"{folder}: tensor {name} is missing, of shape {list(shape)}; {near}")
    if found[name].shape != shape:
      raise InputError(
        f"{found[name].file}: tensor {name} has shape {list(found[name].shape)}, where config.json "
        f"asks for {list(shape)}"
      )
  for name in expected:
    check_dtype(name, found[name])
  for name in sorted(found.keys() - expected.keys() - ignored):
    raise InputError(
      f"{found[name].file}: tensor {name}, of shape {list(found[name].shape)}, has no place in the "
      f"model of config.json; {config.nearest(name, expected)}"
    )


def check_dtype(name: str, tensor: Tensor) -> None:
  """Raises InputError where a tensor is of a dtype that we do not read."""
  if tensor.dtype not in DTYPES:
    raise InputError(
      f"{tensor.file}: tensor {name} is of dtype {tensor.dtype}; only {', '.join(DTYPES)} are read"
    )
