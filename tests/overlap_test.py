"""Overlap is counted per example, whatever the order of what was shown."""

import dataclasses

from iclm.data import acre, mechanisms, overlap
from iclm.data.acre_world import View, verbalise
from iclm.data.records import Example


def example(prompt):
  return Example(prompt, "0", (), "d", "g", "id")


def test_exact_and_canonical_matches_are_counted_apart():
  views = [View((1, 2), True), View((3,), False)]
  turned = [View((3,), False), View((2, 1), True)]
  (shown,), (again,) = (verbalise("symbolic", v, [(1, 3)]) for v in (views, turned))
  (other,) = verbalise("symbolic", views, [(2, 3)])
  sets = {"a": [example(shown), example(again), example(other)], "b": [example("Hello  World")]}
  found = overlap.measure(iter([example(shown), example("hello world")]), sets)
  assert found == {"a": (1, 2), "b": (0, 1)}


def test_the_same_problem_in_words_and_symbols_is_one():
  views = [View((1, 2), True)]
  (symbols,), (words,) = (verbalise(form, views, [(1,)]) for form in ("symbolic", "text"))
  assert overlap.canonical_form(symbols) == overlap.canonical_form(words)


def test_a_chat_template_hides_no_problem_that_was_trained_on():
  (shown,) = verbalise("symbolic", [View((1, 2), True)], [(1,)])
  asked = dataclasses.replace(example(f"<user>{shown}</user>"), plain=shown)
  assert overlap.measure(iter([example(shown)]), {"a": [asked]}) == {"a": (0, 1)}


def test_true_splits_share_nothing_with_their_training_side():
  take = lambda split, n: [
    e for i in range(n) for e in acre.examples("symbolic", split, 0, i, n_questions=4)
  ]
  for split in ("comp", "sys"):
    shared = overlap.measure(take(f"{split}_train", 400), {"t": take(f"{split}_test", 200)})
    assert shared["t"] == (0, 0)
  for task in mechanisms.TASKS.values():
    take = lambda split, n, task=task: [mechanisms.example(task, split, 0, i) for i in range(n)]
    sets = {split: take(split, 300) for split in mechanisms.splits(task) if split != "iid_train"}
    assert set(overlap.measure(take("iid_train", 5000), sets).values()) == {(0, 0)}


def test_the_digest_names_the_data():
  a, b = example("p"), example("q")
  assert overlap.digest([a, b]) == overlap.digest([a, b]) != overlap.digest([b, a])
