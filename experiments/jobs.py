"""The runs of a sweep as commands: some at a time, skipped when done, tried again when dead."""

import concurrent.futures
import dataclasses
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from iclm import outputs, workdir
from iclm.audit import files
from iclm.audit.sweep import DONE, FAILED
from iclm.config import InputError


@dataclasses.dataclass(frozen=True)
class Job:
  """One run: a system, a seed, and what it changes of the sweep's config."""

  system: str
  seed: int
  folder: pathlib.Path
  config_file: str
  changes: dict[str, Any]

  @property
  def command(self) -> list[str]:
    """The command line that trains it."""
    keys = [f"--config.{key}={value}" for key, value in self.changes.items()]
    train = [sys.executable, "-m", "experiments.train", f"--config={self.config_file}"]
    return [*train, f"--workdir={self.folder}", *keys, f"--config.seed={self.seed}"]

  @property
  def done(self) -> bool:
    """A mark, not results.json, which a study adds to. It tells what was run.

    Raises:
      InputError: that was another run.
    """
    path = self.folder / DONE
    if not path.exists():
      return False
    there = files.read_json(path, "a sweep's own mark")
    for key in {**there, **self._told}:
      theirs, mine = (told.get(key, "that of the config") for told in (there, self._told))
      if theirs != mine:
        raise InputError(
          f"{self.folder} holds a finished run whose {key} is {theirs}, and here it is {mine}; "
          "choose another --workdir"
        )
    return True

  def stands_in(self, folder: pathlib.Path) -> bool:
    """Whether a folder holds this very run, finished."""
    path = folder / DONE
    return path.exists() and files.read_json(path, "a sweep's own mark") == self._told

  def mark(self) -> None:
    """Says that the run came to its end."""
    outputs.write_json(self.folder / DONE, self._told)

  @property
  def _told(self) -> dict[str, str]:
    """What makes it this run and no other."""
    free = [".".join(key) for key in workdir.FREE]
    changes = {k: str(v) for k, v in self.changes.items() if not k.startswith(tuple(free))}
    return {"--config": self.config_file, **changes}


class Children:
  """The running commands; SIGTERM and Ctrl-C stop them all, each after a checkpoint."""

  def __init__(self):
    self.stopped = False
    self._running: set[subprocess.Popen] = set()
    self._old: dict[int, Any] = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._stop)
    return self

  def __exit__(self, *_) -> None:
    for number, old in self._old.items():
      signal.signal(number, old)

  def _stop(self, *_) -> None:
    self.stopped = True
    for child in list(self._running):
      child.terminate()

  def call(self, command: Sequence[str], log: Any) -> int:
    """Runs a command to its end, in a session of its own: Ctrl-C reaches it through here."""
    child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    self._running.add(child)
    if self.stopped:  # Between the check and the start.
      child.terminate()
    try:
      return child.wait()
    finally:
      self._running.discard(child)


def run(jobs: Sequence[Job], n_at_a_time: int, tries: int, children: Children) -> list[Job]:
  """Runs what is not done yet; returns the jobs that failed as often as allowed."""
  todo = [job for job in jobs if not job.done]
  print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them done", flush=True)
  dead = []
  with concurrent.futures.ThreadPoolExecutor(n_at_a_time) as pool:
    running = {pool.submit(_attempt, job, tries, children): job for job in todo}
    for n, finished in enumerate(concurrent.futures.as_completed(running), 1):
      job = running[finished]
      if children.stopped and not finished.result():
        continue
      told = "done" if finished.result() else "FAILED"
      print(f"[{n}/{len(todo)}] {job.system}/{job.folder.name}: {told}", flush=True)
      if not finished.result():
        dead.append(job)
  return dead


def _attempt(job: Job, tries: int, children: Children) -> bool:
  for _ in range(tries):
    if children.stopped:
      return False
    outputs.make_folder(job.folder)
    (job.folder / FAILED).unlink(missing_ok=True)
    with open(job.folder / "log.txt", "a") as log:
      code = children.call(job.command, log)
    if code == 0:
      job.mark()
      return True
    if code == 2:  # Bad input stays bad.
      break
  if not children.stopped:
    (job.folder / FAILED).touch()
  return False
