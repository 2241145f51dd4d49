"""Files and folders written whole or not at all: files by one process of a run, seen by all."""

import contextlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import safetensors

from iclm import config, processes
from iclm.config import InputError

VISIBLE_S = 60  # A network file system may show what another host wrote this late.
STILL_WRITING_S = 10  # How long threads of a writer that failed may go on.


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder and those that it lies in, where they are not there.

  Raises:
    InputError: it cannot be made.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"cannot make the folder {path}: {error.strerror}") from None


def write_json(path: pathlib.Path, value: Any) -> None:
  """See `write_text`."""
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_jsonl(path: pathlib.Path, records: Iterable[Any]) -> None:
  """One line of JSON for each record; see `write_text`."""
  write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes beside the file and renames: a reader sees the old content or the new, never half.

  Every process of a run calls it, and one writes; all go on when they see the file.
  """
  if processes.is_first():
    _write(path, text)
  wait_for(path)


def wait_for(path: pathlib.Path) -> None:
  """Returns once every process sees what process 0 wrote.

  Raises:
    InputError: a process does not, within a minute.
  """
  processes.barrier(f"written {path.name}")
  until = time.monotonic() + VISIBLE_S
  while not path.exists():
    if time.monotonic() > until:
      raise InputError(
        f"process {jax.process_index()} does not see {path}, which process 0 wrote; choose a "
        "--workdir on a file system that every process of the run mounts"
      )
    time.sleep(0.1)


def _write(path: pathlib.Path, text: str) -> None:
  beside = path.parent / f".{path.name}.{os.getpid()}"
  try:
    if path.exists() and not path.is_file():  # A terminal, say, is nothing to be replaced.
      path.write_text(text, "utf-8")
      return
    beside.write_text(text, "utf-8")
    os.replace(beside, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      beside.unlink(missing_ok=True)
    raise InputError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def folder(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside `path`, which takes its name once it is filled.

  Raises:
    InputError: `path` exists and is not an empty folder, or cannot be written.
  """
  path = config.path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise InputError(f"{path} exists already; name a folder that does not")
  beside = path.parent / f".{path.name}.{os.getpid()}"
  try:
    beside.mkdir(parents=True)
    yield beside
    if path.exists():
      path.rmdir()
    beside.rename(path)
  except (OSError, safetensors.SafetensorError) as error:
    why = getattr(error, "strerror", None) or error
    raise InputError(f"cannot write {path}: {why}") from None
  finally:
    _clear(beside)


def _clear(folder: pathlib.Path) -> None:
  """Removes it, and what the threads of a writer that failed put there while it goes."""
  until = time.monotonic() + STILL_WRITING_S
  while folder.exists() and time.monotonic() < until:
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.2)


def check_can_be_written(path: pathlib.Path) -> None:
  """Makes the folder of a file; InputError where it cannot go, before long work is done for it."""
  make_folder(path.parent)
  if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
    raise InputError(f"cannot write {path}: name a file in a folder that can be written")
