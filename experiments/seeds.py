"""Runs that differ in their seed alone, so that what they found can be compared."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from iclm import config, workdir
from iclm.config import InputError

# Beside the seed: what changes how a run runs, not what comes out, and what follows the run.
FREE = (*workdir.FREE, ("study",), ("log_every",))


def load(run: workdir.Run, folder: str, others: Sequence[str]) -> list[workdir.Run]:
  """The runs of other seeds, on the mesh of the first.

  Raises:
    InputError: one of them is no run, a run of another config, or of a seed that is there already.
  """
  found, mine = [], config.to_dict(run.config)
  whose = {run.config.seed: folder}
  for name in others:
    other = workdir.load_run(pathlib.Path(name), run.config.mesh)
    for key, here, there in _differences(mine, config.to_dict(other.config), ()):
      if key != ("seed",) and not any(key[: len(free)] == free for free in FREE):
        raise InputError(
          f"--seed_workdir={name} is no other seed of {folder}: config.{'.'.join(key)} is "
          f"{there!r} there and {here!r} here"
        )
    seed = other.config.seed
    if seed in whose:
      raise InputError(f"--seed_workdir={name} has seed {seed}, as {whose[seed]} has; give another")
    whose[seed] = name
    found.append(other)
  return found


def _differences(
  mine: Any, theirs: Any, where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
  if isinstance(mine, dict) and isinstance(theirs, dict):
    for key in sorted(mine.keys() | theirs.keys()):
      yield from _differences(mine.get(key), theirs.get(key), (*where, key))
  elif mine != theirs:
    yield where, mine, theirs
