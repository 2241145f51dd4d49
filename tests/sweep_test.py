"""Sweeps: what runs, what is skipped, what is tried again, and the one table."""

import csv
import json
import pathlib
import shutil
import sys
import types

import pytest
from ml_collections import config_dict

from experiments import jobs as running
from experiments import report, sweep, tables, tuning
from iclm import workdir
from iclm.config import InputError
from iclm.evals import comparison

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = config_dict.create(
  config="configs/quickstart.py",
  base="",
  every=(("steps", 60),),
  systems={"a": (), "b": (("router.tau_steps", 40), ("steps", 70))},
  seeds=(0, 1),
  baselines=("b", "unfinished"),
  out_of_distribution=("iid_test",),
  chosen_on="iid_test",
  tuning={},
)


SETS = ("iid_test",)
# What results.json has beside its sets.
REST = {
  "train_s": 1,
  "provenance": {"commit": "abc", "data": {"sets_sha256": {name: "a" * 64 for name in SETS}}},
}


class Fake(running.Job):
  """Instead of training, fails once where its system says so, then writes its result."""

  @property
  def command(self):
    fails = {"b": "first", "dead": "always"}.get(self.system, "never")
    script = f"""
import json, pathlib, sys
folder = pathlib.Path({str(self.folder)!r})
tried = folder / "tried"
again, _ = tried.exists(), tried.write_text("")
if {fails!r} == "always" or ({fails!r} == "first" and not again):
  sys.exit(3)
whole = {{"n": 4, "accuracy": 0.25 + 0.5 * {self.seed}, "by_group": {{"g": {{"n": 4,
  "accuracy": 0.5}}}}}}
sets = dict.fromkeys({SETS}, whole)
(folder / "results.json").write_text(json.dumps({{"sets": sets}} | {REST}))
"""
    return [sys.executable, "-c", script]


def fake(job):
  return Fake(job.system, job.seed, job.folder, job.config_file, job.changes)


def test_only_the_systems_that_are_asked_for_run(tmp_path):
  assert {job.system for job in sweep.jobs_of(SWEEP, tmp_path, [], ["b"])} == {"b"}
  with pytest.raises(InputError, match="has no system 'c'"):
    sweep.jobs_of(SWEEP, tmp_path, [], ["c"])


def test_systems_and_seeds_become_commands(tmp_path):
  jobs = sweep.jobs_of(SWEEP, tmp_path, ["data.dir=x=y"], [])
  assert [(j.system, j.seed) for j in jobs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
  assert jobs[3].command[2:] == [
    "experiments.train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'b' / '1'}",
    "--config.steps=70", "--config.router.tau_steps=40", "--config.data.dir=x=y", "--config.seed=1",
  ]  # fmt: skip


def test_every_run_starts_from_the_base_of_its_seed(tmp_path):
  spec = SWEEP.copy_and_resolve_references()
  spec.base, spec.systems.c = "a", (("checkpoint.init_from", "elsewhere"),)
  jobs = sweep.jobs_of(spec, tmp_path, [], ["b", "c"])
  bases, rest = sweep._split(jobs, "a")
  assert [(j.system, j.seed) for j in bases] == [("a", 0), ("a", 1)]  # Though not asked for.
  key = "--config.checkpoint.init_from="
  starts = {
    (j.system, j.seed): [w.removeprefix(key) for w in j.command if w.startswith(key)] for j in jobs
  }
  assert starts == {
    ("a", 0): [""], ("b", 0): [str(tmp_path / "a" / "0")], ("c", 0): ["elsewhere"],
    ("a", 1): [""], ("b", 1): [str(tmp_path / "a" / "1")], ("c", 1): ["elsewhere"],
  }  # fmt: skip
  bases[1].folder.mkdir(parents=True)
  bases[1].mark()
  assert {j.seed for j in sweep._startable(rest, bases)} == {1}  # The other base is not done.
  spec.tuning = {"key": "lr", "tries": (1,), "like": {"b": "a"}}
  with pytest.raises(InputError, match="'b' cannot take the value of 'a'"):  # A base has none.
    tuning.is_needed(spec, [])


def test_runs_are_tried_again_skipped_and_gathered(tmp_path, capsys):
  jobs = [fake(job) for job in sweep.jobs_of(SWEEP, tmp_path, [], [])]
  dead = fake(running.Job("dead", 0, tmp_path / "dead" / "0", "", {}))
  children = running.Children()
  assert running.run([*jobs, dead], 2, 2, children) == [dead]
  assert "5 runs, 0 of them done" in capsys.readouterr().out
  failed = [job for job in [*jobs, dead] if (job.folder / running.FAILED).exists()]
  assert failed == [dead]  # And not what came to its end at the second try.
  assert running.run([*jobs, dead], 2, 1, children) == [dead]
  assert "5 runs, 4 of them done" in capsys.readouterr().out
  rows = tables.gather([*jobs, dead])
  tables.write_table(tmp_path / "table.csv", rows)
  tables.show(rows)
  # 0.25 and 0.75: mean 0.5, s = 0.354, t = 12.71 at one degree: +- 12.71 * 0.354 / sqrt 2 = 3.177.
  assert "0.500" in capsys.readouterr().out
  with open(tmp_path / "table.csv") as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 8
  assert lines[0] == {"system": "a", "seed": "0", "set": "iid_test", "group": "all", "n": "4",
                      "accuracy": "0.25"}  # fmt: skip
  tables.compare(tmp_path, SWEEP, rows, jobs)
  found = json.loads((tmp_path / "comparison.json").read_text())
  assert found["baseline"] == "b" and found["systems"]["a"]["iid_test"]["difference"] == 0.0
  assert found["systems"]["a"]["mean out of distribution"]["difference"] == 0.0
  assert found["baselines"] == ["b"] and found["baselines_missing"] == ["unfinished"]
  assert found["runs"]["a"]["command"].startswith("-c") and len(found["runs"]) == 2
  told = capsys.readouterr().out
  assert "Difference to b" in told and "chosen without unfinished" in told


def test_some_of_a_sweep_leaves_what_was_found_of_the_rest(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sweep, "_load", lambda path: SWEEP)
  monkeypatch.setattr(sweep, "Job", Fake)

  def run(systems, seeds=(), override=()):
    flag = types.SimpleNamespace(
      sweep="", workdir=str(tmp_path), jobs=2, tries=2, override=list(override),
      systems=list(systems), seeds=list(seeds),
    )  # fmt: skip
    assert sweep.main(flag) == 0
    with open(tmp_path / "table.csv") as file:
      return {(row["system"], row["seed"]) for row in csv.DictReader(file)}

  compared = tmp_path / tables.COMPARISON
  compared.write_text("{}")
  assert run("a", "0") == {("a", "0")} and not compared.exists()  # It was about other runs.
  assert run("b") == {("a", "0"), ("b", "0"), ("b", "1")}
  assert set(json.loads(compared.read_text())["systems"]) == {"a", "b"}
  plan = {"systems": ["a", "b"], "seeds": [0, 1]}
  assert run("a", "1") == {(s, seed) for s in "ab" for seed in "01"}
  assert json.loads((tmp_path / sweep.PLAN).read_text()) == plan
  # What was trained in another way is no part of it.
  shutil.rmtree(tmp_path / "a")
  capsys.readouterr()
  assert run("a", "0", ["log_every=3"]) == {("a", "0")}
  assert "left out of the table: " in capsys.readouterr().out


def test_of_open_answers_the_determined_part_counts_and_other_data_have_another_name(tmp_path):
  jobs = [running.Job("a", seed, tmp_path / str(seed), "", {}) for seed in (0, 1)]
  whole = {"n": 8, "accuracy": 0.25, "by_group": {"all": {"n": 2, "accuracy": 0.0}}}
  part = {"determined": {"n": 6, "accuracy": 0.75, "ceiling": 1.0}}
  for job, digest in zip(jobs, ("a" * 64, "b" * 64), strict=True):
    job.folder.mkdir()
    made = {"commit": "abc", "data": {"sets_sha256": {"test": digest, "open": "c" * 64}}}
    results = {"sets": {"test": whole, "open": whole | part}, "train_s": 1, "provenance": made}
    (job.folder / "results.json").write_text(json.dumps(results))
    job.mark()
  found = {(r["set"], r["seed"], r["group"]): (r["n"], r["accuracy"]) for r in tables.gather(jobs)}
  assert found["open", 0, "all"] == (6, 0.75) and found["open", 0, "exact match"] == (8, 0.25)
  assert found["test (aaaaaaaa)", 0, "all"] == found["test (bbbbbbbb)", 1, "all"] == (8, 0.25)
  assert ("test", 0, "all") not in found


def test_a_star_goes_by_what_is_corrected_and_of_the_one_mean_by_itself():
  row = {"difference": 0.4, "difference_ci": [0.3, 0.5], "p": 0.01, "note": None}
  shown = lambda name, **more: tables._gap(name, row | more)
  assert shown("longer", p_holm=0.02) == shown(comparison.OOD_MEAN) == "+0.400 [+0.300, +0.500]*"
  assert not shown("longer", p_holm=0.06).endswith("*") and not shown("iid_val").endswith("*")


SMALL = """
import pathlib, sys
sys.path.insert(0, {tests!r})
from small_run import small_config
changes = {{"steps": 4, "optimizer.warmup": 1, "evaluation.every": 0, "checkpoint.every": 0}}
get_config = lambda: small_config(pathlib.Path({data!r}), **changes)
"""
FROM_BASE = """
from ml_collections import config_dict
plain = (("experts.kind", "none"), ("loss.beta", 0.0), ("loss.dependence", 0.0),
         ("loss.balance", 0.0), ("loss.zloss", 0.0), ("evaluation.best", ""))
get_sweep = lambda: config_dict.create(
  config={config!r}, base="base", every=(("checkpoint.best", 0), ("evaluation.best", "")),
  systems={{"base": plain, "dense": (("optimizer.lr", 0.002), *plain), "iclm": ()}}, seeds=(0,),
  baselines=("dense",), out_of_distribution=("test",), chosen_on="test", tuning={{}})
"""


@pytest.mark.slow
def test_a_sweep_from_end_to_end_and_its_page(data, tmp_path, capsys):
  told = {"config": str(tmp_path / "c.py"), "tests": str(ROOT / "tests"), "data": str(data)}
  (tmp_path / "c.py").write_text(SMALL.format(**told))
  (tmp_path / "s.py").write_text(FROM_BASE.format(**told))
  folder = tmp_path / "sweep"
  flag = types.SimpleNamespace(
    sweep=str(tmp_path / "s.py"),
    workdir=str(folder),
    override=[],
    systems=[],
    seeds=[],
    jobs=1,
    tries=1,
  )
  assert sweep.main(flag) == 0, capsys.readouterr().out
  base, iclm = (workdir.load_run(folder / name / "0") for name in ("base", "iclm"))
  assert iclm.config.checkpoint.init_from == str(folder / "base" / "0")
  assert base.config.checkpoint.init_from == "" and base.step == iclm.step == 4
  found = json.loads((folder / "comparison.json").read_text())
  assert found["baseline"] == "dense" and set(found["systems"]) == {"base", "dense", "iclm"}
  assert report.main(types.SimpleNamespace(
    workdir=str(folder), examined=None, out=str(tmp_path / "page.html")
  )) == 0  # fmt: skip
  assert "iclm" in (tmp_path / "page.html").read_text()


def test_the_plan_names_every_run(tmp_path):
  folder = tmp_path / "new" / "sweep"
  assert sweep.plan(folder, SWEEP, sweep.jobs_of(SWEEP, folder, [], ["b"])) == ["b"]
  # Another command adds to it.
  assert sweep.plan(folder, SWEEP, sweep.jobs_of(SWEEP, folder, [], ["a"])) == ["a", "b"]
  assert json.loads((folder / sweep.PLAN).read_text()) == {"systems": ["a", "b"], "seeds": [0, 1]}
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="cannot make the folder"):
    sweep.plan(tmp_path / "file" / "sweep", SWEEP, sweep.jobs_of(SWEEP, folder, [], []))
