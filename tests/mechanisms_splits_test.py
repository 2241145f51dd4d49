"""Tests of the splits of the mechanisms tasks: what is crossed, what is held out, what is drawn."""

import collections
import functools
import itertools
import random

import numpy as np
import pytest
from scipy import stats

from iclm.data import mechanisms

TASKS = mechanisms.TASKS
COMPOSED = ("plain", "easy", "full", "hard")
SPLITS = [(name, split) for name, task in TASKS.items() for split in mechanisms.splits(task)]


@functools.cache
def examples(name: str, split: str, n: int = 1_200) -> list:
  return [mechanisms.example(TASKS[name], split, 0, i) for i in range(n)]


def words_of(example) -> tuple[str, ...]:
  return tuple(example.group.split("/")[1].split("+"))


def sequence_of(task, example) -> tuple[int, ...]:
  """The ranks of the prompt's sequence."""
  alphabet, separator, phrasing, _ = mechanisms.surface_of(task, example.domain)
  gap = phrasing.format(operation=" then ".join(words_of(example)), sequence="\0")
  before, after = gap.split("\0")
  shown = example.prompt.removeprefix(before).removesuffix(after)
  return tuple(alphabet.index(symbol) for symbol in shown.split(separator))


def asked(name: str, split: str) -> set[tuple[str, tuple[str, ...]]]:
  """Surfaces and operations of a split, of the examples themselves."""
  return {(e.domain, words_of(e)) for e in examples(name, split)}


def test_the_quickstart_holds_out_pairs_as_published():
  trained, held_out = map(set, mechanisms.pairs(TASKS["default"]))
  assert (len(trained), len(held_out)) == (20, 10)
  kinds = collections.Counter((s, mechanisms.kind_of(o)) for s, o in held_out)
  assert set(kinds.values()) == {1}  # Each surface keeps back one of each kind.
  assert len(kinds) == 10
  per_operation = collections.Counter(o for _, o in trained)
  # By the rule: 0, 1, 2, 0, 1 and 1, 2, 0, 1, 2 are kept back by the five surfaces.
  kept_back = {"reverse": 2, "rotate": 2, "swap": 1, "sort": 1, "successor": 2, "opposite": 2}
  assert per_operation == {operation: 5 - n for operation, n in kept_back.items()}


@pytest.mark.parametrize("name", TASKS)
def test_held_out_pairs_are_crossed(name):
  task = TASKS[name]
  trained, held_out = map(set, mechanisms.pairs(task))
  assert trained.isdisjoint(held_out)
  assert trained | held_out == set(itertools.product(task.surfaces, task.operations))
  for surface in task.surfaces:
    kinds = collections.Counter(mechanisms.kind_of(o) for s, o in trained if s == surface)
    assert min(kinds["position"], kinds["alphabet"]) >= 2
  per_operation = collections.Counter(o for _, o in trained)
  assert min(per_operation[o] for o in task.operations) >= 3
  # In no split but their own is a held-out pair asked for, not even within a composition.
  for split in mechanisms.splits(task).keys() - {"unseen_pairs"}:
    pairs = {(surface, word) for surface, words in asked(name, split) for word in words}
    assert pairs.isdisjoint(held_out)
  assert {(s, words[0]) for s, words in asked(name, "unseen_pairs")} == held_out


@pytest.mark.parametrize("name", COMPOSED)
def test_held_out_compositions_are_new_but_for_their_parts(name):
  trained, unseen = asked(name, "iid_train"), asked(name, "unseen_compositions")
  composed = {words for _, words in trained if len(words) == 2}
  held_out = {words for _, words in unseen}
  assert {frozenset(words) for words in composed}.isdisjoint(map(frozenset, held_out))
  assert (composed, held_out) == tuple(map(set, mechanisms.compositions(TASKS[name])))
  for surface, words in unseen:
    assert len(words) == 2
    for word in words:
      assert (surface, (word,)) in trained
  for word in TASKS[name].operations:
    assert sum(word in words for words in composed) >= 4
    assert sum(word in words for words in held_out) >= 1


@pytest.mark.parametrize("name", COMPOSED)
def test_no_composition_is_another_operation_in_disguise(name):
  task = TASKS[name]
  trained, held_out = mechanisms.compositions(task)

  @functools.cache
  def behaviour(words: tuple[str, ...], length: int) -> tuple[str, ...]:
    """By the solver, since the generator's own comparison is what is tested."""
    rng = random.Random(7)
    probes = (rng.sample(range(task.size), length) for _ in range(12))
    shown = (",".join(map(str, probe)) for probe in probes)
    return tuple(mechanisms.solve(f"{s} {' then '.join(words)}", task.size, {}) for s in shown)

  single = [(operation,) for operation in task.operations]
  for length in (*task.lengths, *task.longer):
    of = lambda those, length=length: {behaviour(words, length) for words in those}
    assert len(of(single)) == len(single)
    assert of(trained).isdisjoint(of(held_out))
    assert of(trained + held_out).isdisjoint(of(single))
    # To reverse twice and then to sort is to sort; to do nothing, it takes what is left out.
    assert behaviour(("reverse", "reverse", "sort"), length) not in of(trained + held_out)
    left_out = {*itertools.product(task.operations, repeat=2)} - {*trained, *held_out}
    nothing = behaviour(("reverse", "reverse"), length)
    assert of(left_out) <= of(single) | {nothing}
    assert nothing not in of(trained + held_out)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_examples_are_what_their_split_says(name, split):
  task = TASKS[name]
  found = examples(name, split)
  assert len({e.id for e in found}) == len(found)
  part = split.removeprefix("iid_") if split.startswith("iid_") else "test"
  lengths = task.longer if split == "longer" else task.lengths
  for e in found:
    words, sequence = words_of(e), sequence_of(task, e)
    kind = mechanisms.kind_of(words[0]) if len(words) == 1 else "compose"
    assert e.group == f"{kind}/{'+'.join(words)}"
    assert " then ".join(words) in e.prompt
    assert e.choices == ()
    assert mechanisms.part_of(sequence) == part
    assert len(set(sequence)) == len(sequence)
  assert {len(sequence_of(task, e)) for e in found} == set(lengths)


@pytest.mark.parametrize("name", COMPOSED)
def test_each_split_differs_in_one_thing(name):
  task = TASKS[name]
  iid = asked(name, "iid_train")
  assert asked(name, "iid_val") == asked(name, "iid_test") == asked(name, "longer") == iid
  assert min(task.longer) > max(task.lengths)
  assert {surface for surface, _ in iid} == set(task.surfaces)
  if task.new_surface:
    expected = {(task.new_surface, words) for _, words in iid}
    assert asked(name, "new_surface") == expected
  ((surface, words),) = asked(name, "shifted")
  assert (surface, words) in iid
  for e in examples(name, "shifted"):
    renamed = e.prompt.replace(words[0], task.shift.becomes)
    assert e.answer == mechanisms.solve(renamed, task.size, {})
    assert e.answer != mechanisms.solve(e.prompt, task.size, {})


def test_sequences_take_part_eight_to_one_to_one():
  # Of the 5,040 sequences of length four, 8 in 10 train: within four standard deviations.
  parts = collections.Counter(map(mechanisms.part_of, itertools.permutations(range(10), 4)))
  assert abs(parts["train"] - 4032) < 4 * 28.4  # sqrt(5040 * 0.8 * 0.2) = 28.4.
  assert abs(parts["val"] - 504) < 4 * 21.3  # sqrt(5040 * 0.1 * 0.9) = 21.3.
  # Of any length that a task draws, some tenth of 2,000 sequences tests.
  rng = random.Random(0)
  for length in range(4, 13):
    drawn = (mechanisms.part_of(rng.sample(range(16), length)) for _ in range(2_000))
    assert abs(sum(part == "test" for part in drawn) - 200) < 4 * 13.4  # sqrt(2000 * 0.1 * 0.9).


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_cases_take_turns(name, split):
  n_cases = len(mechanisms.splits(TASKS[name])[split].cases)
  n = 10 * n_cases
  counts = collections.Counter((e.domain, words_of(e)) for e in examples(name, split, n))
  assert counts == dict.fromkeys(asked(name, split), 10)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_drawn_is_even_and_independent_of_the_case(name):
  # Few beside the sequences there are: which of them train is itself a draw, by the hash.
  task, found = TASKS[name], examples(name, "iid_train", 2_000)
  tables = {"surface": collections.Counter(), "operation": collections.Counter()}
  places = {length: np.zeros((length, task.size)) for length in task.lengths}
  for e in found:
    sequence = sequence_of(task, e)
    tables["surface"][e.domain, len(sequence)] += 1
    tables["operation"][e.group, len(sequence)] += 1
    places[len(sequence)][range(len(sequence)), sequence] += 1
  if len(task.lengths) > 1:
    lengths = [int(count.sum()) // length for length, count in places.items()]
    assert stats.chisquare(lengths).pvalue > 1e-3
    for table in tables.values():
      rows = sorted({row for row, _ in table})
      observed = np.array([[table[row, length] for length in task.lengths] for row in rows])
      assert stats.chi2_contingency(observed).pvalue > 1e-3
  for counts in places.values():
    for place in counts:
      assert stats.chisquare(place).pvalue > 1e-3


def test_every_sequence_of_a_part_is_equally_likely():
  every = (s for s in itertools.permutations(range(8), 4) if mechanisms.part_of(s) == "train")
  counts = collections.Counter(dict.fromkeys(every, 0))
  n_sequences = len(counts)
  found = examples("easy", "iid_train", 10 * n_sequences)
  counts.update(sequence_of(TASKS["easy"], e) for e in found)
  assert len(counts) == n_sequences
  assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_there_is_no_short_cut(name, split):
  task, found = TASKS[name], examples(name, split)
  most = collections.Counter(e.answer for e in found).most_common(1)[0][1]
  assert most / len(found) < 0.03  # Always saying the same.
  assert sum(e.answer in e.prompt for e in found) / len(found) < 0.03  # A sorted one, now and then.
  composed = [e for e in found if e.group.startswith("compose/")]
  for i in (0, 1):  # Doing one of two operations only.
    half = (e.prompt.replace(" then ".join(words_of(e)), words_of(e)[i]) for e in composed)
    right = sum(
      mechanisms.solve(prompt, task.size, {}) == e.answer
      for prompt, e in zip(half, composed, strict=True)
    )
    assert right <= 0.03 * len(composed)


@pytest.mark.parametrize("name", TASKS)
def test_examples_depend_on_task_split_seed_and_index_alone(name):
  task = TASKS[name]
  again = [mechanisms.example(task, "iid_val", 0, i) for i in (5, 2)]
  assert again == [examples(name, "iid_val")[i] for i in (5, 2)]
  assert mechanisms.example(task, "iid_val", 1, 5) != again[0]
  prompts = {split: [e.prompt for e in examples(name, split)] for split in mechanisms.splits(task)}
  for one, other in itertools.combinations(prompts, 2):
    assert prompts[one] != prompts[other]
