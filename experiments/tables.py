"""What the runs of a sweep came to: one tidy table, means, and differences to the best baseline."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table

from experiments import cli
from experiments.jobs import Job
from iclm import outputs
from iclm.audit import files
from iclm.audit import sweep as page
from iclm.evals import comparison, determined, statistics

LEVEL = 0.95
COMPARISON = "comparison.json"
COLUMNS = ("system", "seed", "set", "group", "n", "accuracy")


def gather(jobs: Sequence[Job]) -> list[dict[str, Any]]:
  """One row per finished run, set and group; group "all" is the whole set.

  Where the context determines an answer in part, "all" is about that part, and "exact match" says
  what share is right in all of it. Sets of one name whose data differ have other names here.
  """
  done = [job for job in jobs if job.done]
  results = [files.read_results(job.folder) for job in done]
  rows = []
  for job, result, titles in zip(done, results, page.titles(results), strict=True):
    for name, title in titles.items():
      found = result["sets"][name]
      # Records without a group are of one called "all" too: the whole set has its name.
      whole = {"all": determined.measured(found)}
      groups = whole | found["by_group"] | whole
      groups |= {"exact match": found} if "determined" in found else {}
      for group, g in groups.items():
        values = (job.system, job.seed, title, group, g["n"], g["accuracy"])
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


def origins(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
  """Of every system with finished runs, the command of one and the commits of all of them."""
  found: dict[str, dict[str, Any]] = {}
  for job in filter(lambda job: job.done, jobs):
    made = files.read_results(job.folder)["provenance"]
    told = found.setdefault(job.system, {"command": " ".join(job.command[1:]), "commits": []})
    told["commits"] = sorted({*told["commits"], str(made["commit"])})
  return found


def compare(
  folder: pathlib.Path, sweep: Any, rows: Sequence[dict[str, Any]], jobs: Sequence[Job]
) -> None:
  """Writes comparison.json and prints every system's difference to the best of the baselines."""
  table: dict[str, dict[str, dict[int, float]]] = {}
  for row in rows:
    if row["group"] == "all":
      sets = table.setdefault(row["system"], {})
      sets.setdefault(row["set"], {})[row["seed"]] = row["accuracy"]
  there = [name for name in sweep.baselines if name in table]
  if not there:
    (folder / COMPARISON).unlink(missing_ok=True)  # One of before is about other runs.
    return
  table = comparison.with_mean(table, sweep.out_of_distribution)
  without = [name for name in table if comparison.OOD_MEAN not in table[name]]
  if sweep.out_of_distribution and without:
    wanted = ", ".join(sweep.out_of_distribution)
    print(f"no {comparison.OOD_MEAN} of {', '.join(without)}, which lack one of {wanted}")
  found = comparison.compare(table, there, sweep.chosen_on, level=LEVEL)
  missing = [name for name in sweep.baselines if name not in table]
  found |= {"baselines": there, "baselines_missing": missing, "runs": origins(jobs)}
  if missing:
    print(f"the best baseline is chosen without {', '.join(missing)}, which have no finished run")
  asked = {job.seed for job in jobs if job.system != sweep.base}
  shared = found["chosen_with_seeds"]
  if asked - set(shared):
    told = ", ".join(map(str, shared))
    print(f"the best baseline is chosen with seeds {told} alone: a baseline lacks the others")
  outputs.write_json(folder / COMPARISON, found)
  sets = list(table[found["baseline"]])
  title = f"Difference to {found['baseline']}, the best baseline on {sweep.chosen_on}; * p < 0.05"
  shown = rich.table.Table("system", *sets, title=title)
  for system, of in found["systems"].items():
    if system != found["baseline"]:
      shown.add_row(system, *(_gap(name, of[name]) if name in of else "-" for name in sets))
  cli.console().print(shown)


def _gap(name: str, row: dict[str, Any]) -> str:
  """The one mean that was asked about beforehand has no others to be corrected for."""
  if row.get("difference_ci") is None:
    return f"{row['difference']:+.3f}" if row.get("difference") is not None else "-"
  low, high = row["difference_ci"]
  p = row["p"] if name == comparison.OOD_MEAN else row.get("p_holm")
  star = "*" if p is not None and p < 1 - LEVEL else ""
  return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]{star}"


def _cell(values: Sequence[float]) -> str:
  found = statistics.t_interval(np.array(values, float), level=LEVEL)
  if found.low is None:
    return f"{np.mean(values):.3f}" if values else "-"
  return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
