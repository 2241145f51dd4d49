"""The one loop: mesh -> data -> model -> optimizer -> state -> restore -> steps."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iclm import compose, hf, optim, processes, progress, routing, sharding, step, workdir
from iclm.config import Config, InputError
from iclm.data import assemble, pipeline
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy, determined, locality
from iclm.evals.subject import Subject

# Prompts that the router's prototypes are fitted on, and how.
FIT_PROMPTS, FIT_ITERATIONS, FIT_RESTARTS = 1024, 30, 8


class RunStopped(RuntimeError):
  """The run cannot usefully go on: non-finite steps, or routes that collapsed."""


class Interrupted(RuntimeError):
  """A run was told to end before its last step, and can go on."""


class Result(NamedTuple):
  """What a run came to; `interrupted` by SIGTERM: the same command goes on from here."""

  run: workdir.Run
  sets: dict[str, Any]
  train_s: float
  interrupted: bool


def fit(c: Config, folder: pathlib.Path, title: str) -> Result:
  """Trains to the last step, from wherever the folder's newest good checkpoint left off.

  Writes config.json, tokenizer.json, metrics.jsonl, TensorBoard, checkpoints and results.json.

  Args:
    title: what the progress calls this run.

  Raises:
    InputError: config, data, devices or folder are at fault, or another process trains there.
    RunStopped: too many non-finite steps in a row, or collapsed routes where the config stops them.
  """
  step.check_weights(c)
  mesh = sharding.make_mesh(c.mesh)
  sharding.share(mesh)
  processes.meet(mesh)
  # Data, or a base, at fault is told before the folder is this config's own.
  training = assemble.training_rows(c)
  sets = {name: assemble.examples(source, c.data) for name, source in c.evaluation.sets.items()}
  source = pathlib.Path(c.checkpoint.init_from).expanduser()
  if c.checkpoint.init_from and hf.is_folder(source):
    hf.check_base(source, c.model)
  elif c.checkpoint.init_from:
    workdir.config_of(source)
  optim.from_config(c)  # Raises what contradicts itself there.
  template, new = assemble.template(c.data), None
  if not processes.of_first((folder / workdir.TOKENIZER).exists()):
    new = _new_tokenizer(c, training).under(template)
    compose.build(c, new.vocab_size, mesh)  # So does this.
  with workdir.claim(folder, c):
    if new is not None:
      workdir.keep_tokenizer(folder, new)
    tokenizer = workdir.kept_tokenizer(folder, template)
    assert tokenizer is not None
    return _fit(c, folder, title, mesh, training, tokenizer, sets)


def _fit(c: Config, folder: pathlib.Path, title: str, mesh, training, tokenizer, sets) -> Result:
  """The run itself, in a folder that is its own."""
  loader = assemble.loader(c, training, tokenizer, *sharding.share(mesh))
  model = compose.build(c, tokenizer.vocab_size, mesh)
  tx = optim.from_config(c)
  evaluate = _Evaluator(c, model, tokenizer, mesh, sets)
  k_init, k_run = jax.random.split(jax.random.key(c.seed))
  advance = step.make_train_step(c, model, tx, mesh)
  meta = workdir.meta(c, tokenizer)
  due = lambda n, every: n == c.steps or (every > 0 and n % every == 0)

  with workdir.checkpoints(folder, c) as saves:
    restored = saves.restore(step.abstract_state(c, model, tx, mesh))
    state = restored.state if restored else _fresh(c, model, tx, mesh, k_init, loader)
    start = n = restored.step if restored else 0
    begun, scored = time.monotonic(), {}
    with (
      progress.open_log(folder, start, c.steps, title) as log,
      processes.StopSignals() as signals,
    ):
      watch = _Watch(c, loader, log)
      with contextlib.closing(loader.iterate(start)) as batches:
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
            saves.save(n, state, meta, best)
      if n == c.steps and not scored:  # It was complete already, and its log is.
        scored = evaluate(state.params, None, n)
  train_s = time.monotonic() - begun
  if n == c.steps:
    data = assemble.provenance(training, c.steps * c.batch_size, sets)
    provenance = workdir.provenance(c) | {"data": data}
    sizes = {name: locality.size(state.params, [name]) for name in state.params}
    results = {
      "sets": scored, "train_s": train_s, "parameters": sizes, "provenance": provenance
    }  # fmt: skip
    workdir.write_json(folder / workdir.RESULTS, results)
  run = workdir.Run(c, model, state.params, tokenizer, mesh, n)
  return Result(run, scored, train_s, n < c.steps)


def _new_tokenizer(c: Config, training) -> Tokenizer:
  """That of what the run starts from, or one made now."""
  source = pathlib.Path(c.checkpoint.init_from).expanduser()
  if not c.checkpoint.init_from or (hf.is_folder(source) and c.data.tokenizer.path):
    return assemble.make_tokenizer(c, training)
  if hf.is_folder(source):
    return hf.load_tokenizer(source)
  return workdir.load_run(source, c.mesh).tokenizer


def _fresh(c: Config, model: compose.Model, tx, mesh, key, loader: pipeline.Loader):
  """A new state: random, on a pretrained base, or of another run; prototypes fitted if asked."""
  state = step.init_state(c, model, tx, mesh, key)
  source = pathlib.Path(c.checkpoint.init_from).expanduser()
  if c.checkpoint.init_from and hf.is_folder(source):
    # The random base goes first: there need not be room for two.
    rest = {name: part for name, part in state.params.items() if name != "base"}
    state = state._replace(params=rest)
    base = hf.load_base(source, c.model, mesh, fsdp=c.fsdp)
    state = state._replace(params=rest | {"base": base})
  elif c.checkpoint.init_from:
    theirs = workdir.load_run(source, c.mesh).params
    state = state._replace(params=_take(state.params, theirs, c.checkpoint.init_from))
    if "router" in theirs:
      return state
  if c.experts.kind != "none" and c.router.fit and c.router.kind in routing.LEARNED:
    state = _fit_prototypes(c, model, mesh, state, jax.random.fold_in(key, 1), loader)
  return state


def _take(mine: Any, theirs: Any, where: str) -> Any:
  """The other run's parameters, part by part; parts that it lacks stay as they are."""
  for name in mine.keys() & theirs.keys():
    for (path, a), (_, b) in zip(
      jax.tree.leaves_with_path(mine[name]), jax.tree.leaves_with_path(theirs[name]), strict=False
    ):
      if a.shape != b.shape:
        raise InputError(
          f"config.checkpoint.init_from = {where!r}: {name}{jax.tree_util.keystr(path)} has shape "
          f"{b.shape} there and {a.shape} here"
        )
    if jax.tree.structure(mine[name]) != jax.tree.structure(theirs[name]):
      raise InputError(f"config.checkpoint.init_from = {where!r}: its {name} has other parts")
  return mine | {name: theirs[name] for name in mine.keys() & theirs.keys()}


def _fit_prototypes(c: Config, model, mesh, state: step.TrainState, key, loader: pipeline.Loader):
  """Prototypes start at the k-means of the first prompts, as the fresh router reads them."""

  @jax.jit
  def read(params, batch):
    prompt = model.apply(params, batch).prompt_BP
    return prompt, batch.segment_BT > 0 if prompt.ndim == 3 else batch.prompt_mask_BT.any(axis=1)

  found, i = [], 0
  while sum(map(len, found)) < FIT_PROMPTS:
    batch = sharding.put_batch(loader.batch(i), mesh)
    prompt, mask = processes.fetch(read(state.params, batch))
    found.append(prompt[mask])
    i += 1
  emb_NP = jnp.asarray(np.concatenate(found)[:FIT_PROMPTS])
  fitted_EP = routing.fit_kmeans(key, emb_NP, c.experts.count, FIT_ITERATIONS, FIT_RESTARTS)
  old_EP = state.params["router"]["prototypes_EP"]
  router = state.params["router"] | {"prototypes_EP": sharding.place(fitted_EP, old_EP.sharding)}
  return state._replace(params=state.params | {"router": router})


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
      sets[name] = accuracy.summarise(examples, accuracy.score(*args), self._c)
      if n == self._c.steps:  # Answers of its own take the model much longer.
        sets[name] |= determined.report(subject, examples)
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
    self._told_collapse = False

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
