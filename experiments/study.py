"""What follows a run whose config has a study: the plain base alike, and a partial update."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import rich.table

from experiments import baselines, cli, update
from iclm import compose, outputs, processes, train, workdir
from iclm.config import Config
from iclm.data import assemble
from iclm.evals.subject import Subject


def report(c: Config, folder: pathlib.Path, result: train.Result) -> None:
  """Runs what the study asks for, prints one table each, and adds it all to results.json."""
  with workdir.locked(folder):
    _report(c, folder, result)


def _report(c: Config, folder: pathlib.Path, result: train.Result) -> None:
  found: dict[str, Any] = {}
  plain = None
  if c.study.plain_base:
    plain = baselines.fit(baselines.plain(c), folder / "plain_base", "plain base")
  if c.experts.kind != "none":
    found["forced"] = _forced(c, result)
  if c.study.shift.surface:
    found["update"] = update.run(c, folder, result.run, plain.run if plain else None)
  found["plain_base"] = {"sets": plain.sets, "train_s": plain.train_s} if plain else {}
  path = folder / "results.json"
  outputs.write_json(path, json.loads(path.read_text()) | found)
  if processes.is_first():
    _show(c, result, plain, found)


def _forced(c: Config, result: train.Result) -> dict[str, float]:
  """Accuracy per set when every input is served by the expert next to its own."""
  next_E = jnp.roll(jnp.arange(c.experts.count), -1)
  do = compose.Intervention(swap_E=next_E)
  subject = Subject(*result.run.parts)
  sets = {name: assemble.examples(s, c.data) for name, s in c.evaluation.sets.items()}
  return {name: float(subject.score(found, do).correct_N.mean()) for name, found in sets.items()}


def _show(c: Config, result: train.Result, plain, found: dict[str, Any]) -> None:
  console = cli.console()
  if result.sets:
    _show_sets(console, c, result, plain, found)
  if "update" in found:
    update.show(console, c, found["update"])


def _show_sets(console, c: Config, result: train.Result, plain, found: dict[str, Any]) -> None:
  table = rich.table.Table(
    "set", "iclm", *(["plain base"] if plain else []), "route forced to the next", title="Accuracy"
  )
  for name, s in result.sets.items():
    base = [f"{plain.sets[name]['accuracy']:.3f}"] if plain else []
    forced = f"{found['forced'][name]:.3f}" if "forced" in found else "-"
    table.add_row(name, f"{s['accuracy']:.3f}", *base, forced)
    for group, g in s["by_group"].items():
      base = [f"{plain.sets[name]['by_group'][group]['accuracy']:.3f}"] if plain else []
      table.add_row(f"  {group}", f"{g['accuracy']:.3f}", *base, "")
  console.print(table)
  first = next(iter(result.sets.values()))
  routes = rich.table.Table(
    "domain", *map(str, range(c.experts.count)), title="Share of inputs per expert"
  )
  for domain, shares in first["routes"].items():
    routes.add_row(domain, *(f"{x:.2f}" for x in shares))
  console.print(routes)
  for name, rate in first["rate_nats"].items():
    console.print(f"rate of the {name} message: {rate:.2f} nats per predicted position")
