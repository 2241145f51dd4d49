"""Scores by hand: a scorer that says what it is told to."""

import math

import numpy as np
import pytest
from conftest import tiny

from iclm import sharding, step
from iclm.config import InputError
from iclm.data import tokenizer
from iclm.data.records import Example
from iclm.evals import accuracy

TEXTS = ["a b c d x y z : u v"] * 4


def scorer_of(likely: dict[int, float], hit: set[int], index: int = 0):
  """Log-probability per target id, -1 where not told; positions of `hit` targets are argmax."""

  def scorer(params, batch, key, do):
    targets = np.asarray(batch.targets_BT)
    logp = np.vectorize(lambda t: likely.get(int(t), -1.0))(targets)
    hits = np.vectorize(lambda t: int(t) in hit)(targets)
    n = len(targets)
    return step.PositionScores(
      logp, hits, np.stack([logp, -logp]), np.stack([hits, ~hits]),
      np.full((2, *targets.shape), 0.5), np.full(n, index), np.ones(n),
    )  # fmt: skip

  return scorer


@pytest.fixture(scope="module")
def tok():
  return tokenizer.train(TEXTS, 300, tokenizer.WORDS)


def score(tok, examples, scorer, **changes):
  c = tiny(data__seq_len=24, data__question="none", data__questions_per_row=1, **changes)
  scores = accuracy.score(scorer, {}, examples, tok, c, sharding.make_mesh(c.mesh))
  return scores, accuracy.summarise(examples, scores, c)


def example(answer, choices, group="g", domain="d"):
  return Example("a b :", answer, choices, domain, group, "0")


def test_choices_are_compared_by_likelihood(tok):
  (yes,), (no,) = tok.encode("u"), tok.encode("v")
  examples = [example("u", ("u", "v")), example("v", ("u", "v"), "h")]
  scores, summary = score(tok, examples, scorer_of({yes: -0.2, no: -3.0}, {yes, tok.eos_id}, 2))
  assert scores.correct_N.tolist() == [True, False]
  assert scores.exact_N.tolist() == [True, False]
  # Each answer is its token and the end token: 0.2 + 1 and 3 + 1 nats.
  np.testing.assert_allclose(scores.nll_N, [1.2, 4.0])
  assert scores.alone_AN.tolist() == [[True, False], [False, True]]  # The second says the contrary.
  assert summary["accuracy"] == 0.5 and math.isclose(summary["nll_nats"], 2.6)
  assert summary["n"] == 2 and summary["n_contexts"] == 1
  one = {"n": 1, "n_contexts": 1}
  assert summary["by_group"] == {"g": one | {"accuracy": 1.0}, "h": one | {"accuracy": 0.0}}
  assert summary["by_domain"] == {"d": {"n": 2, "n_contexts": 1, "accuracy": 0.5}}
  assert summary["streams"] == {"invariant": {"accuracy": 0.5}, "domain": {"accuracy": 0.5}}
  assert summary["routes"] == {"d": [0.0, 0.0, 1.0]}
  assert summary["rate_nats"] == {"invariant": 0.5, "domain": 0.5}


def test_of_likelihoods_that_are_nan_none_is_chosen(tok):
  (yes,), (no,) = tok.encode("u"), tok.encode("v")
  scorer = scorer_of({yes: np.nan, no: np.nan}, {yes, tok.eos_id})
  scores, _ = score(tok, [example("u", ("u", "v")), example("v", ("u", "v"))], scorer)
  assert scores.correct_N.tolist() == [False, False]


def test_without_choices_every_token_must_be_the_argmax(tok):
  x, y = tok.encode("x y")[0], tok.encode("x y")[-1]
  both = {*tok.encode("x y"), tok.eos_id}
  assert score(tok, [example("x y", ())], scorer_of({}, both))[0].correct_N.tolist() == [True]
  for missing in (x, y, tok.eos_id):
    scores, _ = score(tok, [example("x y", ())], scorer_of({}, both - {missing}))
    assert scores.correct_N.tolist() == [False]


def test_nothing_to_score_and_long_prompts_are_told(tok):
  long = Example("a " * 40, "u", (), "d", "g", "train/7")
  with pytest.raises(InputError, match="train/7"):
    score(tok, [long], scorer_of({}, set()))
  score(tok, [long], scorer_of({}, set()), evaluation__seq_len=84)
