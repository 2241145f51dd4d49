"""The JSON objects of a folder of transformers or peft, read and written."""

import json
import pathlib
import sys
from typing import Any, NamedTuple

from iclm import inputs
from iclm.config import InputError


def read_json(path: pathlib.Path, maker: str) -> dict[str, Any]:
  """The object that a file of a folder of `maker` holds; see `inputs.read_object`."""
  absent = f"{path.parent} holds no {path.name}; name a folder of {maker}"
  return inputs.read_object(path, absent)


LARGEST = 2**31 - 1  # Of what counts something; a size of an array is no more than that.


class Reader(NamedTuple):
  """Values of a JSON object, each asked for by the type that it must have."""

  path: pathlib.Path
  values: dict[str, Any]

  def get(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    if key not in self.values:
      raise InputError(f"{self.path} lacks {key}: {what} is needed")
    value = self.values[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
      raise InputError(f"{self.path}: {key} = {value!r} must be {what}")
    return value

  def size(self, key: str) -> int:
    value = self.get(key, int, "a positive whole number")
    if not 0 < value <= LARGEST:
      raise InputError(
        f"{self.path}: {key} = {value!r} must be a positive whole number of at most {LARGEST}"
      )
    return value

  def number(self, key: str) -> float:
    value = self.get(key, (int, float), "a positive finite number")
    if not 0 < value <= sys.float_info.max:
      raise InputError(f"{self.path}: {key} = {value!r} must be a positive finite number")
    return float(value)

  def flag(self, key: str) -> bool:
    return self.get(key, bool, "true or false")


def write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
