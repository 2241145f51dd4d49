"""The runs of a sweep as commands: some at a time, skipped when done, tried again when dead."""

import concurrent.futures
import dataclasses
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from experiments import cli
from iclm import config, inputs, outputs, workdir
from iclm.audit.sweep import DONE, FAILED, LOG, START
from iclm.config import InputError

LOOK_S = 1.0  # Between two looks whether another process still trains a run.


@dataclasses.dataclass(frozen=True)
class Job:
  """One run: a system, a seed, what it changes of the sweep's config, and where it starts from.

  The last is a folder of the same sweep: moved, or spelled in another way, it is the same run.
  """

  system: str
  seed: int
  folder: pathlib.Path
  config_file: str
  changes: dict[str, Any]
  start: str = ""

  @property
  def command(self) -> list[str]:
    """The command line that trains it."""
    of_file, *keys = self._flags
    train = [sys.executable, "-m", "experiments.train", of_file]
    return [*train, f"--workdir={self.folder}", *keys]

  @property
  def _flags(self) -> list[str]:
    changes = ({START: self.start} if self.start else {}) | self.changes
    keys = [f"--config.{key}={value}" for key, value in changes.items()]
    return [f"--config={self.config_file}", *keys, f"--config.seed={self.seed}"]

  @property
  def done(self) -> bool:
    """A mark, not results.json, which a study adds to. It tells what was run.

    Raises:
      InputError: that was another run, by its mark or by its config.
    """
    path = self.folder / DONE
    if not path.exists():
      return False
    there = self._marked(path)
    for key in {**there, **self._told}:
      theirs, mine = (told.get(key, "that of the config") for told in (there, self._told))
      if theirs != mine:
        self._refuse(f"whose {key} is {theirs}, and here it is {mine}")
    if (self.folder / workdir.CONFIG).exists():
      old = inputs.read_object(self.folder / workdir.CONFIG, f"there is no config in {self.folder}")
      free = (*workdir.FREE, *([tuple(START.split("."))] if self.start else []))
      changed = config.difference(old, self.read_config(), free)
      if changed is not None:
        self._refuse(f"of another {self.config_file}: {changed} here")
    return True

  def _refuse(self, told: str) -> NoReturn:
    raise InputError(f"{self.folder} holds a finished run {told}; choose another --workdir")

  def read_config(self) -> dict[str, Any]:
    """The config as `experiments.train` would read it today.

    Raises:
      InputError: it would refuse it.
    """
    try:
      return config.to_dict(cli.config_of(self._flags))
    except InputError as error:
      raise InputError(f"system {self.system!r}: {error}") from None

  def stands_in(self, folder: pathlib.Path) -> bool:
    """Whether a folder holds this very run, finished."""
    path = folder / DONE
    return path.exists() and self._marked(path) == self._told

  def _marked(self, path: pathlib.Path) -> dict[str, Any]:
    """What a mark tells; where the run starts was once a part of it."""
    told = inputs.read_object(path, f"there is no {path}")
    return {key: value for key, value in told.items() if key != START or not self.start}

  def as_marked(self, key: str | None) -> "Job":
    """This run with the value of one key, which was chosen for it, as it was finished with it."""
    path = self.folder / DONE
    told = self._marked(path) if key and path.exists() else {}
    return dataclasses.replace(self, changes=self.changes | {k: told[k] for k in told if k == key})

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
    _await_others(job, children)
    if children.stopped:
      return False
    outputs.make_folder(job.folder)
    (job.folder / FAILED).unlink(missing_ok=True)
    with open(job.folder / LOG, "a") as log:
      code = children.call(job.command, log)
    if code == 0:
      job.mark()
      return True
    if code == 2:  # Bad input stays bad.
      break
  if not children.stopped:
    (job.folder / FAILED).touch()
  return False


def _await_others(job: Job, children: Children) -> None:
  """Returns when nobody else trains the run: what a killed launcher has left lives on."""
  if not workdir.is_held(job.folder):
    return
  print(
    f"{job.system}/{job.folder.name}: another process trains it; waiting for its end", flush=True
  )
  while workdir.is_held(job.folder) and not children.stopped:
    time.sleep(LOOK_S)
