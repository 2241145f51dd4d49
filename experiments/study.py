"""What follows a run whose config has a study: the plain base alike, and a partial update."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import rich.table

from experiments import cli
from iclm import compose, config, train, workdir
from iclm.config import Config
from iclm.data import assemble, mechanisms
from iclm.data.records import Example
from iclm.evals import locality
from iclm.evals.subject import Subject

NO_TERMS = dict.fromkeys((f.name for f in dataclasses.fields(config.Loss)), 0.0)
N_TEST = 500  # Examples of the shifted operation that the update is scored on.


def check(c: Config) -> None:
  """Raises InputError where the shift that a study asks for is none, before anything is trained."""
  s = c.study.shift
  if s.surface:
    task = mechanisms.TASKS["default"]
    mechanisms.shift(task, s.surface, s.operation, s.becomes, part="test", seed=c.seed, n=0)


def fit(c: Config, folder: pathlib.Path, title: str) -> train.Result:
  """Trains to the end; train.Interrupted where it was told to stop before."""
  result = train.fit(c, folder, title)
  if result.interrupted:
    raise train.Interrupted(
      f"interrupted at step {result.run.step}; the same command goes on from there"
    )
  return result


def report(c: Config, folder: pathlib.Path, result: train.Result) -> None:
  """Runs what the study asks for, prints one table each, and adds it all to results.json."""
  found: dict[str, Any] = {}
  plain = None
  if c.study.plain_base:
    plain = fit(_plain(c), folder / "plain_base", "plain base")
  if c.experts.kind != "none":
    found["forced"] = _forced(c, result)
  if c.study.shift.surface:
    found["update"] = _update(c, folder, result, plain)
  found["plain_base"] = {"sets": plain.sets, "train_s": plain.train_s} if plain else {}
  path = folder / "results.json"
  workdir.write_json(path, json.loads(path.read_text()) | found)
  _show(c, result, plain, found)


def _plain(c: Config) -> Config:
  """The same base, data, steps and learning rate, without experts."""
  experts = dataclasses.replace(c.experts, kind="none")
  return dataclasses.replace(c, experts=experts, loss=config.Loss(**NO_TERMS))


def _forced(c: Config, result: train.Result) -> dict[str, float]:
  """Accuracy per set when every input is served by the expert next to its own."""
  next_E = jnp.roll(jnp.arange(c.experts.count), -1)
  do = compose.Intervention(swap_E=next_E)
  subject = Subject(*result.run[:-1])
  sets = {name: assemble.examples(s, c.data) for name, s in c.evaluation.sets.items()}
  return {name: float(subject.score(found, do).correct_N.mean()) for name, found in sets.items()}


def _update(c: Config, folder: pathlib.Path, result: train.Result, plain) -> dict[str, Any]:
  """One surface's operation comes to mean another: its expert alone is retrained, beside the plain
  base fine-tuned on the same examples."""
  s = c.study.shift
  task = mechanisms.TASKS["default"]
  shift = functools.partial(mechanisms.shift, task, s.surface, s.operation, s.becomes, seed=c.seed)
  tests = shift(part="test", n=N_TEST)
  others = [
    e
    for source in c.evaluation.sets.values()
    for e in assemble.examples(source, c.data)
    if e.domain != s.surface
  ]
  data = folder / "update" / "shifted.jsonl"
  _write(data, shift(part="train", n=s.examples))
  index_N = Subject(*result.run[:-1]).score(tests).index_N
  expert = int(np.bincount(index_N).argmax())
  still = config.Trains(False, False, False, True, False, (expert,))
  moved = {"iclm": _retrain(c, data, folder, folder / "update" / "iclm", still, s.lr)}
  runs = {"iclm": result.run}
  if plain is not None:
    everything = config.Trains(True, False, False, False, False, ())
    source = folder / "plain_base"
    moved["plain base"] = _retrain(
      _plain(c), data, source, folder / "update" / "plain_base", everything, s.base_lr
    )
    runs["plain base"] = plain.run
  compared = {name: _compare(runs[name], moved[name], tests, others) for name in runs}
  return {"expert": expert, "n_train": s.examples, "models": compared}


def _retrain(
  c: Config, data: pathlib.Path, source: pathlib.Path, folder: pathlib.Path, trains, lr: float
) -> workdir.Run:
  """The train loop with a mask, from the parameters of another run."""
  s = c.study.shift
  zero = config.Loss(**NO_TERMS | {"beta": c.loss.beta})
  every = config.Source(tfds="", jsonl=str(data), acre="", split="", weight=1.0, limit=0, ramp=0)
  changed = dataclasses.replace(
    c,
    steps=s.steps,
    loss=zero,
    trains=trains,
    optimizer=dataclasses.replace(c.optimizer, lr=lr, warmup=min(c.optimizer.warmup, s.steps // 4)),
    data=dataclasses.replace(c.data, train={"shifted": every}),
    evaluation=dataclasses.replace(c.evaluation, every=0, sets={}, best=""),
    checkpoint=dataclasses.replace(c.checkpoint, every=0, init_from=str(source)),
  )
  return fit(changed, folder, f"update {folder.name}").run


def _compare(before: workdir.Run, after: workdir.Run, shifted, others) -> dict[str, Any]:
  """What the update moved, and what it did to the shifted operation and to all else."""
  first, second = Subject(*before[:-1]), Subject(*after[:-1])
  prints = [locality.fingerprints(run.params) for run in (before, after)]
  parts = locality.moved(*prints)
  return {
    "moved": parts,
    "parameters_moved": locality.size(after.params, parts),
    "shifted": locality.compare(first, second, shifted),
    "others": locality.compare(first, second, others),
    "sha256": prints,
  }


def _write(path: pathlib.Path, examples: Sequence[Example]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(dataclasses.asdict(e)) + "\n" for e in examples)
  workdir.write_text(path, "".join(lines))


def _show(c: Config, result: train.Result, plain, found: dict[str, Any]) -> None:
  console = cli.console()
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
  if "update" in found:
    _show_update(console, c, found["update"])


def _show_update(console, c: Config, update: dict[str, Any]) -> None:
  s = c.study.shift
  title = f"Update: {s.operation!r} of surface {s.surface} now means {s.becomes!r}"
  table = rich.table.Table(
    "model",
    "parameters moved",
    "shifted",
    "other surfaces, all sets",
    "largest change there",
    title=title,
  )
  for name, u in update["models"].items():
    moved = f"{u['parameters_moved']:,} ({', '.join(u['moved'])})"
    arrow = lambda found: " -> ".join(f"{x:.3f}" for x in found["accuracy"])
    change = f"{u['others']['max_change_nats']:g} nats, {u['others']['logits_changed']} logits"
    table.add_row(name, moved, arrow(u["shifted"]), arrow(u["others"]), change)
  console.print(table)
