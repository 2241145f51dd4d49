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
  path = folder / workdir.RESULTS
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
    show_update(console, c, found["update"])


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


def show_update(console, c: Config, found: dict[str, Any]) -> None:
  """Prints what was moved and what it did, what it cost, and what it recovered."""
  s = c.study.shift
  title = f"Update: {s.operation!r} of surface {s.surface} now means {s.becomes!r}"
  columns = "model", "moved", *update.TITLES.values(), "largest change where another expert serves"
  effects = rich.table.Table(*columns, title=title)
  columns = "model", "parameters", "optimizer bytes", "median step, ms", "examples"
  costs = rich.table.Table(*columns, title="What the update cost")
  for name, u in found["models"].items():
    arrows = (_arrow(u[key]) if key in u else "-" for key in update.TITLES)
    at = u.get("elsewhere")
    change = f"{at['max_change_nats']:g} nats, {at['logits_changed']} positions" if at else "-"
    effects.add_row(name, ", ".join(u["moved"]), *arrows, change)
    step = "-" if u["step_s"] is None else f"{1e3 * u['step_s']:.1f}"
    price = f"{u['parameters_moved']:,}", f"{u['optimizer_bytes']:,}"
    costs.add_row(name, *price, step, str(u["n"]))
  console.print(effects)
  console.print(costs)
  for key, b in found.get("budget", {}).items():
    told = f"{b['ours']:,} of at most {b['limit']:,.0f}"
    share = f"{update.SLACK}/(E+1) of the dense LoRA's {b['lora']:,}"
    head = f"the expert's message head, {b['message_head']:,.0f}"
    console.print(f"{key.replace('_', ' ')}: {told}, which is {share} and {head}")
  for name, r in found["recovery"].items():
    bound = r["note"] if r["low95"] is None else f"one-sided 95 % bound {r['low95']:+.4f}"
    console.print(f"shifted, iclm minus {name}: {r['difference']:+.4f}; {bound} (n = {r['n']})")
  if found["curve"]:
    names = list(found["models"])
    told = ", ".join(update.TITLES.values()).capitalize()
    curve = rich.table.Table("examples", *names, title=f"{told}, by number of examples")
    for n, at in found["curve"].items():
      row = (
        ", ".join(f"{at[name][k]:.3f}" for k in update.TITLES if k in at[name]) for name in names
      )
      curve.add_row(n, *row)
    console.print(curve)


def _arrow(found: dict[str, Any]) -> str:
  return " -> ".join(f"{x:.3f}" for x in found["accuracy"])
