"""Systems against the best baseline, seed by seed: what differs by more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from iclm.config import InputError, nearest
from iclm.evals import statistics

OOD_MEAN = "mean out of distribution"
Table = Mapping[str, Mapping[str, Mapping[int, float]]]  # System -> set -> seed -> accuracy.


def best_of(table: Table, systems: Sequence[str], chosen_on: str) -> tuple[str, list[int]]:
  """The system with the highest mean on a set, the first of several, and the seeds of that mean:
  those that all of the systems have.

  Raises:
    InputError: a system or the set is not in the table, or the systems share no seed.
  """
  for system in systems:
    if system not in table:
      raise InputError(f"there is no finished run of {system!r}; {nearest(system, table)}")
    if chosen_on not in table[system]:
      raise InputError(f"{system!r} has no set {chosen_on!r}; {nearest(chosen_on, table[system])}")
  shared = sorted(set.intersection(*(set(table[s][chosen_on]) for s in systems)))
  if not shared:
    raise InputError(f"{', '.join(systems)} share no seed on {chosen_on!r} to be compared on")
  return max(systems, key=lambda s: np.mean([table[s][chosen_on][i] for i in shared])), shared


def compare(
  table: Table, baselines: Sequence[str], chosen_on: str, *, level: float
) -> dict[str, Any]:
  """Every system on every set, and its difference to the best baseline on the same seeds.

  Which baseline is best is decided on `chosen_on` alone, which is then no column any more. The
  p-values are those of Student's paired test, 1 where no seed differs, adjusted by Holm over the
  columns of a system; `OOD_MEAN`, of which there is one, keeps its own.

  Args:
    table: accuracies; a system may lack seeds, and only those that both have are paired.
    baselines: names to choose from.
    chosen_on: the validation set, in distribution.
    level: coverage of the intervals, in (0, 1).

  Returns:
    baseline: its name, and chosen_with_seeds: those of `best_of`. systems: name -> set -> mean, ci,
    n, and unless it is the baseline: difference, difference_ci, n_pairs, p, p_holm; None where
    undefined, and why in `note` of the mean and `difference_note`.

  Raises:
    InputError: see `best_of`.
  """
  best, seeds = best_of(table, baselines, chosen_on)
  found: dict[str, Any] = {}
  for system, sets in table.items():
    rows = {name: _mean(each, level) for name, each in sets.items()}
    if system != best:
      paired = {name: s for name, s in sets.items() if name in table[best]}
      for name, ours in paired.items():
        rows[name] |= _difference(ours, table[best][name], level)
      columns = [name for name in paired if name not in (chosen_on, OOD_MEAN)]
      adjusted = statistics.holm([rows[name]["p"] for name in columns])
      for name, p in zip(columns, adjusted, strict=True):
        rows[name]["p_holm"] = p
    found[system] = rows
  chosen = {"baseline": best, "chosen_on": chosen_on, "chosen_with_seeds": seeds}
  return chosen | {"level": level, "systems": found}


def with_mean(table: Table, sets: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
  """The table with one more column, `OOD_MEAN`: of each seed the mean over some sets.

  A system that lacks one of the sets has no such column, nor has a seed that lacks it.
  """
  found: dict[str, dict[str, dict[int, float]]] = {}
  for system, columns in table.items():
    found[system] = {name: dict(seeds) for name, seeds in columns.items()}
    of = [columns[name] for name in sets if name in columns]
    if sets and len(of) == len(sets):
      shared = set.intersection(*(set(seeds) for seeds in of))
      found[system][OOD_MEAN] = {s: float(np.mean([x[s] for x in of])) for s in sorted(shared)}
  return found


def _mean(seeds: Mapping[int, float], level: float) -> dict[str, Any]:
  found = statistics.t_interval(np.array(list(seeds.values()), float), level=level)
  ci = None if found.low is None else [found.low, found.high]
  return {"mean": float(np.mean(list(seeds.values()))), "ci": ci, "n": found.n, "note": found.note}


def _difference(
  ours: Mapping[int, float], theirs: Mapping[int, float], level: float
) -> dict[str, Any]:
  both = sorted(ours.keys() & theirs.keys())
  d_S = np.array([ours[seed] - theirs[seed] for seed in both], float)
  found = statistics.t_interval(d_S, level=level)
  p = 1.0 if len(d_S) > 1 and not d_S.any() else None
  if found.low is not None:
    t = d_S.mean() / (d_S.std(ddof=1) / np.sqrt(len(d_S)))
    p = float(2 * scipy.special.stdtr(len(d_S) - 1, -abs(t)))
  return {
    "difference": found.value,
    "difference_ci": None if found.low is None else [found.low, found.high],
    "n_pairs": len(both),
    "p": p,
    "difference_note": found.note,
  }
