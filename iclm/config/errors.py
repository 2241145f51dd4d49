"""Bad input, and how it is told."""

import difflib
import os
import pathlib
from collections.abc import Iterable


class InputError(ValueError):
  """Bad input, told in one sentence: what, where, and the nearest valid thing.

  The commands in `experiments/` print the sentence and exit with code 2; anything else that is
  raised is a bug and traces back.
  """


def require(holds: bool, sentence: str) -> None:
  """Raises InputError with the sentence where something does not hold."""
  if not holds:
    raise InputError(sentence)


def path(name: str | os.PathLike) -> pathlib.Path:
  """The path that a user names, from the home folder where it begins with ~; it need not exist.

  Raises:
    InputError: whether it exists cannot be told: no such user, too long, or not permitted.
  """
  try:
    found = pathlib.Path(name).expanduser()
    found.exists()
  except (OSError, RuntimeError) as error:
    why = getattr(error, "strerror", None) or error
    raise InputError(f"{name}: this path cannot be looked up: {why}") from None
  return found


def check_known(what: str, value: str, known: Iterable[str]) -> None:
  """Raises InputError where a value is none of those that are known, and tells the nearest."""
  known = list(known)
  require(value in known, f"{what} = {value!r} is not known; {nearest(value, known)}")


def multiple(n: int, of: int) -> int:
  """The multiple of `of` that lies nearest to n, and is not 0."""
  return max(round(n / of), 1) * of


def nearest(name: str, valid: Iterable[str]) -> str:
  """Returns "did you mean X?", or the valid names where none is near, or that there is none."""
  valid = sorted(map(str, valid))
  if not valid:
    return "there is no valid one"
  close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
  return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}"
