"""Tests of the mechanisms family: operations and surfaces by hand, a solver, what was published."""

import hashlib
import itertools
import json
import re

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from iclm.config import InputError
from iclm.data import mechanisms, tokenizer

DEFAULT, FULL, HARD = (mechanisms.TASKS[name] for name in ("default", "full", "hard"))

# Published figures rest on these examples: 600 of each split, 300 of the quickstart's shift. A hash
# is renewed only with the version of the builder.
GOLDEN = {
  "iid_train": "82f2d13638dd411745b277f1f40ffd872ebb83f636779ae2152624b1f7128525",
  "iid_val": "894c4c49ac6217ec2a0ece1ff089aff32f4f3fa0c493e513299af4f2810deced",
  "iid_test": "58056cb565a8d59bf557fbaff744e0372bdecc83097546d5ff97c95d16347cb4",
  "unseen_pairs": "43bfde9f42e163b119bdd4475df48ee3122488b3b25eec30360b0ca5a75cac1c",
  "shift": "14fe9ca1d814389b3fa610844bf4ae36e5aff12208ddc71406d7d53a72d81062",
}

# What operations make of the ranks 3 7 0 9 of ten.
BY_HAND = {
  "reverse": (9, 0, 7, 3),
  "rotate": (7, 0, 9, 3),  # One to the left: the first goes last.
  "swap": (9, 7, 0, 3),  # The ends change places.
  "weave": (3, 9, 7, 0),  # First, last, second, last but one.
  "sort": (0, 3, 7, 9),
  "successor": (4, 8, 1, 0),  # 3+1, 7+1, 0+1, and 9 is followed by the first.
  "opposite": (6, 2, 9, 0),  # 9-3, 9-7, 9-0, 9-9.
  "antipode": (8, 2, 5, 4),  # 3+5, 7+5-10, 0+5, 9+5-10.
  "sort then reverse": (9, 7, 3, 0),  # Of 0 3 7 9.
  "rotate then successor": (8, 1, 0, 4),  # Of 7 0 9 3.
  "successor then sort": (0, 1, 4, 8),  # Of 4 8 1 0.
  "opposite then swap": (0, 2, 9, 6),  # Of 6 2 9 0.
}
# The prompts on those ranks, and their answers in the order above.
WRITTEN = {
  "lower": (
    "Apply {} to (d.h.a.j):",
    "j.a.h.d|h.a.j.d|j.h.a.d|d.j.h.a|a.d.h.j|e.i.b.a|g.c.j.a|i.c.f.e"
    "|j.h.d.a|i.b.a.e|a.b.e.i|a.c.j.g",
  ),
  "upper": (
    "[N-R-K-T] under {} is:",
    "T-K-R-N|R-K-T-N|T-R-K-N|N-T-R-K|K-N-R-T|O-S-L-K|Q-M-T-K|S-M-P-O"
    "|T-R-N-K|S-L-K-O|K-L-O-S|K-M-T-Q",
  ),
  "digits": (
    "From 3,7,0,9 do {}:",
    "9,0,7,3|7,0,9,3|9,7,0,3|3,9,7,0|0,3,7,9|4,8,1,0|6,2,9,0|8,2,5,4"
    "|9,7,3,0|8,1,0,4|0,1,4,8|0,2,9,6",
  ),
  "words": (
    "Given <dog/hen/ant/jay>, find its {}:",
    "jay/ant/hen/dog|hen/ant/jay/dog|jay/hen/ant/dog|dog/jay/hen/ant|ant/dog/hen/jay"
    "|elk/ibis/bee/ant|gnu/cat/jay/ant|ibis/cat/fox/elk"
    "|jay/hen/dog/ant|ibis/bee/ant/elk|ant/bee/elk/ibis|ant/cat/jay/gnu",
  ),
  "signs": (
    "Using {}, turn % = ! @ into ",
    "@ ! = %|= ! @ %|@ = ! %|% @ = !|! % = @|& ? # !|+ $ @ !|? $ * &"
    "|@ = % !|? # ! &|! # & ?|! $ @ +",
  ),
  "greek": (
    'Let {} act on "δ;θ;α;κ":',
    "κ;α;θ;δ|θ;α;κ;δ|κ;θ;α;δ|δ;κ;θ;α|α;δ;θ;κ|ε;ι;β;α|η;γ;κ;α|ι;γ;ζ;ε"
    "|κ;θ;δ;α|ι;β;α;ε|α;β;ε;ι|α;γ;κ;η",
  ),
  "cyrillic": (
    "Make {} of {{г+з+а+к}}:",
    "к+а+з+г|з+а+к+г|к+з+а+г|г+к+з+а|а+г+з+к|д+и+б+а|ж+в+к+а|и+в+е+д"
    "|к+з+г+а|и+б+а+д|а+б+д+и|а+в+к+ж",
  ),
  "blend": (
    "Given [d-h-a-j] do {}:",
    "j-a-h-d|h-a-j-d|j-h-a-d|d-j-h-a|a-d-h-j|e-i-b-a|g-c-j-a|i-c-f-e"
    "|j-h-d-a|i-b-a-e|a-b-e-i|a-c-j-g",
  ),
}


def examples(task, split: str, n: int) -> list:
  return [mechanisms.example(task, split, 0, i) for i in range(n)]


def test_the_published_examples_stay_as_they_are():
  found = {split: examples(DEFAULT, split, 600) for split in mechanisms.splits(DEFAULT)}
  found["shift"] = mechanisms.shift(DEFAULT, "digits", "reverse", "rotate", "train", 0, 300)
  for name in GOLDEN.keys() | found:
    lines = "".join(json.dumps(e.record) + "\n" for e in found[name])
    assert hashlib.sha256(lines.encode()).hexdigest() == GOLDEN[name], name


def test_operations_by_hand():
  for words, expected in BY_HAND.items():
    assert mechanisms.apply(words.split(" then "), (3, 7, 0, 9), 10) == expected
  assert {word for words in BY_HAND for word in words.split(" then ")} == {*mechanisms.OPERATIONS}
  # In an alphabet of eight: 7 is followed by the first; 7-3, 7-7, 7-0; 3+4, 7+4-8, 0+4.
  assert mechanisms.apply(["successor"], (3, 7, 0), 8) == (4, 0, 1)
  assert mechanisms.apply(["opposite"], (3, 7, 0), 8) == (4, 0, 7)
  assert mechanisms.apply(["antipode"], (3, 7, 0), 8) == (7, 3, 4)
  # Five places: first, last, second, fourth, third.
  assert mechanisms.apply(["weave"], (5, 6, 7, 8, 9), 10) == (5, 9, 6, 8, 7)


@pytest.mark.parametrize("surface", mechanisms.SURFACES)
def test_surfaces_by_hand(surface):
  alphabet, separator, phrasing, _ = mechanisms.SURFACES[surface]
  prompt, answers = WRITTEN[surface]
  write = lambda ranks: separator.join(alphabet[i] for i in ranks)
  for (words, ranks), answer in zip(BY_HAND.items(), answers.split("|"), strict=True):
    assert phrasing.format(operation=words, sequence=write((3, 7, 0, 9))) == prompt.format(words)
    assert write(ranks) == answer
    assert mechanisms.solve(prompt.format(words), 10, {}) == answer


def test_an_operation_is_of_places_iff_it_commutes_with_renaming():
  sequence, renamed = (3, 7, 0, 9, 5), [4, 0, 8, 6, 1, 9, 3, 2, 5, 7]
  for operation in mechanisms.OPERATIONS:
    first = mechanisms.apply([operation], [renamed[i] for i in sequence], 10)
    last = tuple(renamed[i] for i in mechanisms.apply([operation], sequence, 10))
    assert (first == last) == (mechanisms.kind_of(operation) == "position")


@pytest.mark.parametrize("name", mechanisms.TASKS)
def test_the_solver_agrees_with_every_split(name):
  task = mechanisms.TASKS[name]
  for split in mechanisms.splits(task):
    shifted = {task.shift.operation: task.shift.becomes} if split == "shifted" else {}
    for e in examples(task, split, 500):
      assert mechanisms.solve(e.prompt, task.size, shifted) == e.answer, e


def test_the_solver_tells_what_is_no_prompt():
  for text in ("Apply reverse to it", "Apply nothing to (a.b.c.d):", ""):
    with pytest.raises(ValueError, match="no prompt"):
      mechanisms.solve(text, 10, {})


def test_surfaces_share_operation_words_only():
  surfaces = [surface for name, surface in mechanisms.SURFACES.items() if name != "blend"]
  alphabets = [set(surface.alphabet) for surface in surfaces]
  assert {len(alphabet) for alphabet in alphabets} == {HARD.size}
  assert len(set.union(*alphabets)) == len(surfaces) * HARD.size
  assert len({surface.separator for surface in surfaces}) == len(surfaces)
  words = [set(re.findall(r"\w+|[^\w\s]", s.phrasing)) - {"{", "}"} for s in surfaces]
  for alphabet, phrasing in itertools.product(alphabets, words):
    assert alphabet.isdisjoint(phrasing)
  for one, other in itertools.combinations(words, 2):
    assert {word for word in one & other if word.isalpha()} == {"operation", "sequence"}


def pieces(text: str) -> list[str]:
  """The parts that the tokenizer of words never merges across."""
  split = pre_tokenizers.Split(tokenizers.Regex(tokenizer.WORDS), "isolated")
  return [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", mechanisms.TASKS)
def test_every_symbol_is_a_token_of_its_own(name):
  task = mechanisms.TASKS[name]
  trained = examples(task, "iid_train", 1_000)
  tok = tokenizer.train((t for e in trained for t in (e.prompt, e.answer)), 1024, tokenizer.WORDS)
  for split in mechanisms.splits(task):
    for e in examples(task, split, 100):
      alphabet, separator, *_ = mechanisms.surface_of(task, e.domain)
      symbols = e.answer.split(separator)
      shown = [piece for piece in pieces(e.prompt) if piece in alphabet]
      assert len(shown) == len(symbols)
      assert separator.join(shown) in e.prompt
      tokens = [tok.decode([i]) for i in tok.encode(e.answer)]
      assert tokens[::2] == symbols
      assert [tok.decode([i]) for i in tok.encode(separator.join(shown))][::2] == shown


@pytest.mark.parametrize("name", ["easy", "full", "hard"])
def test_the_new_surface_is_made_of_known_pieces(name):
  def shown(split: str, n: int) -> set[str]:
    found = examples(mechanisms.TASKS[name], split, n)
    return {piece for e in found for text in (e.prompt, e.answer) for piece in pieces(text)}

  assert shown("new_surface", 200) <= shown("iid_train", 1_000)


def test_a_plain_task_differs_in_alphabets_alone():
  found = examples(mechanisms.TASKS["plain"], "iid_train", 300)
  assert len({e.domain for e in found}) == 6
  for e in found:
    alphabet = mechanisms.SURFACES[e.domain].alphabet[:8]
    words = e.group.split("/")[1].replace("+", " then ")
    symbols = re.fullmatch(re.escape(words) + r"\((.*)\):", e.prompt)
    assert symbols and {*symbols[1].split(","), *e.answer.split(",")} <= {*alphabet}
    assert mechanisms.paraphrase(e.prompt) == f"({symbols[1]}){words}:"


def test_a_shift_changes_the_meaning_of_one_word_on_one_surface():
  shifted = mechanisms.shift(FULL, "upper", "reverse", "rotate", "test", 0, 50)
  assert len({e.id for e in shifted}) == 50
  for e in shifted:
    assert (e.domain, e.group) == ("upper", "position/reverse")
    assert "under reverse is" in e.prompt
    assert e.answer == mechanisms.solve(e.prompt.replace("reverse", "rotate"), 10, {})
    shown = re.findall("[K-T]", e.prompt)
    assert mechanisms.part_of(["KLMNOPQRST".index(symbol) for symbol in shown]) == "test"
  assert mechanisms.shift(FULL, "upper", "reverse", "rotate", "test", 0, 50) == shifted


def test_what_a_shift_leaves_as_it_was_is_no_example_of_it():
  for operation, becomes in (("rotate", "sort"), ("sort", "reverse"), ("opposite", "reverse")):
    task = mechanisms.TASKS["easy"]
    for e in mechanisms.shift(task, "digits", operation, becomes, "test", 0, 200):
      assert e.answer != mechanisms.solve(e.prompt, task.size, {})


def test_every_surface_has_a_paraphrase_in_a_layout_of_its_own():
  surfaces = tuple(name for name in mechanisms.SURFACES if name != "blend")
  for name in surfaces:
    task = DEFAULT._replace(surfaces=(name, *[s for s in surfaces if s != name][:4]))
    examples = (mechanisms.example(task, "iid_test", 0, i) for i in range(100))
    mine = [e for e in examples if e.domain == name]
    for e in mine[:3]:
      other = mechanisms.paraphrase(e.prompt)
      assert other not in (None, e.prompt) and mechanisms.solve(other, 10, {}) == e.answer
    assert mine


@pytest.mark.parametrize(
  ("arguments", "hint"),
  [
    (("uper", "reverse", "rotate", "train"), "'upper'"),
    (("greek", "reverse", "rotate", "train"), "valid are digits, lower"),
    (("upper", "revers", "rotate", "train"), "'reverse'"),
    (("upper", "reverse", "sorted", "train"), "'sort'"),
    (("upper", "reverse", "rotate", "tests"), "'test'"),
    (("upper", "reverse", "reverse", "train"), "another operation"),
  ],
)
def test_a_shift_of_what_is_not_there_is_told(arguments, hint):
  with pytest.raises(InputError, match=hint):
    mechanisms.shift(DEFAULT, *arguments, 0, 1)


@pytest.mark.parametrize(
  ("changes", "hint"),
  [
    ({"surfaces": ("lower", "uper")}, "'upper'"),
    ({"operations": ("revers", "sort")}, "'reverse'"),
    ({"new_surface": "blnd"}, "'blend'"),
    ({"new_surface": "greek"}, "is trained"),
    ({"size": 17}, "16 symbols"),
    ({"lengths": (3, 4)}, r"4\.\.10"),
    ({"longer": (11,)}, r"4\.\.10"),
    ({"surfaces": ("digits",)}, "trained on no surface"),
    ({"operations": ("reverse", "rotate", "sort")}, "'sort' is trained on no surface"),
    ({"shift": mechanisms.Shift("digits", "reverse", "reverse")}, "another operation"),
    ({"shift": mechanisms.Shift("digit", "reverse", "sort")}, "'digits'"),
  ],
)
def test_a_task_that_cannot_be_is_told(changes, hint):
  with pytest.raises(InputError, match=hint):
    mechanisms.splits(FULL._replace(**changes))


def test_an_unknown_split_is_told():
  with pytest.raises(InputError, match="'unseen_pairs'"):
    mechanisms.example(DEFAULT, "unseen_pair", 0, 0)


@pytest.mark.parametrize("task", [DEFAULT, FULL, HARD])
def test_a_paraphrase_asks_for_the_same_in_the_words_of_its_surface(task):
  for split in mechanisms.splits(task):
    for i in range(60):
      e = mechanisms.example(task, split, 0, i)
      other = mechanisms.paraphrase(e.prompt)
      assert other is not None and other != e.prompt
      shifted = {"reverse": "rotate"} if split == "shifted" else {}
      assert mechanisms.solve(other, task.size, shifted) == e.answer
      words = lambda text: sorted(re.findall(r"\w+", text))
      assert words(other) == words(e.prompt)
      assert mechanisms.paraphrase(other) is None


@pytest.mark.parametrize(
  "prompt", ["", "From 1,2 do it:", "From 1,2 do reverse: ", "From 1.2 do reverse:", "Apply sort"]
)
def test_what_is_no_prompt_of_the_task_has_no_paraphrase(prompt):
  assert mechanisms.paraphrase(prompt) is None
