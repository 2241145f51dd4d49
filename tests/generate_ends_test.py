"""Where an answer ends: its limit, the context, end tokens, stop strings; and what is shown."""

import dataclasses

import pytest
import tokenizers
from generate_test import CONTEXT, PROMPTS, made, tok  # noqa: F401, a fixture.

from iclm import generate
from iclm.data import tokenizer


def test_an_answer_ends_at_its_limit_or_at_the_context(made):  # noqa: F811
  long = "a " * 18
  n = 1 + len(tok().encode(long))
  assert 32 < n < CONTEXT
  for prompt, most, right in (("d", 5, 5), (long, 100, CONTEXT - n + 1), (long, 1, 1)):
    [answer] = made([prompt], max_tokens=most)
    assert answer.finish == "end" or (answer.finish == "length" and len(answer.tokens) == right)
    assert made.check(prompt, answer)


def test_the_end_token_ends(made):  # noqa: F811
  [whole] = made(["d"], max_tokens=6, route=0)
  ends = dataclasses.replace(tok(), eos_id=whole.tokens[2])
  made.generator._tokenizer, before = ends, made.generator._tokenizer
  try:
    [answer] = made(["d"], max_tokens=6, route=0)
  finally:
    made.generator._tokenizer = before
  assert answer.finish == "end" and answer.tokens == whole.tokens[: len(answer.tokens)]
  assert answer.tokens[-1] == ends.eos_id and ends.eos_id not in answer.tokens[:-1]


def test_a_stop_string_that_spans_tokens_ends_and_is_left_out(made):  # noqa: F811
  for prompt, whole in zip(PROMPTS, made(PROMPTS), strict=True):
    first, second = (tok().decode(whole.tokens[:n]) for n in (3, 5))
    stop = second[len(first) - 1 :]  # From within the third token to the end of the fifth.
    if len(stop) < 3 or stop in first:
      continue
    [answer] = made([prompt], stop=("never", stop))
    assert answer.finish == "stop" and answer.text == whole.text[: whole.text.index(stop)]
    assert answer.tokens == whole.tokens[: len(answer.tokens)] and len(answer.tokens) <= 5
    break
  else:
    pytest.fail("no answer has three characters there")
  [answer] = made([prompt], stop=("\0never",))
  assert answer == whole  # One that is never met changes nothing.


def test_text_is_shown_only_when_it_is_certain():
  say = lambda texts, stop: (generate.Speech(tok(), stop), [tok().encode(t) for t in texts])
  speech, pieces = say(["a", " b", " c", " d"], (" b d", "c d"))
  shown = [speech.hear(tokens, last=False) for tokens in pieces]
  assert shown == ["a", "", " b ", ""]  # " b" may become " b d", "c" may become "c d".
  assert speech.stopped and speech.text == "a b "
  speech, [first, second] = say(["a", " b"], (" b d",))
  assert [speech.hear(first, last=False), speech.hear(second, last=True)] == ["a", " b"]
  wide = tokenizer.train(["a"], 260, tokenizer.WORDS)  # A token is a byte.
  speech = generate.Speech(wide, ())
  assert "".join(speech.hear([t], last=False) for t in wide.encode("aé→b")) == "aé→b"
  speech = generate.Speech(wide, ("bé",))
  assert "".join(speech.hear([t], last=False) for t in wide.encode("abéc")) == "a"
  assert speech.stopped and len(speech.tokens) == 4
  # An end spells nothing, though it may be an ordinary token.
  (stop,) = wide.encode("!")
  speech = generate.Speech(dataclasses.replace(wide, ends=(stop,)), ())
  assert speech.hear([*wide.encode("ab"), stop], last=True) == "ab" == speech.text


def test_bytes_that_may_yet_spell_something_else_are_not_shown():
  # A tokenizer as of Llama 2: a character without a token is spelled by its bytes, and one that is
  # no character makes all bytes beside it unreadable.
  vocab = {"<eos>": 0, "x": 1, "<0x0A>": 2, "<0xC3>": 3, "<0xA9>": 4}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True))
  backend.decoder = tokenizers.decoders.Sequence(
    [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
  )
  llama = tokenizer.Tokenizer.from_json(backend.to_str())
  for tokens, shown in (
    ([1, 2, 1], ["x", "", "\nx"]),
    ([2, 3, 1], ["", "", "\ufffd\ufffdx"]),
    ([3, 4, 1], ["", "", "éx"]),
  ):
    speech = generate.Speech(llama, ())
    assert [speech.hear([i], last=False) for i in tokens] == shown
    assert speech.text == "".join(shown)
  one_by_one, at_once = (generate.Speech(llama, ("\n",)) for _ in range(2))
  for i in (1, 2, 3, 1):
    one_by_one.hear([i], last=False)
  at_once.hear([1, 2, 3, 1], last=True)
  for speech in (one_by_one, at_once):
    assert speech.stopped and (speech.text, speech.tokens) == ("x", [1, 2])


def test_a_special_token_that_a_stop_string_spells_is_met_by_its_id():
  speech = generate.Speech(tok(), ("<bos>",))
  ids = [*tok().encode("a"), tok().bos_id, *tok().encode(" b")]
  assert speech.hear(ids, last=True) == "a" and speech.stopped
  assert speech.tokens == ids[:2]


def test_an_answer_ends_at_other_end_tokens_too(made):  # noqa: F811
  [whole] = made(["d"], max_tokens=6, route=0)
  ends = dataclasses.replace(tok(), ends=(whole.tokens[1],))
  made.generator._tokenizer, before = ends, made.generator._tokenizer
  try:
    [answer] = made(["d"], max_tokens=6, route=0)
  finally:
    made.generator._tokenizer = before
  assert answer.finish == "end" and answer.tokens[-1] in ends.end_ids
  assert answer.tokens == whole.tokens[: len(answer.tokens)] and len(answer.tokens) <= 2
