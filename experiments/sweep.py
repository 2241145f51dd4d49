"""Run every system of a sweep with every seed, some at a time, and gather one table.

  python -m experiments.sweep --sweep=configs/sweeps/mechanisms.py --workdir=runs/sweep --jobs=2
    [--systems=dense,iclm] [--override=KEY=VALUE ...]

A run is `experiments.train` in a folder of its own, WORKDIR/SYSTEM/SEED. The same command goes on:
finished runs are skipped, others go on from their checkpoints, and one that fails is tried again.
It ends on WORKDIR/table.csv and, where the sweep names baselines, comparison.json.
"""

import concurrent.futures
import csv
import dataclasses
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table
from absl import flags

from experiments import cli
from iclm import config, train, workdir
from iclm.audit.sweep import DONE, FAILED, PLAN
from iclm.config import InputError
from iclm.evals import comparison, statistics

LEVEL = 0.95
COLUMNS = ("system", "seed", "set", "group", "n", "accuracy")


@dataclasses.dataclass(frozen=True)
class Job:
  """One run: a system, a seed, and what it changes of the sweep's config."""

  system: str
  seed: int
  folder: pathlib.Path
  config_file: str
  changes: dict[str, Any]

  @property
  def command(self) -> list[str]:
    """The command line that trains it."""
    keys = [f"--config.{key}={value}" for key, value in self.changes.items()]
    train = [sys.executable, "-m", "experiments.train", f"--config={self.config_file}"]
    return [*train, f"--workdir={self.folder}", *keys, f"--config.seed={self.seed}"]

  @property
  def done(self) -> bool:
    """A mark, not results.json, which a study adds to."""
    return (self.folder / DONE).exists()


def main(flag: flags.FlagValues) -> int:
  folder = pathlib.Path(flag.workdir)
  sweep = _load(pathlib.Path(flag.sweep))
  jobs = jobs_of(sweep, folder, flag.override, flag.systems)
  plan(folder, jobs)
  with Children() as children:
    dead = run(jobs, flag.jobs, flag.tries, children)
  if children.stopped:
    raise train.Interrupted("interrupted; the same command goes on")
  rows = gather(jobs)
  if rows:
    write_table(folder / "table.csv", rows)
    show(rows)
    compare(folder, sweep, rows)
  for job in dead:
    print(f"{job.system}/{job.seed} failed {flag.tries} times; see {job.folder / 'log.txt'}")
  return 1 if dead else 0


def _load(path: pathlib.Path) -> Any:
  if not path.is_file():
    there = sorted(map(str, path.parent.glob("*.py")))
    raise InputError(f"there is no sweep {path}; {config.nearest(str(path), there)}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise InputError(f"{path} has no get_sweep()")
  return module.get_sweep()


def jobs_of(
  sweep: Any, folder: pathlib.Path, overrides: Sequence[str], systems: Sequence[str]
) -> list[Job]:
  """Every system with every seed, seeds first, so that an interrupted sweep has all systems.

  Args:
    overrides: "key=value" for every run, over those of the sweep and of its systems.
    systems: names of those to run; empty for all of them.

  Raises:
    InputError: nothing to run, an unknown system, an override without =, or two systems that are
      the same run.
  """
  for name in systems:
    if name not in sweep.systems:
      raise InputError(f"the sweep has no system {name!r}; {config.nearest(name, sweep.systems)}")
  for text in overrides:
    if "=" not in text:
      raise InputError(f"--override={text} must be key=value, such as steps=100")
  last = dict(text.split("=", 1) for text in overrides)
  merged = {
    system: dict(sweep.every) | dict(changes) | last for system, changes in sweep.systems.items()
  }
  if not merged or not sweep.seeds:
    raise InputError("the sweep names no system or no seed; there is nothing to run")
  seen: dict[str, str] = {}
  for system, changes in merged.items():
    same = seen.setdefault(json.dumps(changes, sort_keys=True, default=str), system)
    if same != system:
      raise InputError(f"systems {same!r} and {system!r} of the sweep are the same run; remove one")
  return [
    Job(system, seed, folder / system / str(seed), sweep.config, changes)
    for seed in sweep.seeds
    for system, changes in merged.items()
    if system in (systems or merged)
  ]


def plan(folder: pathlib.Path, jobs: Sequence[Job]) -> None:
  """Writes which runs there are to be, so that a report can tell those that are missing."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"cannot make the workdir {folder}: {error.strerror}") from None
  systems, seeds = (
    list(dict.fromkeys(getattr(j, name) for j in jobs)) for name in ("system", "seed")
  )
  workdir.write_json(folder / PLAN, {"systems": systems, "seeds": seeds})


class Children:
  """The running commands; SIGTERM and Ctrl-C stop them all, each after a checkpoint."""

  def __init__(self):
    self.stopped = False
    self._running: set[subprocess.Popen] = set()
    self._old: dict[int, Any] = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._stop)
    return self

  def __exit__(self, *_) -> None:
    for number, old in self._old.items():
      signal.signal(number, old)

  def _stop(self, *_) -> None:
    self.stopped = True
    for child in list(self._running):
      child.terminate()

  def call(self, command: Sequence[str], log: Any) -> int:
    """Runs a command to its end, in a session of its own: Ctrl-C reaches it through here."""
    child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    self._running.add(child)
    if self.stopped:  # Between the check and the start.
      child.terminate()
    try:
      return child.wait()
    finally:
      self._running.discard(child)


def run(jobs: Sequence[Job], n_at_a_time: int, tries: int, children: Children) -> list[Job]:
  """Runs what is not done yet; returns the jobs that failed as often as allowed."""
  todo = [job for job in jobs if not job.done]
  print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them done", flush=True)
  dead = []
  with concurrent.futures.ThreadPoolExecutor(n_at_a_time) as pool:
    running = {pool.submit(_attempt, job, tries, children): job for job in todo}
    for n, finished in enumerate(concurrent.futures.as_completed(running), 1):
      job = running[finished]
      if children.stopped and not finished.result():
        continue
      told = "done" if finished.result() else "FAILED"
      print(f"[{n}/{len(todo)}] {job.system}, seed {job.seed}: {told}", flush=True)
      if not finished.result():
        dead.append(job)
  return dead


def _attempt(job: Job, tries: int, children: Children) -> bool:
  (job.folder / FAILED).unlink(missing_ok=True)
  for _ in range(tries):
    if children.stopped:
      return False
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / "log.txt", "a") as log:
      code = children.call(job.command, log)
    if code == 0:
      (job.folder / DONE).touch()
      return True
    if code == 2:  # Bad input stays bad.
      break
  if not children.stopped:
    (job.folder / FAILED).touch()
  return False


def gather(jobs: Sequence[Job]) -> list[dict[str, Any]]:
  """One row per finished run, set and group; group "all" is the whole set."""
  rows = []
  for job in filter(lambda job: job.done, jobs):
    sets = json.loads((job.folder / "results.json").read_text())["sets"]
    for name, found in sets.items():
      for group, g in {"all": found, **found["by_group"]}.items():
        values = (job.system, job.seed, name, group, g["n"], g["accuracy"])
        rows.append(dict(zip(COLUMNS, values, strict=True)))
  return rows


def write_table(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Writes the tidy table, one accuracy per line."""
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)


def show(rows: Sequence[dict[str, Any]]) -> None:
  """Prints mean and interval over seeds of every system on every set."""
  whole = [row for row in rows if row["group"] == "all"]
  sets = list(dict.fromkeys(row["set"] for row in whole))
  table = rich.table.Table("system", "seeds", *sets, title="Accuracy, mean and 95 % interval")
  for system in dict.fromkeys(row["system"] for row in whole):
    mine = [row for row in whole if row["system"] == system]
    cells = [_cell([row["accuracy"] for row in mine if row["set"] == name]) for name in sets]
    table.add_row(system, str(len({row["seed"] for row in mine})), *cells)
  cli.console().print(table)


def compare(folder: pathlib.Path, sweep: Any, rows: Sequence[dict[str, Any]]) -> None:
  """Writes comparison.json and prints every system's difference to the best of the baselines."""
  table: dict[str, dict[str, dict[int, float]]] = {}
  for row in rows:
    if row["group"] == "all":
      sets = table.setdefault(row["system"], {})
      sets.setdefault(row["set"], {})[row["seed"]] = row["accuracy"]
  there = [name for name in sweep.baselines if name in table]
  if not there:
    return
  found = comparison.compare(table, there, sweep.chosen_on, level=LEVEL)
  workdir.write_json(folder / "comparison.json", found)
  sets = list(table[found["baseline"]])
  title = f"Difference to {found['baseline']}, the best baseline on {sweep.chosen_on}; * p < 0.05"
  shown = rich.table.Table("system", *sets, title=title)
  for system, of in found["systems"].items():
    if system != found["baseline"]:
      shown.add_row(system, *(_gap(of[name]) if name in of else "-" for name in sets))
  cli.console().print(shown)


def _gap(row: dict[str, Any]) -> str:
  if row.get("difference_ci") is None:
    return f"{row['difference']:+.3f}" if row.get("difference") is not None else "-"
  low, high = row["difference_ci"]
  star = "*" if row.get("p_holm") is not None and row["p_holm"] < 1 - LEVEL else ""
  return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]{star}"


def _cell(values: Sequence[float]) -> str:
  found = statistics.t_interval(np.array(values, float), level=LEVEL)
  if found.low is None:
    return f"{np.mean(values):.3f}" if values else "-"
  return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
  flags.DEFINE_string("sweep", None, "A file of configs/sweeps/.")
  flags.DEFINE_string("workdir", None, "The folder of all runs.")
  flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
  flags.DEFINE_integer(
    "tries", 2, "How often a run is started before it counts as dead.", lower_bound=1
  )
  flags.DEFINE_list("systems", [], "Names of the systems to run; all of them if not given.")
  flags.DEFINE_multi_string("override", [], "key=value for every run, such as steps=100.")
  flags.mark_flags_as_required(["sweep", "workdir"])
  cli.run(main)
