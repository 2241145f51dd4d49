"""The one command that starts every process of a run, on the hosts of a pod as on one machine."""

from collections.abc import Sequence

from iclm.config import InputError


def train(python: str, words: Sequence[str], joining: Sequence[str]) -> list[str]:
  """The command line of one process.

  Args:
    words: the flags of `experiments.train` that all processes share.
    joining: those by which this one finds the others; see `experiments.hosts`.
  """
  return [python, "-m", "experiments.train", *words, *joining]


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
