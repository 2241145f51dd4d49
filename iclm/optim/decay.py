"""Which parameters weight decay applies to."""

from typing import Any

import jax

# Parts of a leaf's name that exempt it from weight decay. Names, because ranks mislead: stacked
# over layers or experts, a gain looks like a matrix, and prototypes are one.
UNDECAYED = ("gain", "scale", "bias", "prototypes")


def decayed(params: Any) -> Any:
  """Mask: True where weight decay applies."""
  return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)


def decays(path: tuple) -> bool:
  """Whether weight decay applies to the leaf at a path."""
  # The name is the last key of a dict: a box adds an attribute behind it.
  name = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
  return not any(word in name for word in UNDECAYED)
