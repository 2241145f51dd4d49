"""Rows hold exactly the tokens of their examples, whoever shares the row."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from iclm.config import InputError
from iclm.data import rows
from iclm.data import tokenizer as tokenizer_lib
from iclm.data.records import Example

# Bytes only: one token per character of the tests, so that rows can be written by hand.
BYTES = tokenizer_lib.train([], 259, tokenizer_lib.WORDS)
a, b, c, q, r, s, x, y, z, n = (BYTES.encode(character)[0] for character in "abcqrsxyz\n")
BOS, EOS, PAD = BYTES.bos_id, BYTES.eos_id, BYTES.pad_id


def example(prompt, answer, domain="d", name="e"):
  return Example(prompt, answer, (), domain, "all", name)


def pack(*examples, seq_len=12, question="last_line", loss="answer", too_long="error", by=BYTES):
  given = {"seq_len": seq_len, "question": question, "loss": loss, "too_long": too_long}
  [row] = rows.pack_all([examples], by, **given)
  return row


def check(row, tokens, targets, segment, position, loss_mask, prompt_mask):
  np.testing.assert_array_equal(row.tokens_T, tokens)
  np.testing.assert_array_equal(row.targets_T, targets)
  np.testing.assert_array_equal(row.segment_T, segment)
  np.testing.assert_array_equal(row.position_T, position)
  np.testing.assert_array_equal(row.loss_mask_T, loss_mask)
  np.testing.assert_array_equal(row.prompt_mask_T, prompt_mask)


def test_two_questions_on_one_context():
  # Context bos x y \n (4 tokens). Question 1 "q", answer "ab"; question 2 "rs", answer "c".
  # Both continue at position 4. Counted: q predicts a, a predicts b, b predicts eos; s predicts c,
  # c predicts eos. "all" adds the context but for its end, and r predicts s.
  pair = example("xy\nq", "ab"), example("xy\nrs", "c")
  layout = {
    "tokens": [BOS, x, y, n, q, a, b, r, s, c, PAD, PAD],
    "targets": [x, y, n, PAD, a, b, EOS, s, c, EOS, PAD, PAD],
    "segment": [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0],
    "position": [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 0, 0],
    "prompt_mask": [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
  }
  check(pack(*pair), loss_mask=[0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0], **layout)
  check(pack(*pair, loss="all"), loss_mask=[1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0], **layout)
  row = pack(*pair)
  assert [v.dtype for v in row[:6]] == [np.int32] * 4 + [np.float32, np.bool_]
  assert row.n_cut == 0


@pytest.mark.parametrize("question", ["none", "last_line"])
def test_a_whole_prompt_is_seen_by_the_router_and_its_last_token_asks(question):
  # Context bos x y, then z (the last token of the prompt) and the answer "a". z is masked in for
  # the router and predicts a. "all": y predicts z too, for the prompt has only this continuation.
  layout = {
    "tokens": [BOS, x, y, z, a, PAD],
    "targets": [x, y, z, a, EOS, PAD],
    "segment": [1, 1, 1, 2, 2, 0],
    "position": [0, 1, 2, 3, 4, 0],
    "prompt_mask": [1, 1, 1, 1, 0, 0],
  }
  kind = {"seq_len": 6, "question": question}
  check(pack(example("xyz", "a"), **kind), loss_mask=[0, 0, 0, 1, 1, 0], **layout)
  check(pack(example("xyz", "a"), loss="all", **kind), loss_mask=[1, 1, 1, 1, 1, 0], **layout)


def test_without_bos_a_context_may_be_empty():
  plain = tokenizers.Tokenizer(tokenizers.models.BPE({"x": 0, "a": 1}, []))
  plain.add_special_tokens(["</s>"])
  by = tokenizer_lib.Tokenizer.from_json(plain.to_str())
  check(
    pack(example("x", "a"), seq_len=3, loss="all", by=by),
    tokens=[0, 1, 2],
    targets=[1, 2, 2],
    segment=[2, 2, 0],
    position=[0, 1, 0],
    loss_mask=[1, 1, 0],
    prompt_mask=[1, 0, 0],
  )


def test_where_a_prompt_is_split():
  assert rows.split_prompt("x\ny\nq: ", "last_line") == ("x\ny\n", "q: ")
  assert rows.split_prompt("\nq", "last_line") == ("\n", "q")
  for prompt in ("one line", "ends with a newline\n"):
    assert rows.split_prompt(prompt, "last_line") == (prompt, "")
  assert rows.split_prompt("x\ny", "none") == ("x\ny", "")


def test_grouping_keeps_order_and_needs_equal_context_and_domain():
  names = "abcdefgh"
  prompts = ["x\n1", "x\n2", "x\n3", "y\n1", "y\n2", "x\n4", "x", "x"]
  domains = "ddddeddd"
  examples = [example(p, "a", d, i) for p, d, i in zip(prompts, domains, names, strict=True)]

  def groups(per_row, question="last_line"):
    return ["".join(e.id for e in row) for row in rows.group_rows(examples, per_row, question)]

  assert groups(2) == ["ab", "c", "d", "e", "f", "g", "h"]
  assert groups(4) == ["abc", "d", "e", "f", "g", "h"]
  assert groups(4, "none") == list(names)
  with pytest.raises(ValueError, match="do not share one context"):
    pack(examples[0], examples[3])


def test_too_long_is_an_error_or_cuts_the_context_from_the_left():
  # bos x y z x \n, q a: 8 tokens. With 6, bos stays and x y go.
  long = example("xyzx\nq", "a", name="long-1")
  with pytest.raises(InputError, match="long-1: the row needs 8 tokens and seq_len is 6; shorten"):
    pack(long, seq_len=6)
  row = pack(long, seq_len=6, too_long="truncate_left")
  check(
    row,
    tokens=[BOS, z, x, n, q, a],
    targets=[z, x, n, PAD, a, EOS],
    segment=[1, 1, 1, 1, 2, 2],
    position=[0, 1, 2, 3, 4, 5],
    loss_mask=[0, 0, 0, 0, 1, 1],
    prompt_mask=[1, 1, 1, 1, 0, 0],
  )
  assert row.n_cut == 2
  assert pack(long, seq_len=3, too_long="truncate_left").tokens_T.tolist() == [BOS, q, a]
  with pytest.raises(InputError, match="even without any context it needs 3"):
    pack(long, seq_len=2, too_long="truncate_left")


def test_nothing_to_ask_or_to_say_is_an_error():
  with pytest.raises(InputError, match="the prompt of e is empty"):
    pack(example("", "a"))
  with pytest.raises(InputError, match="an answer of e is empty"):
    pack(example("x", ""))


@pytest.mark.parametrize("key", ["question", "loss", "too_long"])
def test_an_unknown_option_is_refused(key):
  with pytest.raises(Exception, match="'both'"):  # With type checks switched on, by these.
    pack(example("x" * 20, "a"), **{key: "both"})


text = st.text(st.sampled_from("ab 1é\n"), min_size=1, max_size=8)
line = text.map(lambda value: value.replace("\n", "-"))


@settings(max_examples=50, deadline=None)
@given(text, st.lists(st.tuples(line, text), min_size=1, max_size=4))
def test_a_row_spells_its_examples_and_company_changes_no_token(context, questions):
  group = [example(f"{context}\n{asked}", said) for asked, said in questions]
  row = pack(*group, seq_len=200)
  for k, member in enumerate(group):
    own_T = (row.segment_T == 1) | (row.segment_T == k + 2)
    assert BYTES.decode(row.tokens_T[own_T]) == member.prompt + member.answer
    # Each sees exactly what it would see alone: tokens, positions, targets and masks.
    alone = pack(member, seq_len=200)
    alone_T = alone.segment_T > 0
    np.testing.assert_array_equal(row.position_T[own_T], np.arange(own_T.sum()))
    for shared, single in zip(row[:6], alone[:6], strict=True):
      if shared is not row.segment_T:
        np.testing.assert_array_equal(shared[own_T], single[alone_T])
    said_T = (row.segment_T == k + 2) & (row.loss_mask_T > 0)
    assert row.targets_T[said_T].tolist() == [*BYTES.encode(member.answer), EOS]


def test_contexts_are_numbered_by_what_they_say_to_the_last_character():
  example = lambda prompt: Example(prompt, "a", (), "d", "g", "0")
  asked = [example(p) for p in ("p\nq", "p\0\nq", "p\nr", "x")]
  assert rows.contexts(asked, "last_line").tolist() == [0, 1, 0, 2]
