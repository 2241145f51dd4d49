"""Whatever kills a save, fills the disk or breaks in the background: a good checkpoint is left."""

import errno
import os
import pathlib
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import pytest
from checkpoints_test import abstract, assert_same, files_of, filled, opened, run, state_of

from iclm import checkpoints
from iclm.config import InputError


class Killed(BaseException):
  """Stands for SIGKILL: nothing of the library runs after it."""


def test_death_at_any_file_operation_leaves_a_good_checkpoint(tmp_path, monkeypatch):
  # Replacing step 2, with step 1 about to go, touches every kind of operation there is. A kill at
  # operation k is an exception from it on; a removal dies with half of the files gone.
  left, rmtree = [0], shutil.rmtree

  def dying(operation, halfway=None):
    def call(*args, **kwargs):
      left[0] -= 1
      if left[0] == 0 and halfway is not None:
        halfway(*args)
      if left[0] <= 0:
        raise Killed
      return operation(*args, **kwargs)

    return call

  def halve(path):
    for file in files_of(pathlib.Path(path))[::2]:
      file.unlink()

  filled(tmp_path / "pristine", (1, 2))
  saved = {1: state_of(1), 2: state_of(2), 3: state_of(3)}
  died, k = True, 0
  while died:
    k += 1
    copy = tmp_path / str(k)
    shutil.copytree(tmp_path / "pristine", copy)
    with monkeypatch.context() as m, opened(copy, keep=1) as c:
      left[0] = k
      m.setattr(os, "fsync", dying(os.fsync))
      m.setattr(shutil, "rmtree", dying(rmtree, halve))
      for name in ("rename", "replace", "unlink", "write_text"):
        m.setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
      try:
        c.save(2, saved[3], {}, None)
        c.wait()
        died = False
      except Killed:
        pass
    with opened(copy, keep=1) as c:
      restored = c.restore(abstract(saved[1]))
      assert restored.step == 2
      assert_same(restored.state, saved[2] if restored.state.step == 2 else saved[3])
      c.save(4, saved[1], {}, None)
      c.wait()
      assert os.listdir(copy) == ["4"], k
    rmtree(copy)
  assert k > 15


LOOP = """
  import sys, jax.numpy as jnp
  from iclm.checkpoints import Checkpoints
  with Checkpoints(sys.argv[1], keep=1, best=1) as c:
    for step in range(1, 100_000):
      c.save(step, {"x": jnp.full((300, 1000), step), "step": step}, {"step": step}, -step)
      print(step, flush=True)
"""


def test_sigkill_during_a_save(tmp_path):
  rng = random.Random(0)
  for _ in range(3):
    process = run(LOOP, tmp_path)
    for _ in range(3):
      process.stdout.readline()
    time.sleep(rng.random())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    like = {"x": jax.ShapeDtypeStruct((300, 1000), jnp.int32), "step": 0}
    with opened(tmp_path) as c:
      restored = c.restore(like)
    assert restored.meta == {"step": restored.step}
    assert restored.state["step"] == restored.step
    assert (restored.state["x"] == restored.step).all()


FULL = """
  import resource, sys, jax, numpy as np
  from iclm.checkpoints import Checkpoints
  from iclm.config import InputError
  state = {"x": np.random.default_rng(0).random(100_000)}
  with Checkpoints(sys.argv[1], keep=1, best=0) as c:
    c.save(1, {"x": np.zeros(3)}, {}, None)
    c.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    c.save(2, state, {}, None)
    try:
      c.wait()
    except InputError as error:
      print(error)
    assert c.steps() == [1], c.steps()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    c.save(2, state, {}, None)  # The error is told once.
    np.testing.assert_array_equal(c.restore(state).state["x"], state["x"])
"""


def test_a_file_that_cannot_grow_is_told_in_one_sentence(tmp_path):
  process = run(FULL, tmp_path)
  output, errors = process.communicate()
  assert process.returncode == 0, errors.decode()
  assert output.decode().startswith(
    f"cannot write checkpoint {tmp_path / '2.new'}: File too large;"
  )
  assert output.decode().count("\n") == 1
  assert os.listdir(tmp_path) == ["2"]


def test_a_full_disk_surfaces_at_the_next_save(tmp_path, monkeypatch):
  def full(path, about):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with opened(tmp_path) as c:
    with monkeypatch.context() as m:
      m.setattr(checkpoints.manifest, "write", full)
      c.save(1, state_of(1), {}, None)
      with pytest.raises(InputError, match=r"1\.new: No space left on device; free some space"):
        c.save(2, state_of(2), {}, None)
    assert c.steps() == []
    assert os.listdir(tmp_path) == ["1.new"]  # Takes space, and goes at the next try.
    c.save(2, state_of(2), {}, None)
    c.wait()
    assert c.steps() == [2]
  assert os.listdir(tmp_path) == ["2"]


def test_a_bug_in_the_background_stays_a_bug(tmp_path, monkeypatch):
  def broken(path, about):
    raise ZeroDivisionError

  monkeypatch.setattr(checkpoints.manifest, "write", broken)
  with opened(tmp_path) as c:
    c.save(1, state_of(1), {}, None)
    with pytest.raises(ZeroDivisionError):
      c.wait()
    with pytest.raises(TypeError):  # And so does a meta that is not JSON, at once.
      c.save(2, state_of(2), {"x": object()}, None)


def test_a_directory_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with opened(tmp_path / "file" / "checkpoints") as c:
    with pytest.raises(InputError, match=r"cannot write checkpoint .*Not a directory"):
      c.save(1, state_of(1), {}, None)
      c.wait()


def test_a_read_only_directory(tmp_path):
  filled(tmp_path, (1,))
  tmp_path.chmod(0o500)
  try:
    if os.access(tmp_path, os.W_OK):
      pytest.skip("root may write anywhere")
    with opened(tmp_path) as c:
      with pytest.raises(InputError, match="Permission denied"):
        c.save(2, state_of(2), {}, None)
        c.wait()
      assert c.restore(abstract(state_of(1))).step == 1
  finally:
    tmp_path.chmod(0o700)
