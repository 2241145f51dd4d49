"""A frozen base reads each training prompt once, before the first step, and the router reads that.

A router that reads the base's final states costs a forward pass of its own wherever nothing else
needs them. The base does not move, so that the mean of its states over a prompt never changes.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import cast

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from iclm import compose, manifest, outputs, processes, progress, sharding
from iclm.config import Config, InputError
from iclm.data import pipeline, prompt_cache
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
) -> dict[str, prompt_cache.Rows]:
  """The sources, their rows with what the router reads of them.

  It lies in the run's folder under a manifest, prompts/0.npy for the first source: float32 of rows
  by D. A run that begins computes it; one that goes on finds it there, or computes it again.

  Args:
    loader: how the run lays rows out.
    sources: finite ones.

  Raises:
    InputError: the folder cannot be written.
  """
  place = folder / FOLDER
  n_rows = {name: len(rows) for name, rows in sources.items()}
  begins = not int(state.step)
  if processes.of_first(begins or not _is_whole(place, n_rows)):
    read = jax.jit(lambda params, batch: model.apply(params, batch).read_BD)
    with _writing(place):
      if processes.is_first():
        manifest.remove(place)
        place.mkdir()
      for i, (name, rows) in enumerate(sources.items()):
        every = grain.MapDataset.source(cast(Sequence, rows)).repeat()
        batches = _batches(dataclasses.replace(loader, rows=every), n_rows[name], name)
        put = (sharding.put_batch(batch, mesh) for batch in batches)
        parts = (processes.fetch(read(state.params, batch)) for batch in put)
        _write(place / _file(i), parts, (n_rows[name], c.model.d_model))
      if processes.is_first():
        manifest.write(place, {"rows": n_rows})
    outputs.wait_for(place / manifest.NAME)
  load = lambda i: np.load(place / _file(i), mmap_mode="r")
  return {name: prompt_cache.Rows(rows, load(i)) for i, (name, rows) in enumerate(sources.items())}


def _file(i: int) -> str:
  """Of the i-th source: a name may hold what a file's may not."""
  return f"{i}.npy"


def _is_whole(place: pathlib.Path, n_rows: dict[str, int]) -> bool:
  """Whether all of it lies there as it was written, of sources of these sizes."""
  if manifest.problem(place) is not None:
    return False
  told = manifest.read(place)
  files = {_file(i) for i in range(len(n_rows))}
  return list(told["rows"].items()) == list(n_rows.items()) and told["files"].keys() == files


@contextlib.contextmanager
def _writing(place: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise InputError(f"cannot write {place}: {error.strerror}") from None


def _batches(loader: pipeline.Loader, n_rows: int, name: str) -> Iterator[pipeline.Batch]:
  """Batches that hold the first rows, watched."""
  n_batches = -(-n_rows // loader.batch_size)
  with contextlib.closing(loader.iterate(0)) as batches:
    numbered = zip(range(n_batches), batches, strict=False)
    for _, batch in progress.watch(numbered, n_batches, f"the base reads the prompts of {name}"):
      yield batch


def _write(path: pathlib.Path, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
  """Writes batches of rows as one array; process 0 does, and all take part in computing them."""
  if not processes.is_first():
    for _ in parts:
      pass
    return
  left = shape[0]
  with path.open("wb") as file:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for read_BD in parts:
      file.write(np.ascontiguousarray(read_BD[:left], np.float32).tobytes())
      left -= len(read_BD)
