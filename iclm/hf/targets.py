"""The modules that an adapter's config names must be those that its tensors adapt.

PEFT drops the tensors of a module that its config does not name, and starts one anew that its
tensors lack: where the two disagree, an adapter is not what it looks like.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from iclm.config import InputError
from iclm.hf.objects import Reader

MODULES, EXCLUDED, LAYERS = "target_modules", "exclude_modules", "layers_to_transform"


def check(told: Reader, found: Collection[str], layer_of: dict[str, int]) -> None:
  """Holds what a config names against the tensors; regular expressions are not looked into.

  Args:
    told: the adapter's config.
    found: modules that the tensors adapt, each one of `layer_of`.
    layer_of: layer of each module that an adapter of this base may have.

  Raises:
    InputError: names the first module or layer of which only one of the two knows.
  """
  modules, excluded = (_names(told, key) for key in (MODULES, EXCLUDED))
  if isinstance(modules, str) or isinstance(excluded, str):
    return
  layers = _layers(told)
  if modules is None:  # PEFT knows them by the architecture.
    modules = sorted({module.rpartition(".")[2] for module in found})
  wanted = {
    module
    for module, layer in layer_of.items()
    if module in modules or (_ends(module, modules) and (layers is None or layer in layers))
    if not _ends(module, excluded or [])
  }
  for module in sorted(wanted.symmetric_difference(found)):
    if module in found:
      raise InputError(
        f"{told.path}: the tensors adapt {module}, which {MODULES}, {EXCLUDED} and {LAYERS} leave "
        "out"
      )
    raise InputError(f"{told.path}: no tensor adapts {module}, which {MODULES} and {LAYERS} name")
  left_out = [module for module in layer_of if _ends(module, excluded or [])]
  for name in modules:
    if not any(_ends(module, [name]) for module in (*found, *left_out)):
      raise InputError(f"{told.path}: no tensor adapts {name}, which {MODULES} names")
  for layer in sorted(layers or ()):
    if layer not in {layer_of[module] for module in found}:
      raise InputError(f"{told.path}: no tensor adapts layer {layer}, which {LAYERS} names")


def strengths(told: Reader) -> Callable[[str], tuple[int, float]]:
  """What PEFT takes for the rank of a module's matrices, and for the scale of their product.

  The first expression of rank_pattern, and of alpha_pattern, that matches the end of the module's
  name stands in for r, and for lora_alpha.

  Raises:
    InputError: a pattern is no mapping from expressions to numbers.
  """
  ranks, alphas = (_patterns(told, key) for key in ("rank_pattern", "alpha_pattern"))
  r, alpha = told.size("r"), told.number("lora_alpha")
  root = told.values.get("use_rslora", False)

  def of(module: str) -> tuple[int, float]:
    own = lambda among, value: next((v for k, v in among.items() if _is_meant(k, module)), value)
    rank = int(own(ranks, r))
    return rank, own(alphas, alpha) / (math.sqrt(rank) if root else rank)

  return of


def _is_meant(expression: str, module: str) -> bool:
  return re.match(rf"(.*\.)?({expression})$", module) is not None


def _patterns(told: Reader, key: str) -> dict[str, float]:
  given = told.values.get(key) or {}
  if not isinstance(given, dict):
    raise InputError(f"{told.path}: {key} = {given!r} must map names of modules to numbers")
  inner = Reader(told.path, given)
  for name in given:
    try:
      re.compile(name)
    except re.error as error:
      raise InputError(f"{told.path}: {key} has {name!r}, no expression: {error}") from None
    inner.size(name) if key == "rank_pattern" else inner.number(name)
  return given


def _ends(module: str, names: Iterable[str]) -> bool:
  return any(f".{module}".endswith(f".{name}") for name in names)


def _names(told: Reader, key: str) -> list[str] | str | None:
  value = told.values.get(key)
  if value is None or isinstance(value, str) or _are(str, value):
    return value
  raise InputError(f"{told.path}: {key} = {value!r} must be a list of names, or a text")


def _layers(told: Reader) -> set[int] | None:
  """None stands for all of them."""
  value: Any = told.values.get(LAYERS)
  every = [value] if type(value) is int else value or []
  if not _are(int, every):
    raise InputError(f"{told.path}: {LAYERS} = {value!r} must be a list of whole numbers, or one")
  return set(every) or None


def _are(kind: type, value: Any) -> bool:
  return isinstance(value, list) and all(type(one) is kind for one in value)
