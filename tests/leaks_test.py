"""The check for leaks: what its model reads, and that it measures from end to end."""

import collections
import json
import types

import pytest

from experiments import leaks
from iclm.data import raven
from iclm.data.raven import world


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_a_sheet_is_the_eight_answers_and_nothing_of_the_context(configuration):
  for i, found in enumerate(leaks.records(configuration, "published", "iid_test", 0, 20)):
    whole = raven.example(configuration, "symbolic", "published", "iid_test", 0, i)
    right = raven.example(configuration, "symbolic", "open", "iid_test", 0, i)
    read = raven.parse(whole.prompt)
    choices = [world.verbalise_panel("symbolic", panel) for panel in read.answers]
    lines = zip("ABCDEFGH", choices, strict=True)
    assert found["prompt"] == "".join(f"{a}. {text}\n" for a, text in lines) + "Right: "
    assert found["choices"] == choices and found["answer"] == right.answer


@pytest.mark.parametrize(("task", "share"), [("published", 1.0), ("balanced", 0.0)])
def test_frequent_values_tell_the_published_answer_only(task, share):
  """In center_single: a published answer's every value is its attribute's most frequent one."""
  tells = []
  for found in leaks.records("center_single", task, "iid_test", 0, 50):
    columns = zip(*found["choices"], strict=True)
    counts = [collections.Counter(column) for column in columns]
    modes = [{x for x, n in c.items() if n == max(c.values())} for c in counts]
    fit = [
      choice
      for choice in found["choices"]
      if all(x in mode for x, mode in zip(choice, modes, strict=True))
    ]
    tells.append(fit == [found["answer"]])
  assert sum(tells) / len(tells) == share


def test_a_check_writes_its_bounds_beside_chance(tmp_path):
  flag = types.SimpleNamespace(
    workdir=str(tmp_path / "runs"), out=str(tmp_path / "out.json"), steps=10, examples=100,
    tests=40, seed=0, configuration=["center_single"], task=["balanced"],
  )  # fmt: skip
  assert leaks.main(flag) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  (only,) = found["sets"]
  assert found["chance"] == 0.125 and only["n"] == 40
  assert 0 <= only["low"] < only["accuracy"] < only["high"] <= 1
  assert only["tight"] == (only["high"] <= 0.145)
