"""Run every system of a sweep with every seed, some at a time, and gather one table.

  python -m experiments.sweep --sweep=configs/sweeps/mechanisms.py --workdir=runs/sweep --jobs=2
    [--systems=dense,iclm] [--seeds=0,1] [--override=KEY=VALUE ...]

A run is `experiments.train` in a folder of its own, WORKDIR/SYSTEM/SEED. Where the sweep names a
key to tune, every system first tries the same values of it, in WORKDIR/tuning. The same command
goes on: finished runs are skipped, others go on from their checkpoints, and one that fails is tried
again. It ends on WORKDIR/table.csv and, where the sweep names baselines, comparison.json: of all
finished runs of the sweep that are there, also where a command runs some of it.

Where the sweep names one of its systems as the base, that one runs first, and every run of the
others starts from the base of its own seed (checkpoint.init_from).
"""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli, tables, tuning
from experiments.jobs import Children, Job, run
from iclm import config, outputs, train
from iclm.audit.sweep import LOG, PLAN, START, read_plan
from iclm.config import InputError

# What `get_sweep()` of a file returns; the systems and `every` are pairs of a key and its value.
KEYS = (
  "config", "base", "every", "systems", "seeds", "baselines", "out_of_distribution", "chosen_on",
  "tuning",
)  # fmt: skip


def main(flag: flags.FlagValues) -> int:
  folder = config.path(flag.workdir)
  sweep = _load(config.path(flag.sweep))
  seeds, tunes = _seeds(sweep, flag.seeds), tuning.is_needed(sweep, flag.override)
  every = jobs_of(sweep, folder, flag.override, flag.systems)
  _check_sets(sweep, every)
  planned = plan(folder, sweep, [job for job in every if job.seed in seeds])
  bases, jobs = _split(every, sweep.base)
  jobs = [job for job in jobs if job.seed in seeds]
  # Whichever seeds are asked for, rates are chosen with the first.
  bases = [job for job in bases if job.seed in seeds or (tunes and job.seed == sweep.seeds[0])]
  with Children() as children:
    launch = lambda jobs: [] if children.stopped else run(jobs, flag.jobs, flag.tries, children)
    dead = launch(bases) if bases else []
    jobs = _startable(jobs, bases)
    if tunes and jobs:
      tried = tuning.tried(sweep, [job.system for job in jobs])
      _, of_tried = _split(jobs_of(sweep, folder, flag.override, tried), sweep.base)
      trials = tuning.trials_of(sweep, _startable(of_tried, bases), folder)
      dead += launch(trials)
      jobs = [] if children.stopped else tuning.tuned(sweep, jobs, trials, folder)
    dead += launch(jobs)
  if children.stopped:
    raise train.Interrupted("interrupted; the same command goes on")
  there = [*bases, *jobs]
  there += _earlier(sweep, jobs_of(sweep, folder, flag.override, planned), there)
  rows = tables.gather(there)
  if rows:
    tables.write_table(folder / "table.csv", rows)
    tables.show(rows)
    tables.compare(folder, sweep, rows, there)
  for job in dead:
    print(f"{job.system}/{job.folder.name} failed; see {job.folder / LOG}")
  return 1 if dead else 0


def _load(path: pathlib.Path) -> Any:
  if not path.is_file():
    there = sorted(map(str, path.parent.glob("*.py")))
    raise InputError(f"there is no sweep {path}; {config.nearest(str(path), there)}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise InputError(f"{path} is no file of Python; the name of one ends in .py")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    sweep = module.get_sweep()
    _check(sweep)
  except cli.BROKEN as error:
    raise InputError(f"{path} is no sweep: {cli.sentence(error)}") from None
  return sweep


def _check(sweep: Any) -> None:
  """Raises one of `cli.BROKEN` where a sweep is not made as `KEYS` says."""
  absent = [name for name in KEYS if not hasattr(sweep, name)]
  config.require(not absent, f"what it returns has no {', '.join(absent)}")
  for name, changes in {"every": sweep.every, **sweep.systems}.items():
    pairs = all(isinstance(one, Sequence) and len(one) == 2 for one in changes)
    config.require(pairs, f"the changes of {name!r} are no pairs of a key and its value")
  if not sweep.tuning:
    return
  for value in sweep.tuning.tries:
    config.require(isinstance(value, int | float), f"tuning.tries: {value!r} is no number")
  folders = {tuning.folder_of(value) for value in sweep.tuning.tries}
  config.require(
    0 < len(folders) == len(sweep.tuning.tries),
    f"tuning.tries = {tuple(sweep.tuning.tries)} must name one value or more, each once",
  )


def _check_sets(sweep: Any, jobs: Sequence[Job]) -> None:
  """Raises InputError where a system is no config, or lacks a set that it is to be compared on."""
  wanted = (sweep.chosen_on,) if sweep.baselines or sweep.tuning else ()
  wanted += tuple(sweep.out_of_distribution) if sweep.baselines else ()
  for job in jobs:
    if job.seed != sweep.seeds[0]:
      continue
    sets = job.read_config()["evaluation"]["sets"]
    compared = job.system != sweep.base or job.system in sweep.baselines
    for name in wanted:
      if compared and name not in sets:
        raise InputError(
          f"the sweep compares its systems on {name!r}, and config.evaluation.sets of "
          f"{job.system!r} has no such set; {config.nearest(name, sets)}"
        )


def _seeds(sweep: Any, asked: Sequence[str]) -> set[int]:
  """Those of the sweep that are asked for; none asks for all."""
  known = {str(seed): seed for seed in sweep.seeds}
  for text in asked:
    if text not in known:
      raise InputError(f"--seeds={','.join(asked)}: the sweep's are {', '.join(known)}")
  return {known[text] for text in asked or known}


def jobs_of(
  sweep: Any, folder: pathlib.Path, overrides: Sequence[str], systems: Sequence[str]
) -> list[Job]:
  """Every system with every seed, seeds first, so that an interrupted sweep has all systems.

  Args:
    overrides: "key=value" for every run, over those of the sweep and of its systems.
    systems: names of those to run; empty for all of them. The base comes along.

  Raises:
    InputError: nothing to run, an unknown system, an override without = or of the seed, two systems
      that are the same run, or a seed twice.
  """
  for name in systems:
    if name not in sweep.systems:
      raise InputError(f"the sweep has no system {name!r}; {config.nearest(name, sweep.systems)}")
  for text in overrides:
    if "=" not in text:
      raise InputError(f"--override={text} must be key=value, such as steps=100")
  last = dict(text.split("=", 1) for text in overrides)
  for name in sweep.systems:
    if not name or "/" in name:
      raise InputError(f"system {name!r} is no name of a folder, in which its runs are to lie")
  if tuning.FOLDER in sweep.systems:
    raise InputError(f"no system can be called {tuning.FOLDER!r}: that folder holds the trials")
  merged = {
    system: dict(sweep.every) | dict(changes) | last
    for system, changes in sweep.systems.items()
    if not systems or system in systems or system == sweep.base
  }
  if not merged or not sweep.seeds:
    raise InputError("the sweep names no system or no seed; there is nothing to run")
  if len(set(sweep.seeds)) < len(sweep.seeds):
    raise InputError(f"seeds = {tuple(sweep.seeds)} names one twice, which would be one run")
  if any("seed" in changes for changes in merged.values()):
    raise InputError("seed is a sweep's own and no key to change; --seeds chooses among them")
  seen: dict[str, str] = {}
  for system, changes in merged.items():
    same = seen.setdefault(json.dumps(changes, sort_keys=True, default=str), system)
    if same != system:
      raise InputError(
        f"systems {same!r} and {system!r} of the sweep are the same run; leave one out (--systems)"
      )
  start = functools.partial(_start, sweep, folder)
  return [
    Job(system, seed, folder / system / str(seed), sweep.config, *start(system, seed, changes))
    for seed in sweep.seeds
    for system, changes in merged.items()
  ]


def _start(
  sweep: Any, folder: pathlib.Path, system: str, seed: int, changes: dict[str, Any]
) -> tuple[dict[str, Any], str]:
  """What a run changes, and the base of its seed, from which it starts; that one starts afresh."""
  if not sweep.base or START in changes:
    return changes, ""
  if system == sweep.base:
    return {START: ""} | changes, ""
  return changes, str(folder / sweep.base / str(seed))


def _split(jobs: Sequence[Job], base: str) -> tuple[list[Job], list[Job]]:
  """The runs of the base, which come first, and all others."""
  return [j for j in jobs if j.system == base], [j for j in jobs if j.system != base]


def _startable(jobs: Sequence[Job], bases: Sequence[Job]) -> list[Job]:
  """The jobs whose base, where there is one, is done."""
  missing = {job.seed for job in bases if not job.done}
  return [job for job in jobs if job.seed not in missing]


def plan(folder: pathlib.Path, sweep: Any, jobs: Sequence[Job]) -> list[str]:
  """Adds these to the runs that there are to be, so that a report can tell those that are missing.

  Returns:
    The systems of all of them.
  """
  outputs.make_folder(folder)
  before = read_plan(folder)
  systems = {job.system for job in jobs} | set(before.get("systems", ()))
  seeds = {job.seed for job in jobs} | set(before.get("seeds", ()))
  told = {
    "systems": [name for name in sweep.systems if name in systems],
    "seeds": [seed for seed in sweep.seeds if seed in seeds],
  }
  outputs.write_json(folder / PLAN, told)
  return told["systems"]


def _earlier(sweep: Any, jobs: Sequence[Job], asked: Sequence[Job]) -> list[Job]:
  """Of the jobs that were not asked for, those that another command has finished; says which are
  left out, and why."""
  mine, found = {job.folder for job in asked}, []
  for job in jobs:
    if job.folder in mine:
      continue
    try:
      found += [job] if (job := job.as_marked(sweep.tuning.get("key"))).done else []
    except InputError as error:
      print(f"left out of the table: {error}")
  return found


if __name__ == "__main__":
  flags.DEFINE_string("sweep", None, "A file of configs/sweeps/.")
  flags.DEFINE_string("workdir", None, "The folder of all runs.")
  flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
  flags.DEFINE_integer(
    "tries", 2, "How often a run is started before it counts as dead.", lower_bound=1
  )
  flags.DEFINE_list("systems", [], "Names of the systems to run; all of them if not given.")
  flags.DEFINE_list("seeds", [], "Seeds to run; those of the sweep if not given.")
  flags.DEFINE_multi_string("override", [], "key=value for every run, such as steps=100.")
  flags.register_validator("workdir", lambda name: name != "", "--workdir= names no folder")
  flags.mark_flags_as_required(["sweep", "workdir"])
  cli.run(main)
