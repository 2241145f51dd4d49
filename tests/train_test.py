"""Runs from end to end: killed, interrupted, damaged, and set against an uninterrupted one."""

import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_run import EVERY, STEPS, fit, metrics_of, n_lines, small_config

from configs import base
from iclm import config, train, workdir
from iclm.config import InputError
from iclm.train import watch

ROOT = pathlib.Path(__file__).parents[1]


def assert_equal(folder, whole):
  """Parameters and metrics, bit by bit."""
  expected_folder, expected = whole
  run = workdir.load_run(folder)
  assert run.step == STEPS
  jax.tree.map(np.testing.assert_array_equal, run.params, expected.run.params)
  assert metrics_of(folder) == metrics_of(expected_folder)


def test_a_run_leaves_what_it_promises(whole):
  folder, result = whole
  assert not result.interrupted
  found = json.loads((folder / "results.json").read_text())
  assert set(found["sets"]) == {"test"} and found["provenance"]["seed"] == 0
  assert {line["step"] for line in metrics_of(folder)} == set(range(2, STEPS + 1, 2))
  assert workdir.load_run(folder).step == STEPS
  assert list((folder / "tensorboard").iterdir())


def test_a_finished_run_started_again_trains_no_more(whole, data):
  folder, result = whole
  before = metrics_of(folder)
  again = fit(folder, data)
  assert again.sets == result.sets
  jax.tree.map(np.testing.assert_array_equal, again.run.params, result.run.params)
  assert metrics_of(folder) == before


def test_another_configs_workdir_is_refused(whole, data):
  folder, _ = whole
  with pytest.raises(InputError, match=r"another config's run: config\.optimizer\.lr is 0\.001"):
    fit(folder, data, **{"optimizer.lr": 0.5})


def test_a_run_that_starts_from_another_keeps_what_is_frozen(whole, data, tmp_path):
  folder, result = whole
  frozen = {"trains.base": False, "trains.invariant": False, "trains.router": False}
  changes = frozen | {"trains.only_experts": (1,), "checkpoint.init_from": str(folder)}
  again = fit(tmp_path / "run", data, **changes)
  before, after = result.run.params, again.run.params
  for part in ("base", "invariant", "router"):
    jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
  for old, new in zip(
    jax.tree.leaves(before["domain"]), jax.tree.leaves(after["domain"]), strict=True
  ):
    np.testing.assert_array_equal(old[0], new[0])
  moved = jax.tree.map(lambda a, b: bool((a[1] != b[1]).any()), before["domain"], after["domain"])
  assert any(jax.tree.leaves(moved))


def test_a_fresh_router_on_another_runs_base_is_fitted(data, tmp_path):
  short = {"steps": 2, "optimizer.warmup": 1, "evaluation.every": 0, "checkpoint.every": 0}
  plain = {"experts.kind": "none", "loss.beta": 0.0, "loss.dependence": 0.0, "loss.balance": 0.0}
  fit(tmp_path / "base", data, **short, **plain, **{"loss.zloss": 0.0})
  on_it = short | {"checkpoint.init_from": str(tmp_path / "base"), "trains.router": False}
  start = lambda is_fit: fit(tmp_path / str(is_fit), data, **on_it, **{"router.fit": is_fit})
  fitted, drawn = (start(is_fit).run.params["router"]["prototypes_EP"] for is_fit in (True, False))
  assert not np.allclose(fitted, drawn)


def test_prototypes_that_no_router_has_used_are_fitted(data, tmp_path):
  short = {"steps": 1, "optimizer.warmup": 0, "evaluation.every": 0, "checkpoint.every": 0}
  given = {"router.kind": "random", "loss.balance": 0.0, "loss.zloss": 0.0}
  drawn = fit(tmp_path / "random", data, **short, **given).run.params["router"]
  on_it = short | {"checkpoint.init_from": str(tmp_path / "random"), "trains.router": False}
  fitted = fit(tmp_path / "learned", data, **on_it).run.params["router"]
  np.testing.assert_array_equal(fitted["projection_DP"], drawn["projection_DP"])
  assert not np.allclose(fitted["prototypes_EP"], drawn["prototypes_EP"])


def test_a_start_that_is_not_there_claims_no_folder(data, tmp_path):
  for source, told in (("absent", "there is no such folder"), (".", r"it holds no config\.json")):
    with pytest.raises(InputError, match=f"is no run's workdir: {told}"):
      fit(tmp_path / "run", data, **{"checkpoint.init_from": str(tmp_path / source)})
  assert not (tmp_path / "run").exists()


def test_an_evaluation_that_fits_no_row_is_told_and_leaves_the_folder_free(data, tmp_path):
  path = tmp_path / "long.jsonl"
  path.write_text(json.dumps({"prompt": "From 0,1 do reverse:", "answer": "1,0," * 30}) + "\n")
  with pytest.raises(InputError, match=r"long:1: the row needs \d+ tokens"):
    fit(tmp_path / "run", data, **{"evaluation.sets.test": base.source(jsonl=str(path))})
  assert not {workdir.CONFIG, workdir.TOKENIZER} & {p.name for p in (tmp_path / "run").iterdir()}


def test_sigterm_in_the_last_evaluation_is_not_lost(data, tmp_path, monkeypatch):
  summarise = watch.accuracy.summarise

  def interrupted(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return summarise(*args)

  monkeypatch.setattr(watch.accuracy, "summarise", interrupted)
  short = {"steps": 2, "optimizer.warmup": 1, "evaluation.every": 0}
  result = fit(tmp_path / "run", data, **short)
  assert result.interrupted and result.run.step == 2
  monkeypatch.undo()
  again = fit(tmp_path / "run", data, **short)
  assert not again.interrupted and again.sets == result.sets


def test_a_resumed_run_counts_all_its_seconds_and_names_every_start(whole, data, tmp_path):
  folder = shutil.copytree(whole[0], tmp_path / "run")
  shutil.rmtree(folder / "checkpoints" / str(STEPS))
  (folder / "results.json").unlink()
  saved = folder / "checkpoints" / str(STEPS - EVERY) / "meta.json"
  before = json.loads(saved.read_text())
  assert fit(folder, data).train_s > before["train_s"] > 0
  starts = json.loads((folder / "results.json").read_text())["provenance"]["starts"]
  assert [start["step"] for start in starts] == [0, STEPS - EVERY]
  assert set(starts[0]) == {"step", "commit", "dirty"} and starts[:1] == before["starts"]


def test_non_finite_steps_stop_the_run_with_their_ids(data, tmp_path, capsys):
  with pytest.raises(train.RunStopped, match=r"3 steps in a row were not finite.*train:\d"):
    fit(tmp_path / "run", data, **{"optimizer.lr": 1e30, "nonfinite_limit": 3})
  assert "is not finite and was skipped" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["flip", "truncate"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(whole, tmp_path, what, caplog):
  folder = shutil.copytree(whole[0], tmp_path / "run")
  newest = folder / "checkpoints" / str(STEPS)
  damaged = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(damaged.read_bytes())
  if what == "flip":
    content[len(content) // 2] ^= 1
  else:
    del content[len(content) // 2 :]
  damaged.write_bytes(content)
  with caplog.at_level(logging.WARNING):
    assert workdir.load_run(folder).step == STEPS - EVERY
  assert damaged.name in caplog.text


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """Where the commands keep what they compile: one that is killed may leave half a program."""
  return tmp_path_factory.mktemp("compiled")


def command(folder, data, config_file):
  lines = "import sys; sys.path.insert(0, {!r})\n".format(str(ROOT / "tests"))
  lines += "from small_run import small_config\nimport pathlib\n"
  lines += f"get_config = lambda: small_config(pathlib.Path({str(data)!r}))\n"
  config_file.write_text(lines)
  return [
    sys.executable, "-m", "experiments.train", f"--config={config_file}", f"--workdir={folder}",
  ]  # fmt: skip


def start(argv, compiled):
  env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
  env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def saving(folder):
  """Whether a save has begun that no manifest completes yet."""
  try:
    steps = list((folder / "checkpoints").glob("*"))
    return any(p.is_dir() and not list(p.rglob("*manifest*")) for p in steps)
  except FileNotFoundError:  # Renamed meanwhile: it has just been completed.
    return False


def test_a_penalty_that_weighs_nothing_is_told_once(tmp_path, caplog):
  look = watch.Watch(config.from_config_dict(small_config(tmp_path)), None, None)
  with caplog.at_level(logging.WARNING):
    for n in (2, 4):
      look._dependence(n, {"dependence_classes": 1.0})
    assert not caplog.text
    for n in (6, 8):
      look._dependence(n, {"dependence_classes": 0.0})
  (record,) = caplog.records
  assert "config.loss.dependence = 0.1 weighed nothing at step 6" in record.message
  assert "has the 32 answers" in record.message


def test_only_a_router_that_learns_can_collapse(tmp_path):
  changes = {"router.collapse_stops": True, "router.collapse_below": 0.9}
  collapse = lambda **more: watch.Watch(
    config.from_config_dict(small_config(tmp_path, **changes | more)), None, None
  )._collapse(20, {"effective_experts": 1.0})
  with pytest.raises(train.RunStopped, match=r"collapsed at step 20: 1\.00 of 2 experts in effect"):
    collapse()
  collapse(**{"router.kind": "uniform", "loss.balance": 0.0, "loss.zloss": 0.0})
  collapse(**{"trains.router": False})


@pytest.mark.slow
def test_killed_ten_times_and_bitwise_the_same(data, tmp_path, whole, compiled):
  """Odd kills come during a save, even ones after a random number of logged steps."""
  folder, rng = tmp_path / "run", random.Random(0)
  argv = command(folder, data, tmp_path / "killed.py")
  kills = 0
  while kills < 10:
    process = start(argv, compiled)
    base_lines, wanted = n_lines(folder), rng.randint(1, 3)
    due = lambda: (
      saving(folder) if kills % 2 else n_lines(folder) >= base_lines + wanted  # noqa: B023
    )
    until = time.monotonic() + 120
    while process.poll() is None and not due() and time.monotonic() < until:
      time.sleep(0.002)
    if process.poll() is not None:
      output = process.communicate()[0]
      assert process.returncode == 0, output
      break  # Done before the tenth kill.
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills += 1
  process = start(argv, compiled)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 0, output
  assert kills >= 5  # As many as fit into the run.
  assert_equal(folder, whole)


@pytest.mark.slow
def test_sigterm_saves_and_exits_resumable(data, tmp_path, whole, compiled):
  folder = tmp_path / "run"
  argv = command(folder, data, tmp_path / "interrupted.py")
  process = start(argv, compiled)
  while process.poll() is None and n_lines(folder) < 2:
    time.sleep(0.005)
  process.send_signal(signal.SIGTERM)
  output = process.communicate(timeout=120)[0]
  assert process.returncode == 143, output
  assert "the same command goes on" in output
  saved = workdir.load_run(folder).step
  assert saved >= 4 and saved < STEPS
  process = start(argv, compiled)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 0, output
  assert_equal(folder, whole)


def test_a_complete_run_keeps_what_it_came_to(whole, data, tmp_path):
  folder = shutil.copytree(whole[0], tmp_path / "run")
  path = folder / "results.json"
  kept = json.loads(path.read_text()) | {"train_s": 123.0}
  path.write_text(json.dumps(kept))
  again = fit(folder, data)
  assert again.sets == kept["sets"] and again.train_s == 123.0
  assert json.loads(path.read_text()) == kept
  for broken in ("{", "[]", '{"sets": {}}'):
    path.write_text(broken)
    assert workdir.results_of(folder) is None
  # Then it is told anew, to the same figures.
  assert fit(folder, data).sets == kept["sets"]
  assert json.loads(path.read_text())["sets"] == kept["sets"]
