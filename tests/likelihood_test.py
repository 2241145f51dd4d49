"""Continuations are as likely as in the whole row recomputed, and no token counts twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generate_test import CONTEXT, Made, config, tok

from iclm import compose
from iclm.config import InputError
from iclm.data import pipeline, rows
from iclm.data.records import Example
from iclm.evals import accuracy, likelihood
from iclm.evals.subject import Subject
from iclm.generate import prompts as prompts_lib

PAIRS = [("a b c", "at"), ("", "th"), ("cat sat\non", " that mat"), ("a b c", "q"), ("bb" * 9, "a")]


class Asked:
  """A subject over random parameters, and its one apply."""

  def __init__(self, **changes):
    self.made = Made(evaluation__batch_size=4, **changes)
    m = self.made
    self.config = m.config
    self.subject = Subject(m.config, m.model, m.placed, tok(), m.mesh)

  def __call__(self, pieces):
    found = dict(self.subject.likelihoods(pieces))
    return [found[i] for i in range(len(pieces))]

  def encode(self, context, continuation, end=False):
    return likelihood.encode(context, continuation, tok(), self.config, end=end)

  def by_hand(self, piece):
    """Nats and greediness of a piece, from one long row of its tokens alone."""
    context, [question], whole = piece.prompt
    prompt = lambda tokens: prompts_lib.Prompt(0, context, [*question, *tokens], whole, 0, 0, 0)
    said = [*piece.continuation, *[tok().eos_id][: int(piece.end)]]
    own, n = prompt([]), len(prompt([]))
    batch = prompts_lib.lay_out([prompt(said)], 1, 2 * CONTEXT, 0)
    routed = prompts_lib.lay_out([own], 1, 2 * CONTEXT, 0)  # The router sees the prompt alone.
    batch = batch._replace(prompt_mask_BT=routed.prompt_mask_BT)
    logits_TV = self.made.apply(self.made.params, jax.tree.map(jnp.asarray, batch)).logits_BTV[0]
    logp_NV = np.asarray(jax.nn.log_softmax(logits_TV))[n - 1 : n - 1 + len(said)]
    picked = logp_NV[np.arange(len(said)), said]
    return picked.sum(), bool((logp_NV.argmax(-1) == said).all())


@pytest.fixture(scope="module", params=["none", "last_line"])
def asked(request):
  return Asked(data__question=request.param)


def test_nats_and_greediness_are_those_of_the_row_recomputed(asked):
  pieces = [asked.encode(*pair, end=end) for pair in PAIRS for end in (False, True)]
  found = asked(pieces)
  for piece, (nats, greedy) in zip(pieces, found, strict=True):
    want, hits = asked.by_hand(piece)
    np.testing.assert_allclose(nats, want, rtol=1e-5)
    assert greedy == hits
  # Each end costs nats: a continuation that goes on is likelier than one that stops there.
  assert all(a.nats > b.nats for a, b in zip(found[::2], found[1::2], strict=True))


def test_what_greedy_decoding_says_is_greedy_and_another_text_is_not(asked):
  said = asked.made(["a b c", "cat sat on"], max_tokens=5, stop=())
  for context, answer in zip(["a b c", "cat sat on"], said, strict=True):
    piece = asked.encode(context, "a")
    own = dataclasses.replace(piece, continuation=answer.tokens)
    other = dataclasses.replace(piece, continuation=[*answer.tokens[:-1], answer.tokens[-1] ^ 1])
    (_, yes), (_, no) = asked([own, other])
    assert yes and not no


def test_with_its_end_a_continuation_is_scored_as_an_answer(asked):
  examples = [Example(c, s, (), "d", "g", "0") for c, s in PAIRS if c]
  scored = asked.subject.score(examples)
  found = asked([asked.encode(e.prompt, e.answer, end=True) for e in examples])
  np.testing.assert_allclose([-f.nats for f in found], scored.nll_N, rtol=1e-6)
  assert [f.greedy for f in found] == scored.exact_N.tolist()


def test_few_programs_are_compiled():
  fresh = Asked(data__question="none")
  pairs = [("ab " * i, "cd" * j) for i in (0, 3, 12) for j in range(1, 6)]
  fresh([fresh.encode(*pair) for pair in pairs])
  # Rows of 16, 32 and 40 tokens.
  assert fresh.subject._plain_scorer._cache_size() == 3


def test_a_long_context_loses_its_first_tokens_and_a_continuation_none(asked):
  piece = asked.encode("cde" * 30 + "ab" * 19, "q")  # "ab" are two letters.
  kept = [tok().bos_id, *tok().encode("e" + "ab" * 19)]
  assert [*piece.prompt.context, *piece.prompt.questions[0]] == kept
  assert (len(piece), piece.n_cut) == (CONTEXT, 1 + 90 + 38 - CONTEXT)
  assert piece.continuation == tok().encode("q")
  # A last line that is too long by itself is cut too.
  (cut,) = asked([asked.encode("a\n" + "c" * 60, "q")])
  assert np.isfinite(cut.nats)
  with pytest.raises(InputError, match=r"has 41 tokens, and the context of this run is 40"):
    asked.encode("a", "c" * 41)
  with pytest.raises(InputError, match="a continuation is empty"):
    asked.encode("a", "")


def test_windows_predict_each_token_once_with_as_much_context_as_fits():
  # The example of the harness: tokens 0..9 and a context of 4.
  c = config(data__seq_len=4)
  tokens = tok().encode("abcdefghij")
  pieces = likelihood.windows("abcdefghij", tok(), c)
  before = [[*p.prompt.context, *p.prompt.questions[0]] for p in pieces]
  assert before == [[tok().bos_id], tokens[3:4], tokens[5:8]]
  assert [p.continuation for p in pieces] == [tokens[:4], tokens[4:8], tokens[8:]]
  assert [len(p) for p in pieces] == [4, 4, 4]
  assert likelihood.windows("", tok(), c) == []


def test_a_text_that_fits_is_as_likely_as_behind_nothing(asked):
  (window,) = likelihood.windows("cat sat on that", tok(), asked.config)
  assert window == asked.encode("", "cat sat on that")


def test_without_a_token_that_begins_a_row_the_end_token_stands_there():
  bare = dataclasses.replace(tok(), bos_id=None)
  piece = likelihood.encode("", "a", bare, config(), end=False)
  assert (piece.prompt.context, piece.prompt.questions) == ([], [[tok().eos_id]])


def test_without_its_end_an_answer_needs_one_place_less():
  prompt = rows.Prompts([1, 5], [[6]], whole=True)
  laid = lambda end, n: rows.lay_out(prompt, [[7, 8]], tok(), n, "answer", "error", "x", end)
  assert laid(False, 4).tokens_T.tolist() == [1, 5, 6, 7]
  assert laid(False, 4).targets_T.tolist() == [5, 6, 7, 8]
  assert laid(True, 5).targets_T.tolist() == [5, 6, 7, 8, tok().eos_id]
  with pytest.raises(InputError, match="needs 5 tokens and seq_len is 4"):
    laid(True, 4)
  batch = pipeline.fill([laid(False, 4)], [2], 3, tok())
  assert batch.domain_B.tolist() == [2, -1, -1] and not batch.segment_BT[1:].any()


def test_a_scorer_without_streams_alone_has_none(asked):
  m = asked.made
  scorer = accuracy.make_scorer(m.config, m.model, alone=False)
  row = rows.lay_out(rows.Prompts([1], [[6]], True), [[7]], tok(), 16, "answer", "error", "x")
  batch = jax.tree.map(jnp.asarray, pipeline.fill([row], [-1], 4, tok()))
  assert scorer(m.placed, batch, None, compose.NOTHING).alone_logp_ABT.shape[0] == 0
