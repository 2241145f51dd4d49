"""The runs of a sweep: which are done, which are waited for, and how all of them are stopped."""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest
from sweep_test import SWEEP, Fake

from experiments import jobs as running
from experiments import sweep
from iclm import workdir
from iclm.config import InputError

ROOT = pathlib.Path(__file__).parents[1]


def test_a_finished_run_of_other_changes_is_not_taken_for_this_one(tmp_path):
  jobs = lambda *overrides: sweep.jobs_of(SWEEP, tmp_path, overrides, ["a"])
  for job in jobs("data.dir=here"):
    job.folder.mkdir(parents=True)
    job.mark()
  assert all(job.done for job in jobs("data.dir=there", "mesh.data=2"))  # These it is free in.
  with pytest.raises(InputError, match=r"a/0 .* whose steps is 60, and here it is 100; choose"):
    running.run(jobs("steps=100"), 1, 1, running.Children())
  with pytest.raises(
    InputError, match=r"whose optimizer\.lr is that of the config, and here .* 1;"
  ):
    running.run(jobs("optimizer.lr=1"), 1, 1, running.Children())


def test_a_finished_run_of_a_config_that_was_edited_since_is_not_taken_for_this_one(tmp_path):
  path = tmp_path / "c.py"
  text = "import sys\nsys.path.insert(0, {root!r})\nfrom configs import quickstart\n"
  text += "def get_config():\n  c = quickstart.get_config()\n  c.log_every = {n}\n  return c\n"
  path.write_text(text.format(root=str(ROOT), n=7))
  job = running.Job("a", 1, tmp_path / "run", str(path), {"steps": 90})
  job.folder.mkdir()
  (job.folder / "config.json").write_text(json.dumps(job.read_config()))
  job.mark()
  assert job.done and (job.read_config()["steps"], job.read_config()["seed"]) == (90, 1)
  path.write_text(text.format(root=str(ROOT), n=8))
  with pytest.raises(
    InputError, match=r"run of another .*c\.py: config\.log_every is 7 there and 8"
  ):
    assert job.done
  path.write_text("x = y\n")
  with pytest.raises(InputError, match=r"c\.py is no config: name 'y' is not defined"):
    assert job.done


def test_a_sweep_that_is_moved_holds_the_same_runs(tmp_path):
  spec = SWEEP.copy_and_resolve_references()
  spec.base = "b"
  before, after = (tmp_path / name for name in ("before", "after"))
  of = lambda folder: sweep.jobs_of(spec, folder, ["steps=90"], ["a"])
  job = next(j for j in of(before) if j.system == "a")
  assert job.start == str(before / "b" / "0")
  job.folder.mkdir(parents=True)
  (job.folder / "config.json").write_text(json.dumps(job.read_config()))
  job.mark()
  before.rename(after)
  moved = next(j for j in of(after) if j.system == "a")
  assert moved.done and moved.stands_in(moved.folder)
  mark = moved.folder / running.DONE  # As it once was.
  told = json.loads(mark.read_text()) | {running.START: job.start}
  mark.write_text(json.dumps(told))
  assert moved.done and moved.stands_in(moved.folder)


def test_a_run_that_another_process_still_trains_is_waited_for(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(running, "LOOK_S", 0.01)
  job = Fake("a", 0, tmp_path / "0", "", {})
  job.folder.mkdir()
  with workdir.locked(job.folder):
    timer = threading.Timer(0.5, lambda: (tmp_path / "late").touch())
    timer.start()
    monkeypatch.setattr(running.workdir, "is_held", lambda folder: not (tmp_path / "late").exists())
    assert running.run([job], 1, 1, running.Children()) == [] and job.done
  assert "a/0: another process trains it; waiting for its end" in capsys.readouterr().out
  monkeypatch.undo()
  assert not workdir.is_held(job.folder)
  with workdir.locked(job.folder):
    assert workdir.is_held(job.folder)
  assert not workdir.is_held(tmp_path)


class Slow(running.Job):
  """Waits until it is told to end."""

  @property
  def command(self):
    return [sys.executable, "-c", "import time; time.sleep(60)"]


def test_sigterm_ends_every_child_and_starts_no_other(tmp_path):
  jobs = [Slow(f"s{i}", 0, tmp_path / str(i), "", {}) for i in range(4)]
  begun = time.monotonic()
  timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
  with running.Children() as children:
    timer.start()
    assert running.run(jobs, 2, 2, children) == []
  assert children.stopped and time.monotonic() - begun < 30
  assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]
  assert not any(job.done or (job.folder / running.FAILED).exists() for job in jobs)
