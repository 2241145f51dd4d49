"""What the context of a problem determines, found from its eight panels, and answers scored by it.

Every rule is weighed by its probability to make what is shown, as the generator would; the ninth
panel is the most probable one. Two rules can both fit: rows 1 3 5 of sizes progress by two, and
the third is also the sum of the others, the smallest counted as one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from iclm.config import InputError
from iclm.data.raven import rules, world
from iclm.data.raven.rules import Mask, Rule, Table
from iclm.data.raven.world import ATTRIBUTES, Component, Configuration, Entity, Panel


class Solution(NamedTuple):
  """The ninth panel.

  Attributes:
    panel: arbitrary where it is not determined.
    masks: what is determined of each component.
    kinds: of the rules that were found in each, by attribute and "layout".
  """

  panel: Panel
  masks: tuple[Mask, ...]
  kinds: tuple[dict[str, str], ...]


class Score(NamedTuple):
  """How an answer in words agrees with the right one in what the context determines.

  Attributes:
    right: whether it does in everything, its entities taken as a set.
    parts: whether it does in each, by names such as "size", "slots" or "inside.colour".
  """

  right: bool
  parts: dict[str, bool]


def solve(configuration: Configuration, shown: Sequence[Panel]) -> Solution | None:
  """Returns the ninth panel to eight; None when no rule of layout fits.

  An attribute that no rule fits counts as undetermined.
  """
  solved = []
  for i, table in enumerate(rules.TABLES[configuration]):
    found = _solve(table, rules.LAYOUTS[configuration], [panel[i] for panel in shown])
    if found is None:
      return None
    solved.append(found)
  return Solution(*zip(*solved, strict=True))


def _solve(
  table: Table, layouts: Iterable[Rule], shown: Sequence[Component]
) -> tuple[Component, Mask, dict[str, str]] | None:
  layout, taken = _layout(layouts, shown)
  if layout is None:
    return None
  kinds, found = {"layout": layout.kind}, {}
  for i, attribute in enumerate(ATTRIBUTES):
    values: list[list[Any]] = [[e[i] for e in c] for c in shown]
    if all(len(set(v)) == 1 for v in values):
      rule, value = _best(weigh(table[attribute], [v[0] for v in values]))
      if rule is not None:
        kinds[attribute], found[attribute] = rule.kind, dict.fromkeys(taken, value)
    elif rules.keeps_entities(layout) and _are_kept(values):
      kinds[attribute], found[attribute] = "constant", _moved(layout, taken, shown, i)
  last = shown[-1][0]
  entities = [
    Entity._make([*(found.get(a, {}).get(slot, last[i]) for i, a in enumerate(ATTRIBUTES)), slot])
    for slot in taken
  ]
  return tuple(entities), rules.mask_of(layout, found), kinds


def weigh(found: Iterable[Rule], shown: Sequence[Any]) -> list[tuple[float, Rule, Any]]:
  """Returns every rule and ninth value that fit eight values, with their joint probability."""
  return [(p, rule, value) for rule in found for value, p in rule.weigh(shown).items()]


def _best(weighed: Iterable[tuple[float, Rule, Any]]) -> tuple[Rule | None, Any]:
  _, rule, value = max(weighed, key=lambda w: w[0], default=(0.0, None, None))
  return rule, value


def _layout(layouts: Iterable[Rule], shown: Sequence[Component]) -> tuple[Rule | None, list[Any]]:
  """The rule of the slots, and those of the ninth panel; any ones where their number is ruled."""
  slots = [frozenset(e.slot for e in c) for c in shown]
  weighed = weigh([r for r in layouts if r.on == "slots"], slots)
  # Under a rule on numbers any slots may be taken, each set of them as likely.
  chance = math.prod(1 / math.comb(4, len(s)) for s in slots)
  numbers = weigh([r for r in layouts if r.on == "number"], list(map(len, slots)))
  weighed += [(chance * p, rule, range(n)) for p, rule, n in numbers]
  rule, taken = _best(weighed)
  return rule, sorted(taken, key=str) if rule else []


def _are_kept(values: Sequence[Sequence[int]]) -> bool:
  rows = [list(map(sorted, values[i : i + 3])) for i in (0, 3, 6)]
  return all(panel == row[0] for row in rows for panel in row)


def _moved(layout: Rule, taken: list[Any], shown: Sequence[Component], i: int) -> dict[Any, Any]:
  """Attribute i of the ninth panel's slots, when the entities are those of the panels before."""
  if layout.kind == "constant":
    return {e.slot: e[i] for e in shown[7]}
  if layout.kind == "progression":  # Two steps of one or of minus one lead to the same slot.
    return {rules.shifted(e.slot, 2): e[i] for e in shown[6] if e.slot is not None}
  return dict(zip(taken, (e[i] for e in shown[7]), strict=True))


def predict(prompt: str) -> str | None:
  """Returns the solver's answer to an open prompt, in words; None where no rule fits."""
  read = world.parse(prompt)
  if read is None:
    return None
  solution = solve(read.configuration, read.panels)
  return None if solution is None else world.verbalise_panel(read.form, solution.panel)


def right_panel(prompt: str, right: str) -> tuple[world.Prompt, Panel]:
  """An open prompt and its right answer, as they are read.

  Raises:
    InputError: the prompt or the right answer is none of RAVEN's open form.
  """
  read = world.parse(prompt)
  if read is None or read.answers:
    raise InputError(f"this is no open prompt of RAVEN, score those only: {prompt[:60]!r}.")
  expected = world.parse_panel(read.form, right)
  if expected is None or world.configuration_of(expected) != read.configuration:
    raise InputError(
      f"the right answer {right[:60]!r} is no {read.form} panel of {read.configuration}, such as"
      f" {world.verbalise_panel(read.form, read.panels[0])!r}."
    )
  return read, expected


def score(prompt: str, right: str, answer: str) -> Score:
  """Compares an answer to an open prompt with the right one, in what the context determines.

  Order does not count, nor what is drawn by chance: slots under a rule on numbers, attributes of
  entities that are new in each panel, who stands where when slots are distributed.

  Args:
    prompt: an open prompt of RAVEN.
    right: its right answer.
    answer: the one to score; what is no panel of the same configuration is wrong in everything.

  Raises:
    InputError: the prompt or the right answer is none of RAVEN's open form.
  """
  read, expected = right_panel(prompt, right)
  given = world.parse_panel(read.form, answer)
  solution = solve(read.configuration, read.panels)
  if solution is None:
    raise InputError(f"no rule of RAVEN fits the panels of the prompt {prompt[:60]!r}.")
  if given is None or world.configuration_of(given) != read.configuration:
    given = ((),) * len(expected)
  return compare(expected, given, solution.masks)


def compare(expected: Panel, given: Panel, masks: Sequence[Mask]) -> Score:
  """Compares two panels of one configuration in what masks leave of them.

  Each part goes by the set of its values, so that a wrong number of entities does not make every
  attribute wrong; `Score.right` goes by the entities.
  """
  parts, right = {}, True
  names = ("outside.", "inside.") if len(masks) == 2 else ("",)
  for name, one, other, mask in zip(names, expected, given, masks, strict=True):
    right &= rules.project(one, mask) == rules.project(other, mask)
    for a in mask.attributes:
      i = ATTRIBUTES.index(a)
      parts[name + a] = {e[i] for e in one} == {e[i] for e in other}
    if one[0].slot is not None:
      parts[name + "number"] = len(one) == len(other)
      if mask.slots:
        parts[name + "slots"] = {e.slot for e in one} == {e.slot for e in other}
  return Score(right, parts)
