"""What looks at a run while it goes on: at its metrics, and at its evaluation sets."""

import logging
from collections.abc import Sequence
from typing import Any

import jax

from iclm import compose, information, progress
from iclm.config import LEARNED, Config
from iclm.data import pipeline
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy, determined
from iclm.evals.subject import Subject


class RunStopped(RuntimeError):
  """The run cannot usefully go on: non-finite steps, or routes that collapsed."""


class Evaluator:
  """Scores the config's evaluation sets; compiles once.

  Attributes:
    found: of each set, when it was scored last; empty before.
  """

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
    self._step = -1
    self.found: dict[str, Any] = {}

  def check(self) -> None:
    """Raises InputError where an example cannot be scored."""
    for examples in self._sets.values():
      accuracy.check(examples, self._tokenizer, self._c)
      determined.check(examples)

  def best(self, n: int) -> float | None:
    """By what step `n` competes for a place among the best; None where it does not."""
    name = self._c.evaluation.best
    return self.found[name]["accuracy"] if name and n == self._step else None

  def __call__(self, params: Any, log: progress.Log | None, n: int) -> None:
    self._step, self.found = n, {}
    subject = Subject(self._c, self._model, params, self._tokenizer, self._mesh)
    for name, examples in self._sets.items():
      args = self._scorer, params, examples, self._tokenizer, self._c, self._mesh
      scores = accuracy.score(*args)
      self.found[name] = accuracy.summarise(examples, scores, self._c)
      if n == self._c.steps:  # Answers of its own take the model much longer.
        self.found[name] |= determined.report(subject, examples, scores.correct_N)
    flat = {
      f"eval/{name}/{key}": found[key]
      for name, found in self.found.items()
      for key in ("accuracy", "nll_nats")
    }
    if flat and log:
      log.evaluation(n, flat)


class Watch:
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
    learns = c.trains.router and c.router.kind in LEARNED
    if "effective_experts" not in values or not learns or self._told_collapse:
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
