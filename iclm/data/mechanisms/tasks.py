"""A task is a handful of settings, from which its pairs, compositions and splits follow."""

import functools
import itertools
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from iclm.config import InputError, check_known
from iclm.data.mechanisms.operations import OPERATIONS, apply, kind_of
from iclm.data.mechanisms.surfaces import SIZE, SURFACES, Surface, in_one_layout

Part = Literal["train", "val", "test"]
Composition = tuple[str, str]
_SHORTEST = 4  # In three places, to reverse is to swap the ends.
_PROBES = 12  # Sequences of each length that tell two operations apart.


class Shift(NamedTuple):
  """On one surface, the word of an operation comes to mean another operation."""

  surface: str
  operation: str
  becomes: str


class Task(NamedTuple):
  """What examples are drawn from.

  Attributes:
    surfaces: those that are trained.
    operations: their words; those of a kind are numbered in this order.
    size: symbols of an alphabet.
    lengths: of sequences, equally likely.
    plain: whether the surfaces share separator and phrasing, and differ in their alphabets alone.
    composes: whether two operations in a row are asked for, too.
    longer: lengths of the split "longer"; () for no such split.
    new_surface: of the split "new_surface"; None for no such split.
    shift: of the split "shifted"; None for no such split.
  """

  surfaces: tuple[str, ...]
  operations: tuple[str, ...]
  size: int
  lengths: tuple[int, ...]
  plain: bool
  composes: bool
  longer: tuple[int, ...]
  new_surface: str | None
  shift: Shift | None


_FULL = Task(
  surfaces=("lower", "upper", "digits", "words", "signs", "greek"),
  operations=("reverse", "rotate", "swap", "sort", "successor", "opposite"),
  size=10,
  lengths=(4, 5),
  plain=False,
  composes=True,
  longer=(6, 7),
  new_surface="blend",
  shift=Shift("digits", "reverse", "rotate"),
)
TASKS = {
  "default": _FULL._replace(
    surfaces=_FULL.surfaces[:5], composes=False, longer=(), new_surface=None, shift=None
  ),
  "plain": _FULL._replace(
    # Signs would run together with the punctuation around them.
    surfaces=("lower", "upper", "digits", "words", "cyrillic", "greek"),
    plain=True,
    size=8,
    new_surface=None,
  ),
  "easy": _FULL._replace(size=8, lengths=(4,), longer=(5, 6)),
  "full": _FULL,
  "hard": _FULL._replace(
    operations=tuple(OPERATIONS), size=SIZE, lengths=(5, 6, 7, 8), longer=(9, 10, 11, 12)
  ),
}


def surface_of(task: Task, name: str) -> Surface:
  """Returns how a task writes sequences in one of `SURFACES`."""
  return in_one_layout(SURFACES[name]) if task.plain else SURFACES[name]


class Case(NamedTuple):
  """What an example is about, apart from its sequence.

  Attributes:
    surface: how it is written.
    words: the operations that the prompt names, one or two.
    meaning: the operations that the answer follows; `words`, unless their meaning has shifted.
  """

  surface: str
  words: tuple[str, ...]
  meaning: tuple[str, ...]


class Split(NamedTuple):
  """What the examples of a split are drawn from: cases take turns, lengths are equally likely."""

  cases: tuple[Case, ...]
  part: Part
  lengths: tuple[int, ...]


def part_of(sequence: Sequence[int]) -> Part:
  """Returns which part a sequence belongs to, on every surface and under every operation.

  A hash decides, so that parts are disjoint whatever is drawn: 8 in 10 train, 1 val, 1 test.
  """
  tenth = zlib.crc32(bytes(sequence)) % 10
  return "val" if tenth == 8 else "test" if tenth == 9 else "train"


def pairs(task: Task) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
  """Returns the trained pairs of surface and operation, and the held-out ones.

  Latin-style rule: surface number s keeps back position operation number s and alphabet operation
  number s + 1, counted in circles. So each surface trains all operations but one of each kind, and
  each operation is trained on most surfaces.
  """
  kinds = [[o for o in task.operations if kind_of(o) == k] for k in ("position", "alphabet")]
  trained, held_out = [], []
  for s, surface in enumerate(task.surfaces):
    for kind, first in zip(kinds, (s, s + 1), strict=True):
      for o, operation in enumerate(kind):
        (held_out if o == first % len(kind) else trained).append((surface, operation))
  return trained, held_out


def compositions(task: Task) -> tuple[list[Composition], list[Composition]]:
  """Returns the trained compositions of two operations, and the held-out ones.

  Operations number i and j are held out in both orders if i + j is a multiple of three: many
  commute, so that one order would give the other away. What is no new operation is in neither:
  reversing twice does nothing, and whatever is sorted afterwards might as well not be rotated.
  """
  if not task.composes:
    return [], []
  single = {_behaviour(task, c) for c in ((), *((o,) for o in task.operations))}
  trained, held_out = [], []
  numbered = enumerate(task.operations)
  for (i, one), (j, other) in itertools.product(numbered, repeat=2):
    if _behaviour(task, (one, other)) not in single:
      (trained if (i + j) % 3 else held_out).append((one, other))
  return trained, held_out


def _behaviour(task: Task, operations: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
  """What operations make of sequences of each length; equal, it is taken for the same operation."""
  probes = _probes((*task.lengths, *task.longer), task.size)
  return tuple(apply(operations, probe, task.size) for probe in probes)


@functools.cache
def _probes(lengths: tuple[int, ...], size: int) -> tuple[list[int], ...]:
  """Sequences of each length, drawn once: every operation of a task is asked about the same."""
  draws = itertools.product(lengths, range(_PROBES))
  return tuple(random.Random(i).sample(range(size), length) for length, i in draws)


@functools.cache
def splits(task: Task) -> Mapping[str, Split]:
  """Returns the splits of a task by name; sequences of train, val and test are disjoint.

  Each split but the first three differs from "iid_test" in one thing only: "unseen_pairs" asks for
  operations that its surface never trained, "unseen_compositions" for two that were trained alone
  on that surface but never together on any, "longer" has longer sequences, "new_surface" a surface
  that was not trained, and in "shifted" one operation on one surface means another. A composition
  is only asked for where both of its operations are trained alone, lest it give away a held-out
  pair; on a new surface, all those that are trained somewhere.

  Raises:
    InputError: a setting of the task is out of its range.
  """
  _check(task)
  trained, held_out = pairs(task)
  composed, unseen = compositions(task)

  def cases(surfaces: Sequence[str], asked: Sequence[tuple[str, ...]]) -> tuple[Case, ...]:
    return tuple(Case(s, c, c) for s in surfaces for c in asked)

  def known(asked: Sequence[Composition]) -> tuple[Case, ...]:
    found = cases(task.surfaces, asked)
    return tuple(c for c in found if all((c.surface, o) in trained for o in c.words))

  iid = tuple(Case(s, (o,), (o,)) for s, o in trained) + known(composed)
  found = {
    "iid_train": Split(iid, "train", task.lengths),
    "iid_val": Split(iid, "val", task.lengths),
    "iid_test": Split(iid, "test", task.lengths),
    "unseen_pairs": Split(tuple(Case(s, (o,), (o,)) for s, o in held_out), "test", task.lengths),
  }
  if task.composes:
    found["unseen_compositions"] = Split(known(unseen), "test", task.lengths)
  if task.longer:
    found["longer"] = Split(iid, "test", task.longer)
  if task.new_surface:
    everything = [*((o,) for o in task.operations), *composed]
    found["new_surface"] = Split(cases([task.new_surface], everything), "test", task.lengths)
  if task.shift:
    shifted = Case(task.shift.surface, (task.shift.operation,), (task.shift.becomes,))
    found["shifted"] = Split((shifted,), "test", task.lengths)
  return found


def _check(task: Task) -> None:
  """Raises InputError if a setting of the task is out of its range."""
  for surface in (*task.surfaces, *([task.new_surface] if task.new_surface else [])):
    check_known("surface of the task", surface, SURFACES)
  for operation in task.operations:
    check_known("operation of the task", operation, OPERATIONS)
  if task.new_surface in task.surfaces:
    raise InputError(f"new_surface = {task.new_surface!r} is trained; name one that is not.")
  if task.size > SIZE:
    raise InputError(f"size = {task.size} of the task is too large; alphabets have {SIZE} symbols.")
  for length in (*task.lengths, *task.longer):
    if not _SHORTEST <= length <= task.size:
      raise InputError(
        f"length {length} of the task must be in {_SHORTEST}..{task.size}: symbols are distinct."
      )
  missing = set(task.operations) - {operation for _, operation in pairs(task)[0]}
  if missing:
    raise InputError(
      f"operation {min(missing)!r} is trained on no surface; name more surfaces, and two operations"
      " of a kind or more."
    )
  if task.shift:
    check_shift(task, task.shift)


def check_shift(task: Task, shift: Shift) -> None:
  """Raises InputError if a shift names what the task has not, or shifts nothing."""
  check_known("surface", shift.surface, task.surfaces)
  check_known("operation", shift.operation, task.operations)
  check_known("becomes", shift.becomes, task.operations)
  if shift.operation == shift.becomes:
    raise InputError(f"becomes = {shift.becomes!r} shifts nothing; name another operation.")
