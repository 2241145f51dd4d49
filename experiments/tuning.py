"""The same values of one key for every system, and of each system the best one on validation.

So a baseline is tuned as hard as what it is compared with. A sweep's `tuning` has "key", "tries"
and "like": systems that take the value of another one, from which they are to differ in one thing.
A system is tried with the first seed; that run is taken over, the others run with what was chosen.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import rich.table

from experiments import cli
from experiments.jobs import Job
from iclm import inputs, outputs
from iclm.audit import files
from iclm.config import InputError
from iclm.evals import determined

FOLDER = "tuning"


def is_needed(sweep: Any, overrides: Sequence[str]) -> bool:
  """Whether there is a key to tune, which is not set by hand for every run.

  Raises:
    InputError: a system is to take the value of one that has none of its own.
  """
  if not sweep.tuning:
    return False
  tried = set(sweep.systems) - set(sweep.tuning.like) - {sweep.base}
  for system, other in sweep.tuning.like.items():
    if system not in sweep.systems or other not in tried:
      raise InputError(f"tuning.like: {system!r} cannot take the value of {other!r}, which is none"
                       f" of the systems that are tried: {', '.join(sorted(tried))}")  # fmt: skip
  return not any(text.split("=", 1)[0] == sweep.tuning.key for text in overrides)


def tried(sweep: Any, systems: Sequence[str]) -> list[str]:
  """The systems whose values some systems need, their own or those they take."""
  return list(dict.fromkeys(sweep.tuning.like.get(name, name) for name in systems))


def trials_of(sweep: Any, jobs: Sequence[Job], folder: pathlib.Path) -> list[Job]:
  """The jobs of the first seed with every value, in FOLDER/SYSTEM/VALUE."""
  key = sweep.tuning.key
  first = [job for job in jobs if job.seed == sweep.seeds[0]]
  return [
    dataclasses.replace(
      job,
      folder=folder / FOLDER / job.system / folder_of(value),
      changes=job.changes | {key: value},
    )
    for value in sweep.tuning.tries
    for job in first
  ]


def folder_of(value: float) -> str:
  """The folder of a value, among those of its system."""
  return f"{value:g}"


def tuned(
  sweep: Any, jobs: Sequence[Job], trials: Sequence[Job], folder: pathlib.Path
) -> list[Job]:
  """Returns the jobs with the value that was best for their system; writes and prints it.

  Of equally good values, the first that the sweep names; what was chosen once stays. Systems
  without a finished trial have no jobs. Folders of trials that won are copied to where the first
  seed's run belongs.
  """
  found: dict[str, list[tuple[Job, float]]] = {}
  for trial in trials:
    if trial.done:
      sets = files.read_results(trial.folder)["sets"]
      accuracy = determined.measured(sets[sweep.chosen_on])["accuracy"]
      found.setdefault(trial.system, []).append((trial, accuracy))
  key = sweep.tuning.key
  place = lambda trial: folder / trial.system / str(trial.seed)
  best = {}
  for name, of in found.items():
    # Though a trial that had failed may be better since: other seeds have followed the choice.
    before = [pair for pair in of if pair[0].stands_in(place(pair[0]))]
    best[name] = max(before or of, key=lambda pair: pair[1])[0]
  for trial in best.values():
    _take_over(trial.folder, place(trial))
  path = folder / "tuning.json"
  # What was chosen for systems that this command does not run stays told.
  before = inputs.read_object(path, f"there is no {path}") if path.exists() else {}
  tries = {
    name: {trial.folder.name: accuracy for trial, accuracy in of} for name, of in found.items()
  }
  chosen = {name: trial.changes[key] for name, trial in best.items()}
  outputs.write_json(path, {
    "key": key,
    "chosen": before.get("chosen", {}) | chosen,
    sweep.chosen_on: before.get(sweep.chosen_on, {}) | tries,
  })  # fmt: skip
  _show(sweep, found, best)
  whose = {job.system: sweep.tuning.like.get(job.system, job.system) for job in jobs}
  return [
    dataclasses.replace(job, changes=job.changes | {key: best[whose[job.system]].changes[key]})
    for job in jobs
    if whose[job.system] in best
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
  key, values = sweep.tuning.key, sweep.tuning.tries
  title = f"Accuracy on {sweep.chosen_on} by {key}, of the first seed; * is chosen"
  table = rich.table.Table("system", *(f"{value:g}" for value in values), title=title)
  for name, of in found.items():
    told = {t.changes[key]: f"{a:.3f}{'*' if t is best[name] else ''}" for t, a in of}
    table.add_row(name, *(told[value] if value in told else "failed" for value in values))
  cli.console().print(table)
