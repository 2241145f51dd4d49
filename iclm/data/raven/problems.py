"""Problems of RAVEN: rules drawn, then the nine panels that obey them.

Source: Zhang et al., "RAVEN", CVPR 2019. The angle follows no rule of its own: it is a constant
attribute, as in the published text form of center_single, where it stays along every row, the
answer's included. For distribute_four nothing is published about it, and it is treated alike.
"""

import random
from typing import NamedTuple

from iclm.data.raven import rules
from iclm.data.raven.rules import Mask, Rule, Table
from iclm.data.raven.world import ATTRIBUTES, Component, Configuration, Entity, Panel

UNIFORM = 1 / 4  # Share of problems in which all entities of a panel are alike.
_MOST = 4  # Entities of a component.
# Of a component: under "layout" its slots, in the order of mention, and under each attribute the
# values of four entities in that order, whether or not as many stand there.
Traits = dict[str, tuple[int | None, ...]]


class Part(NamedTuple):
  """One component of a problem, through all panels.

  Attributes:
    table: the rules that its attributes can follow.
    layout: the rule of its slots.
    rules: the rule of each attribute.
    uniform: whether all entities of a panel are alike.
    traits: of the nine panels.
  """

  table: Table
  layout: Rule
  rules: dict[str, Rule]
  uniform: bool
  traits: tuple[Traits, ...]

  @property
  def mask(self) -> Mask:
    """What the context determines of the ninth panel."""
    found = [a for a in ATTRIBUTES if self.is_single(a) or rules.keeps_entities(self.layout)]
    return rules.mask_of(self.layout, found)

  def is_single(self, attribute: str) -> bool:
    """Whether all entities of a panel have one value by rule, not by chance."""
    return self.uniform or self.rules[attribute].kind != "constant"


Problem = tuple[Part, ...]  # A part for each component.


def component(traits: Traits) -> Component:
  """Returns the entities that have the traits."""
  columns = [traits[a] for a in ATTRIBUTES]
  slots = traits["layout"]
  # There may be more values than slots.
  return tuple(
    Entity._make((*levels, slot)) for *levels, slot in zip(*columns, slots, strict=False)
  )


def panels(problem: Problem) -> list[Panel]:
  """Returns the nine panels."""
  return [tuple(component(part.traits[i]) for part in problem) for i in range(9)]


def draw(rng: random.Random, configuration: Configuration) -> Problem:
  """Draws a problem: every rule of every component independently."""
  problem = []
  for table in rules.TABLES[configuration]:
    layout = rules.pick(rng, rules.LAYOUTS[configuration])
    uniform = rng.random() < UNIFORM
    drawn = {a: rules.pick(rng, table[a]) for a in ATTRIBUTES}
    problem.append(Part(table, layout, drawn, uniform, _draw_traits(rng, layout, drawn, uniform)))
  return tuple(problem)


def redraw(rng: random.Random, part: Part) -> Traits:
  """Draws another ninth panel of the same structure, as likely as the part's own one.

  The structure is the layout's rule, uniformity, and which attributes are constant. Under it the
  ninth panel's layout and attributes are independent of each other, and of those drawn here.
  """
  drawn = {}
  for a, rule in part.rules.items():
    alike = [r for r in part.table[a] if (r.kind == "constant") == (rule.kind == "constant")]
    drawn[a] = rules.pick(rng, alike)
  return _draw_traits(rng, part.layout, drawn, part.uniform)[8]


def _draw_traits(
  rng: random.Random, layout: Rule, drawn: dict[str, Rule], uniform: bool
) -> tuple[Traits, ...]:
  columns = {"layout": _draw_layouts(rng, layout)}
  for attribute, rule in drawn.items():
    if uniform or rule.kind != "constant":
      columns[attribute] = [(value,) * _MOST for value in rule.draw(rng)]
    else:
      levels = [row[0] for row in rule.rows]
      fresh = [tuple(rng.choices(levels, k=_MOST)) for _ in range(9)]
      keeps = rules.keeps_entities(layout)
      columns[attribute] = [fresh[i - i % 3 if keeps else i] for i in range(9)]
  return tuple(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _draw_layouts(rng: random.Random, layout: Rule) -> list[tuple[int | None, ...]]:
  """Slots of the nine panels in random order; entities that stay or move on keep theirs."""
  grid = layout.draw(rng)
  if layout.on == "number":
    return [tuple(rng.sample(range(4), n)) for n in grid]
  orders = [rng.sample(sorted(slots), len(slots)) for slots in grid]
  if layout.kind == "constant":
    orders = [orders[i - i % 3] for i in range(9)]
  elif layout.kind == "progression":
    orders = [[rules.shifted(s, i % 3 * layout.step) for s in orders[i - i % 3]] for i in range(9)]
  return [tuple(order) for order in orders]
