"""ConfigDict in, frozen dataclasses out, and back; and where two of them differ."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from iclm.config import checks
from iclm.config.errors import InputError, nearest
from iclm.config.schema import Config


def from_config_dict(tree: Any) -> Config:
  """Every key of the tree is read, every field is given, and no two contradict each other.

  Args:
    tree: an ml_collections ConfigDict or any nested mapping, e.g. parsed from a run's config.json.

  Raises:
    InputError: a key is stray, missing, of another type or outside its choices, or two values
      contradict each other; the message names the key, the value, and the nearest valid one.
  """
  config = _build(Config, tree, "config")
  checks.check(config)
  return config


def to_dict(config: Any) -> dict[str, Any]:
  """The inverse of `from_config_dict`: plain dicts, lists, numbers and strings, for JSON."""
  return dataclasses.asdict(config, dict_factory=_plain)


def difference(theirs: Any, mine: Any, free: Collection[tuple[str, ...]]) -> str | None:
  """The first key in which two configs differ, and how; None where they do not.

  Args:
    free: keys, or their beginnings, that may differ.
  """
  for key, there, here in _differences(theirs, mine, ()):
    if not any(key[: len(start)] == start for start in free):
      return f"config.{'.'.join(key)} is {there!r} there and {here!r}"
  return None


def _differences(theirs: Any, mine: Any, where: tuple[str, ...]):
  if isinstance(theirs, dict) and isinstance(mine, dict):
    for key in sorted(theirs.keys() | mine.keys()):
      yield from _differences(theirs.get(key), mine.get(key), (*where, key))
  elif theirs != mine:
    yield where, theirs, mine


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
  return {k: list(v) if isinstance(v, tuple) else v for k, v in items}


def _build(kind: Any, value: Any, where: str) -> Any:
  """Converts one value to the annotated type, or says what is wrong with it and where."""
  origin = get_origin(kind)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, where)
  if origin is Literal:
    if value not in get_args(kind):
      raise InputError(f"{where} = {value!r} is no choice: {nearest(value, get_args(kind))}")
    return value
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
      raise InputError(f"{where} = {value!r} must be a tuple")
    return tuple(_build(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
  if isinstance(origin, type) and issubclass(origin, Mapping):
    if not hasattr(value, "items"):
      raise InputError(f"{where} = {value!r} must be a mapping of names")
    inner = get_args(kind)[1]
    return {str(k): _build(inner, value[k], f"{where}.{k}") for k in sorted(value.keys())}
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise InputError(
      f"{where} = {value!r} must be of type {kind.__name__}, not {type(value).__name__}"
    )
  return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
  if not hasattr(value, "keys"):
    raise InputError(f"{where} = {value!r} must hold the keys of {kind.__name__}")
  fields = get_type_hints(kind)
  for key in value.keys():
    if key not in fields:
      raise InputError(f"{where}.{key} is not a key that anything reads: {nearest(key, fields)}")
  for key in fields:
    if key not in value:
      raise InputError(f"{where}.{key} is missing; configs/base.py holds every key")
  return kind(**{k: _build(t, value[k], f"{where}.{k}") for k, t in fields.items()})
