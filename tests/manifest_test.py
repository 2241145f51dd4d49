"""No byte of a directory can change unnoticed once its manifest stands."""

import hashlib
import json
import os
import random
import shutil

import pytest

from iclm import manifest


@pytest.fixture
def whole(tmp_path):
  path = tmp_path / "whole"
  (path / "state" / "d").mkdir(parents=True)
  rng = random.Random(0)
  for name in ("meta.json", "state/array", "state/d/0"):
    (path / name).write_bytes(rng.randbytes(300))
  manifest.write(path, {"step": 3})
  return path


def damages(path):
  """Names and functions, each of which harms one file; together they harm every file."""
  rng = random.Random(0)
  for file in sorted(p for p in path.rglob("*") if p.is_file()):
    name, size = str(file.relative_to(path)), file.stat().st_size

    def flip(p, bit):
      data = bytearray(p.read_bytes())
      data[bit // 8] ^= 1 << bit % 8
      p.write_bytes(data)

    for bit in (0, *(rng.randrange(8 * size) for _ in range(5)), 8 * size - 1):
      yield name, lambda p, bit=bit: flip(p, bit)
    yield name, lambda p, n=rng.randrange(size): os.truncate(p, n)
    yield name, lambda p: p.write_bytes(p.read_bytes() + b" ")
    yield name, lambda p: p.unlink()
  yield "state/d/extra", lambda p: p.write_bytes(b"x")


def test_it_says_what_was_written(whole):
  about = manifest.read(whole)
  assert about["step"] == 3
  data = (whole / "state" / "d" / "0").read_bytes()
  assert about["files"]["state/d/0"] == {"sha256": hashlib.sha256(data).hexdigest(), "size": 300}
  assert about["files"].keys() == {"meta.json", "state/array", "state/d/0"}
  assert manifest.problem(whole) is None


def test_every_damage_is_noticed_and_its_file_named(whole, tmp_path):
  for name, harm in damages(whole):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    harm(copy / name)
    assert name in manifest.problem(copy)
    shutil.rmtree(copy)


def test_a_manifest_that_was_edited_is_none(whole):
  path = whole / manifest.NAME
  path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 4}, indent=1, sort_keys=True))
  with pytest.raises(ValueError, match="not as it was written"):
    manifest.read(whole)


def test_the_manifest_is_the_first_to_go(whole, monkeypatch):
  seen = []
  monkeypatch.setattr(shutil, "rmtree", lambda path: seen.append((path / manifest.NAME).exists()))
  manifest.remove(whole)
  assert seen == [False]
  manifest.remove(whole / "absent")  # Nothing there is nothing to do.
