"""What is done to a sequence: operations on places, operations on an alphabet, and two in a row."""

from collections.abc import Callable, Sequence
from typing import Literal

# From a sequence of ranks, and the size of their alphabet.
_Operation = Callable[[Sequence[int], int], Sequence[int]]


def _weave(s: Sequence[int]) -> list[int]:
  """The first, the last, the second, the last but one, and so on."""
  return [s[i // 2] if i % 2 == 0 else s[-1 - i // 2] for i in range(len(s))]


# On the places of a sequence, whatever stands there.
_POSITION: dict[str, _Operation] = {
  "reverse": lambda s, _: s[::-1],
  "rotate": lambda s, _: (*s[1:], s[0]),
  "swap": lambda s, _: (s[-1], *s[1:-1], s[0]),
  "weave": lambda s, _: _weave(s),
}
# On the ranks of symbols in their alphabet, whatever their places.
_ALPHABET: dict[str, _Operation] = {
  "sort": lambda s, _: sorted(s),
  "successor": lambda s, size: [(i + 1) % size for i in s],
  "opposite": lambda s, size: [size - 1 - i for i in s],
  "antipode": lambda s, size: [(i + size // 2) % size for i in s],
}
OPERATIONS = _POSITION | _ALPHABET


def kind_of(operation: str) -> Literal["position", "alphabet"]:
  """Returns what an operation looks at: the places of symbols, or their order in the alphabet."""
  return "position" if operation in _POSITION else "alphabet"


def apply(operations: Sequence[str], sequence: Sequence[int], size: int) -> tuple[int, ...]:
  """Returns the sequence that operations make of one, the first operation first.

  Args:
    operations: keys of `OPERATIONS`.
    sequence: ranks in the alphabet, in [0, size).
    size: symbols of the alphabet.
  """
  for operation in operations:
    sequence = OPERATIONS[operation](sequence, size)
  return tuple(sequence)
