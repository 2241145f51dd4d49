"""The rules of RAVEN: each is a distribution over rows, to draw from and to weigh what is shown.

Source: Zhang et al., "RAVEN", CVPR 2019. Rules go by the levels of an attribute, by the set of
slots that are taken, or by the number of entities. One table serves generator and solver, so that
a row is drawn by one exactly as often as the other expects it.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from iclm.data.raven.world import ATTRIBUTES, Component, Configuration

Kind = Literal["constant", "progression", "distribute_three", "arithmetic"]
KINDS: tuple[Kind, ...] = ("constant", "progression", "distribute_three", "arithmetic")
On = Literal["level", "slots", "number"]
Row = tuple[Any, Any, Any]
Weights = Mapping[Any, float]  # Probability of each value; they add up to 1.


class Rule(NamedTuple):
  """How the values of a row follow from each other, and rows from the rows above.

  Attributes:
    kind: its name.
    on: what its values are: levels, frozensets of slots, or numbers of entities.
    step: from one panel to the next, in levels or slots; 0 unless a progression.
    share: its probability among the rules of its attribute.
    rows: of the first row, and of every other one that `following` does not treat apart.
    second: of a second row under a first one that is not in here.
  """

  kind: Kind
  on: On
  step: int
  share: float
  rows: dict[Row, float]
  second: dict[Row, float]

  def following(self, above: Sequence[Row]) -> dict[Row, float]:
    """Returns the distribution of the row under those above, 0 to 2 of them."""
    if self.kind == "distribute_three" and above:
      a, b, c = above[0]
      rotations = [row for row in ((b, c, a), (c, a, b)) if row not in above]
      return {row: 1 / len(rotations) for row in rotations}
    return self.second if len(above) == 1 and above[0] not in self.second else self.rows

  def draw(self, rng: random.Random) -> list[Any]:
    """Draws the values of nine panels, row by row."""
    grid = []
    for _ in range(3):
      rows = self.following(grid)
      grid += rng.choices(list(rows), list(rows.values()))
    return [value for row in grid for value in row]

  def weigh(self, shown: Sequence[Any]) -> dict[Any, float]:
    """Returns the joint probability of the rule, eight values and each ninth that it allows."""
    first, second, (a, b) = tuple(shown[:3]), tuple(shown[3:6]), shown[6:]
    weight = self.share * self.following([]).get(first, 0)
    weight *= self.following([first]).get(second, 0) if weight else 0
    if not weight:
      return {}
    third = self.following([first, second])
    return {row[2]: weight * p for row, p in third.items() if row[:2] == (a, b)}


def pick(rng: random.Random, rules: Sequence[Rule]) -> Rule:
  """Draws a rule by the shares."""
  return rng.choices(rules, [rule.share for rule in rules])[0]


def _normal(weights: Weights) -> dict[Any, float]:
  total = sum(weights.values())
  return {value: w / total for value, w in weights.items()}


def _constant(values: Weights, share: float, on: On = "level") -> Rule:
  rows = {(v, v, v): w for v, w in values.items()}
  return Rule("constant", on, 0, share, rows, rows)


def _progression(
  values: Weights, move: Callable[[Any, int], Any], step: int, share: float, on: On = "level"
) -> Rule:
  """Starts of which no panel leaves the values."""
  starts = {(v, move(v, step), move(v, 2 * step)): w for v, w in values.items()}
  rows = _normal({row: w for row, w in starts.items() if values.keys() >= set(row)})
  return Rule("progression", on, step, share, rows, rows)


def _distribute_three(sets: Iterable[Sequence[Any]], share: float, on: On = "level") -> Rule:
  """Three different values of one of the sets, which are equally likely; rows are rotations."""
  rows = {}
  for values in sets:
    n = math.perm(len(values), 3)
    rows |= {row: 1 / n for row in itertools.permutations(values, 3)}
  rows = _normal(rows)
  return Rule("distribute_three", on, 0, share, rows, rows)


def _pairs(
  values: Weights, third: Callable[[Any, Any], Any], allowed: Callable[[Any, Any], bool]
) -> dict[Row, float]:
  """The first by its weight, the second by its weight among those allowed beside the first."""
  rows = {}
  for a, w in values.items():
    seconds = _normal({b: v for b, v in values.items() if allowed(a, b)})
    rows |= {(a, b, third(a, b)): w * v for b, v in seconds.items()}
  return _normal(rows)


def _arithmetic(values: Weights, sign: int, offset: int, share: float, on: On = "level") -> Rule:
  """Sum or difference of the level plus an offset; where adding 0 is possible, not twice at first.

  Two rows that add 0 would look constant.
  """
  third = lambda a, b: a + sign * (b + offset)
  rows = _pairs(values, third, lambda a, b: third(a, b) in values)
  second = _pairs(values, third, lambda a, b: third(a, b) in values and b + offset != 0)
  return Rule("arithmetic", on, 0, share, rows, second)


def _even(values: Iterable[Any]) -> dict[Any, float]:
  return _normal(dict.fromkeys(values, 1.0))


def _level_rules(
  values: Sequence[int], steps: Sequence[int], shares: Sequence[float], offset: int
) -> tuple[Rule, ...]:
  """Rules on levels, with the shares of the four kinds in the order of `KINDS`."""
  constant, progression, three, arithmetic = shares
  even = _even(values)
  found = [
    _constant(even, constant),
    *(_progression(even, lambda v, d: v + d, d, progression / len(steps)) for d in steps),
    _distribute_three([values], three),
    *(_arithmetic(even, sign, offset, arithmetic / 2) for sign in (1, -1)),
  ]
  return tuple(rule for rule in found if rule.share)


def shifted(slot: int, step: int) -> int:
  """Returns the slot that lies some steps further, from the last one on to the first."""
  return (slot + step) % 4


def _slot_sets(numbers: Sequence[int]) -> dict[frozenset[int], float]:
  """Numbers equally likely, and the sets of a number too."""
  return _normal(
    {
      frozenset(slots): 1 / math.comb(4, n)
      for n in numbers
      for slots in itertools.combinations(range(4), n)
    }
  )


def _layout_rules() -> tuple[Rule, ...]:
  """Rules on the four slots, or on how many of them are taken."""
  numbers, sets = _even(range(1, 5)), _slot_sets
  move = lambda slots, d: frozenset(shifted(s, d) for s in slots)
  by_number = [[s for s in sets([n])] for n in (1, 2, 3)]
  union = _pairs(sets([1, 2, 3]), lambda a, b: a | b, lambda a, b: not b <= a)
  difference = _pairs(sets([2, 3]), lambda a, b: a - b, lambda a, b: not a <= b)
  return (
    _constant(sets([1, 2, 3, 4]), 1 / 6, "slots"),
    *(_progression(numbers, lambda n, d: n + d, d, 1 / 24, "number") for d in (1, -1)),
    *(_progression(sets([1, 2]), move, d, 1 / 24, "slots") for d in (1, -1)),
    *(_arithmetic(numbers, sign, 0, 1 / 12, "number") for sign in (1, -1)),
    *(Rule("arithmetic", "slots", 0, 1 / 12, r, r) for r in (union, difference)),
    _distribute_three([range(1, 5)], 1 / 6, "number"),
    _distribute_three(by_number, 1 / 6, "slots"),
  )


_STEPS, _NO = (-2, -1, 1, 2), (1.0, 0.0, 0.0, 0.0)
Table = dict[str, tuple[Rule, ...]]  # The rules of each attribute, constant first; often alone.
_CENTRE: Table = {
  "size": _level_rules(range(6), _STEPS, (1 / 4, 1 / 4, 1 / 4, 1 / 4), 1),
  "colour": _level_rules(range(10), _STEPS, (1 / 4, 1 / 4, 1 / 4, 1 / 4), 0),
  "type": _level_rules(range(1, 6), _STEPS, (1 / 3, 1 / 3, 1 / 3, 0), 0),
  "angle": _level_rules(range(8), (), _NO, 0),
}
_OUTSIDE: Table = _CENTRE | {
  "size": _level_rules(range(3, 6), (-1, 1), (0.4, 0.2, 0.4, 0), 0),
  "colour": _level_rules([0], (), _NO, 0),
}
# Of each component of a panel.
TABLES: dict[Configuration, tuple[Table, ...]] = {
  "center_single": (_CENTRE,),
  "in_center_out_center": (_OUTSIDE, _CENTRE),
  "distribute_four": (_CENTRE,),
}
_IN_CENTRE = (_constant({frozenset([None]): 1.0}, 1.0, "slots"),)
LAYOUTS: dict[Configuration, tuple[Rule, ...]] = {
  "center_single": _IN_CENTRE,
  "in_center_out_center": _IN_CENTRE,
  "distribute_four": _layout_rules(),
}


def values_of(table: Table, attribute: str) -> tuple[int, ...]:
  """Returns the levels that an attribute can have."""
  return tuple(row[0] for row in table[attribute][0].rows)


def keeps_entities(layout: Rule) -> bool:
  """Whether the same entities stand in all panels of a row, at other places perhaps."""
  return layout.on == "slots" and layout.kind != "arithmetic"


class Mask(NamedTuple):
  """What the context determines of a component; its number of entities always is.

  Attributes:
    attributes: those with determined values.
    slots: whether the set of slots is determined.
    paired: whether it is, too, which entity stands where.
  """

  attributes: tuple[str, ...]
  slots: bool
  paired: bool


def mask_of(layout: Rule, attributes: Iterable[str]) -> Mask:
  """Returns the mask of a component whose layout follows a rule."""
  slots = layout.on == "slots"
  return Mask(tuple(attributes), slots, slots and layout.kind in ("constant", "progression"))


def project(component: Component, mask: Mask) -> tuple[Any, ...]:
  """Returns what a mask leaves of a component, equal for equal sets of entities."""
  kept = [ATTRIBUTES.index(a) for a in mask.attributes] + [4] * mask.paired
  slots = {e.slot for e in component} if mask.slots else set()
  return tuple(sorted(tuple(e[i] for i in kept) for e in component)), frozenset(slots)
