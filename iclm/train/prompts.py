"""A frozen base reads each training prompt once, before the first step, and the router reads that.

A router that reads the base's final states costs a forward pass of its own wherever nothing else
needs them. The base does not move, so that the mean of its states over a prompt never changes.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from iclm import compose, outputs, processes, progress, sharding
from iclm.config import Config, InputError
from iclm.data import kept, pipeline
from iclm.step import TrainState

FOLDER = "prompts"


def keep(
  c: Config,
  model: compose.Model,
  state: TrainState,
  mesh: Mesh,
  loader: pipeline.Loader,
  sources: dict[str, pipeline.Source],
  folder: pathlib.Path,
) -> dict[str, kept.Rows]:
  """The sources, their rows with what the router reads of them.

  It lies in the run's folder, prompts/NAME.npy: float32 of rows by D. A run that begins computes
  it; one that goes on finds it there, or computes it again.

  Args:
    loader: how the run lays rows out.
    sources: finite ones.

  Raises:
    InputError: the folder cannot be written.
  """
  read = jax.jit(lambda params, batch: model.apply(params, batch).read_BD)
  begins = not int(state.step)
  found = {}
  for name, rows in sources.items():
    path = folder / FOLDER / f"{name}.npy"
    shape = len(rows), c.model.d_model
    if processes.of_first(begins or _shape(path) != shape):
      every = grain.MapDataset.source(cast(Sequence, rows)).repeat()
      endless = dataclasses.replace(loader, rows=every)
      n_batches = -(-len(rows) // c.batch_size)
      with contextlib.closing(endless.iterate(0)) as batches:
        numbered = zip(range(n_batches), batches, strict=False)
        watched = progress.watch(numbered, n_batches, f"the base reads the prompts of {name}")
        put = (sharding.put_batch(batch, mesh) for _, batch in watched)
        _write(path, (processes.fetch(read(state.params, batch)) for batch in put), shape)
      outputs.wait_for(path)
    found[name] = kept.Rows(rows, np.load(path, mmap_mode="r"))
  return found


def _shape(path: pathlib.Path) -> tuple[int, ...] | None:
  """Of the array in a file; None where there is none."""
  try:
    return np.load(path, mmap_mode="r").shape
  except (OSError, ValueError):
    return None


def _write(path: pathlib.Path, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
  """Writes batches of rows as one array, beside the file at first; process 0 does."""
  if not processes.is_first():
    for _ in parts:
      pass
    return
  beside = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    path.parent.mkdir(exist_ok=True)
    with beside.open("wb") as file:
      _fill(file, parts, shape)
    os.replace(beside, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      beside.unlink(missing_ok=True)
    raise InputError(f"cannot write {path}: {error.strerror}") from None


def _fill(file: BinaryIO, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
  header = {"descr": "<f4", "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, header)
  left = shape[0]
  for read_BD in parts:
    file.write(np.ascontiguousarray(read_BD[:left], np.float32).tobytes())
    left -= len(read_BD)
  file.flush()
  os.fsync(file.fileno())
