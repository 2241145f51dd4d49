"""What the page of a sweep says: every system with every seed, and nothing averaged that differs.

A sweep's folder holds its runs as SYSTEM/SEED. `experiments.sweep` marks in them what came of each,
and lists in sweep.json what is to run.
"""

import collections
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from iclm import inputs, workdir
from iclm.audit import cost, drawing, files
from iclm.config import InputError
from iclm.evals import determined, statistics

LEVEL = 0.95
DONE = "done"  # Marks the folder of a run that came to its end,
FAILED = "failed"  # and of one that failed as often as it was allowed to.
PLAN = "sweep.json"  # {"systems": [...], "seeds": [...]}.
LOG = "log.txt"  # What a run printed.
ABSENT = "absent"
START = "checkpoint.init_from"


class Run(NamedTuple):
  """One run of a sweep; what it has not written yet is None."""

  system: str
  seed: int
  state: str  # "done", "failed", "unfinished" or "not started".
  results: dict[str, Any] | None
  begun: bool  # There is a config.
  config: dict[str, str]  # Dotted key -> value as JSON, whatever the seed.
  cost: cost.Cost | None
  last_line: str  # Of its log.

  @property
  def name(self) -> str:
    return f"{self.system}/{self.seed}"


class Column(NamedTuple):
  """One evaluation set, known by its data: a name with other data is another column."""

  name: str
  title: str  # The name, and a part of the hash where several data have that name.
  runs: list[tuple[Run, dict[str, Any]]]  # Each with what it has of the set.


class Spent(NamedTuple):
  """What the runs of a system cost, mean and range, and how large its model is."""

  system: str
  n: int
  seconds: tuple[float, float, float] | None
  step_s: float | None
  parameters: int | None


def is_sweep(folder: pathlib.Path) -> bool:
  """Whether a folder is a sweep's: the plan, or runs within folders, and no run of its own."""
  if (folder / workdir.CONFIG).exists() or (folder / workdir.RESULTS).exists():
    return False
  return (folder / PLAN).exists() or any(_seeds(folder))


def content(folder: pathlib.Path) -> dict[str, Any]:
  """All that the template of a sweep's page reads; see `iclm.audit.report.render`."""
  runs = _runs(folder)
  done = [run for run in runs if run.results is not None]
  systems = list(dict.fromkeys(run.system for run in runs))
  columns = _columns(done)
  return {
    "name": folder.resolve().name,
    "n_runs": len(runs),
    "n_done": len(done),
    "notices": _notices(runs, done, columns),
    "systems": systems,
    "columns": columns,
    "table": {s: [_mean(column, s) for column in columns] for s in systems},
    "strips": [_strip(column, systems) for column in columns],
    "groups": [_groups(column, systems) for column in columns],
    "changes": _changes(runs),
    "spent": [_spent(system, done) for system in systems],
    "missing": [run for run in runs if run.results is None],
  }


def _seeds(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """The folders of runs that a sweep's folder holds."""
  for path in folder.glob("*/*"):
    marks = (DONE, FAILED, workdir.CONFIG, LOG)
    if path.name.isdecimal() and any((path / mark).exists() for mark in marks):
      yield path


def read_plan(folder: pathlib.Path) -> dict[str, list[Any]]:
  """Systems and seeds that a sweep's folder is to hold; {} where there is no plan."""
  if not (folder / PLAN).exists():
    return {}
  plan = inputs.read_json(folder / PLAN, f"there is no {folder / PLAN}")
  lists = isinstance(plan, dict) and [plan.get(name) for name in ("systems", "seeds")]
  if not lists or not all(isinstance(x, list) for x in lists):
    raise InputError(f"{folder / PLAN} is not what experiments.sweep writes; remove it")
  return plan


def _runs(folder: pathlib.Path) -> list[Run]:
  """The runs of the plan and those that are there; without a plan, all systems with all seeds."""
  there = sorted((path.parent.name, int(path.name)) for path in _seeds(folder))
  plan = read_plan(folder)
  plan = plan or {"systems": [s for s, _ in there], "seeds": [seed for _, seed in there]}
  planned = [(s, seed) for s in plan["systems"] for seed in sorted(set(plan["seeds"]))]
  return [_run(folder, *which) for which in dict.fromkeys([*planned, *there])]


def _run(folder: pathlib.Path, system: str, seed: int) -> Run:
  at = folder / system / str(seed)
  state = "unfinished" if at.exists() else "not started"
  state = next((mark for mark in (DONE, FAILED) if (at / mark).exists()), state)
  begun = (at / workdir.CONFIG).exists()
  config = inputs.read_json(at / workdir.CONFIG, f"there is no config in {at}") if begun else {}
  log = (at / LOG).read_text(errors="replace") if (at / LOG).exists() else ""
  return Run(
    system,
    seed,
    state,
    files.read_results(at) if state == DONE else None,
    begun,
    _without_seed(config, seed),
    cost.of_metrics(files.read_metrics(at)),
    next((line for line in reversed(log.splitlines()) if line.strip()), ""),
  )


def _without_seed(config: Mapping[str, Any], seed: int) -> dict[str, str]:
  """A config without its seed, also where it starts from the base of that seed."""
  flat = {key: value for key, value in _flat(config) if key != "seed"}
  if (start := flat.get(START, "")).endswith(f'/{seed}"'):
    flat[START] = start.removesuffix(f'/{seed}"') + '/SEED"'
  return flat


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from _flat(inner, f"{where}.{key}" if where else key)
  else:
    yield where, json.dumps(value)


def titles(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """Of each run how its evaluation sets are called: with a part of the hash of their data behind
  the name where another run has other data under that name.

  Args:
    results: what each run wrote as its results.json.
  """
  told = [r["provenance"].get("data", {}).get("sets_sha256", {}) for r in results]
  hashes = [{name: of.get(name, "") for name in r["sets"]}
            for r, of in zip(results, told, strict=True)]  # fmt: skip
  count = collections.Counter(name for name, _ in {pair for h in hashes for pair in h.items()})
  title = lambda name, digest: name if count[name] == 1 else f"{name} ({digest[:8]})"
  return [{name: title(name, digest) for name, digest in h.items()} for h in hashes]


def _columns(done: Sequence[Run]) -> list[Column]:
  """The evaluation sets in the order of their first runs; what differs in data stands apart."""
  results = [run.results for run in done if run.results is not None]
  found: dict[str, dict[str, list[tuple[Run, dict[str, Any]]]]] = {}
  for run, of, named in zip(done, results, titles(results), strict=True):
    for name, title in named.items():
      found.setdefault(name, {}).setdefault(title, []).append((run, of["sets"][name]))
  return [
    Column(name, title + _measure([found for _, found in runs]), runs)
    for name, by_title in found.items()
    for title, runs in by_title.items()
  ]


def _measure(sets: Sequence[dict[str, Any]]) -> str:
  """What is counted where that is not exact match, and how much of it a solver gets right."""
  parts = [found["determined"] for found in sets if "determined" in found]
  ceilings = ", ".join(sorted({f"{part['ceiling']:.3f}" for part in parts}))
  whose = "of RAVEN " if any("rest" in part for part in parts) else ""
  return f", {whose}determined (ceiling {ceilings})" if parts else ""


def _values(column: Column, system: str) -> np.ndarray:
  mine = [found for run, found in column.runs if run.system == system]
  return np.array([determined.measured(found)["accuracy"] for found in mine], float)


def _mean(column: Column, system: str) -> statistics.Estimate:
  return statistics.t_interval(_values(column, system), level=LEVEL)


def _strip(column: Column, systems: Sequence[str]) -> drawing.Strip:
  rows = {s: (_values(column, s).tolist(), _mean(column, s)) for s in systems}
  return drawing.strip(column.title, {s: row for s, row in rows.items() if row[0]})


def _groups(column: Column, systems: Sequence[str]) -> drawing.Heat:
  """Mean accuracy of every group of a set, over the seeds of a system."""
  values = collections.defaultdict(list)
  for run, found in column.runs:
    # Exact match of what is determined in part would be noise.
    part = found.get("determined")
    shown = part["by_configuration"] if part else {}
    if not part or "rest" in part:
      shown = found["by_group"] | shown
    for group, what in shown.items():
      values[run.system, group].append(what["accuracy"])
  groups = list(dict.fromkeys(group for _, group in values))
  mine = [s for s in systems if any((s, group) in values for group in groups)]
  cells = [[_average(values[s, group]) for group in groups] for s in mine]
  return drawing.Heat(column.title, mine, groups, cells, 1.0)


def _average(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None


def _differing(configs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
  """The keys whose values are not the same in all, with the value of each config."""
  absent = dict.fromkeys((key for config in configs for key in config), ABSENT)
  whole = [absent | dict(config) for config in configs]
  values = {key: [config[key] for config in whole] for key in absent}
  return {key: found for key, found in values.items() if len(set(found)) > 1}


def _changes(runs: Sequence[Run]) -> dict[str, list[tuple[str, str, str]]]:
  """System -> key, its value there, and the value that most systems have."""
  configs: dict[str, dict[str, str]] = {}
  for run in runs:
    if run.begun:
      configs.setdefault(run.system, run.config)
  found: dict[str, list[tuple[str, str, str]]] = {system: [] for system in configs}
  for key, values in _differing(list(configs.values())).items():
    usual = collections.Counter(values).most_common(1)[0][0]
    for system, value in zip(configs, values, strict=True):
      if value != usual:
        found[system].append((key, value, usual))
  return found


def _spent(system: str, done: Sequence[Run]) -> Spent:
  mine = [run for run in done if run.system == system]
  costs = [run.cost for run in mine if run.cost is not None]
  sizes = [run.results["parameters"] for run in mine if run.results and "parameters" in run.results]
  seconds = [c.seconds for c in costs]
  return Spent(
    system,
    len(costs),
    (float(np.mean(seconds)), min(seconds), max(seconds)) if costs else None,
    float(np.median([c.step_s for c in costs])) if costs else None,
    sum(sizes[0].values()) if sizes else None,
  )


def _notices(runs: Sequence[Run], done: Sequence[Run], columns: Sequence[Column]) -> list[str]:
  """What a reader must know before comparing anything: one sentence each."""
  notices = []
  if len(done) < len(runs):
    notices.append(f"{len(runs) - len(done)} of {len(runs)} runs are not done; see the last table")
  for name in dict.fromkeys(column.name for column in columns):
    same = [column for column in columns if column.name == name]
    if len(same) > 1:
      most, *rest = sorted(same, key=lambda column: -len(column.runs))
      parts = [f"{c.title} in {_names([run for run, _ in c.runs])}" for c in rest]
      notices.append(
        f"the set {name} holds other data in other runs, which are not averaged: "
        f"{'; '.join(parts)}; {most.title} in {len(most.runs)} others"
      )
    having = {run.name for column in same for run, _ in column.runs}
    if lacking := [run for run in done if run.name not in having]:
      notices.append(f"there is no set {name} in {_names(lacking)}")
  for system in dict.fromkeys(run.system for run in done):
    if keys := _differing([run.config for run in done if run.system == system]):
      told = ", ".join(keys)
      notices.append(f"the runs of {system} differ in more than their seed, in {told}")
  origins = [run.results["provenance"] for run in done if run.results is not None]
  if len(commits := {str(p["commit"])[:12] for p in origins}) > 1:
    notices.append(f"the runs are of {len(commits)} commits: {', '.join(sorted(commits))}")
  if n_dirty := sum(bool(p["dirty"]) for p in origins):
    notices.append(f"{n_dirty} runs were made with uncommitted changes")
  if len({json.dumps(p["device"], sort_keys=True) for p in origins}) > 1:
    notices.append("the runs were made on different devices: their seconds do not compare")
  return notices


def _names(runs: Sequence[Run]) -> str:
  return ", ".join(run.name for run in runs)
