"""A partial update and its price: one expert alone, beside all of a plain base and a dense LoRA."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.table

from experiments import baselines
from iclm import axes, config, optim, workdir
from iclm.config import Config
from iclm.data import assemble, mechanisms
from iclm.data.records import Example
from iclm.evals import locality, statistics
from iclm.evals.subject import Subject

N_TEST = 500  # Examples of the shifted operation that the update is scored on.
ONE_SIDED, N_BOOT = 0.95, 2_000  # Of the bound on what the expert recovers.
OURS, FULL, LORA = "iclm", "plain base", "dense LoRA"


class _Updated(NamedTuple):
  before: workdir.Run
  after: workdir.Run
  folder: pathlib.Path


def check(c: Config) -> None:
  """Raises InputError where the shift that a study asks for is none, before anything is trained."""
  s = c.study.shift
  if not s.surface:
    return
  task = mechanisms.TASKS["default"]
  mechanisms.shift(task, s.surface, s.operation, s.becomes, part="test", seed=c.seed, n=0)
  for key in ("lr", "base_lr"):
    if getattr(s, key) <= 0:
      raise config.InputError(f"config.study.shift.{key} = {getattr(s, key)} must be positive")
  if s.lora_lr < 0:
    raise config.InputError(f"config.study.shift.lora_lr = {s.lora_lr} must not be negative")
  if c.study.plain_base and s.lora_lr:
    baselines.dense_lora(c)


def run(
  c: Config, folder: pathlib.Path, trained: workdir.Run, plain: workdir.Run | None
) -> dict[str, Any]:
  """One surface's operation comes to mean another: its expert alone is retrained, beside the plain
  base on the same examples, fine-tuned as a whole, and frozen with a dense LoRA.

  Args:
    plain: the plain base of `folder / "plain_base"`; None leaves the two others out.

  Returns:
    JSON-able; "models" has what `_compare` says of each, "recovery" and "ratios" what `_recovery`
    and `_ratios` say of them together.
  """
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
  write(data, shift(part="train", n=s.examples))
  expert = int(np.bincount(Subject(*trained[:-1]).score(tests).index_N).argmax())
  updated = _updates(c, data, folder, trained, plain, expert)
  compared = {name: _compare(u, tests, others) | {"n": s.examples} for name, u in updated.items()}
  found = {"expert": expert, "n_train": s.examples, "models": compared}
  if LORA in updated:
    found["ratios"] = _ratios(c, compared)
  right = {n: Subject(*u.after[:-1]).score(tests).correct_N for n, u in updated.items()}
  return found | {"recovery": _recovery(right, c.seed)}


def _updates(c, data, folder, trained, plain, expert) -> dict[str, _Updated]:
  """Trains each of the models on the shifted examples."""
  s, base = c.study.shift, folder / "plain_base"
  only = dict.fromkeys((f.name for f in dataclasses.fields(config.Trains)), False)
  alone = config.Trains(**only | {"domain": True, "only_experts": (expert,)})
  jobs = {OURS: ("iclm", c, trained, folder, alone, s.lr)}
  if plain is not None:
    whole = config.Trains(**only | {"base": True, "only_experts": ()})
    jobs[FULL] = ("plain_base", baselines.plain(c), plain, base, whole, s.base_lr)
  if plain is not None and s.lora_lr:
    adapter = config.Trains(**only | {"domain": True, "only_experts": ()})
    jobs[LORA] = ("dense_lora", baselines.dense_lora(c), plain, base, adapter, s.lora_lr)
  found = {}
  for name, (title, changed, before, source, trains, lr) in jobs.items():
    where = folder / "update" / title
    found[name] = _Updated(before, retrain(changed, data, source, where, trains, lr), where)
  return found


def retrain(
  c: Config, data: pathlib.Path, source: pathlib.Path, folder: pathlib.Path, trains, lr: float
) -> workdir.Run:
  """The train loop with a mask, from the parameters of another run."""
  s = c.study.shift
  zero = config.Loss(**baselines.NO_TERMS | {"beta": c.loss.beta})
  every = config.Source(tfds="", jsonl=str(data), acre="", split="", weight=1.0, limit=0, ramp=0)
  changed = dataclasses.replace(
    c,
    steps=s.steps,
    loss=zero,
    perturb=baselines.UNPERTURBED,
    trains=trains,
    optimizer=dataclasses.replace(c.optimizer, lr=lr, warmup=min(c.optimizer.warmup, s.steps // 4)),
    data=dataclasses.replace(c.data, train={"shifted": every}),
    evaluation=dataclasses.replace(c.evaluation, every=0, sets={}, best=""),
    checkpoint=dataclasses.replace(c.checkpoint, every=0, init_from=str(source)),
  )
  return baselines.fit(changed, folder, f"update {folder.name}").run


def _compare(updated: _Updated, shifted, others) -> dict[str, Any]:
  """What an update moved and cost, and what it did to the shifted operation and to all else."""
  before, after = updated.before, updated.after
  first, second = Subject(*before[:-1]), Subject(*after[:-1])
  prints = [locality.fingerprints(run.params) for run in (before, after)]
  # What only the run after has is new: it moved if the optimizer was told to move it.
  held = {g for g in after.params if g in prints[1].keys() - prints[0].keys() and g != axes.DOMAIN}
  parts = [name for name in locality.moved(*prints) if name not in held]
  return {
    "moved": parts,
    "parameters_moved": locality.size(after.params, parts),
    **_optimizer_bytes(after),
    "step_s": _step_s(updated.folder),
    "shifted": locality.compare(first, second, shifted),
    "others": locality.compare(first, second, others),
    "sha256": prints,
  }


def _optimizer_bytes(run: workdir.Run) -> dict[str, int]:
  """Bytes of the optimizer's moments: of what moves, and those that are really held.

  A frozen group holds none. The stacked domain experts hold theirs together, so that an expert
  retrained alone still holds the (unmoved, never read) moments of all the others: "held" is then
  E times what moves. Step counts are left out of both.
  """
  state = jax.eval_shape(optim.from_config(run.config).init, run.params)
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.ndim)
  moving = held = 0
  for of_group in state.values():
    if isinstance(of_group, optim.LazyAdamState):
      n, only = run.config.experts.count, run.config.trains.only_experts
      bytes_held = size((of_group.mu, of_group.nu))
      moving += bytes_held // n * (len(only) or n)
    else:
      bytes_held = size(of_group)
      moving += bytes_held
    held += bytes_held
  return {"optimizer_bytes": moving, "optimizer_bytes_held": held}


def _step_s(folder: pathlib.Path) -> float | None:
  """Median seconds of a step over the logged stretches: the first one, which compiles, is one of
  many. None where nothing was logged."""
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  found = [line["wall/step_s"] for line in lines if "wall/step_s" in line]
  return float(np.median(found)) if found else None


def _ratios(c: Config, models: dict[str, Any]) -> dict[str, float]:
  """Our update over the dense LoRA's, beside one expert's share of the ranks, and a tenth on top.

  An expert has a message head beside its adapters, which the dense LoRA has not: where the head is
  large, so is the ratio.
  """
  ours, lora = models[OURS], models[LORA]
  found = {k: ours[k] / lora[k] for k in ("parameters_moved", "optimizer_bytes")}
  return found | {"goal": 1.1 / baselines.rank_ratio(c)}


def _recovery(right: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
  """Accuracy on the shifted test, ours minus each other's, and its lower one-sided bound.

  The bound is over test examples, paired, by bootstrap: it says nothing of other seeds.
  """
  found = {}
  for name in right.keys() - {OURS}:
    ours_N, other_N = (right[n].astype(float) for n in (OURS, name))
    level = 2 * ONE_SIDED - 1  # Of two sides, whose lower end is the bound of one.
    e = statistics.paired_difference(ours_N, other_N, seed=seed, n_draws=N_BOOT, level=level)
    found[name] = {"difference": e.value, "low95": e.low, "n": e.n, "note": e.note}
  return found


def write(path: pathlib.Path, examples: Sequence[Example]) -> None:
  """Examples as a jsonl."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(dataclasses.asdict(e)) + "\n" for e in examples)
  workdir.write_text(path, "".join(lines))


def show(console, c: Config, update: dict[str, Any]) -> None:
  """Prints what was moved and what it did, what it cost, and what it recovered."""
  s = c.study.shift
  title = f"Update: {s.operation!r} of surface {s.surface} now means {s.becomes!r}"
  columns = "model", "moved", "shifted", "other surfaces, all sets", "largest change there"
  effects = rich.table.Table(*columns, title=title)
  columns = "model", "parameters", "optimizer bytes (held)", "median step, ms", "examples"
  costs = rich.table.Table(*columns, title="What the update cost")
  for name, u in update["models"].items():
    arrow = lambda found: " -> ".join(f"{x:.3f}" for x in found["accuracy"])
    change = f"{u['others']['max_change_nats']:g} nats, {u['others']['logits_changed']} logits"
    effects.add_row(name, ", ".join(u["moved"]), arrow(u["shifted"]), arrow(u["others"]), change)
    held = f"{u['optimizer_bytes']:,} ({u['optimizer_bytes_held']:,})"
    step = "-" if u["step_s"] is None else f"{1e3 * u['step_s']:.1f}"
    costs.add_row(name, f"{u['parameters_moved']:,}", held, step, str(u["n"]))
  console.print(effects)
  console.print(costs)
  if "ratios" in update:
    r = update["ratios"]
    console.print(
      f"iclm over the dense LoRA: {r['parameters_moved']:.3f} of the parameters, "
      f"{r['optimizer_bytes']:.3f} of the optimizer bytes; 1.1/(E+1) = {r['goal']:.3f}"
    )
  for name, r in update["recovery"].items():
    bound = r["note"] if r["low95"] is None else f"one-sided 95 % bound {r['low95']:+.3f}"
    console.print(f"shifted, iclm minus {name}: {r['difference']:+.3f}; {bound} (n = {r['n']})")
