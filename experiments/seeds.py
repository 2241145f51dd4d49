"""Runs that differ in their seed alone, so that what they found can be compared."""

from collections.abc import Sequence

from iclm import config, workdir
from iclm.config import InputError

# The seed, and the base that was trained with it; what changes how a run runs and not what comes
# out; and what follows the run.
FREE = (*workdir.FREE, ("seed",), ("checkpoint", "init_from"), ("study",), ("log_every",))


def load(
  run: workdir.Run, folder: str, others: Sequence[str], at: workdir.At | None
) -> list[workdir.Run]:
  """The runs of other seeds, on the mesh of the first.

  Args:
    at: the checkpoint of each; see `workdir.load_state`.

  Raises:
    InputError: one of them is no run, a run of another config, or of a seed that is there already.
  """
  found, mine = [], config.to_dict(run.config)
  whose = {run.config.seed: folder}
  for name in others:
    other = workdir.load_run(config.path(name), run.config.mesh, at)
    differs = config.difference(config.to_dict(other.config), mine, FREE)
    if differs is not None:
      raise InputError(f"--seed_workdir={name} is no other seed of {folder}: {differs} here")
    seed = other.config.seed
    if seed in whose:
      raise InputError(f"--seed_workdir={name} has seed {seed}, as {whose[seed]} has; give another")
    whose[seed] = name
    found.append(other)
  return found
