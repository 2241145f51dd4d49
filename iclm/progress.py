"""How a run is watched: a bar or plain lines, metrics.jsonl, and TensorBoard."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from iclm import processes
from iclm.config import InputError

METRICS = "metrics.jsonl"
_EVENTS: Any = event_pb2  # Their classes are made at import, where pyright sees none.
_SUMMARIES: Any = summary_pb2


class Log:
  """Writes what a run measures, from `start` on; lines behind `start` are cut off.

  Everything in metrics.jsonl is a function of the run alone, except keys under `wall/`.
  """

  def __init__(self, workdir: pathlib.Path, start: int, steps: int, title: str):
    self._path = workdir / METRICS
    try:
      lost = _cut_back(self._path, start)
      self._file = self._path.open("a")
      self._board = _Board(workdir / "tensorboard", start)
    except OSError as error:
      raise InputError(f"cannot write in {workdir}: {error.strerror}") from None
    self._terminal = sys.stderr.isatty()
    self._bar = tqdm.tqdm(
      total=steps, initial=start, desc=title, unit="step", disable=not self._terminal
    )
    self._title, self._steps = title, steps
    self._begun, self._start = time.monotonic(), start
    self._last = (self._begun, start)
    if lost > start:
      self.say(f"{title} goes on from step {start}: of steps up to {lost} no checkpoint was kept")

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, kind, *_) -> None:
    self._bar.close()
    try:
      self._file.close()
      self._board.close()
    except OSError as error:
      if kind is None:  # Else what went wrong before says it already.
        raise InputError(f"cannot write {self._path.parent}: {error.strerror}") from None

  def advance(self) -> None:
    self._bar.update()

  def train(self, step: int, metrics: Mapping[str, float], tokens_per_step: int) -> None:
    """One line of a training step, with its speed since the last one."""
    now = time.monotonic()
    then, before = self._last
    self._last = (now, step)
    step_s = (now - then) / max(step - before, 1)
    tokens_per_s = tokens_per_step / max(step_s, 1e-9)
    eta_s = (self._steps - step) * (now - self._begun) / max(step - self._start, 1)
    wall = {"wall/step_s": step_s, "wall/tokens_per_s": tokens_per_s, "wall/s": now - self._begun}
    self._write(step, {**metrics, **wall})
    told = {"loss": f"{metrics['loss_nats']:.4f}", "tokens/s": f"{tokens_per_s:,.0f}"}
    self._bar.set_postfix(told)
    if not self._terminal:
      self.say(
        f"{self._title} step {step}/{self._steps} loss {told['loss']} nats "
        f"{told['tokens/s']} tokens/s ETA {eta_s:.0f} s"
      )

  def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
    """One line of an evaluation."""
    self._write(step, metrics)
    shown = " ".join(
      f"{k.removeprefix('eval/')} {v:.3f}" for k, v in metrics.items() if k.endswith("accuracy")
    )
    self.say(f"{self._title} step {step}/{self._steps} {shown}")

  def say(self, line: str) -> None:
    """A plain line; above the bar on a terminal."""
    self._bar.clear()
    tell(line, sys.stderr)

  def _write(self, step: int, metrics: Mapping[str, float]) -> None:
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    line = json.dumps({"step": step, **dict.fromkeys(metrics), **finite})  # JSON knows no NaN.
    try:
      self._file.write(line + "\n")
      self._file.flush()
      os.fsync(self._file.fileno())
      self._board.write(step, finite)
    except OSError as error:
      raise InputError(f"cannot write {self._path}: {error.strerror}") from None


class _Board:
  """Events of TensorBoard, written where they are told.

  A thread of tensorboardX would write them later; on a full disk it dies, and who hands it another
  event waits for ever.
  """

  def __init__(self, folder: pathlib.Path, start: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._events = EventsWriter(str(folder / "events"))
    begun = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
    # What another process told of later steps is read no more.
    self._put(_EVENTS.Event(step=start + 1, session_log=begun))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    told = [_SUMMARIES.Summary.Value(tag=k, simple_value=x) for k, x in values.items()]
    self._put(_EVENTS.Event(step=step, summary=_SUMMARIES.Summary(value=told)))

  def _put(self, event: Any) -> None:
    event.wall_time = time.time()
    self._events.write_event(event)
    self._events.flush()

  def close(self) -> None:
    self._events.close()


class Mute(Log):
  """The log of a process that does not write."""

  def __init__(self):
    """Opens nothing."""

  def __exit__(self, *_) -> None:
    """Closes nothing."""

  def advance(self) -> None:
    """Shows nothing."""

  def say(self, line: str) -> None:
    """Says nothing."""

  def train(self, step: int, metrics: Mapping[str, float], tokens_per_step: int) -> None:
    """Writes nothing."""

  def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes nothing."""


def watch(parts: Iterable[Any], n: int, title: str) -> Iterator[Any]:
  """The parts of long work as they come, of n: a bar on a terminal, else a line for each tenth."""
  if not processes.is_first():
    yield from parts
    return
  terminal = sys.stderr.isatty()
  tenth = max(n // 10, 1)
  for i, part in enumerate(tqdm.tqdm(parts, title, n, disable=not terminal), 1):
    yield part
    if not terminal and (i % tenth == 0 or i == n):
      tell(f"{title} {i}/{n}", sys.stderr)


def tell(line: str, stream: TextIO) -> None:
  """Prints a line; where nobody listens any more, a pipe or a terminal that is gone, work goes on.

  Ctrl-C ends a `| tee` too, just when a run saves.
  """
  try:
    print(line, file=stream, flush=True)
  except OSError:
    with contextlib.suppress(OSError):  # Python would try again at its end.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_log(workdir: pathlib.Path, start: int, steps: int, title: str) -> Log:
  """The log of a run: one process writes it, and the others are mute."""
  return Log(workdir, start, steps, title) if processes.is_first() else Mute()


def _cut_back(path: pathlib.Path, start: int) -> int:
  """Drops the lines of steps behind `start`, and those that are none: a crash leaves a last one.

  Returns:
    the last step that was logged, 0 if none was.
  """
  if not path.exists():
    return 0
  kept, last = [], 0
  for line in path.read_text("utf-8", "replace").splitlines():
    step = _step_of(line)
    last = max(last, step)
    if 0 <= step <= start:
      kept.append(line + "\n")
  beside = path.with_suffix(".tmp")
  beside.write_text("".join(kept))
  os.replace(beside, path)
  return last


def _step_of(line: str) -> int:
  """The step that a line is about; -1 where it is not a whole one."""
  try:
    step = json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return -1
  return step if isinstance(step, int) else -1
