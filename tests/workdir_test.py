"""A folder belongs to one run."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
from conftest import tiny

from iclm import outputs, provenance, workdir
from iclm.config import InputError


def test_the_same_run_comes_back_another_does_not(tmp_path):
  folder = tmp_path / "run"
  # Where the data lie changes how it runs, not what comes out.
  for same in (tiny(), tiny(), tiny(data__dir="/elsewhere")):
    with workdir.claim(folder, same):
      pass
  with pytest.raises(InputError, match=r"config\.seed is 0 there and 1 here"):
    workdir.claim(folder, tiny(seed=1)).__enter__()


def test_two_cannot_train_in_one_folder(tmp_path):
  folder = tmp_path / "run"
  with workdir.claim(folder, tiny()):
    with pytest.raises(InputError, match=r"another process is training in .*run; wait"):
      workdir.claim(folder, tiny()).__enter__()
    with workdir.claim(tmp_path / "other", tiny()):
      pass
  with workdir.locked(folder):
    pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
  held = tmp_path / "held"
  code = f"""
import pathlib, time
from iclm import workdir
with workdir.locked(pathlib.Path({str(tmp_path)!r})):
  pathlib.Path({str(held)!r}).touch()
  time.sleep(600)
"""
  child = subprocess.Popen([sys.executable, "-c", code])
  try:
    while not held.exists():
      assert child.poll() is None
      time.sleep(0.05)
    with pytest.raises(InputError, match="another process"):
      workdir.locked(tmp_path).__enter__()
  finally:
    child.kill()
    child.wait()
  with workdir.locked(tmp_path):
    pass


def test_a_folder_that_cannot_be_is_told(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(InputError, match="cannot make the folder"):
    workdir.claim(tmp_path / "file" / "run", tiny()).__enter__()
  with pytest.raises(InputError, match="no run's workdir"):
    workdir.load_run(tmp_path)
  with workdir.claim(tmp_path / "empty", tiny()):
    pass
  with pytest.raises(InputError, match="no complete checkpoint yet"):
    workdir.load_run(tmp_path / "empty")


def test_files_are_replaced_whole(tmp_path):
  path = tmp_path / "a.json"
  outputs.write_json(path, {"a": 1})
  outputs.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_failed_goes_though_a_thread_of_its_writer_still_writes(tmp_path):
  def go_on(folder):
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
      with contextlib.suppress(OSError):  # Its folder is going.
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part").write_text("x")

  with pytest.raises(InputError, match="cannot write"), outputs.folder(tmp_path / "new") as new:
    thread = threading.Thread(target=go_on, args=(new / "checkpoint",))
    thread.start()
    raise OSError
  thread.join()
  assert not list(tmp_path.iterdir())


def test_an_archive_knows_its_commit(tmp_path):
  """What is copied to a host is no checkout."""
  root = pathlib.Path(provenance.__file__).parents[1]
  head = provenance._git("rev-parse", "HEAD")
  if head is None:
    pytest.skip("this is no checkout")
  subprocess.run(["git", "init", "-q", tmp_path], check=True)  # Somebody else's.
  copy = tmp_path / "iclm"
  copy.mkdir()
  archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, capture_output=True, check=True)
  subprocess.run(["tar", "-x", "-C", copy], input=archive.stdout, check=True)
  told = "from iclm import provenance; print(provenance._git('status'), provenance._archived())"
  env = os.environ | {"PYTHONPATH": str(copy)}
  done = subprocess.run([sys.executable, "-c", told], cwd=copy, env=env, capture_output=True)
  assert done.stdout.decode().split() == ["None", head]
  assert provenance._archived() is None


def test_provenance_names_what_made_a_run():
  found = provenance.of(tiny())
  assert {"commit", "dirty", "config_sha256", "seed", "versions", "device"} <= set(found)
  assert found["config_sha256"] != provenance.of(tiny(seed=1))["config_sha256"]
