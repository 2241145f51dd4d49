"""Bad input, and how it is told."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Bad input, told in one sentence: what, where, and the nearest valid thing.

  The commands in `experiments/` print the sentence and exit with code 2; anything else that is
  raised is a bug and traces back.
  """


def nearest(name: str, valid: Iterable[str]) -> str:
  """Returns "did you mean X?", or the valid names where none is near, or that there is none."""
  valid = sorted(map(str, valid))
  if not valid:
    return "there is no valid one"
  close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
  return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}"
