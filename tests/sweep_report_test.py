"""The page of a sweep: what differs is named and never averaged, and what died is shown."""

import itertools
import json
import pathlib

import pytest
from report_test import EVIL, parsed

from iclm.audit import report, sweep
from iclm.config import InputError

PROVENANCE = {"commit": "abc", "dirty": False, "device": {"kind": "cpu", "count": 1, "cores": 2}}


def write(folder, system, seed, accuracy, *, name="test", data="a" * 64, config=None, mark="done"):
  """A run of a sweep, as `experiments.train` and `experiments.sweep` leave it."""
  at = folder / system / str(seed)
  at.mkdir(parents=True)
  groups = {EVIL: {"n": 4, "accuracy": accuracy}}
  results = {
    "sets": {name: {"n": 4, "accuracy": accuracy, "by_group": groups}},
    "train_s": 1.0,
    "parameters": {"base": 1_000},
    "provenance": PROVENANCE | {"data": {"sets_sha256": {name: data}}},
  }
  (at / "results.json").write_text(json.dumps(results))
  (at / "config.json").write_text(json.dumps({"seed": seed, "steps": 9, "router": config or {}}))
  (at / mark).touch()
  return at


def test_seeds_are_averaged_with_their_interval(tmp_path):
  for seed, accuracy in enumerate((0.25, 0.5, 0.75)):
    write(tmp_path, "a", seed, accuracy, config={"kind": "vq"})
    write(tmp_path, EVIL.replace("/", ""), seed, 0.5, config={"kind": "soft"})
  page = report.render(tmp_path, None)
  assert "script" not in parsed(page).names and "&lt;script&gt;" in page
  # Mean 0.5, s = 0.25, t = 4.303 at two degrees: +- 4.303 * 0.25 / sqrt 3 = 0.621.
  assert "-0.121 – 1.121, n = 3" in page
  assert "6 of 6 runs are done" in page and "Runs that are not done" not in page
  assert 'class="warn"' not in page
  assert "router.kind = &#34;vq&#34;" in page


def test_sets_of_other_data_are_named_and_not_averaged(tmp_path):
  write(tmp_path, "a", 0, 0.25)
  write(tmp_path, "a", 1, 0.75, data="b" * 64)
  found = sweep.content(tmp_path)
  assert [column.title for column in found["columns"]] == ["test (aaaaaaaa)", "test (bbbbbbbb)"]
  assert [(x.value, x.n) for x in found["table"]["a"]] == [(0.25, 1), (0.75, 1)]
  assert any("other data" in notice and "a/1" in notice for notice in found["notices"])
  parsed(report.render(tmp_path, None))


def test_two_tasks_in_one_sweep_are_named(tmp_path):
  write(tmp_path, "a", 0, 0.25)
  write(tmp_path, "b", 0, 0.75, name="other")
  found = sweep.content(tmp_path)
  assert [x.value for x in found["table"]["a"]] == [0.25, None]
  assert "there is no set test in b/0" in found["notices"]
  assert "there is no set other in a/0" in found["notices"]
  parsed(report.render(tmp_path, None))


def test_runs_of_one_system_that_differ_in_more_than_the_seed_are_named(tmp_path):
  write(tmp_path, "a", 0, 0.25, config={"kind": "vq"})
  write(tmp_path, "a", 1, 0.25, config={"kind": "soft"})
  notices = sweep.content(tmp_path)["notices"]
  assert notices == ["the runs of a differ in more than their seed, in router.kind"]


def test_dead_and_missing_runs_are_shown(tmp_path):
  write(tmp_path, "a", 0, 0.25)
  write(tmp_path, "b", 0, 0.0, mark="failed")
  write(tmp_path, "b", 1, 0.0, mark="log.txt")
  (tmp_path / "b" / "0" / "log.txt").write_text(f"step 1\nstopped: {EVIL}\n\n")
  (tmp_path / sweep.PLAN).write_text(json.dumps({"systems": ["b", "c", "a"], "seeds": [0, 1]}))
  found = sweep.content(tmp_path)
  assert found["systems"] == ["b", "c", "a"]
  assert {run.name: run.state for run in found["missing"]} == {
    "b/0": "failed", "b/1": "unfinished", "c/0": "not started", "c/1": "not started",
    "a/1": "not started",
  }  # fmt: skip
  assert found["table"]["b"][0].value is None  # What a dead run wrote before does not count.
  page = report.render(tmp_path, None)
  parsed(page)
  assert "stopped: &lt;script&gt;" in page and "5 of 6 runs are not done" in page


def test_a_sweep_of_which_nothing_is_done_has_a_page(tmp_path):
  write(tmp_path, "a", 0, 0.0, mark="failed")
  page = report.render(tmp_path, None)
  parsed(page)
  assert "<h2>Accuracy" not in page and "failed" in page


def test_changes_are_told_against_what_most_systems_have(tmp_path):
  for system, config in {"a": {"kind": "vq", "x": 1}, "b": {"kind": "vq"}, "c": {}}.items():
    write(tmp_path, system, 0, 0.5, config=config)
  assert sweep.content(tmp_path)["changes"] == {
    "a": [("router.x", "1", "absent")],
    "b": [],
    "c": [("router.kind", "absent", '"vq"')],
  }


def test_a_run_is_no_sweep_and_a_sweep_no_run(tmp_path):
  write(tmp_path, "a", 0, 0.5)
  assert sweep.is_sweep(tmp_path) and not sweep.is_sweep(tmp_path / "a" / "0")
  assert not sweep.is_sweep(tmp_path / "absent")
  with pytest.raises(InputError, match=r"is a sweep and .* is about one run"):
    report.render(tmp_path, tmp_path / "out.json")
  with pytest.raises(InputError, match="a complete run, or of a sweep"):
    report.render(tmp_path / "a", None)


def test_a_broken_plan_is_told(tmp_path):
  write(tmp_path, "a", 0, 0.5)
  for broken in ("{}", "[]", '{"systems": ["a"], "seeds": 3}'):
    (tmp_path / sweep.PLAN).write_text(broken)
    with pytest.raises(InputError, match=r"sweep\.json is not what experiments\.sweep writes"):
      report.render(tmp_path, None)


def test_the_bases_of_seeds_are_no_other_difference(tmp_path):
  folder = tmp_path / "sweep"
  for system, seed in itertools.product("ab", (0, 1)):
    at = write(folder, system, seed, 0.25)
    config = {"checkpoint": {"init_from": f"/runs/sweep/base/{seed}"}, "seed": seed}
    (at / "config.json").write_text(json.dumps(config))
  assert not sweep.content(folder)["notices"]
  # Another seed's base is one.
  config["checkpoint"]["init_from"] = "/runs/sweep/base/0"
  (folder / "a" / "1" / "config.json").write_text(json.dumps(config))
  [notice] = sweep.content(folder)["notices"]
  assert notice == "the runs of a differ in more than their seed, in checkpoint.init_from"


def test_a_page_has_the_name_of_its_folder(tmp_path, monkeypatch):
  write(tmp_path, "a", 0, 0.25)
  monkeypatch.chdir(tmp_path)
  assert sweep.content(pathlib.Path())["name"] == tmp_path.name
