"""The same values of one key for every system, and of each system the best one on validation.

So a baseline is tuned as hard as what it is compared with. A system is tried with the first seed;
that run is taken over, the other seeds run with the value that was chosen.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import rich.table

from experiments import cli
from experiments.jobs import Job
from iclm import workdir
from iclm.config import InputError

FOLDER = "tuning"


def is_given(sweep: Any, overrides: Sequence[str]) -> bool:
  """Whether the key to tune is set by hand for every run."""
  return any(text.split("=", 1)[0] == sweep.tuning[0] for text in overrides)


def trials_of(sweep: Any, jobs: Sequence[Job], folder: pathlib.Path) -> list[Job]:
  """Every system with every value and the first seed, in FOLDER/SYSTEM/VALUE."""
  key, values = sweep.tuning
  first = [job for job in jobs if job.seed == sweep.seeds[0]]
  return [
    dataclasses.replace(
      job, folder=folder / FOLDER / job.system / f"{value:g}", changes=job.changes | {key: value}
    )
    for value in values
    for job in first
  ]


def tuned(
  sweep: Any, jobs: Sequence[Job], trials: Sequence[Job], folder: pathlib.Path
) -> list[Job]:
  """Returns the jobs with the value that was best for their system; writes and prints it.

  Of equally good values, the first that the sweep names. Systems without a finished trial have no
  jobs. Folders of trials that won are copied to where the first seed's run belongs.

  Raises:
    InputError: the sweep chooses on a set that its config does not evaluate.
  """
  found: dict[str, list[tuple[Job, float]]] = {}
  for trial in trials:
    if trial.done:
      sets = json.loads((trial.folder / "results.json").read_text())["sets"]
      if sweep.chosen_on not in sets:
        raise InputError(f"chosen_on = {sweep.chosen_on!r} is no evaluation set of the runs")
      found.setdefault(trial.system, []).append((trial, sets[sweep.chosen_on]["accuracy"]))
  key = sweep.tuning[0]
  best = {name: max(of, key=lambda pair: pair[1])[0] for name, of in found.items()}
  for name, trial in best.items():
    _take_over(trial.folder, folder / name / str(trial.seed))
  workdir.write_json(folder / "tuning.json", {
    "key": key,
    "chosen": {name: trial.changes[key] for name, trial in best.items()},
    sweep.chosen_on: {
      name: {trial.folder.name: accuracy for trial, accuracy in of} for name, of in found.items()
    },
  })  # fmt: skip
  _show(sweep, found, best)
  return [
    dataclasses.replace(job, changes=best[job.system].changes) for job in jobs if job.system in best
  ]


def _take_over(trial: pathlib.Path, run: pathlib.Path) -> None:
  """Copies the folder of a run that is done, whole or not at all."""
  if run.exists():
    return
  part = run.with_name(f"{run.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  shutil.copytree(trial, part)
  part.rename(run)


def _show(sweep: Any, found: dict[str, list[tuple[Job, float]]], best: dict[str, Job]) -> None:
  key, values = sweep.tuning
  title = f"Accuracy on {sweep.chosen_on} by {key}, of the first seed; * is chosen"
  table = rich.table.Table("system", *(f"{value:g}" for value in values), title=title)
  for name, of in found.items():
    told = {t.changes[key]: f"{a:.3f}{'*' if t is best[name] else ''}" for t, a in of}
    table.add_row(name, *(told[value] if value in told else "failed" for value in values))
  cli.console().print(table)
