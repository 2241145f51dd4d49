"""Text from a model: what is drawn, where it ends, how many programs it takes, and bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from conftest import draw, tiny

from iclm import compose, generate, sharding
from iclm.config import InputError
from iclm.data import rows, tokenizer
from iclm.generate import prompts, sampling

CONTEXT = 40
GREEDY = generate.Options(
  max_tokens=12, temperature=0.0, top_k=0, top_p=1.0, seed=0, stop=(), route=None, disabled=()
)
PROMPTS = ["a b c", "d", "cat sat on", "a b c", "the mat the mat the mat", "bb"]
WARM = {"temperature": 1.0, "seed": 3}


def options(**changes) -> generate.Options:
  return dataclasses.replace(GREEDY, **changes)


@functools.cache
def tok() -> tokenizer.Tokenizer:
  """Letters and a few pairs of them: whatever a random model says is text."""
  vocab = ["<pad>", "<bos>", "<eos>", *"abcdefghijklmnopqrst \n", "th", "at"]
  ids = {token: i for i, token in enumerate(vocab)}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [("t", "h"), ("a", "t")]))
  backend.decoder = tokenizers.decoders.Fuse()
  backend.add_special_tokens(vocab[:3])
  return tokenizer.Tokenizer.from_json(backend.to_str())


def config(**changes):
  rows_of = {"data__seq_len": CONTEXT, "data__question": "none", "data__questions_per_row": 1}
  return tiny(**rows_of | changes)


class Made:
  """A generator over random parameters, and what it takes to check it."""

  def __init__(self, batch_size=4, **changes):
    self.config = config(**changes)
    self.mesh = sharding.make_mesh(self.config.mesh)
    model = compose.build(self.config, tok().vocab_size, self.mesh)
    self.model, self.params = model, draw(model)
    self.apply = jax.jit(compose.build(self.config, tok().vocab_size).apply)
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    self.placed = jax.device_put(self.params, sharding.shardings_of(boxed, self.mesh, fsdp=False))
    args = self.config, model, self.placed, tok(), self.mesh, batch_size
    self.generator = generate.Generator(*args)

  def __call__(self, asked, **changes):
    return self.generator(asked, options(**changes))

  def check(self, prompt, answer, do=compose.NOTHING):
    """Every token is the likeliest one of the whole sequence recomputed; returns how many are."""
    context, [question], whole = rows.encode_prompts(
      [prompt], tok(), self.config.data.question, "p"
    )
    own = prompts.Prompt(0, context, [*question, *answer.tokens], whole, 0, 0, 0)
    batch = prompts.lay_out([own], 1, 2 * CONTEXT, 0)
    output = self.apply(self.params, jax.tree.map(jnp.asarray, batch), None, do)
    n = len(context) + len(question)
    logits_NV = np.asarray(output.logits_BTV)[0, n - 1 : n - 1 + len(answer.tokens)]
    best = np.sort(logits_NV, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert (logits_NV.argmax(-1) == answer.tokens)[clear].all()
    if output.routing is not None:
      assert answer.expert == int(output.routing.index_B[0])
      np.testing.assert_allclose(answer.confidence, output.routing.confidence_B[0], rtol=1e-4)
    return int(clear.sum())


@pytest.fixture(scope="module")
def made():
  return Made()


def test_greedy_text_is_that_of_the_whole_sequence_recomputed(made):
  answers = made(PROMPTS)
  assert len({answer.expert for answer in answers}) > 1  # Routes are mixed.
  clear = [made.check(p, answer) for p, answer in zip(PROMPTS, answers, strict=True)]
  assert sum(clear) > 0.9 * sum(len(answer.tokens) for answer in answers) > 30


def test_a_forced_route_and_a_disabled_expert_are_those_of_the_one_apply(made):
  free = made(PROMPTS)
  for e in range(3):
    do = compose.Intervention(route_B=jnp.array([e]))
    for p, answer in zip(PROMPTS, made(PROMPTS, route=e), strict=True):
      assert answer.expert == e and made.check(p, answer, do)
    do = compose.Intervention(enabled_E=jnp.arange(3) != e)
    for p, answer, before in zip(PROMPTS, made(PROMPTS, disabled=(e,)), free, strict=True):
      assert answer.expert != e and made.check(p, answer, do)
      assert before.expert == e or answer.tokens == before.tokens


def test_a_question_is_hidden_from_the_router():
  made = Made(data__question="last_line", model__attention="prefix", model__position_gap=3)
  asked = ["a b c\nd", "a b c\nthe cat", "the mat\nd", "bb"]
  answers = made(asked)
  for prompt, answer in zip(asked, answers, strict=True):
    assert made.check(prompt, answer)
  assert answers[0][-2:] == answers[1][-2:]  # Expert and confidence go by the context.


def test_a_plain_base_says_no_expert():
  plain = Made(experts__kind="none", loss__dependence=0.0, loss__beta=0.0)
  for prompt, answer in zip(PROMPTS, plain(PROMPTS), strict=True):
    assert answer.expert is None and answer.confidence is None and plain.check(prompt, answer)


# Sampling.


def test_what_may_be_drawn_by_hand():
  # p = 0.4, 0.3, 0.2, 0.1: 0.4 < 0.5 <= 0.7, so p = 0.5 keeps two; 0.7 < 0.75 <= 0.9 keeps three.
  logits_BV = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  kept = lambda k, p: int(sampling.keep(logits_BV, sampling.Sampling(1.0, k, p)).sum())
  assert [kept(0, p) for p in (1e-9, 0.39, 0.5, 0.75, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]
  assert [kept(k, 1.0) for k in (1, 2, 4, 9)] == [1, 2, 4, 4]
  # Of three, p = 4/9, 3/9, 2/9: 4/9 < 0.5 <= 7/9 keeps two, 0.8 all three.
  assert [kept(3, p) for p in (0.4, 0.5, 0.8)] == [1, 2, 3]


def test_draws_go_by_the_probabilities():
  n = 4_000
  logits_BV = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.2, 0.7])), (n, 3))
  key_B = jax.random.split(jax.random.key(0), n)
  share = lambda t, k, p: np.bincount(
    jax.jit(sampling.choose)(logits_BV, key_B, sampling.Sampling(t, k, p)), minlength=3
  ) / n  # fmt: skip
  # Five standard deviations of a share are 5 * sqrt(0.25 / 4000) = 0.04 at most.
  np.testing.assert_allclose(share(1.0, 0, 1.0), [0.1, 0.2, 0.7], atol=0.04)
  np.testing.assert_allclose(share(1.0, 2, 1.0), [0, 2 / 9, 7 / 9], atol=0.04)
  np.testing.assert_allclose(share(1.0, 0, 0.8), [0, 2 / 9, 7 / 9], atol=0.04)
  # At temperature 0.5 probabilities are squared: 1, 4 and 49 of 54.
  np.testing.assert_allclose(share(0.5, 0, 1.0), np.array([1, 4, 49]) / 54, atol=0.04)
  assert share(0.0, 0, 1.0).tolist() == [0, 0, 1]


def test_cold_or_of_the_first_only_is_greedy(made):
  tokens = lambda **changes: [answer.tokens for answer in made(PROMPTS, **changes)]
  greedy = tokens()
  assert tokens(temperature=1e-6, seed=1) == greedy
  assert tokens(temperature=2.0, top_k=1, seed=1) == greedy
  assert tokens(temperature=2.0, top_p=1e-6, seed=1) == greedy


def test_a_draw_depends_on_seed_and_prompt_and_on_no_neighbour(made):
  drawn = made(PROMPTS, **WARM)
  assert made(PROMPTS, **WARM) == drawn
  assert [a.text for a in made(PROMPTS, **WARM | {"seed": 4})] != [a.text for a in drawn]
  assert drawn[0].tokens != drawn[3].tokens  # Equal prompts draw apart.
  alone = [made([p], **WARM)[0] for p in PROMPTS]
  assert [a.tokens for a in alone[:3]] == [a.tokens for a in drawn[:3]]
  assert made(PROMPTS[::-1], **WARM)[1:3] == [drawn[4], alone[0]]


# Where an answer ends.


def test_a_context_may_be_longer_than_that_of_the_run():
  c = config(data__seq_len=16, model__context=64)
  assert generate.with_context(c, 64).evaluation_len == 64 and c.evaluation_len == 16
  for n in (0, 65):
    with pytest.raises(InputError, match=rf"a context of {n} tokens .* 1\.\.64, which the base"):
      generate.with_context(c, n)


def test_what_is_streamed_is_the_answer(made):
  for changes in ({}, WARM, {"stop": ("a", "b")}):
    whole = made(PROMPTS, **changes)
    told = ["" for _ in PROMPTS]
    for piece in made.generator.stream(PROMPTS, options(**changes), 1):
      told[piece.index] += piece.text
      if piece.answer is not None:
        assert piece.answer == whole[piece.index]
    assert told == [answer.text for answer in whole]


# Programs.


def test_few_programs_serve_many_prompts():
  made = Made(batch_size=2)
  rng = np.random.default_rng(0)
  for n in range(1, 20, 2):
    tokens = ["abcd"[i] for i in rng.integers(0, 4, n)]
    made([" ".join(tokens)] * int(rng.integers(1, 4)), max_tokens=int(rng.integers(1, 14)))
    made(["d"], **WARM, top_k=n, stop=("a",), route=n % 3)
  # Buckets of 16, 32 and 40 tokens; room for 16.
  read, say = made.generator.decoding
  assert read._cache_size() <= 3 and say._cache_size() <= 3
  assert prompts.bucket(17, CONTEXT) == 32 and prompts.bucket(33, CONTEXT) == CONTEXT


# Bad input.


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"max_tokens": 0}, "max_tokens = 0"),
    ({"temperature": -1.0}, "temperature = -1"),
    ({"temperature": float("nan")}, "temperature = nan"),
    ({"temperature": 1.0, "top_k": -1}, "top_k = -1"),
    ({"temperature": 1.0, "top_k": 2**31}, r"must lie in \[1, 2\*\*31\)"),
    ({"temperature": 1.0, "top_p": 0.0}, r"top_p = 0.0 must lie in \(0, 1\]"),
    ({"temperature": 1.0, "top_p": 1.5}, "top_p = 1.5"),
    ({"top_p": 0.5}, "temperature = 0 is greedy"),
    ({"top_k": 5}, "temperature = 0 is greedy"),
    ({"stop": ("a", "")}, "stop string is empty"),
    ({"route": 3}, r"no expert 3; experts are 0\.\.2"),
    ({"disabled": (7,)}, "no expert 7"),
    ({"route": 1, "disabled": (1,)}, "expert 1 is to run, and disabled"),
    ({"disabled": (0, 1, 2)}, "all 3 experts are disabled"),
    ({"seed": -1}, "seed = -1"),
  ],
)
def test_options_that_contradict_are_told(changes, told):
  with pytest.raises(InputError, match=told):
    generate.check(options(**changes), config())


@pytest.mark.parametrize(
  ("model", "changes", "told"),
  [
    ({"experts__kind": "none", "loss__dependence": 0.0, "loss__beta": 0.0}, {"route": 0}, "plain"),
    ({"router__level": "token"}, {}, "'token' has no route"),
    ({"router__kind": "oracle", "data__domains": ("a", "b", "c")}, {}, "force a route"),
  ],
)
def test_models_that_cannot_are_told(model, changes, told):
  with pytest.raises(InputError, match=told):
    generate.check(options(**changes), config(**model))


def test_prompts_that_are_empty_or_too_long_are_told(made):
  with pytest.raises(InputError, match="number 2 is empty"):
    made(["a", ""])
  with pytest.raises(InputError, match="number 1 holds bytes that are no UTF-8"):
    made([b"a\xff".decode("utf-8", "surrogateescape")])
  with pytest.raises(InputError, match=r"number 1 has 101 tokens, and the context of .* is 40"):
    made(["a " * 50])
  with pytest.raises(InputError, match="batch_size = 0"):
    Made(batch_size=0)


def test_an_answer_tells_how_much_its_prompt_lost():
  made = Made(data__too_long="truncate_left")
  whole, cut = made(["a b", "a " * 50])
  assert whole.n_cut == 0
  assert (
    cut.n_cut == 101 + 12 - 1 - CONTEXT
  )  # Room for 12 tokens, the first said from the last row.
