"""A folder belongs to one run."""

import json

import pytest
from conftest import tiny

from iclm import workdir
from iclm.config import InputError


def test_the_same_run_comes_back_another_does_not(tmp_path):
  folder = tmp_path / "run"
  workdir.claim(folder, tiny())
  workdir.claim(folder, tiny())
  workdir.claim(folder, tiny(data__dir="/elsewhere"))  # Changes how it runs, not what comes out.
  with pytest.raises(InputError, match=r"config\.seed is 0 there and 1 here"):
    workdir.claim(folder, tiny(seed=1))


def test_a_folder_that_cannot_be_is_told(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(InputError, match="cannot make the workdir"):
    workdir.claim(tmp_path / "file" / "run", tiny())
  with pytest.raises(InputError, match="no run's workdir"):
    workdir.load_run(tmp_path)
  workdir.claim(tmp_path / "empty", tiny())
  with pytest.raises(InputError, match="no complete checkpoint yet"):
    workdir.load_run(tmp_path / "empty")


def test_files_are_replaced_whole(tmp_path):
  path = tmp_path / "a.json"
  workdir.write_json(path, {"a": 1})
  workdir.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_provenance_names_what_made_a_run():
  found = workdir.provenance(tiny())
  assert {"commit", "dirty", "config_sha256", "seed", "versions", "device"} <= set(found)
  assert found["config_sha256"] != workdir.provenance(tiny(seed=1))["config_sha256"]
