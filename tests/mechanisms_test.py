"""Tests of the mechanisms family: operations by hand, and factors that are crossed as promised."""

import collections
import dataclasses
import hashlib
import itertools
import json
import re

import pytest

from iclm.config import InputError
from iclm.data import mechanisms

EXAMPLES = {
  split: [mechanisms.example(split, 0, i) for i in range(600)] for split in mechanisms.SPLITS
}

# Published figures rest on these examples: 600 of each split, 300 of the quickstart's shift. A hash
# is renewed only with the version of the builder.
GOLDEN = {
  "iid_train": "82f2d13638dd411745b277f1f40ffd872ebb83f636779ae2152624b1f7128525",
  "iid_val": "894c4c49ac6217ec2a0ece1ff089aff32f4f3fa0c493e513299af4f2810deced",
  "iid_test": "58056cb565a8d59bf557fbaff744e0372bdecc83097546d5ff97c95d16347cb4",
  "unseen_pairs": "43bfde9f42e163b119bdd4475df48ee3122488b3b25eec30360b0ca5a75cac1c",
  "shift": "14fe9ca1d814389b3fa610844bf4ae36e5aff12208ddc71406d7d53a72d81062",
}


def test_the_published_examples_stay_as_they_are():
  shifted = mechanisms.shift("digits", "reverse", "rotate", "train", 0, 300)
  for name, examples in (EXAMPLES | {"shift": shifted}).items():
    lines = "".join(json.dumps(dataclasses.asdict(e)) + "\n" for e in examples)
    assert hashlib.sha256(lines.encode()).hexdigest() == GOLDEN[name], name


def operation_of(example) -> str:
  return example.group.split("/")[1]


def sequence_of(example) -> tuple[int, ...]:
  """The ranks of the prompt's sequence, found without the generator's own words."""
  alphabet, separator, phrasing = mechanisms.SURFACES[example.domain]
  before, after = phrasing.format(operation=operation_of(example), sequence="|").split("|")
  shown = example.prompt.removeprefix(before).removesuffix(after)
  return tuple(alphabet.index(symbol) for symbol in shown.split(separator))


@pytest.mark.parametrize(
  ("operation", "expected"),
  [
    ("reverse", (9, 0, 7, 3)),
    ("rotate", (7, 0, 9, 3)),  # One to the left: the first goes last.
    ("swap", (9, 7, 0, 3)),  # The ends change places.
    ("sort", (0, 3, 7, 9)),
    ("successor", (4, 8, 1, 0)),  # 3+1, 7+1, 0+1, and 9 is followed by the first.
    ("opposite", (6, 2, 9, 0)),  # 9-3, 9-7, 9-0, 9-9.
  ],
)
def test_operations_by_hand(operation, expected):
  assert mechanisms.apply(operation, (3, 7, 0, 9)) == expected


def test_an_operation_is_of_places_iff_it_commutes_with_renaming():
  sequence, renamed = (3, 7, 0, 9, 5), [4, 0, 8, 6, 1, 9, 3, 2, 5, 7]
  for operation in mechanisms.OPERATIONS:
    first = mechanisms.apply(operation, [renamed[i] for i in sequence])
    last = tuple(renamed[i] for i in mechanisms.apply(operation, sequence))
    assert (first == last) == (mechanisms.kind_of(operation) == "position")


@pytest.mark.parametrize(
  ("surface", "prompt", "answer"),
  [
    ("lower", "Apply reverse to (a.b.c.d):", "d.c.b.a"),
    ("upper", "[K-L-M-N] under reverse is:", "N-M-L-K"),
    ("digits", "From 0,1,2,3 do reverse:", "3,2,1,0"),
    ("words", "Given <ant/bee/cat/dog>, find its reverse:", "dog/cat/bee/ant"),
    ("signs", "Using reverse, turn ! # $ % into ", "% $ # !"),
  ],
)
def test_surfaces_by_hand(surface, prompt, answer):
  alphabet, separator, phrasing = mechanisms.SURFACES[surface]
  assert phrasing.format(operation="reverse", sequence=separator.join(alphabet[:4])) == prompt
  assert separator.join(alphabet[i] for i in mechanisms.apply("reverse", range(4))) == answer


def test_examples_say_what_the_operation_makes_of_their_sequence():
  for example in itertools.chain(*EXAMPLES.values()):
    alphabet, separator, _ = mechanisms.SURFACES[example.domain]
    answer = tuple(alphabet.index(symbol) for symbol in example.answer.split(separator))
    assert answer == mechanisms.apply(operation_of(example), sequence_of(example))
    assert example.group == f"{mechanisms.kind_of(operation_of(example))}/{operation_of(example)}"
    assert operation_of(example) in example.prompt
    assert example.choices == ()
  ids = [example.id for example in itertools.chain(*EXAMPLES.values())]
  assert len(set(ids)) == len(ids)


def test_surfaces_share_operation_words_only():
  alphabets = [set(surface.alphabet) for surface in mechanisms.SURFACES.values()]
  assert all(len(alphabet) == mechanisms.SIZE for alphabet in alphabets)
  assert len(set.union(*alphabets)) == 5 * mechanisms.SIZE
  assert len({surface.separator for surface in mechanisms.SURFACES.values()}) == 5
  words = [set(re.findall(r"\w+|[^\w\s]", s.phrasing)) for s in mechanisms.SURFACES.values()]
  for alphabet, phrasing in itertools.product(alphabets, words):
    assert alphabet.isdisjoint(phrasing)
  for one, other in itertools.combinations(words, 2):
    assert {word for word in one & other if word.isalpha()} == {"operation", "sequence"}


def test_every_symbol_is_a_piece_of_its_own():
  # Words with the space before them, numbers, white space, runs of the rest: the usual splits.
  pieces = re.compile(r" ?[A-Za-z]+|\d+|\s+|[^\sA-Za-z\d]+")
  for example in itertools.chain(*EXAMPLES.values()):
    alphabet = mechanisms.SURFACES[example.domain].alphabet
    found = [p for p in pieces.findall(example.prompt) if p in alphabet]
    assert found == [alphabet[i] for i in sequence_of(example)]
    found = [p for p in pieces.findall(example.answer) if p in alphabet]
    assert len(found) == len(sequence_of(example))


def test_held_out_pairs_are_crossed():
  trained, held_out = set(mechanisms.TRAINED), set(mechanisms.HELD_OUT)
  assert (len(trained), len(held_out)) == (20, 10)
  assert trained | held_out == set(itertools.product(mechanisms.SURFACES, mechanisms.OPERATIONS))
  kinds = collections.Counter((s, mechanisms.kind_of(o)) for s, o in held_out)
  assert set(kinds.values()) == {1}  # Each surface keeps back one of each kind.
  assert len(kinds) == 10
  per_operation = collections.Counter(o for _, o in trained)
  # By the rule: 0, 1, 2, 0, 1 and 1, 2, 0, 1, 2 are kept back by the five surfaces.
  kept_back = {"reverse": 2, "rotate": 2, "swap": 1, "sort": 1, "successor": 2, "opposite": 2}
  assert per_operation == {operation: 5 - n for operation, n in kept_back.items()}


@pytest.mark.parametrize("split", mechanisms.SPLITS)
def test_pairs_of_a_split_take_turns(split):
  pairs = collections.Counter((e.domain, operation_of(e)) for e in EXAMPLES[split])
  expected = mechanisms.HELD_OUT if split == "unseen_pairs" else mechanisms.TRAINED
  assert pairs == dict.fromkeys(expected, 600 // len(expected))


def test_parts_share_no_sequence_on_any_surface():
  shown = {split: {sequence_of(e) for e in examples} for split, examples in EXAMPLES.items()}
  for one, other in itertools.combinations(("iid_train", "iid_val", "iid_test"), 2):
    assert shown[one].isdisjoint(shown[other])
  assert shown["unseen_pairs"].isdisjoint(shown["iid_train"] | shown["iid_val"])
  lengths = {len(sequence) for sequence in shown["iid_train"]}
  assert lengths == set(mechanisms.LENGTHS)
  # Of the 5,040 sequences of length four, 8 in 10 train: within four standard deviations.
  parts = collections.Counter(map(mechanisms.part_of, itertools.permutations(range(10), 4)))
  assert abs(parts["train"] - 4032) < 4 * 28.4  # sqrt(5040 * 0.8 * 0.2) = 28.4.
  assert abs(parts["val"] - 504) < 4 * 21.3  # sqrt(5040 * 0.1 * 0.9) = 21.3.


def test_always_saying_the_same_scores_nothing():
  for examples in EXAMPLES.values():
    most = collections.Counter(e.answer for e in examples).most_common(1)[0][1]
    assert most / len(examples) < 0.02
    copied = sum(e.answer in e.prompt for e in examples)
    assert copied / len(examples) < 0.02  # A sorted sequence, now and then.


def test_examples_depend_on_split_seed_and_index_alone():
  assert [mechanisms.example("iid_val", 0, i) for i in (5, 2)] == [
    EXAMPLES["iid_val"][5],
    EXAMPLES["iid_val"][2],
  ]
  assert mechanisms.example("iid_val", 1, 5) != EXAMPLES["iid_val"][5]


def test_a_shift_changes_the_meaning_of_one_word_on_one_surface():
  shifted = mechanisms.shift("upper", "reverse", "rotate", "test", 0, 50)
  assert len({e.id for e in shifted}) == 50
  for e in shifted:
    alphabet, separator, _ = mechanisms.SURFACES["upper"]
    answer = tuple(alphabet.index(symbol) for symbol in e.answer.split(separator))
    assert (e.domain, e.group) == ("upper", "position/reverse")
    assert "under reverse is" in e.prompt
    assert answer == mechanisms.apply("rotate", sequence_of(e))
    assert mechanisms.part_of(sequence_of(e)) == "test"
  assert mechanisms.shift("upper", "reverse", "rotate", "test", 0, 50) == shifted


@pytest.mark.parametrize(
  ("arguments", "hint"),
  [
    (("uper", "reverse", "rotate", "train"), "'upper'"),
    (("upper", "revers", "rotate", "train"), "'reverse'"),
    (("upper", "reverse", "sorted", "train"), "'sort'"),
    (("upper", "reverse", "rotate", "tests"), "'test'"),
    (("upper", "reverse", "reverse", "train"), "another operation"),
  ],
)
def test_a_shift_of_what_is_not_there_is_told(arguments, hint):
  with pytest.raises(InputError, match=hint):
    mechanisms.shift(*arguments, 0, 1)
