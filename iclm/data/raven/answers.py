"""Answers to choose from: the published sets, which give themselves away, and balanced ones.

In a published set every wrong answer is the right one with one attribute changed, so that each
attribute's most frequent value is the right answer's: no look at the context is needed.

A balanced set bisects: three attributes have two values each, the right one and another, and the
eight answers are all combinations, so that each value is shared by half of them. The other values
are those of a second ninth panel, drawn as independently and from the same distribution as the
right ones. Exchanging the two values of an attribute thus gives a problem that is as likely, and
nothing in the eight answers tells which is right: whoever reads them alone is right one time in
eight, however well he reads.

Source: the published sets are those of Zhang et al., "RAVEN", CVPR 2019. Bisection by attributes:
Hu et al., "Stratified Rule-Aware Network for Abstract Visual Reasoning", arXiv 2002.06838
(I-RAVEN). Deviation: the other values are drawn as the right ones are. Uniform ones would leave the
more likely value as a hint, since arithmetic and progressions end on some values more often.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

from iclm.data.raven import problems, rules
from iclm.data.raven.problems import Part, Problem, Traits
from iclm.data.raven.rules import Mask
from iclm.data.raven.world import ATTRIBUTES, Configuration, Panel

N_WRONG = 7
_LEVELS = 3  # Of the bisection: 2 ** 3 answers.
Answer = tuple[Traits, ...]  # Traits of each component.


def draw_published(rng: random.Random, problem: Problem) -> list[Panel]:
  """Draws the seven wrong answers to a problem, each with one attribute changed.

  The attribute is uniform among those with values left, its value among the unused ones. Under a
  rule on slots, a constant layout too, both the number of entities and their slots can change.

  Source: RAVEN. Deviation: where a panel can have several entities, a value is unused if it makes
  another panel, and a number can come twice, with other entities.
  """
  right = tuple(part.traits[8] for part in problem)
  used, left = [_panel(right)], _values_left(problem)
  masks = [part.mask for part in problem]
  expected = _determined(masks, used[0])
  while len(used) <= N_WRONG:
    i, name = rng.choice([key for key, n in left.items() if n])
    left[i, name] -= 1
    wrong = used[0]
    while _determined(masks, wrong) == expected or any(_same(wrong, other) for other in used):
      changed = right[i] | _change(rng, problem[i], name)
      wrong = _panel((*right[:i], changed, *right[i + 1 :]))
    used.append(wrong)
  return used[1:]


def _values_left(problem: Problem) -> dict[tuple[int, str], int]:
  """How many answers can change what, by component and name."""
  left = {}
  for i, part in enumerate(problem):
    if _has_slots(part):
      n_slots = len(part.traits[8]["layout"])
      left[i, "number"] = N_WRONG
      left[i, "slots"] = math.comb(4, n_slots) - 1 if part.mask.slots else 0
    left |= {(i, a): len(rules.values_of(part.table, a)) - 1 for a in _ruled(part)}
  return left


def _change(rng: random.Random, part: Part, name: str) -> Traits:
  """The traits that change with a ninth panel's number, slots or attribute."""
  right = part.traits[8]
  n = len(right["layout"])
  if name == "number":
    fresh: Traits = {
      a: tuple(rng.choices(rules.values_of(part.table, a), k=len(right[a])))
      for a in ATTRIBUTES
      if not part.is_single(a)
    }
    n = rng.choice([other for other in range(1, 5) if other != n])
    return fresh | {"layout": tuple(rng.sample(range(4), n))}
  if name == "slots":
    return {"layout": tuple(rng.sample(range(4), n))}
  values = rules.values_of(part.table, name)
  return {name: tuple(rng.choice([v for v in values if v != old]) for old in right[name])}


def draw_balanced(rng: random.Random, configuration: Configuration) -> tuple[Problem, list[Panel]]:
  """Draws a problem and its seven wrong answers, such that the answers tell nothing.

  A problem whose answers would not all differ in what is determined is drawn anew. That looks at
  the eight answers only, not at which is right, so that none becomes more likely to be.
  """
  while True:
    problem = problems.draw(rng, configuration)
    names = [(i, a) for i, part in enumerate(problem) for a in _ruled(part)]
    names += [(i, "layout") for i, part in enumerate(problem) if _has_slots(part)]
    if len(names) < _LEVELS:
      continue
    others = [problems.redraw(rng, part) for part in problem]
    answers = [tuple(part.traits[8] for part in problem)]
    for i, name in rng.sample(names, _LEVELS):
      answers += [
        (*answer[:i], answer[i] | {name: others[i][name]}, *answer[i + 1 :]) for answer in answers
      ]
    found = [_panel(answer) for answer in answers]
    masks = [part.mask for part in problem]
    if len({_determined(masks, panel) for panel in found}) == len(found):
      return problem, found[1:]


def _has_slots(part: Part) -> bool:
  return None not in part.traits[8]["layout"]


def _ruled(part: Part) -> list[str]:
  """The determined attributes with rules to choose from, which angle and outer colour have not."""
  return [a for a in part.mask.attributes if len(part.table[a]) > 1]


def _panel(answer: Answer) -> Panel:
  return tuple(map(problems.component, answer))


def _same(one: Panel, other: Panel) -> bool:
  return [set(c) for c in one] == [set(c) for c in other]


def _determined(masks: Sequence[Mask], panel: Panel) -> tuple[Any, ...]:
  return tuple(map(rules.project, panel, masks))
