"""The one loop: mesh -> data -> model -> optimizer -> state -> restore -> steps."""

import contextlib
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import jax

from iclm import (
  compose,
  config,
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
from iclm.data import assemble
from iclm.evals import locality
from iclm.nn import attention
from iclm.train import prompts, start, watch


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
  template, new = assemble.template(c.data), None
  if not processes.of_first((folder / workdir.TOKENIZER).exists()):
    start.check_source(c)
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
  evaluate = watch.Evaluator(c, model, tokenizer, mesh, sets)
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
      evaluate.check()
    state = restored.state if restored else start.fresh(c, model, tx, mesh, k_init, loader)
    first = n = restored.step if restored else 0
    if c.keeps_prompts:
      known = prompts.keep(c, model, state, mesh, loader, sources, folder)
      loader = dataclasses.replace(loader, rows=assemble.mixed(c, known))
    past = _Past.of(restored, about)
    with (
      contextlib.closing(loader.iterate(first)) as batches,
      progress.open_log(folder, first, c.steps, title) as log,
      processes.StopSignals() as signals,
    ):
      look, stop = watch.Watch(c, loader, log), False
      while n < c.steps and not stop:
        state, metrics = advance(state, sharding.put_batch(next(batches), mesh), k_run)
        n += 1
        stop = signals.told()
        look.step(n, metrics)
        if due(n, c.evaluation.every):
          look.finish()
          evaluate(state.params, log, n)
        if due(n, c.checkpoint.every) or stop:
          look.finish()
          saves.save(n, state, meta | past.told(), evaluate.best(n))
      # Of a run that was complete already, as its log is, nothing is told anew: code moves on.
      told = workdir.results_of(folder) if first == c.steps else None
      if n == c.steps and not told and not evaluate.found:
        evaluate(state.params, None, n)
      interrupted = signals.ever()  # During the evaluation, too.
  if n == c.steps and not told:
    about["data"] = assemble.provenance(training, c.steps * c.batch_size, sets)
    told = past.results(state.params, evaluate.found, about)
    outputs.write_json(folder / workdir.RESULTS, told)
  run = workdir.Run(c, model, state.params, tokenizer, mesh, n)
  told = told or {"sets": evaluate.found, "train_s": past.train_s}
  return Result(run, told["sets"], told["train_s"], interrupted)


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

  def results(self, params: Any, sets: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What results.json says of a run that is complete."""
    return {
      "sets": sets,
      "train_s": self.train_s,
      "parameters": {name: locality.size(params, [name]) for name in params},
      "provenance": about | {"starts": self.starts},
    }
