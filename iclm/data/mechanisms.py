"""Mechanisms: sequences with two known factors, what is done to them and how they are written.

The domain of an example is its surface (alphabet, separator, phrasing), its mechanism is the
operation. Surfaces share nothing but the words of the operations, so that a pair of surface and
operation that was never trained can be solved by what was learnt of each. Only here is it known
which mechanisms there are, and so can be measured whether experts are mechanisms.

  surface         sequence     prompt, with the operation "reverse"
  lower           a.b.c.d      Apply reverse to (a.b.c.d):
  upper           K-L-M-N      [K-L-M-N] under reverse is:
  digits          0,1,2,3      From 0,1,2,3 do reverse:
  words           ant/bee/cat  Given <ant/bee/cat>, find its reverse:
  signs           ! # $ %      Using reverse, turn ! # $ % into

No symbol stands beside a space in one place and beside punctuation in another, and the answer
starts right behind the prompt: a tokenizer that splits words from punctuation gives every symbol
one token of its own.
"""

import difflib
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from iclm.config import InputError
from iclm.data.records import Example

Part = Literal["train", "val", "test"]
SIZE = 10  # Symbols of an alphabet.
LENGTHS = (4, 5)


class Surface(NamedTuple):
  """How a sequence is written.

  Attributes:
    alphabet: its symbols, in the order that the operations on it go by.
    separator: between two symbols.
    phrasing: the prompt, with holes for operation and sequence.
  """

  alphabet: tuple[str, ...]
  separator: str
  phrasing: str


SURFACES = {
  "lower": Surface(tuple("abcdefghij"), ".", "Apply {operation} to ({sequence}):"),
  "upper": Surface(tuple("KLMNOPQRST"), "-", "[{sequence}] under {operation} is:"),
  "digits": Surface(tuple("0123456789"), ",", "From {sequence} do {operation}:"),
  "words": Surface(
    ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"),
    "/",
    "Given <{sequence}>, find its {operation}:",
  ),
  "signs": Surface(tuple("!#$%&*+=?@"), " ", "Using {operation}, turn {sequence} into "),
}

# On the places of a sequence, whatever stands there.
_POSITION: dict[str, Callable[[Sequence[int]], Sequence[int]]] = {
  "reverse": lambda s: s[::-1],
  "rotate": lambda s: (*s[1:], s[0]),
  "swap": lambda s: (s[-1], *s[1:-1], s[0]),
}
# On the ranks of symbols in their alphabet, whatever their places.
_ALPHABET: dict[str, Callable[[Sequence[int]], Sequence[int]]] = {
  "sort": sorted,
  "successor": lambda s: [(i + 1) % SIZE for i in s],
  "opposite": lambda s: [SIZE - 1 - i for i in s],
}
OPERATIONS = _POSITION | _ALPHABET


def _pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
  """The trained pairs and the held-out ones.

  Latin-style rule: surface number s keeps back the position operation number s mod 3 and the
  alphabet operation number (s + 1) mod 3. Each surface trains four of six operations, two of a
  kind; each operation is trained on three or four of five surfaces.
  """
  trained, held_out = [], []
  for s, surface in enumerate(SURFACES):
    for kind, first in ((_POSITION, s), (_ALPHABET, s + 1)):
      for o, operation in enumerate(kind):
        (held_out if o == first % 3 else trained).append((surface, operation))
  return trained, held_out


TRAINED, HELD_OUT = _pairs()
SPLITS: dict[str, tuple[list[tuple[str, str]], Part]] = {
  "iid_train": (TRAINED, "train"),
  "iid_val": (TRAINED, "val"),
  "iid_test": (TRAINED, "test"),
  "unseen_pairs": (HELD_OUT, "test"),
}


def kind_of(operation: str) -> Literal["position", "alphabet"]:
  """Returns what an operation looks at: the places of symbols, or their order in the alphabet."""
  return "position" if operation in _POSITION else "alphabet"


def apply(operation: str, sequence: Sequence[int]) -> tuple[int, ...]:
  """Returns the sequence that an operation makes of one, both as ranks in the alphabet."""
  return tuple(OPERATIONS[operation](sequence))


def part_of(sequence: Sequence[int]) -> Part:
  """Returns which part a sequence belongs to, on every surface and under every operation.

  A hash decides, so that parts are disjoint whatever is drawn: 8 in 10 train, 1 val, 1 test.
  """
  tenth = zlib.crc32(bytes(sequence)) % 10
  return "val" if tenth == 8 else "test" if tenth == 9 else "train"


def example(split: str, seed: int, index: int) -> Example:
  """Returns example `index` of a split, a pure function of the arguments; pairs take turns.

  Args:
    split: "iid_train", "iid_val" or "iid_test" (trained pairs, disjoint sequences), or
      "unseen_pairs" (the other pairs, and the sequences of "iid_test").
    seed: any integer.
    index: >= 0.

  Returns:
    An example of group "<kind>/<operation>" and of the surface's domain.
  """
  pairs, part = SPLITS[split]
  surface, operation = pairs[index % len(pairs)]
  rng = random.Random(f"{seed}/{split}/{index}")
  return _written(rng, surface, operation, operation, part, f"{split}/{index}")


def shift(
  surface: str, operation: str, becomes: str, part: Part, seed: int, n: int
) -> list[Example]:
  """Returns examples of one surface on which an operation's word now means another operation.

  Args:
    surface: where the mechanism has changed.
    operation: its word, which the prompts carry; also the group of the examples.
    becomes: the operation that the answers follow.
    part: which sequences to draw from; see `part_of`.
    seed: any integer.
    n: how many, >= 0.

  Raises:
    InputError: a surface, operation or part is not known, or the operation becomes itself.
  """
  for name, value, known in (
    ("surface", surface, SURFACES),
    ("operation", operation, OPERATIONS),
    ("becomes", becomes, OPERATIONS),
    ("part", part, ("train", "val", "test")),
  ):
    if value not in known:
      near = difflib.get_close_matches(value, known, n=1, cutoff=0)[0]
      raise InputError(f"{name} = {value!r} of the shift is not known; the nearest is {near!r}.")
  if operation == becomes:
    raise InputError(f"becomes = {becomes!r} shifts nothing; name another operation.")
  name = f"shift/{surface}/{operation}/{becomes}/{part}"
  return [
    _written(random.Random(f"{seed}/{name}/{i}"), surface, operation, becomes, part, f"{name}/{i}")
    for i in range(n)
  ]


def _written(
  rng: random.Random, surface: str, operation: str, meaning: str, part: Part, name: str
) -> Example:
  alphabet, separator, phrasing = SURFACES[surface]
  while True:
    # Distinct symbols: an operation on places then always changes the sequence.
    sequence = rng.sample(range(SIZE), rng.choice(LENGTHS))
    if part_of(sequence) == part:
      break
  shown, answer = (
    separator.join(alphabet[i] for i in ranks) for ranks in (sequence, apply(meaning, sequence))
  )
  return Example(
    prompt=phrasing.format(operation=operation, sequence=shown),
    answer=answer,
    choices=(),
    domain=surface,
    group=f"{kind_of(operation)}/{operation}",
    id=name,
  )
