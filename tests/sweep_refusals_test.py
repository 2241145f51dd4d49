"""What is wrong with a sweep is told before anything runs, in one sentence."""

import importlib
import pathlib

import pytest
from ml_collections import config_dict
from sweep_test import ROOT, SWEEP

from experiments import sweep, tuning
from iclm import config
from iclm.config import InputError


def test_what_is_wrong_with_a_sweep_is_said(tmp_path):
  twins = config_dict.create(config="c", base="", every=(), systems={"a": (), "b": ()}, seeds=(0,))
  with pytest.raises(InputError, match="'a' and 'b' of the sweep are the same run"):
    sweep.jobs_of(twins, tmp_path, [], [])
  assert [j.system for j in sweep.jobs_of(twins, tmp_path, [], ["b"])] == ["b"]  # One of them may.
  empty = config_dict.create(config="c", base="", every=(), systems={}, seeds=(0,))
  with pytest.raises(InputError, match="nothing to run"):
    sweep.jobs_of(empty, tmp_path, [], [])
  twice = SWEEP.copy_and_resolve_references()
  twice.seeds = (0, 1, 0)
  with pytest.raises(InputError, match=r"seeds = \(0, 1, 0\) names one twice"):
    sweep.jobs_of(twice, tmp_path, [], [])
  named = config_dict.create(config="c", base="", every=(), systems={"tuning": ()}, seeds=(0,))
  with pytest.raises(InputError, match="no system can be called 'tuning'"):
    sweep.jobs_of(named, tmp_path, [], [])
  for other in ("a/", "/a", "a/0"):
    nested = config_dict.create(config="c", base="", every=(), seeds=(0,), systems={})
    nested.systems = {"a": (), other: (("steps", 2),)}
    with pytest.raises(InputError, match=r"system .* is no name of a folder"):
      sweep.jobs_of(nested, tmp_path, [], [])
  assert sweep._seeds(SWEEP, ["1"]) == {1} and sweep._seeds(SWEEP, []) == {0, 1}
  with pytest.raises(InputError, match="--seeds=0,2: the sweep's are 0, 1"):
    sweep._seeds(SWEEP, ["0", "2"])
  with pytest.raises(InputError, match="seed is a sweep's own"):
    sweep.jobs_of(SWEEP, tmp_path, ["seed=3"], [])
  with pytest.raises(InputError, match="must be key=value"):
    sweep.jobs_of(SWEEP, tmp_path, ["steps"], [])
  with pytest.raises(InputError, match=r"no sweep configs/sweeps/mechanism\.py.*mechanisms\.py"):
    sweep._load(pathlib.Path("configs/sweeps/mechanism.py"))


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("def (", r"bad\.py is no sweep: invalid syntax \(bad\.py, line 1\)"),
    ("import nothing_of_that_name", "No module named"),
    ("get_sweep = lambda: nothing", "name 'nothing' is not defined"),
    ("get_sweep = lambda: None", "what it returns has no config, base, every"),
    ("", "has no attribute 'get_sweep'"),
  ],
)
def test_a_broken_sweep_is_said(text, told, tmp_path):
  path = tmp_path / "bad.py"
  path.write_text(text)
  with pytest.raises(InputError, match=told):
    sweep._load(path)


def test_what_a_sweep_lacks_is_said():
  c = sweep._load(ROOT / "configs" / "sweeps" / "mechanisms.py")
  c.tuning.tries = ("1e-3",)
  with pytest.raises(InputError, match="'1e-3' is no number"):
    sweep._check(c)
  for tries in ((), (1e-3, 0.001)):
    c.tuning.tries = tries
    with pytest.raises(InputError, match="must name one value or more, each once"):
      sweep._check(c)
  c.systems = {"a": (("steps", 3, 4),)}
  with pytest.raises(InputError, match="the changes of 'a' are no pairs"):
    sweep._check(c)


@pytest.mark.parametrize("key", ["chosen_on", "out_of_distribution"])
def test_a_set_that_is_compared_on_is_there_before_anything_runs(key, tmp_path):
  spec = SWEEP.copy_and_resolve_references()
  spec.chosen_on, spec.out_of_distribution = "iid_test", ("unseen_pairs",)
  jobs = sweep.jobs_of(spec, tmp_path, [], [])
  sweep._check_sets(spec, jobs)
  spec[key] = {"chosen_on": "iid_tset", "out_of_distribution": ("iid_tset",)}[key]
  with pytest.raises(InputError, match=r"'iid_tset', and .* of 'a' has no such.*mean 'iid_test'"):
    sweep._check_sets(spec, jobs)
  spec.baselines = ()
  sweep._check_sets(spec, jobs)  # Where nothing is compared, nothing is asked for.
  (wrong, *_) = sweep.jobs_of(spec, tmp_path, ["stpes=3"], [])
  with pytest.raises(InputError, match=r"system 'a': .*quickstart\.py .* no key 'stpes'; did"):
    sweep._check_sets(spec, [wrong])
  spec.base = wrong.system  # From which the others start.
  with pytest.raises(InputError, match=r"system 'a': .*quickstart\.py .* no key 'stpes'; did"):
    sweep._check_sets(spec, [wrong])


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("configs/sweeps/[a-z]*.py")))
def test_every_system_of_the_repos_sweeps_is_a_config(name):
  found = sweep._load(ROOT / "configs" / "sweeps" / f"{name}.py")
  assert not found.tuning or not tuning.is_needed(found, [f"{found.tuning.key}=1"])
  assert set(found.baselines) < set(found.systems)
  file, *argument = found.config.split(":")
  assert (ROOT / file).is_file()
  for changes in found.systems.values():
    c = importlib.import_module(f"configs.{pathlib.Path(file).stem}").get_config(*argument)
    c.update_from_flattened_dict(dict(changes))
    sets = config.from_config_dict(c).evaluation.sets
    assert {found.chosen_on, *found.out_of_distribution} <= set(sets)
