"""A run of several processes: how one joins it, and how it ends when another one is lost."""

import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax
from absl import flags

from iclm import processes
from iclm.config import InputError

LOST = 4  # The exit code of a process that has lost another one.
# How long the coordinator, whose end ends all, leaves the others to say what is wrong.
GRACE_S = 5
# How a loss reads: in an error of JAX, and in the ValueError that a program over several processes
# raises where it cannot be started.
_WORDS = r"gloo|coordination|heartbeat|(?<![-_])barrier|socket closed|connection (closed|reset)"
_LOSS = re.compile(_WORDS, re.I)
_LOSS_AT_START = re.compile(r"gloo \w+ failed|coordination service", re.I)
_names = ["a process"]  # The last is that of this one; the handler of an abort has nothing else.


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a process stands in its run.

  Attributes:
    coordinator: HOST:PORT of process 0; "" where JAX finds out (Cloud TPU, Slurm, Open MPI).
    count: processes of the run; 0 where JAX finds out.
    index: this process, in [0, count); -1 where JAX finds out.
    join_s: seconds that it waits for all of them.
    lost_s: seconds after which a silent process counts as lost.
  """

  coordinator: str
  count: int
  index: int
  join_s: int
  lost_s: int

  def __str__(self) -> str:
    known = f"process {self.index} of {self.count}" if self.coordinator else "a process"
    return f"{known} (host {socket.gethostname()})"


def define() -> None:
  """The flags of a command that runs as several processes."""
  flags.disclaim_key_flags()  # --help lists them with the command's own.
  flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for a run of several processes.")
  flags.DEFINE_integer("processes", 0, "How many processes the run has; with --coordinator.")
  flags.DEFINE_integer("process", -1, "Which of them this is, from 0; with --coordinator.")
  flags.DEFINE_bool("distributed", False, "Let JAX find the other processes, as on Cloud TPU.")
  flags.DEFINE_integer("join_s", 300, "Seconds to wait until every process has joined.")
  flags.DEFINE_integer("lost_s", 60, "Seconds after which a silent process counts as lost.")


def read(flag: flags.FlagValues) -> Place | None:
  """The place that the flags give; None where the run is one process.

  Raises:
    InputError: they contradict each other, or something is missing.
  """
  numbered = (flag.processes, flag.process) != (0, -1)
  if not (flag.coordinator or numbered or flag.distributed):
    return None
  for name in ("join_s", "lost_s"):
    if getattr(flag, name) < 1:
      raise InputError(f"--{name}={getattr(flag, name)} must be at least 1 second")
  if flag.distributed:
    if flag.coordinator or numbered:
      raise InputError("--distributed finds --coordinator, --processes and --process by itself")
    return Place("", 0, -1, flag.join_s, flag.lost_s)
  host, _, port = flag.coordinator.rpartition(":")
  if not (re.fullmatch(r"\S+", host) and re.fullmatch(r"\d{1,5}", port) and 0 < int(port) < 2**16):
    raise InputError(
      f"--coordinator={flag.coordinator} must be HOST:PORT of process 0, with a port below 65,536"
    )
  if flag.processes < 1 or not 0 <= flag.process < flag.processes:
    raise InputError(
      f"--process={flag.process} must be one of 0 to {flag.processes - 1}, of --processes="
      f"{flag.processes}, which must be at least 1"
    )
  return Place(flag.coordinator, flag.processes, flag.process, flag.join_s, flag.lost_s)


def join(place: Place | None) -> None:
  """Returns when every process of the run is there; call it before anything asks for a device.

  Where one never comes, this process ends with one sentence and exit code 2: JAX's own time-out
  aborts the process and cannot be caught. For the same reason a process that has lost another one
  ends from within the abort.

  Raises:
    InputError: JAX finds no other processes, or another program listens at this one's port.
  """
  if place is None:
    return
  if place.coordinator and place.index == 0:
    _check_port(int(place.coordinator.rpartition(":")[2]))
  jax.config.update("jax_enable_preemption_service", False)  # It would take SIGTERM from the run.
  timer = threading.Timer(place.join_s, _never_joined, [place])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      coordinator_address=place.coordinator or None,
      num_processes=place.count or None,
      process_id=None if place.index < 0 else place.index,
      local_device_ids=None,
      cluster_detection_method=None if not place.coordinator else "deactivate",
      initialization_timeout=2 * place.join_s + 60,  # The timer is earlier.
      heartbeat_timeout_seconds=place.lost_s,
    )
    _names.append(f"process {jax.process_index()} of {jax.process_count()}")  # Makes the backends.
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())
    hint = "" if place.coordinator else "; give --coordinator, --processes and --process instead"
    raise InputError(f"{place} cannot join the run: {reason}{hint}") from None
  finally:
    timer.cancel()
  ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def _check_port(port: int) -> None:
  """Raises InputError where a port is taken: JAX's coordinator would crash on it."""
  try:
    socket.create_server(("", port)).close()
  except OSError as error:
    why = os.strerror(error.errno or 0)
    raise InputError(
      f"process 0 cannot listen at port {port} of this host: {why}; name another in --coordinator"
    ) from None


def joined() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized()


def leave(code: int, orderly: bool, stopped: bool) -> None:
  """Ends a process that has joined others; returns where all end alike, or none have joined.

  Args:
    stopped: in the middle of anything, by Ctrl-C: what runs in the background would crash in
      Python's own end.
  """
  if not joined():
    if stopped:
      _exit(code)
    return
  if orderly:
    try:
      processes.barrier("end")  # JAX gives the slowest a few minutes only.
      jax.distributed.shutdown()
    except Exception as error:
      if not is_loss(error):
        raise
      lose(" ".join(str(error).split()))
    return
  if jax.process_index() == 0:
    time.sleep(GRACE_S)
  _exit(code)


def is_loss(error: Exception) -> bool:
  """Whether an error is how JAX tells that another process is gone."""
  told = {jax.errors.JaxRuntimeError: _LOSS, ValueError: _LOSS_AT_START}
  return any(isinstance(error, kind) and words.search(str(error)) for kind, words in told.items())


def lose(reason: str) -> None:
  """Ends this process at once, because another one is gone; nothing waits for it."""
  sys.stdout.flush()
  _lose(reason)


def _lose(reason: str) -> None:
  """As the handler of an abort may: it takes no lock, of Python's streams or of JAX."""
  told = (
    f"error: {_names[-1]} lost another process of the run ({reason}); start it again, on fewer "
    "processes if need be, and it goes on from its last checkpoint"
  )
  os.write(2, f"{told}\n".encode())
  os._exit(LOST)


def _never_joined(place: Place) -> None:
  told = "at least one other process never joined"
  if place.coordinator and not _answers(place.coordinator):
    told = f"process 0 never answered at {place.coordinator}"
  os.write(2, f"error: {place} waited {place.join_s} s (--join_s), and {told}\n".encode())
  _exit(2)


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=3).close()
  except (OSError, OverflowError):
    return False
  return True


def _exit(code: int) -> None:
  """Without the hooks that wait for the other processes."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):  # Who listened may be gone.
      stream.flush()
  os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: Any) -> None:
  """The coordination service aborts a process whose run has lost another one."""
  _lose("it no longer answers")
