"""Tuning: the same values for every system, and the best of each on validation."""

import json
import sys
import types

import pytest
from sweep_test import REST, SWEEP, Fake

from experiments import jobs as running
from experiments import sweep, tuning
from iclm.config import InputError


class Tried(Fake):
  """As accurate as its changes say: the best rate is 2 for a, and 3 for b."""

  @property
  def command(self):
    accuracy = {"a": {1: 0.3, 2: 0.5, 3: 0.5}, "b": {1: 0.1, 2: 0.2, 3: 0.9}, "c": {2: 0}}[
      self.system
    ]
    sets = {"iid_test": {"n": 4, "accuracy": accuracy[int(self.changes["lr"])], "by_group": {}}}
    path, text = self.folder / "results.json", json.dumps({"sets": sets} | REST)
    return [sys.executable, "-c", f"open({str(path)!r}, 'w').write({text!r})"]


def test_every_system_is_tuned_with_the_same_values(tmp_path, capsys):
  spec = SWEEP.copy_and_resolve_references()
  spec.systems.c = (("like", "a"),)
  spec.tuning = {"key": "lr", "tries": (1, 2, 3), "like": {"c": "a"}}
  found = [
    Tried(j.system, j.seed, j.folder, "", j.changes) for j in sweep.jobs_of(spec, tmp_path, [], [])
  ]
  assert tuning.tried(spec, ["c", "b", "a"]) == ["a", "b"]
  trials = tuning.trials_of(spec, [j for j in found if j.system != "c"], tmp_path)
  assert {str(t.folder.relative_to(tmp_path)) for t in trials} == {
    f"tuning/{system}/{value}" for system in "ab" for value in (1, 2, 3)
  }
  with running.Children() as children:
    assert running.run(trials, 2, 1, children) == []
    chosen = tuning.tuned(spec, found, trials, tmp_path)
    # Of equals, the first that is named.
    assert {(j.system, j.seed): j.changes["lr"] for j in chosen} == {
      ("a", 0): 2, ("b", 0): 3, ("c", 0): 2, ("a", 1): 2, ("b", 1): 3, ("c", 1): 2,
    }  # fmt: skip
    capsys.readouterr()
    assert running.run(chosen, 2, 1, children) == []
    assert "6 runs, 2 of them done" in capsys.readouterr().out  # The winners are taken over.
  told = json.loads((tmp_path / "tuning.json").read_text())
  assert told["chosen"] == {"a": 2, "b": 3}
  assert told["iid_test"]["b"] == {"1": 0.1, "2": 0.2, "3": 0.9}
  assert tuning.is_needed(spec, ["lrx=4"]) and not tuning.is_needed(spec, ["lr=4"])
  # A trial that had failed comes to its end, and is better: what has been run stays the choice.
  late = [t for t in trials if (t.system, t.changes["lr"]) != ("b", 3)]
  again = tmp_path / "again"
  with running.Children() as children:
    for tries in (late, trials):
      made = tuning.tuned(spec, found, tries, again)
      assert {j.changes["lr"] for j in made if j.system == "b"} == {2}
  # Without a finished trial there is no run.
  rest = [t for t in trials if t.system == "b"]
  assert {j.system for j in tuning.tuned(spec, found, rest, tmp_path)} == {"b"}
  with pytest.raises(InputError, match="'b' cannot take the value of 'c'"):
    spec.tuning.like.b = "c"
    tuning.is_needed(spec, [])


def test_some_of_the_seeds_are_run_and_rates_chosen_with_the_first(tmp_path, monkeypatch):
  spec = SWEEP.copy_and_resolve_references()
  spec.tuning = {"key": "lr", "tries": (1, 2, 3), "like": {}}
  monkeypatch.setattr(sweep, "_load", lambda path: spec)
  monkeypatch.setattr(sweep, "Job", Tried)
  flag = types.SimpleNamespace(
    sweep="", workdir=str(tmp_path), jobs=2, tries=1, override=[], systems=[], seeds=["1"]
  )
  assert sweep.main(flag) == 0
  there = lambda: sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.glob("[ab]/*/done"))
  assert there() == ["a/0", "a/1", "b/0", "b/1"]  # Seed 0 is taken over from its trial.
  assert json.loads((tmp_path / "tuning.json").read_text())["chosen"] == {"a": 2, "b": 3}
  assert json.loads((tmp_path / sweep.PLAN).read_text())["seeds"] == [1]


def test_the_base_alone_is_run_without_trials_of_others(tmp_path, monkeypatch):
  spec = SWEEP.copy_and_resolve_references()
  spec.tuning, spec.base = {"key": "lr", "tries": (1, 2), "like": {}}, "a"
  monkeypatch.setattr(sweep, "_load", lambda path: spec)
  started = []
  monkeypatch.setattr(sweep, "run", lambda jobs, *_: started.extend(jobs) or [])
  flag = types.SimpleNamespace(
    sweep="", workdir=str(tmp_path), jobs=2, tries=1, override=[], systems=["a"], seeds=[]
  )
  sweep.main(flag)
  assert [(j.system, j.seed) for j in started] == [("a", 0), ("a", 1)]
