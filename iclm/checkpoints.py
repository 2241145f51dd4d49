"""Checkpoints that are whole or absent: asynchronous, verified by SHA-256, newest and best kept.

  <directory>/<step>/state/         the state, orbax's own files
  <directory>/<step>/meta.json      whatever the caller needs beside it
  <directory>/<step>/manifest.json  size and SHA-256 of every other file, and the metric

The manifest is written last and alone makes a step complete: orbax restores flipped bits without a
word. A save fills `<step>.new` and is renamed when it is complete, so that replacing a step never
leaves the disk without a good one; `<step>.new` with a manifest counts as the step, should the
process die in between. Several processes write into one directory, which all of them must see: a
local disk, or NFS.
"""

import concurrent.futures
import contextlib
import json
import logging
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from iclm import manifest, processes
from iclm.config import InputError

_META, _STATE, _NEW = "meta.json", "state", ".new"
_MARK = "commit_success.txt"  # Orbax's own, with the path at the save; the manifest replaces it.
_STEP = re.compile(r"(0|[1-9]\d*)(\.new)?")
_SHARED_OUT = 2**20  # Bytes of a part.
_log = logging.getLogger(__name__)


class Restored(NamedTuple):
  """A verified checkpoint."""

  step: int
  state: Any
  meta: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run. Close it, or use it in a `with`, so that the last save ends well.

  Every process of a run calls every method; process 0 writes manifests and deletes.

  Args:
    directory: made at the first save.
    keep: how many of the newest steps stay, at least 1.
    best: how many of the steps with the highest metrics stay besides them.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int, best: int):
    self._directory = pathlib.Path(directory).absolute()
    self._keep, self._best = keep, best
    # Synchronously, because orbax waits for minutes on a directory that could not be made.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    self._orbax = ocp.AsyncCheckpointer(_handler(), async_options=options)
    self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending: concurrent.futures.Future | None = None
    self._bad: set[int] = set()  # Failed verification: neither kept nor counted.

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # After an error the other processes may never come to where a save would wait for them.
    if kind is None or jax.process_count() == 1:
      self.close()

  def save(self, step: int, state: Any, meta: dict[str, Any], metric: float | None) -> None:
    """Copies the state off the devices and returns; the rest happens in the background.

    Waits for the save before it. A step that exists is replaced once the new one is complete.

    Args:
      state: pytree of jax or numpy arrays and numbers.
      meta: must survive JSON.
      metric: of this step; None (or not finite) competes for no place among the best.

    Raises:
      InputError: this or the previous save met a full disk, a missing permission or the like.
    """
    self.wait()
    target = self._directory / f"{step}{_NEW}"
    text, leaves = json.dumps(meta, indent=1), _leaves(state)
    metric = float(metric) if metric is not None and math.isfinite(metric) else None
    with _explaining(target):
      if processes.is_first():
        self._settle()
      self._orbax.save(target / _STATE, args=ocp.args.PyTreeSave(state))
    about = {"step": step, "metric": metric, "leaves": leaves}
    self._pending = self._worker.submit(self._finish, target, text, about)

  def wait(self) -> None:
    """Returns when no save is under way.

    Raises:
      InputError: as `save`.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()
      processes.barrier("checkpoint written")  # By process 0, which alone knows that it is whole.

  def close(self) -> None:
    """Waits, and ends the background thread."""
    try:
      self.wait()
    finally:
      self._worker.shutdown()
      self._orbax.close()

  def steps(self) -> list[int]:
    """Complete steps, rising. Complete is not yet verified: see `newest`."""
    return sorted({step for step in self._names() if (self._path(step) / manifest.NAME).exists()})

  def newest(self) -> int | None:
    """The newest step of which every file is as it was written; None where there is no checkpoint.

    Names each bad step in a warning.

    Raises:
      InputError: there are checkpoints, and none is good.
    """
    steps, why = self.steps(), None
    for step in reversed(steps):
      why = manifest.problem(self._path(step))
      if why is None:
        return step
      self._bad.add(step)
      _log.warning("checkpoint %s is bad and left out: %s", self._path(step), why)
    if steps:
      raise InputError(f"no checkpoint in {self._directory} is good, of steps {steps}: {why}")
    return None

  def best_step(self) -> int | None:
    """The step with the highest metric (of equals the newest); None where no step has one."""
    ranked = self._ranked(self.steps())
    return ranked[-1] if ranked else None

  def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
    """The newest good checkpoint, or that of `step`, after every file has been verified.

    Args:
      abstract_state: ShapeDtypeStructs with the shardings that are wanted (default: one device),
        whatever they were at the save; numpy arrays and numbers stand for themselves.

    Returns:
      None where there is no checkpoint at all.

    Raises:
      InputError: none is good, `step` is absent or bad, or its leaves are not those of
        `abstract_state`.
    """
    self.wait()
    if step is None:
      newest = self.newest()
      step = processes.of_first(-1 if newest is None else newest)
      if step < 0:
        return None
      path = self._path(step)
    else:
      path = self._verified(step)
    _check_leaves(path, manifest.read(path)["leaves"], _leaves(abstract_state))
    wanted = jax.tree.map(_placed, abstract_state)
    args = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted))
    state = self._orbax.restore(path / _STATE, args=args)
    return Restored(step, state, json.loads((path / _META).read_bytes()))

  def read_meta(self, step: int) -> dict[str, Any]:
    """The meta of a step, verified; the state is left alone.

    Raises:
      InputError: the step is absent, or its meta or manifest is bad.
    """
    return json.loads((self._verified(step, only=_META) / _META).read_bytes())

  def _finish(self, target: pathlib.Path, meta: str, about: dict[str, Any]) -> None:
    """In the background: the meta, the manifest, the rename, and what is kept no more."""
    with _explaining(target):
      self._orbax.wait_until_finished()
      self._bad.discard(about["step"])
      if processes.is_first():
        (target / _STATE / _MARK).unlink(missing_ok=True)
        (target / _META).write_text(meta)
        manifest.write(target, about)
        self._settle()
        self._retain(about["step"])

  def _settle(self) -> None:
    """Gives a complete `<step>.new` its name, and removes an incomplete one, which takes space."""
    for step in self._names():
      new, final = self._directory / f"{step}{_NEW}", self._directory / str(step)
      if (new / manifest.NAME).exists():
        manifest.remove(final)
        new.rename(final)
        manifest.sync(self._directory)
        manifest.sync(self._directory.parent)
      else:
        manifest.remove(new)

  def _retain(self, saved: int) -> None:
    """Removes what is neither new, best nor `saved`, which is the one step known to be good."""
    good = [step for step in self.steps() if step not in self._bad]
    ranked = self._ranked(good)
    kept = {saved, *good[-self._keep :], *ranked[max(len(ranked) - self._best, 0) :]}
    for step in self._names() - kept:
      manifest.remove(self._directory / str(step))

  def _ranked(self, steps: list[int]) -> list[int]:
    """Those with a metric, worst first."""
    metrics = {}
    for step in steps:
      with contextlib.suppress(ValueError):  # A bad manifest is no claim to a place among the best.
        metrics[step] = manifest.read(self._path(step))["metric"]
    has = [step for step in metrics if metrics[step] is not None]
    return sorted(has, key=lambda step: (metrics[step], step))

  def _names(self) -> set[int]:
    """Steps of which there is anything, complete or not."""
    if not self._directory.is_dir():
      return set()
    matches = map(_STEP.fullmatch, os.listdir(self._directory))
    return {int(match[1]) for match in matches if match}

  def _path(self, step: int) -> pathlib.Path:
    new = self._directory / f"{step}{_NEW}"
    return new if (new / manifest.NAME).exists() else self._directory / str(step)

  def _verified(self, step: int, only: str | None = None) -> pathlib.Path:
    """The folder of a step that is there and good, or in which the one file is."""
    steps = self.steps()
    if step not in steps:
      near = min(steps, key=lambda other: abs(other - step), default="none at all")
      raise InputError(f"{self._directory} has no checkpoint of step {step}; nearest is {near}")
    path = self._path(step)
    if (why := manifest.problem(path, only)) is not None:
      raise InputError(f"checkpoint {path} is bad: {why}")
    return path


def _handler() -> ocp.PyTreeCheckpointHandler:
  """Orbax's own, but that a copy of an array is only shared out among the devices where that pays.

  It slices what several devices hold, so that each writes a part, and compiles a program for every
  slice: of a small model on eight CPU devices 152, which was most of its first save.
  """
  registry = type_handlers.create_type_handler_registry(
    (int, type_handlers.ScalarHandler()),
    (float, type_handlers.ScalarHandler()),
    (np.ndarray, type_handlers.NumpyHandler()),
    (jax.Array, type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARED_OUT)),
  )
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _leaves(tree: Any) -> dict[str, str]:
  """Path of every leaf -> dtype and shape, or the type of a plain number."""
  kind = lambda x: f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): kind(x) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_leaves(path: pathlib.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
  for name in wanted | saved:
    there, here = (leaves.get(name, "absent") for leaves in (saved, wanted))
    if there != here:
      hint = "; if the config is the same, another version of iclm wrote it, and can read it"
      raise InputError(
        f"checkpoint {path} does not fit: {name} is {there} there and {here} here"
        f"{hint if 'absent' in (there, here) else ''}"
      )


def _placed(leaf: Any) -> Any:
  """Orbax would take the sharding of the save, whose devices may be gone."""
  if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.sharding is not None:
    return leaf
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


@contextlib.contextmanager
def _explaining(path: pathlib.Path):
  """InputError where the operating system refused; any other error is a bug, and stays one."""
  try:
    yield
  except Exception as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))  # Tensorstore's way to say it.
    if code is None and not isinstance(error, OSError):
      raise
    reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or error
    hint = "free some space, or choose a workdir that can be written"
    raise InputError(f"cannot write checkpoint {path}: {reason}; {hint}") from error
