"""Answers of a model's own, and what RAVEN's context determines of them."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny

from iclm import compose, optim, sharding, step
from iclm.config import InputError
from iclm.data import evaluation, raven, tokenizer
from iclm.data.records import Example
from iclm.evals import determined
from iclm.evals.subject import Subject


def example(prompt, answer, i):
  return Example(prompt, answer, (), "d", "g", str(i))


# Two questions on each context; answers of one and of three tokens.
EXAMPLES = [
  example(f"{a} {b} {c}\n{ask}:", answer, ask)
  for a, b, c in ("pqr", "qrs", "rsp", "spq", "prs", "sqp")
  for ask, answer in (("all", f"{a} {b} {c}"), ("last", c))
]
SEQ_LEN = 14
STEPS = 8  # After which some answers are right and some are not.


@pytest.fixture(scope="module", params=[("none", 1), ("last_line", 2)], ids=["alone", "together"])
def half_trained(request):
  """A subject that knows some of the answers, its questions in rows of their own or together."""
  question, n = request.param
  c = tiny(
    data__seq_len=SEQ_LEN, data__question=question, data__questions_per_row=n,
    model__attention="prefix", evaluation__batch_size=5, optimizer__lr=2e-2, optimizer__warmup=1,
    optimizer__schedule="constant",
  )  # fmt: skip
  tok = tokenizer.train([e.prompt + e.answer for e in EXAMPLES], 300, tokenizer.WORDS)
  mesh = sharding.make_mesh(c.mesh)
  model, tx = compose.build(c, tok.vocab_size, mesh), optim.from_config(c)
  state = step.init_state(c, model, tx, mesh, jax.random.key(0))
  advance = step.make_train_step(c, model, tx, mesh)
  batches = evaluation.eval_batches(
    EXAMPLES, tok, (), batch_size=8, seq_len=SEQ_LEN, question=question,
    questions_per_row=n, too_long="error",
  )  # fmt: skip
  rows = [sharding.put_batch(b.batch, mesh) for b in batches]
  for i in range(STEPS):
    state, _ = advance(state, rows[i % len(rows)], jax.random.key(1))
  return Subject(c, model, state.params, tok, mesh)


def test_a_match_is_exact_iff_the_greedy_answer_is_the_right_one(half_trained):
  exact_N = half_trained.score(EXAMPLES).exact_N
  tok = half_trained.tokenizer
  right = [[*tok.encode(e.answer), tok.eos_id] for e in EXAMPLES]
  said = half_trained.answer(EXAMPLES, 6)
  assert [a == b for a, b in zip(said, right, strict=True)] == exact_N.tolist()
  assert 0 < exact_N.mean() < 1


def test_an_answer_is_cut_at_the_limit_and_where_its_row_ends(half_trained):
  whole = half_trained.answer(EXAMPLES, 100)
  eos_id = half_trained.tokenizer.eos_id
  for most in (1, 2):
    assert half_trained.answer(EXAMPLES, most) == [tokens[:most] for tokens in whole]
  for e, tokens in zip(EXAMPLES, whole, strict=True):
    prompt = 1 + len(half_trained.tokenizer.encode(e.prompt))
    assert tokens[-1] == eos_id or prompt + len(tokens) == SEQ_LEN + 1
    assert eos_id not in tokens[:-1]


class Parrot(Subject):
  """Says what it is told to."""

  def __init__(self, tok, texts, ends=True):
    self.tokenizer, self._texts, self._end = tok, texts, [tok.eos_id] if ends else []

  def answer(self, examples, most):
    said = [[*self.tokenizer.encode(text), *self._end] for text in self._texts]
    assert len(said) == len(examples) and all(len(tokens) <= most for tokens in said)
    return said


CONFIGURATIONS = raven.CONFIGURATIONS
OPEN = [
  raven.example(configuration, "symbolic", "open", "iid_val", 0, i)
  for configuration in CONFIGURATIONS
  for i in range(20)
]


@pytest.fixture(scope="module")
def tok():
  return tokenizer.train([e.prompt + e.answer for e in OPEN], 600, tokenizer.SYMBOLS)


def report(parrot, examples, right=False):
  return determined.report(parrot, examples, np.full(len(examples), right))


def reported(tok, texts, ends=True):
  return report(Parrot(tok, texts, ends), OPEN)["determined"]


def test_right_answers_are_right_and_the_solver_is_the_ceiling(tok):
  found = reported(tok, [e.answer for e in OPEN])
  assert found["n"] == len(OPEN) and found["accuracy"] == 1.0
  assert {s["accuracy"] for s in found["by_attribute"].values()} == {1.0}
  assert {name: s["n"] for name, s in found["by_configuration"].items()} == dict.fromkeys(
    CONFIGURATIONS, 20
  )
  solved = reported(tok, [raven.predict(e.prompt) for e in OPEN])
  parts = [solved, *solved["by_attribute"].values(), *solved["by_configuration"].values()]
  assert all(part["accuracy"] == part["ceiling"] for part in parts)
  assert solved["ceiling"] == found["ceiling"] > 0.9


def test_a_chat_template_hides_no_problem_from_the_solver(tok):
  asked = lambda e: dataclasses.replace(e, prompt=f"<user>{e.prompt}</user>", plain=e.prompt)
  wrapped = [asked(e) for e in OPEN]
  parrot = Parrot(tok, [e.answer for e in OPEN])
  assert report(parrot, wrapped) == report(parrot, OPEN)


def test_an_end_that_is_an_ordinary_token_is_no_part_of_an_answer(tok):
  (comma,) = tok.encode(",")
  parrot = Parrot(dataclasses.replace(tok, ends=(comma,)), [e.answer for e in OPEN])
  parrot._end = [comma]
  assert report(parrot, OPEN)["determined"]["accuracy"] == 1.0


def test_what_the_context_leaves_open_does_not_count(tok):
  """Solver and generator differ in most of distribute_four, in nothing that is determined."""
  four = OPEN[40:]
  texts = [raven.predict(e.prompt) for e in four]
  assert np.mean([text == e.answer for text, e in zip(texts, four, strict=True)]) < 0.7
  found = report(Parrot(tok, texts), four)["determined"]
  assert found["accuracy"] > 0.9


def test_one_wrong_attribute_is_wrong_there_and_in_all(tok):
  alone = OPEN[:20]
  # The colour is the second letter.
  other = {letter: "ABCDEFGHIJ"["ABCDEFGHIJ".index(letter) - 1] for letter in "ABCDEFGHIJ"}
  texts = [e.answer[:5] + other[e.answer[5]] + e.answer[6:] for e in alone]
  found = report(Parrot(tok, texts), alone)["determined"]
  parts = {name: s["accuracy"] for name, s in found["by_attribute"].items()}
  assert parts == {"size": 1.0, "colour": 0.0, "type": 1.0, "angle": 1.0}
  assert found["accuracy"] == 0.0


@pytest.mark.parametrize(("text", "ends"), [("", True), ("[(A, ", True), ("right", False)])
def test_what_is_no_panel_or_does_not_end_is_wrong_in_everything(tok, text, ends):
  found = reported(tok, [e.answer if text == "right" else text for e in OPEN], ends)
  assert found["accuracy"] == 0.0
  assert {s["accuracy"] for s in found["by_attribute"].values()} == {0.0}


def test_other_prompts_have_no_report(tok):
  chosen = raven.example("center_single", "symbolic", "balanced", "iid_val", 0, 0)
  assert report(Parrot(tok, []), [*EXAMPLES, chosen]) == {}


def test_of_a_mixed_set_all_of_it_is_measured(tok):
  # Three of the four others are right, and all five of the open ones.
  mixed = [*EXAMPLES[:4], *OPEN[:5]]
  right_N = np.array([True, True, True, False] + [False] * 5)
  found = determined.report(Parrot(tok, [e.answer for e in OPEN[:5]]), mixed, right_N)
  assert found["determined"]["n"] == 5 and found["determined"]["rest"] == {"n": 4, "accuracy": 0.75}
  whole = {"n": 9, "accuracy": 3 / 9, "by_group": {}}
  assert determined.measured(whole | found) == {"n": 9, "accuracy": pytest.approx(8 / 9)}
  assert determined.measured(whole) == {"n": 9, "accuracy": pytest.approx(3 / 9)}


def test_a_right_answer_that_is_no_panel_is_told_before_anything_is_asked():
  broken = dataclasses.replace(OPEN[0], answer="D, B, F, F")
  determined.check([*EXAMPLES, *OPEN])
  with pytest.raises(InputError, match=f"^{broken.id}: the right answer 'D, B, F, F' is no"):
    determined.check([*OPEN[1:], broken])
