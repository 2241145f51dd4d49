"""A manifest makes a directory whole: size and SHA-256 of every file, written last, flushed.

What has no manifest is not complete; what does not match it is named. Of what is deleted, the
manifest goes first.
"""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

NAME = "manifest.json"


def write(path: pathlib.Path, about: dict[str, Any]) -> None:
  """Flushes every file of a directory to the disk, then puts its manifest in place.

  Args:
    about: what the manifest holds besides the files; must survive JSON.
  """
  files = {}
  for name in _files(path):
    with open(path / name, "rb") as file:
      os.fsync(file.fileno())
      digest = hashlib.file_digest(file, "sha256").hexdigest()
      files[name] = {"sha256": digest, "size": file.tell()}
  for root, _, _ in os.walk(path):
    sync(root)
  body = about | {"files": files}
  temporary = path / f"{NAME}.tmp"
  with open(temporary, "w") as file:
    file.write(_dumps(body | {"sha256": _digest(body)}))
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path / NAME)
  sync(path)


def read(path: pathlib.Path) -> dict[str, Any]:
  """The manifest of a directory. Raises ValueError where one byte is not as it was written."""
  try:
    text = (path / NAME).read_text()
    manifest = json.loads(text)
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if text == _dumps(manifest) and manifest["sha256"] == _digest(body):
      return manifest
  except (OSError, ValueError, AttributeError, KeyError) as error:
    raise ValueError(f"{NAME} cannot be read ({error})") from error
  raise ValueError(f"{NAME} is not as it was written")


def problem(path: pathlib.Path, only: str | None = None) -> str | None:
  """What is wrong with a directory that has a manifest, naming the file; None where it is good.

  Args:
    only: the one file to look at; None for every file.
  """
  try:
    entries, there = read(path)["files"], {only} if only else _files(path)
  except ValueError as error:
    return str(error)
  for name in sorted(there - entries.keys()):
    return f"{name} is not in the manifest"
  looked_at = [only] if only else sorted(entries)
  problems = (_file_problem(path, name, entries[name]) for name in looked_at)
  return next((problem for problem in problems if problem is not None), None)


def _file_problem(path: pathlib.Path, name: str, entry: dict[str, Any]) -> str | None:
  """What is wrong with one file, given its entry in the manifest; None where it is good."""
  try:
    with open(path / name, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      if size != entry["size"]:
        return f"{name} has {size} bytes where {entry['size']} were written"
      if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
        return f"the SHA-256 of {name} is not that of what was written"
  except OSError as error:
    return f"{name} cannot be read ({error.strerror})"
  return None


def remove(path: pathlib.Path) -> None:
  """The manifest first: what is half deleted must not look complete."""
  if not path.exists():
    return
  (path / NAME).unlink(missing_ok=True)
  sync(path)
  shutil.rmtree(path)


def _files(path: pathlib.Path) -> set[str]:
  """Every file below, but for the manifest."""
  every = (pathlib.Path(root, f) for root, _, files in os.walk(path) for f in files)
  return {str(file.relative_to(path)) for file in every} - {NAME}


def sync(directory: str | os.PathLike) -> None:
  """Makes the names in a directory durable."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _dumps(body: dict[str, Any]) -> str:
  return json.dumps(body, indent=1, sort_keys=True)


def _digest(body: dict[str, Any]) -> str:
  return hashlib.sha256(_dumps(body).encode()).hexdigest()
