"""A tokenizer loses nothing, knows its specials, and is equal to its JSON."""

import pathlib
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from iclm.config import InputError
from iclm.data import mechanisms, records, rows
from iclm.data import tokenizer as tokenizer_lib

HERE = pathlib.Path(__file__).resolve().parent
ACRE = [f"Answer 0, 1 or 2:\n[{i}, {i * 7 % 48}] -> {i % 3}\n[{i}] -> 0" for i in range(48)]
NUMBERS = tokenizer_lib.train(ACRE, 400, tokenizer_lib.NUMBERS)
WORDS = tokenizer_lib.train(ACRE, 400, tokenizer_lib.WORDS)
APART = tokenizer_lib.train(ACRE, 400, tokenizer_lib.NUMBERS, tuple("0123456789"))


def pieces(tokenizer, text):
  return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
  for tokenizer in (NUMBERS, WORDS, APART):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_specials_have_the_first_ids_and_text_that_spells_them_is_text():
  assert (NUMBERS.pad_id, NUMBERS.bos_id, NUMBERS.eos_id) == (0, 1, 2)
  # Repeated often enough that every pair within the chunk would be merged, up to "<eos>" itself.
  tokenizer = tokenizer_lib.train(["a<eos>b", "<pad><bos>"] * 50, 400, r"\p{N}+")
  for text in ("<eos>", "a<eos>b", "<pad><bos>"):
    ids = tokenizer.encode(text)
    assert min(ids) > 2
    assert tokenizer.decode(ids) == text
  assert tokenizer.decode([1, *tokenizer.encode("a"), 2, 0]) == "a"


def test_numbers_leave_what_lies_between_in_one_piece():
  assert pieces(NUMBERS, "[5, 35] -> 0\n[3] -> ") == list(
    ["[", "5", ", ", "35", "] -> ", "0", "\n[", "3", "] -> "]
  )
  assert NUMBERS.encode("Answer 0")[0] == NUMBERS.encode("Answer ")[0]
  # Words instead: a space, an arrow and a space are three pieces, whatever was learned.
  assert pieces(WORDS, "] -> ") == ["]", " ", "->", " "]


def test_sentences_that_come_back_word_for_word_are_one_piece():
  said = ["A red cube is visible. ", "The light is on.\n"]
  made = tokenizer_lib.train(["".join(said), "[5] -> 0\n"] * 3, 400, tokenizer_lib.SENTENCES)
  assert pieces(made, "".join(said * 2)) == said * 2
  assert pieces(made, "[5] -> 0\n") == ["[", "5", "] -> ", "0", "\n"]


def test_what_stands_apart_is_never_part_of_another_token():
  assert pieces(APART, "[5, 35] -> 0\n[3") == [
    *("[", "5", ", ", "3", "5", "] -> ", "0", "\n[", "3"),
  ]
  # "A red cube" is seen often, "A gray ball" never; "reddish" is not to hide behind "red".
  said = ["A red cube is here. ", "A gray cube is here. ", "A reddish ball is here. "]
  apart = ("red", "gray", "reddish", "cube", "ball")
  made = tokenizer_lib.train(said * 20, 400, tokenizer_lib.SENTENCES, apart)
  assert pieces(made, "A red cube is here. ") == ["A ", "red ", "cube ", "is here. "]
  assert pieces(made, "A gray ball is here. ") == ["A ", "gray ", "ball ", "is here. "]
  assert pieces(made, "A reddish cube is here. ") == ["A ", "reddish ", "cube ", "is here. "]
  made = tokenizer_lib.train(["a.b aab"] * 9, 300, "[^ ]+", ("a.b",))
  assert pieces(made, "a.baab") == ["a.b", "aab"]  # A point is a point.
  with pytest.raises(InputError, match=r"apart = \('a', ''\) holds an empty string; leave it out"):
    tokenizer_lib.train([], 300, tokenizer_lib.WORDS, ("a", ""))


def test_a_symbol_takes_the_marks_behind_it():
  said = ["1. [(", "D, ", "B, ", "F, ", "TL), (", "A, ", "B, ", "F, ", "BR)] \n", "2. "]
  made = tokenizer_lib.train(["".join(said)] * 3, 400, tokenizer_lib.SYMBOLS)
  # Two capitals are none: what they stand in is one piece.
  assert pieces(made, "".join(said * 2)) == said * 2


def test_under_phrases_a_symbol_is_one_token_on_every_surface():
  task = mechanisms.TASKS["default"]
  drawn = [mechanisms.example(task, "iid_train", 0, i) for i in range(400)]
  phrase = "Patterns in the sequence are preceded by a number from"
  texts = [e.prompt + e.answer for e in drawn]
  made = tokenizer_lib.train([*texts, *[f"{phrase} 1 to 8. "] * 50], 700, tokenizer_lib.PHRASES)
  assert pieces(made, f"{phrase} 1") == [phrase, " ", "1"]
  for e, text in zip(drawn, texts, strict=True):
    surface = mechanisms.SURFACES[e.domain]
    symbols = e.answer.split(surface.separator)
    found = pieces(made, text)
    assert [x for x in found if x in surface.alphabet][-len(symbols) :] == symbols
    assert len(made.encode(e.answer)) == 2 * len(symbols) - 1  # And the separators between them.


def test_every_byte_is_there_and_a_smaller_vocabulary_is_refused():
  tokenizer = tokenizer_lib.train([], 259, tokenizer_lib.WORDS)
  assert tokenizer.vocab_size == 259  # 3 specials and 256 bytes: no merge.
  assert len(tokenizer.encode("aé")) == 3
  with pytest.raises(InputError, match="vocab_size = 258 is too small; the least is 259"):
    tokenizer_lib.train([], 258, tokenizer_lib.WORDS)
  with pytest.raises(InputError, match=r"split = '\(' is no regular expression"):
    tokenizer_lib.train([], 300, "(")


def test_training_is_the_same_in_another_process():
  code = (
    f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]}\n"
    "from tokenizer_test import NUMBERS; sys.stdout.buffer.write(NUMBERS.to_json().encode())"
  )
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
  assert out.stdout.decode() == NUMBERS.to_json()


def test_json_round_trip_and_many_at_once():
  again = tokenizer_lib.Tokenizer.from_json(WORDS.to_json())
  assert again == WORDS
  assert again != NUMBERS
  assert hash(again) == hash(WORDS)
  assert WORDS.encode_many(["a", "", "[5]", "a"]) == {
    text: WORDS.encode(text) for text in ("a", "", "[5]")
  }


def test_a_file_of_another_make(tmp_path):
  other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 5, "b": 9}, []))
  other.add_special_tokens(["<s>"])
  path = tmp_path / "tokenizer.json"
  other.save(str(path))
  with pytest.raises(InputError, match=r"tokenizer.json: .*no end-of-sequence token; name one of"):
    tokenizer_lib.load(path)
  other.add_special_tokens(["</s>"])
  other.enable_truncation(1)  # A file may ask for it; text is never shortened in silence.
  other.save(str(path))
  tokenizer = tokenizer_lib.load(path)
  vocabulary = other.get_vocab()
  assert (tokenizer.bos_id, tokenizer.eos_id) == (vocabulary["<s>"], vocabulary["</s>"])
  assert tokenizer.pad_id == tokenizer.eos_id  # None of its own.
  assert tokenizer.vocab_size == 10  # Ids 5 and 9 and two specials: the largest id counts.
  assert tokenizer.encode("ab") == [5, 9]


def ends(special: list[str]) -> tokenizers.Tokenizer:
  """Holds </s> as a word like any other."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1}, []))
  made.add_special_tokens(special)
  return made


def test_a_special_token_comes_before_a_word_that_is_spelt_like_one():
  assert tokenizer_lib.Tokenizer.from_json(ends([]).to_str()).eos_id == 1
  assert tokenizer_lib.Tokenizer.from_json(ends(["<|end_of_text|>"]).to_str()).eos_id == 2


def test_special_tokens_that_are_told_are_kept():
  text = ends(["<|end_of_text|>", "<|bye|>", "<s>"]).to_str()
  read = tokenizer_lib.Tokenizer.from_json
  made = read(text, {"eos": "<|bye|>", "pad": 2, "bos": None})
  assert (made.bos_id, made.eos_id, made.pad_id, made.json) == (None, 3, 2, text)
  assert read(made.to_json()) == made != read(text)
  # What is expected anyway makes no difference.
  assert read(text, {"eos": 2, "pad": "<|end_of_text|>", "bos": "<s>"}) == read(text)
  with pytest.raises(InputError, match=r"no token '<\|by\|>', .* as its eos; did you mean '<\|bye"):
    read(text, {"eos": "<|by|>"})
  with pytest.raises(InputError, match=r"no token -1, which is named as its pad; valid are"):
    read(text, {"pad": -1})


def leading(first: bool, lines: bool = False) -> tokenizer_lib.Tokenizer:
  """As Llama 2 and TinyLlama have it: a text begins with a space, bytes are what is not known."""
  pieces = ["<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "▁", *"abcx:", "ab", "▁ab"]
  pieces += ["\n", "\n\n"] * lines
  ids, merges = {piece: i for i, piece in enumerate(pieces)}, [("a", "b"), ("▁", "ab")]
  merges += [("\n", "\n")] * lines
  made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, byte_fallback=True))
  if first:
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("▁", "first", split=False)
  else:
    replaced = tokenizers.normalizers.Replace(" ", "▁")
    begun = tokenizers.normalizers.Prepend("▁")
    made.normalizer = tokenizers.normalizers.Sequence([begun, replaced])
  d = tokenizers.decoders
  made.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
  made.add_special_tokens(["<s>", "</s>"])
  return tokenizer_lib.Tokenizer.from_json(made.to_str())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("said", ["ab", " ab", "é", "\nab", "b", " "])
def test_what_goes_on_behind_a_text_gets_no_space_of_its_own(first, said):
  made, asked = leading(first), "abc:"
  both = made.encode(asked + said)
  assert [*made.encode(asked), *made.encode(said, behind=True)] == both
  assert made.decode(both) == asked + said
  assert made.decode(made.encode(said, behind=True), behind=True) == said
  # Alone it begins with a space, and one of its own is lost.
  assert made.encode("ab") != made.encode("ab", behind=True)
  assert made.encode("ab") == made.encode(" ab", behind=True)


@pytest.mark.parametrize("first", [False, True])
def test_a_text_that_joins_with_one_mark_is_laid_behind_another(first):
  made = leading(first, lines=True)
  said = made.encode("\nab", behind=True)
  assert made.decode([*made.encode("abc:"), *said]) == "abc:\nab"


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_elsewhere_a_text_is_the_same_behind_another(text):
  for tokenizer in (NUMBERS, WORDS):
    ids = tokenizer.encode(text)
    assert tokenizer.encode(text, behind=True) == ids
    assert tokenizer.decode(ids, behind=True) == text


def test_a_row_spells_prompt_and_answer_without_a_space_between():
  made, example = leading(False), records.Example("ab\nx:", "ab", (), "d", "g", "0")
  given = {"seq_len": 16, "loss": "answer", "too_long": "error"}
  for question in ("none", "last_line"):
    [row] = rows.pack_all([[example]], made, question=question, **given)
    assert made.decode(row.tokens_T[row.segment_T > 0]) == "ab\nx:ab"
    assert row.targets_T[row.loss_mask_T > 0].tolist() == [made.encode("cab")[-1], made.eos_id]


def test_files_that_are_no_tokenizer(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(InputError, match=r"tokenizer.json: this is no tokenizer.json"):
    tokenizer_lib.load(tmp_path / "tokenizer.json")
  (tmp_path / "tokenizer.json").write_bytes(b"\xff")
  with pytest.raises(InputError, match="cannot be read as text"):
    tokenizer_lib.load(tmp_path / "tokenizer.json")
  # What a run keeps, cut short or without a part.
  for broken in (
    '{"named": {"pad": 0}, "json": "{tru',
    '{"named": {}}',
    '{"named": 3, "json": ""}',
    '{"named": {"ends": 3}, "json": ""}',
  ):
    (tmp_path / "tokenizer.json").write_text(broken)
    with pytest.raises(InputError, match="is no tokenizer that a run keeps"):
      tokenizer_lib.load(tmp_path / "tokenizer.json")
  with pytest.raises(InputError, match=r"the nearest there is tokenizer.json"):
    tokenizer_lib.load(tmp_path / "tokeniser.json")
