"""A partial update and its price: one expert alone, beside all of a plain base and a dense LoRA."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import baselines, shifts
from iclm import axes, config, optim, outputs, workdir
from iclm.audit import cost, files
from iclm.config import Config, Trains
from iclm.data import assemble
from iclm.data.records import Example
from iclm.evals import locality, statistics
from iclm.evals.subject import Subject

N_TEST = 2_000  # Examples of the shifted operation that the update is scored on.
SLACK = 1.1  # Of an expert's share of a dense LoRA.
ONE_SIDED, N_BOOT = 0.95, 2_000  # Of the bound on what the expert recovers.
OURS, FULL, LORA = "iclm", "plain base", "dense LoRA"
KEPT = "kept.jsonl"
# Of an update, what lies in the folder of the run: that may be moved, or named in another way.
PLACES = (
  ("checkpoint", "init_from"), ("data", "train", "shifted", "jsonl"),
  ("data", "train", "stays", "jsonl"),
)  # fmt: skip
# Of the sets, those whose accuracy is shown; see `_sets`.
TITLES = {
  "shifted": "shifted", "same_surface": "rest of its surface, all sets",
  "others": "other surfaces, all sets",
}  # fmt: skip


class _Model(NamedTuple):
  """One to be updated: its config and run, where that lies, what of it moves, and how fast."""

  title: str
  config: Config
  before: workdir.Run
  source: pathlib.Path
  trains: Trains
  lr: float


def check(c: Config) -> None:
  """Raises InputError where a study asks for no update that can be, before anything is trained."""
  s = c.study.shift
  if not s.surface:
    config.require(
      c.trains.base or not c.study.plain_base,
      "config.study.plain_base = True trains the base alike, and config.trains.base = False lets "
      "it stand still; set one of them otherwise",
    )
    return
  config.require(
    c.experts.kind != "none",
    f"config.study.shift.surface = {s.surface!r} retrains an expert, and config.experts.kind = "
    "'none' has none; '' asks for no update",
  )
  shifts.check(c)
  for key in ("lr", "base_lr", "examples", "steps"):
    if getattr(s, key) <= 0:
      raise config.InputError(f"config.study.shift.{key} = {getattr(s, key)} must be positive")
  for key in ("lora_lr", "rehearsed"):
    if getattr(s, key) < 0:
      raise config.InputError(f"config.study.shift.{key} = {getattr(s, key)} must not be negative")
  if min(s.curve, default=1) < 1:
    raise config.InputError(f"config.study.shift.curve = {s.curve} must hold positive numbers")
  if not c.evaluation.sets:
    raise config.InputError(
      "config.study.shift looks at what else changes: name config.evaluation.sets"
    )
  for name, made in _configs(c).items():
    config.check(_retraining(made, _trains(name, 0), s.lr, pathlib.Path("shifted.jsonl"), 1, ""))
  _kept(c)


def run(
  c: Config, folder: pathlib.Path, trained: workdir.Run, plain: workdir.Run | None
) -> dict[str, Any]:
  """One surface's operation comes to mean another: its expert alone is retrained, beside the plain
  base on the same examples, fine-tuned as a whole, and frozen with a dense LoRA.

  Args:
    plain: the plain base of `folder / "plain_base"`; None leaves the two others out.

  Returns:
    JSON-able; "models" has what `_compare` says of each, "budget" and "recovery" what `_budget`
    and `_recovery` say of them together, "curve" each one's accuracy by number of examples.
  """
  s = c.study.shift
  data = folder / "update" / "shifted.jsonl"
  shifted = shifts.examples(c, "train", max((s.examples, *s.curve)))
  write(data, shifted)
  write(data.with_name(KEPT), _kept(c))
  ours = Subject(*trained.parts)
  expert = int(np.bincount(ours.score(shifted[: s.examples]).index_N).argmax())
  sets = _sets(c, ours, expert)
  models = _models(c, folder, trained, plain, expert)
  compared, right = {}, {}
  for name, m in models.items():
    where = data.parent / m.title
    after = retrain(m, data, s.examples, where)
    subject = Subject(*after.parts)
    right[name] = subject.score(sets["shifted"]).correct_N
    compared[name] = _compare(m.before, after, subject, sets)
    spent = cost.of_metrics(files.read_metrics(where))
    compared[name] |= {"step_s": spent.step_s if spent else None, "n": s.examples}
  found = {"expert": expert, "n_train": s.examples, "models": compared}
  if LORA in compared:
    found["budget"] = _budget(c, compared, trained.params["domain"])
  curve = {str(n): _at(models, data, n, sets) for n in s.curve}
  return found | {"recovery": _recovery(right, c.seed), "curve": curve}


def _sets(c: Config, ours: Subject, expert: int) -> dict[str, list[Example]]:
  """What an update is looked at on; without those sets that are empty.

  Returns:
    "shifted", the operation that it is about; of all evaluation sets together "others", the other
    surfaces; "same_surface", what else the shifted one asks for, which should stay; "elsewhere",
    what another expert than the retrained one serves, of which our update may change no bit.
  """
  every = [e for of in c.evaluation.sets.values() for e in assemble.examples(of, c.data)]
  index_N = ours.score(every).index_N
  found = {
    "shifted": shifts.examples(c, "test", N_TEST),
    "others": [e for e in every if e.domain != c.study.shift.surface],
    "same_surface": [e for e in every if shifts.stays(c, e)],
    "elsewhere": [e for e, i in zip(every, index_N, strict=True) if i != expert],
  }
  return {name: examples for name, examples in found.items() if examples}


def _kept(c: Config) -> list[Example]:
  """Of the training data, the first of what the shifted surface asks for beside what is shifted."""
  wanted, found = c.study.shift.rehearsed, []
  for source in c.data.train.values():
    if not wanted or source.acre:  # Endless, and all of it is shifted.
      continue
    found += [e for e in assemble.examples(source, c.data) if shifts.stays(c, e)]
  if len(found) < wanted:
    raise config.InputError(
      f"config.study.shift.rehearsed = {wanted}: the training data holds {len(found)} examples of "
      f"{c.study.shift.surface} that are not shifted"
    )
  return found[:wanted]


def _configs(c: Config) -> dict[str, Config]:
  """Of each model that is updated the config that it was, or will be, trained under."""
  found = {OURS: c}
  if c.study.plain_base:
    found[FULL] = baselines.plain(c)
  if c.study.plain_base and c.study.shift.lora_lr:
    found[LORA] = baselines.dense_lora(c)
  return found


def _trains(name: str, expert: int) -> Trains:
  """What moves of a model: our expert alone, all of the plain base, or the LoRA on it."""
  return Trains(
    base=name == FULL,
    lower=True,
    invariant=False,
    router=False,
    domain=name != FULL,
    combine=False,
    only_experts=(expert,) if name == OURS else (),
  )


def _models(c, folder, trained, plain, expert) -> dict[str, _Model]:
  s, base = c.study.shift, folder / "plain_base"
  made = _configs(c)
  found = {OURS: _Model("iclm", made[OURS], trained, folder, _trains(OURS, expert), s.lr)}
  for name, title, lr in ((FULL, "plain_base", s.base_lr), (LORA, "dense_lora", s.lora_lr)):
    if name in made:
      found[name] = _Model(title, made[name], plain, base, _trains(name, expert), lr)
  return found


def retrain(model: _Model, data: pathlib.Path, n: int, folder: pathlib.Path) -> workdir.Run:
  """The train loop with a mask, from the parameters of another run, on the first n examples; beside
  them, row by row, on as many of what stays as the config has rehearsed."""
  changed = _retraining(model.config, model.trains, model.lr, data, n, str(model.source))
  return baselines.fit(changed, folder, f"update {folder.name}", PLACES).run


def _retraining(
  c: Config, trains: Trains, lr: float, data: pathlib.Path, n: int, source: str
) -> Config:
  s = c.study.shift
  zero = config.Loss(**baselines.NO_TERMS | {"beta": c.loss.beta})
  first = config.Source(tfds="", jsonl=str(data), acre="", split="", weight=1.0, limit=n, ramp=0)
  train = {"shifted": first}
  if s.rehearsed:
    train["stays"] = dataclasses.replace(first, jsonl=str(data.with_name(KEPT)), limit=0)
  warmup = min(c.optimizer.warmup, s.steps // 4)
  return dataclasses.replace(
    c,
    steps=s.steps,
    loss=zero,
    perturb=baselines.UNPERTURBED,
    trains=trains,
    # Trained already: at the temperature of answering, and at the full price of the rate.
    router=dataclasses.replace(c.router, tau_start=c.router.tau_end),
    bottleneck=dataclasses.replace(c.bottleneck, ramp=0),
    optimizer=dataclasses.replace(c.optimizer, lr=lr, warmup=warmup),
    data=dataclasses.replace(c.data, train=train),
    evaluation=dataclasses.replace(c.evaluation, every=0, sets={}, best=""),
    checkpoint=dataclasses.replace(c.checkpoint, every=0, init_from=source),
  )


def _at(models: dict[str, _Model], data, n: int, sets) -> dict[str, Any]:
  """What each model comes to on n examples: its accuracy on every set."""
  found = {}
  for name, m in models.items():
    after = Subject(*retrain(m, data, n, data.parent / "curve" / str(n) / m.title).parts)
    found[name] = {key: float(after.score(of).correct_N.mean()) for key, of in sets.items()}
  return found


def _compare(
  before: workdir.Run, after: workdir.Run, second: Subject, sets: dict[str, list[Example]]
) -> dict[str, Any]:
  """What an update moved, and what it did to every set.

  Args:
    second: the model of `after`.
  """
  first = Subject(*before.parts)
  prints = [locality.fingerprints(run.params) for run in (before, after)]
  # What only the run after has is new: it moved if the optimizer was told to move it.
  held = {g for g in after.params if g in prints[1].keys() - prints[0].keys() and g != axes.DOMAIN}
  parts = [name for name in locality.moved(*prints) if name not in held]
  return {
    "moved": parts,
    "parameters_moved": locality.size(after.params, parts),
    "optimizer_bytes": _optimizer_bytes(after),
    "sha256": prints,
  } | {name: locality.compare(first, second, of) for name, of in sets.items()}


def _optimizer_bytes(run: workdir.Run) -> int:
  """Bytes of the moments that the update held; what is frozen has none."""
  state = jax.eval_shape(optim.from_config(run.config).init, run.params)
  moments = (x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
  return sum(x.size * x.dtype.itemsize for x in moments)


def _budget(c: Config, models: dict[str, Any], experts: Any) -> dict[str, dict[str, float]]:
  """What our update may cost, and costs: a tenth more than one expert's share of the dense LoRA,
  and the expert's message head, which a LoRA has not.

  Args:
    experts: the parameters of all domain experts.
  """
  ours, lora = models[OURS], models[LORA]
  head = sum(x.size for x in jax.tree.leaves(experts.get("message", {}))) // c.experts.count
  found = {}
  for key in ("parameters_moved", "optimizer_bytes"):
    own = head * ours[key] / ours["parameters_moved"]
    limit = SLACK / baselines.rank_ratio(c) * lora[key] + own
    found[key] = {"ours": ours[key], "lora": lora[key], "message_head": own, "limit": limit}
  return found


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
  outputs.write_jsonl(path, (example.record for example in examples))
