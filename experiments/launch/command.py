"""The one command that starts every process of a run, on the hosts of a pod as on one machine."""

from collections.abc import Sequence

from iclm.config import InputError

SHARED = ("config", "workdir", "join_s", "lost_s")  # Of the flags of `experiments.train`.


def train(python: str, words: Sequence[str], joining: Sequence[str]) -> list[str]:
  """The command line of one process.

  Args:
    words: the flags of `experiments.train` that all processes share.
    joining: those by which this one finds the others; see `experiments.hosts`.
  """
  return [python, "-m", "experiments.train", *words, *joining]


def check(words: Sequence[str]) -> None:
  """Raises InputError where a word is no flag that all processes of a run can share."""
  for word in words:
    name = word.removeprefix("--").partition("=")[0]
    if not word.startswith("--") or not (name in SHARED or name.startswith("config.")):
      raise InputError(
        f"{word} stands behind the --, where only flags of experiments.train do, each with its = : "
        f"{', '.join(f'--{flag}' for flag in SHARED)} and --config.KEY"
      )


def value(words: Sequence[str], name: str) -> str:
  """What the flags of `experiments.train` give one flag.

  Raises:
    InputError: they do not give it.
  """
  found = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
  if not found:
    raise InputError(
      f"--{name}= is missing behind the --, where the flags of experiments.train stand"
    )
  return found[-1]
