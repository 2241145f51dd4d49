"""Accuracy by likelihood over the choices, exact match, and what each stream knows by itself."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from iclm import compose, processes, sharding, step
from iclm.config import Config
from iclm.data import evaluation, pipeline, rows
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer


class Scores(NamedTuple):
  """Per example, in order. Streams as in `compose.streams`; S = 0 for the plain base."""

  correct_N: Bool[np.ndarray, "N"]  # By likelihood over the choices; exact match without choices.
  exact_N: Bool[np.ndarray, "N"]  # All answer tokens and the end token are the argmax.
  nll_N: Float[np.ndarray, "N"]  # Nats of the whole answer, end token included.
  alone_AN: Bool[np.ndarray, "A N"]  # `correct_N` of each of `compose.heard_alone`.
  rate_SN: Float[np.ndarray, "S N"]  # Nats per predicted position of the answer.
  index_N: Int[np.ndarray, "N"]  # The expert that served it,
  confidence_N: Float[np.ndarray, "N"]  # and how sure the router was, in [0, 1].
  n_truncated: int  # Rows that lost tokens of their context.


Scorer = Callable[[Any, pipeline.Batch, Array | None, compose.Intervention], step.PositionScores]
# From the example and the place in its answer of every position (-1: none) to an intervention.
PerBatch = Callable[[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]], compose.Intervention]


def make_scorer(config: Config, model: compose.Model, alone: bool = True) -> Scorer:
  """The jitted `step.eval_step`; make it once and keep it, since it holds the compilations.

  Args:
    alone: see `step.eval_step`; `score` needs it.
  """
  return jax.jit(functools.partial(step.eval_step, config=config, model=model, alone=alone))


def score(
  scorer: Scorer,
  params: Any,
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  config: Config,
  mesh: Mesh,
  *,
  do: compose.Intervention | PerBatch = compose.NOTHING,
  key: Array | None = None,
) -> Scores:
  """Scores every example once, under an intervention.

  Args:
    do: fields per expert; what differs between inputs is a function of which inputs they are.
    key: None is deterministic; else the noise of the messages, folded per batch.

  Raises:
    InputError: there is nothing to score, or a prompt is too long for the rows of evaluation.
  """
  items = evaluation.eval_items(examples)
  example_M = np.array([i for i, _ in items])
  n_streams, n_alone = len(compose.streams(config)), len(compose.heard_alone(config))
  sums = _Sums.zeros(n_streams, n_alone, len(items))
  n_truncated = 0
  batches = batches_of(examples, tokenizer, config)
  for i, (batch, owner_BT, cut) in enumerate(batches):
    noise = None if key is None else jax.random.fold_in(key, i)
    example_BT = np.where(owner_BT < 0, -1, example_M[owner_BT])
    done = do(example_BT, places(owner_BT)) if callable(do) else do
    scored = scorer(params, sharding.put_whole(batch, mesh), noise, done)
    sums.add(processes.fetch(scored), owner_BT)
    n_truncated += cut
  return _per_example(examples, items, sums, n_truncated)


def batches_of(
  examples: Sequence[Example], tokenizer: Tokenizer, config: Config
) -> Iterator[evaluation.EvalBatch]:
  """The batches in which a config sees some examples; see `evaluation.eval_batches`."""
  return evaluation.eval_batches(
    examples,
    tokenizer,
    config.data.domains,
    batch_size=config.evaluation_rows,
    seq_len=config.evaluation_len,
    question=config.data.asks,
    questions_per_row=config.data.questions_per_row,
    too_long=config.data.too_long,
  )


def check(examples: Sequence[Example], tokenizer: Tokenizer, config: Config) -> None:
  """Raises InputError where an example fits no row, before it has cost anything."""
  collections.deque(batches_of(examples, tokenizer, config), maxlen=0)


def places(owner_BT: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
  """The place of each position in the answer that owns it, 0.. and -1 where none does.

  An answer's positions are neighbours, and no two answers of one owner share a row.
  """
  at_BT = np.broadcast_to(np.arange(owner_BT.shape[1]), owner_BT.shape)
  starts_BT = np.diff(owner_BT, axis=1, prepend=-2) != 0
  first_BT = np.maximum.accumulate(np.where(starts_BT, at_BT, 0), axis=1)
  return np.where(owner_BT < 0, -1, at_BT - first_BT)


class _Sums(NamedTuple):
  """Per item (an example with one of its candidate answers), summed over its positions."""

  logp_M: np.ndarray
  hit_M: np.ndarray
  alone_logp_AM: np.ndarray
  alone_hit_AM: np.ndarray
  rate_SM: np.ndarray
  n_M: np.ndarray
  index_M: np.ndarray
  confidence_M: np.ndarray

  @classmethod
  def zeros(cls, n_streams: int, n_alone: int, n: int) -> "_Sums":
    alone = np.zeros((n_alone, n)), np.ones((n_alone, n), bool)
    rate_SM, n_M, confidence_M = np.zeros((n_streams, n)), np.zeros(n), np.zeros(n)
    return cls(np.zeros(n), np.ones(n, bool), *alone, rate_SM, n_M, np.zeros(n, int), confidence_M)

  def add(self, scored: step.PositionScores, owner_BT: np.ndarray) -> None:
    mask = owner_BT >= 0
    owner = owner_BT[mask]
    np.add.at(self.logp_M, owner, scored.logp_BT[mask])
    np.logical_and.at(self.hit_M, owner, scored.hit_BT[mask])
    np.add.at(self.n_M, owner, 1)
    for s in range(len(self.alone_hit_AM)):
      np.add.at(self.alone_logp_AM[s], owner, scored.alone_logp_ABT[s][mask])
      np.logical_and.at(self.alone_hit_AM[s], owner, scored.alone_hit_ABT[s][mask])
    for s in range(len(self.rate_SM)):
      np.add.at(self.rate_SM[s], owner, scored.rate_SBT[s][mask])
    for total_M, x_B in (
      (self.index_M, scored.index_B),
      (self.confidence_M, scored.confidence_B),
    ):
      total_M[owner] = np.broadcast_to(x_B[:, None], mask.shape)[mask]


def _per_example(examples, items, sums: _Sums, n_truncated: int) -> Scores:
  """Picks the likeliest candidate of each example, overall and for each stream alone."""
  first = np.searchsorted([i for i, _ in items], np.arange(len(examples)))
  right = np.array(
    [
      f + (e.choices.index(e.answer) if e.choices else 0)
      for f, e in zip(first, examples, strict=True)
    ]
  )

  def correct(logp_M, hit_M):
    best = np.array(
      [f + np.argmax(logp_M[f : f + len(e.choices)]) if e.choices else f
       for f, e in zip(first, examples, strict=True)]
    )  # fmt: skip
    chooses = np.array([bool(e.choices) for e in examples])
    # Where likelihoods are NaN nothing is chosen.
    return np.where(chooses, (best == right) & ~np.isnan(logp_M[right]), hit_M[right])

  alone = [correct(*pair) for pair in zip(sums.alone_logp_AM, sums.alone_hit_AM, strict=True)]
  return Scores(
    correct_N=correct(sums.logp_M, sums.hit_M),
    exact_N=sums.hit_M[right],
    nll_N=-sums.logp_M[right],
    alone_AN=np.array(alone, bool).reshape(len(alone), len(examples)),
    rate_SN=sums.rate_SM[:, right] / sums.n_M[right],
    index_N=sums.index_M[right],
    confidence_N=sums.confidence_M[right],
    n_truncated=n_truncated,
  )


def summarise(examples: Sequence[Example], scores: Scores, config: Config) -> dict[str, Any]:
  """One JSON-able summary of a set; `nll_nats` is per answer, `rate_nats` per position.

  Of the n examples, whole and by group, `n_contexts` are independent draws: see `rows.contexts`.
  """
  names = compose.streams(config)
  groups = np.array([e.group for e in examples])
  domains = np.array([e.domain for e in examples])
  context_N = rows.contexts(examples, config.data.asks)

  def on(mask_N: np.ndarray) -> dict[str, Any]:
    n, n_contexts = int(mask_N.sum()), len(np.unique(context_N[mask_N]))
    return {"n": n, "n_contexts": n_contexts, "accuracy": float(scores.correct_N[mask_N].mean())}

  def by(labels: np.ndarray) -> dict[str, Any]:
    return {str(name): on(labels == name) for name in np.unique(labels)}

  routes = {}
  if names:
    for name in np.unique(domains):
      counts = np.bincount(scores.index_N[domains == name], minlength=config.experts.count)
      routes[str(name)] = (counts / counts.sum()).tolist()
  alone = zip(compose.heard_alone(config), scores.alone_AN, strict=True)
  summary = {
    **on(np.ones(len(examples), bool)),
    "exact_match": float(scores.exact_N.mean()),
    "nll_nats": float(scores.nll_N.mean()),
    "by_group": by(groups),
    "by_domain": by(domains),
    "streams": {name: {"accuracy": float(ok_N.mean())} for name, ok_N in alone},
    "routes": routes,
    "rate_nats": {},
    "n_truncated": scores.n_truncated,
  }
  if names and config.bottleneck.kind != "none":
    rates = zip(names, scores.rate_SN, strict=True)
    summary["rate_nats"] = {name: float(rate_N.mean()) for name, rate_N in rates}
  return summary
