"""The one loop: mesh -> data -> model -> optimizer -> state -> restore -> steps."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from iclm import (
  compose,
  config,
  hf,
  information,
  optim,
  outputs,
  processes,
  progress,
  provenance,
  sharding,
  step,
  workdir,
)
from iclm.checkpoints import Restored
from iclm.config import Config
from iclm.data import assemble, pipeline
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy, determined, locality
from iclm.evals.subject import Subject
from iclm.nn import attention
from iclm.train import prompts, start


class RunStopped(RuntimeError):
  """The run cannot usefully go on: non-finite steps, or routes that collapsed."""


class Interrupted(RuntimeError):
  """A run was told to end before its last step, and can go on."""


class Result(NamedTuple):
  """What a run came to; `interrupted` by SIGTERM, if only at its end: the same command goes on."""

  run: workdir.Run
  sets: dict[str, Any]
  train_s: float
  interrupted: bool


def fit(
  c: Config, folder: pathlib.Path, title: str, free: tuple[tuple[str, ...], ...] = ()
) -> Result:
  """Trains to the last step, from wherever the folder's newest good checkpoint left off.

  Writes config.json, tokenizer.json, metrics.jsonl, TensorBoard, checkpoints and results.json.

  Args:
    title: what the progress calls this run.
    free: see `workdir.claim`.

  Raises:
    InputError: config, data, devices or folder are at fault, or another process trains there.
    RunStopped: too many non-finite steps in a row, or collapsed routes where the config stops them.
  """
  config.check(c)  # What a study derives from a config, too.
  attention.check_kernel(c.model, jax.default_backend())
  mesh = sharding.make_mesh(c.mesh)
  sharding.share(mesh)
  processes.meet(mesh)
  # Data, or a base, at fault is told before the folder is this config's own.
  sources = assemble.sources(c)
  training = assemble.mixed(c, sources)
  sets = {name: assemble.examples(source, c.data) for name, source in c.evaluation.sets.items()}
  source = config.path(c.checkpoint.init_from)
  if c.checkpoint.init_from and hf.is_folder(source):
    hf.check_base(source, c.model)
  elif c.checkpoint.init_from:
    workdir.config_of(source)
  template, new = assemble.template(c.data), None
  if not processes.of_first((folder / workdir.TOKENIZER).exists()):
    new = start.new_tokenizer(c, training).under(template)
    compose.build(c, new.vocab_size, mesh)  # Raises what contradicts itself there.
  with workdir.claim(folder, c, free):
    if new is not None:
      workdir.keep_tokenizer(folder, new)
    tokenizer = workdir.kept_tokenizer(folder, template)
    assert tokenizer is not None
    return _fit(c, folder, title, mesh, sources, tokenizer, sets)


def _fit(c: Config, folder: pathlib.Path, title: str, mesh, sources, tokenizer, sets) -> Result:
  """The run itself, in a folder that is its own."""
  training = assemble.mixed(c, sources)
  loader = assemble.loader(c, training, tokenizer, *sharding.share(mesh))
  model = compose.build(c, tokenizer.vocab_size, mesh)
  tx = optim.from_config(c)
  evaluate = _Evaluator(c, model, tokenizer, mesh, sets)
  k_init, k_run = jax.random.split(jax.random.key(c.seed))
  advance = step.make_train_step(c, model, tx, mesh)
  meta, about = workdir.meta(c, tokenizer), provenance.of(c)
  meta["data_sha256"] = assemble.digests(c, sources)
  due = lambda n, every: n == c.steps or (every > 0 and n % every == 0)

  with workdir.checkpoints(folder, c) as saves:
    restored = saves.restore(step.abstract_state(c, model, tx, mesh))
    _check_data(folder, restored, meta["data_sha256"])
    if not restored:  # What would cost a run days, or its end.
      start.check_rows(loader, assemble.finite(c, sources))
      for examples in sets.values():
        accuracy.check(examples, tokenizer, c)
        determined.check(examples)
    state = restored.state if restored else start.fresh(c, model, tx, mesh, k_init, loader)
    first = n = restored.step if restored else 0
    if c.keeps_prompts:
      known = prompts.keep(c, model, state, mesh, loader, sources, folder)
      loader = dataclasses.replace(loader, rows=assemble.mixed(c, known))
    past = _Past.of(restored, about)
    scored: dict[str, Any] = {}
    with (
      progress.open_log(folder, first, c.steps, title) as log,
      processes.StopSignals() as signals,
    ):
      watch = _Watch(c, loader, log)
      with contextlib.closing(loader.iterate(first)) as batches:
        stop = False
        while n < c.steps and not stop:
          state, metrics = advance(state, sharding.put_batch(next(batches), mesh), k_run)
          n += 1
          stop = signals.told()
          watch.step(n, metrics)
          if evaluated := due(n, c.evaluation.every):
            watch.finish()
            scored = evaluate(state.params, log, n)
          if due(n, c.checkpoint.every) or stop:
            watch.finish()
            best = (
              scored[c.evaluation.best]["accuracy"] if evaluated and c.evaluation.best else None
            )
            saves.save(n, state, meta | past.told(), best)
      # Of a run that was complete already, as its log is, nothing is told anew: code moves on.
      told = workdir.results_of(folder) if first == c.steps else None
      if n == c.steps and not scored:
        scored = told["sets"] if told else evaluate(state.params, None, n)
      interrupted = signals.ever()  # During the evaluation, too.
  train_s = told["train_s"] if told else past.train_s
  if n == c.steps and not told:
    data = assemble.provenance(training, c.steps * c.batch_size, sets)
    about |= {"data": data, "starts": past.starts}
    sizes = {name: locality.size(state.params, [name]) for name in state.params}
    results = {
      "sets": scored, "train_s": train_s, "parameters": sizes, "provenance": about
    }  # fmt: skip
    outputs.write_json(folder / workdir.RESULTS, results)
  run = workdir.Run(c, model, state.params, tokenizer, mesh, n)
  return Result(run, scored, train_s, interrupted)


def _check_data(folder: pathlib.Path, restored: Restored | None, mine: dict[str, str]) -> None:
  """Raises InputError where a run would go on with other data than it began with."""
  # Checkpoints of before this was kept have none of it.
  theirs = restored.meta.get("data_sha256", mine) if restored else mine
  changed = [name for name in mine if theirs.get(name) != mine[name]]
  if changed:
    raise config.InputError(
      f"the data of config.data.train.{changed[0]} are not those that the run in {folder} was "
      "trained on so far; put them back, or choose another --workdir"
    )


class _Past:
  """What the processes of a run before this one did, which its checkpoints remember."""

  def __init__(self, begun: float, starts: list[dict[str, Any]]):
    self._begun, self.starts = begun, starts

  @classmethod
  def of(cls, restored: Restored | None, about: dict[str, Any]) -> "_Past":
    step, meta = (restored.step, restored.meta) if restored else (0, {})
    start = {"step": step, "commit": about["commit"], "dirty": about["dirty"]}
    # Checkpoints of before this was kept have none of it.
    return cls(time.monotonic() - meta.get("train_s", 0.0), [*meta.get("starts", []), start])

  @property
  def train_s(self) -> float:
    """Seconds of all of them."""
    return time.monotonic() - self._begun

  def told(self) -> dict[str, Any]:
    """What a checkpoint keeps of it."""
    return {"train_s": self.train_s, "starts": self.starts}


class _Evaluator:
  """Scores the config's evaluation sets; compiles once."""

  def __init__(
    self,
    c: Config,
    model: compose.Model,
    tokenizer: Tokenizer,
    mesh,
    sets: dict[str, Sequence[Example]],
  ):
    self._c, self._model, self._tokenizer, self._mesh = c, model, tokenizer, mesh
    self._scorer, self._sets = accuracy.make_scorer(c, model), sets

  def __call__(self, params: Any, log: progress.Log | None, n: int) -> dict[str, Any]:
    sets = {}
    subject = Subject(self._c, self._model, params, self._tokenizer, self._mesh)
    for name, examples in self._sets.items():
      args = self._scorer, params, examples, self._tokenizer, self._c, self._mesh
      scores = accuracy.score(*args)
      sets[name] = accuracy.summarise(examples, scores, self._c)
      if n == self._c.steps:  # Answers of its own take the model much longer.
        sets[name] |= determined.report(subject, examples, scores.correct_N)
    flat = {
      f"eval/{name}/{key}": found[key]
      for name, found in sets.items()
      for key in ("accuracy", "nll_nats")
    }
    if flat and log:
      log.evaluation(n, flat)
    return sets


class _Watch:
  """Looks at the metrics one step late, so that the device never waits for the host."""

  def __init__(self, c: Config, loader: pipeline.Loader, log: progress.Log):
    self._c, self._loader, self._log = c, loader, log
    self._pending: tuple[int, dict[str, Any]] | None = None
    self._told_collapse = self._told_dependence = False

  def step(self, n: int, metrics: dict[str, Any]) -> None:
    self.finish()
    self._pending = (n, metrics)

  def finish(self) -> None:
    if self._pending is None:
      return
    (n, metrics), self._pending = self._pending, None
    self._log.advance()
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row:
      self._nonfinite(n, in_a_row)
    if n % self._c.log_every == 0 or n == self._c.steps:
      values = {name: float(x) for name, x in jax.device_get(metrics).items()}
      self._log.train(n, values, self._c.batch_size * self._c.data.seq_len)
      self._collapse(n, values)
      self._dependence(n, values)

  def _nonfinite(self, n: int, in_a_row: int) -> None:
    ids = self._loader.ids(n - 1)
    told = f"step {n} is not finite and was skipped; its batch: {', '.join(ids[:8])}"
    self._log.say(told + (", ..." if len(ids) > 8 else ""))
    if in_a_row >= self._c.nonfinite_limit:
      raise RunStopped(
        f"{in_a_row} steps in a row were not finite, the last one step {n} (batch: "
        f"{', '.join(ids)}); the state is as it was before them. Lower config.optimizer.lr, or "
        "look at the data"
      )

  def _collapse(self, n: int, values: dict[str, float]) -> None:
    c = self._c
    if "effective_experts" not in values or not c.trains.router or self._told_collapse:
      return
    if n < c.router.tau_steps / 2:
      return
    if values["effective_experts"] >= c.router.collapse_below * c.experts.count:
      return
    told = (
      f"the routes collapsed at step {n}: {values['effective_experts']:.2f} of {c.experts.count} "
      f"experts in effect (config.router.collapse_below = {c.router.collapse_below})"
    )
    if c.router.collapse_stops:
      raise RunStopped(told)
    self._told_collapse = True
    logging.warning(told)

  def _dependence(self, n: int, values: dict[str, float]) -> None:
    if values.get("dependence_classes") != 0 or self._told_dependence:
      return
    self._told_dependence = True
    logging.warning(
      f"config.loss.dependence = {self._c.loss.dependence} weighed nothing at step {n}: no class "
      f"of config.dependence.given = {self._c.dependence.given!r} has the {information.MIN_CLASS} "
      "answers in a step that the estimate needs"
    )
