"""Effects of interventions, a mean and an interval each; where one is missing, the reason in words.

Questions on one context are no independent draws: whole contexts are resampled.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from iclm.evals import statistics
from iclm.evals.accuracy import Scores

MIN_INPUTS = 20  # Contexts, below which no interval is given.
MAX_NAMED = 8  # Places that a note names; of more it says how many.
LEVEL, N_BOOT = 0.95, 1000


class Change(NamedTuple):
  """What an intervention changes of each input: under it, less without it."""

  accuracy_N: Float[np.ndarray, "N"]
  nats_N: Float[np.ndarray, "N"]


class Cell(NamedTuple):
  """A mean effect and its interval; None where undefined."""

  value: float | None
  ci95: list[float] | None


class Place(NamedTuple):
  """A cell of a table: over which inputs a change is averaged, and how a note names it.

  Attributes:
    change: None where it is unknown, of which another note tells.
    told: that the inputs are few is said by another note.
  """

  change: Change | None
  on_N: Bool[np.ndarray, "N"]
  name: str
  told: bool


def change(under: Scores, without: Scores) -> Change:
  """The change of accuracy and of the answer's negative log-likelihood."""
  right_N = under.correct_N.astype(float) - without.correct_N
  return Change(right_N, under.nll_N - without.nll_N)


class Estimator:
  """Estimates effects on the same inputs, and keeps why some of them or an interval is missing."""

  def __init__(self, context_N: Int[np.ndarray, "N"], seed: int):
    self._context_N, self._seed = context_N, seed
    self._missing: dict[str, list[str]] = {}

  def cell(self, x_N: np.ndarray, on_N: np.ndarray, name: str, *, told: bool = False) -> Cell:
    """The mean of x over some inputs; see `Place`."""
    context_M = self._context_N[on_N]
    found = statistics.bootstrap_ci(
      x_N[on_N], seed=self._seed, n_draws=N_BOOT, level=LEVEL, cluster_N=context_M
    )
    n, note = len(np.unique(context_M)), found.note
    if n == 0 or (n < MIN_INPUTS and found.value is not None):
      found = found._replace(low=None, high=None)
      note = None if told else f"{n} contexts, and intervals need {MIN_INPUTS}"
    elif found.value is not None and found.low is None:
      note = "no interval, since all inputs change alike"
    if note:
      self._missing.setdefault(note, []).append(name)
    ci95 = None if found.low is None or found.high is None else [found.low, found.high]
    return Cell(found.value, ci95)

  def table(self, name: str, places: Sequence[Sequence[Place]]) -> dict[str, Any]:
    """{name: accuracy, name_nats: nats, "ci95": {both}}, each in rows of cells."""
    found: dict[str, Any] = {"ci95": {}}
    for suffix, field in (("", "accuracy_N"), ("_nats", "nats_N")):
      of = lambda p, key=name + suffix, field=field: (
        Cell(None, None)
        if p.change is None
        else self.cell(getattr(p.change, field), p.on_N, f"{key} of {p.name}", told=p.told)
      )
      cells = [[of(p) for p in row] for row in places]
      found[name + suffix] = [[cell.value for cell in row] for row in cells]
      found["ci95"][name + suffix] = [[cell.ci95 for cell in row] for row in cells]
    return found

  def row(self, change: Change, on_N: np.ndarray, name: str) -> dict[str, Any]:
    """One effect with both of its intervals, flat."""
    nats = self.cell(change.nats_N, on_N, f"nats of {name}")
    accuracy = self.cell(change.accuracy_N, on_N, f"accuracy of {name}")
    found = {"nats": nats.value, "ci95": nats.ci95, "accuracy": accuracy.value}
    return found | {"accuracy_ci95": accuracy.ci95}

  @property
  def notes(self) -> list[str]:
    """One sentence for each reason, with the places that it concerns."""
    found = []
    for why, names in self._missing.items():
      more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
      found.append(f"{why}: {', '.join(names[:MAX_NAMED])}{more}")
    return found
