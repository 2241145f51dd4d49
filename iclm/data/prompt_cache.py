"""Rows together with what a frozen base says of their prompt, which need not be computed again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from iclm.data.records import Example


class Group(list[Example]):
  """The examples of a row, and the mean of the base's states over their prompt, read_D."""

  def __init__(self, examples: Sequence[Example], read_D: np.ndarray):
    super().__init__(examples)
    self.read_D = read_D


class Rows:
  """A source whose rows are of `Group`."""

  def __init__(self, rows: Any, read_ND: np.ndarray):
    """Row n of `rows`, a `pipeline.Source`, goes with read_ND[n]; the array may lie in a file."""
    self._rows, self._read_ND = rows, read_ND

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int, /) -> Group:
    return Group(self._rows[index], np.asarray(self._read_ND[index]))


def stack(groups: Sequence[Sequence[Example]]) -> Float[np.ndarray, "B D"] | None:
  """What is known of the prompts of a batch; None where nothing was kept."""
  known = [group.read_D for group in groups if isinstance(group, Group)]
  return np.stack(known) if known else None
