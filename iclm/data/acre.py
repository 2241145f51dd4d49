"""ACRE: is the light on? Problems drawn by the published rules, and every question about them.

A problem is six views of objects under a light, which is lit iff a visible object activates it.
Three of the views are a demonstration: one object lights it, another does not, both together do.
The other three are the evidence, one of them lit (kind A) or two (kind B).

Source: Zhang et al., "ACRE: Abstract Causal REasoning Beyond Covariation", CVPR 2021. Deviations:
the order inside a view is random (the published one lists inert objects last, which gives them
away), and A and B are equally likely instead of equally frequent. `comp` and `sys` are splits by
the paper's rules; `comp_published` and `sys_published` are what became of them in the text form of
Gendron et al., arXiv 2402.02636: both lie inside the support of `iid`.
"""

import dataclasses
import operator
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iclm.config import InputError, check_known
from iclm.data import acre_world as world
from iclm.data.acre_world import COLOURS, TYPES, Form, View
from iclm.data.records import Example

OBJECTS = tuple(range(48))

# Object ids of the true compositional split: every shape, colour and material is in both, no
# triple is.
_GBBY, _RGPC = ("gray", "blue", "brown", "yellow"), ("red", "green", "purple", "cyan")


def _comp(cubes: Sequence[str], cylinders: Sequence[str], sphere: int) -> tuple[int, ...]:
  pairs = [(0, cubes, (0, 1)), (1, cylinders, (0, 1)), (2, COLOURS, (sphere,))]
  return tuple(16 * s + 2 * COLOURS.index(c) + m for s, cs, ms in pairs for c in cs for m in ms)


COMP_TRAIN, COMP_TEST = _comp(_GBBY, _RGPC, 0), _comp(_RGPC, _GBBY, 1)


class Rules(NamedTuple):
  """What a split draws from.

  Attributes:
    pool: object ids.
    kinds: of problem, equally likely.
    spared: a published quadruple asks about a screened-off object only if there are more.
  """

  pool: tuple[int, ...]
  kinds: str
  spared: int


SPLITS = {
  "iid_train": Rules(OBJECTS, "AB", 1),
  "iid_val": Rules(OBJECTS, "AB", 1),
  "iid_test": Rules(OBJECTS, "AB", 1),
  "comp_published": Rules(OBJECTS[:24], "AB", 2),
  "sys_published": Rules(OBJECTS, "B", 1),
  "comp_train": Rules(COMP_TRAIN, "AB", 2),
  "comp_test": Rules(COMP_TEST, "AB", 2),
  "sys_train": Rules(OBJECTS, "A", 3),
  "sys_test": Rules(OBJECTS, "B", 1),
}


def draw_views(rng: random.Random, rules: Rules) -> list[View]:
  """Draws a problem: three views of demonstration, then three of evidence.

  Source: the rules of the ACRE generator; kind A has one lit view of evidence, B has two.
  """
  is_a = rng.choice(rules.kinds) == "A"
  n_candidates = rng.randint(2, 3 if is_a else 4)
  n_inert = rng.randint(3, 5 if is_a else 4)
  drawn = rng.sample(rules.pool, n_candidates + n_inert)
  lights, inert = drawn[:2]
  candidates, others = drawn[2 : n_candidates + 1], drawn[n_candidates + 1 :]
  demo = [([lights], True), ([inert], False), ([lights, inert], True)]
  if is_a:
    first, second = _cover(rng, others)
    evidence = [(candidates + _some(rng, others), True), (first, False), (second, False)]
  else:
    first, second = (view + _some(rng, others) for view in _cover(rng, candidates))
    evidence = [(first, True), (second, True), (others, False)]
  rng.shuffle(demo)
  rng.shuffle(evidence)
  views = []
  for objects, lit in demo + evidence:
    rng.shuffle(objects)
    views.append(View(tuple(objects), lit))
  return views


def draw_simple_views(rng: random.Random, rules: Rules) -> list[View]:
  """Draws three views of one object each.

  Not part of the benchmark: the first lesson of a curriculum, what an object's name refers to.
  """
  return [View((i,), rng.random() < 0.5) for i in rng.sample(rules.pool, 3)]


def _some(rng: random.Random, objects: list[int], least: int = 0) -> list[int]:
  return rng.sample(objects, rng.randint(least, len(objects)))


def _cover(rng: random.Random, objects: list[int]) -> tuple[list[int], list[int]]:
  """Two views, none empty, that together show all the objects."""
  first = _some(rng, objects, 1)
  rest = [i for i in objects if i not in first]
  return first, rest + _some(rng, first, 0 if rest else 1)


def published_queries(
  rng: random.Random, views: Sequence[View], spared: int
) -> list[tuple[int, ...]]:
  """Draws the four published queries on six views: two of one object, two of a view and more."""
  known, objects = world.solve(views), _objects(views)
  of_type = {kind: [i for i in objects if world.query_type(known, (i,)) == kind] for kind in TYPES}
  direct, indirect, screened, potential = of_type.values()
  singles = rng.sample(potential, 1) if potential else []
  wanted, most = 2 - len(singles), max(len(screened) - spared, 0)
  while True:
    n_direct = rng.randint(0, min(len(direct), wanted))
    n_indirect = rng.randint(0, min(len(indirect), wanted - n_direct))
    n_screened = wanted - n_direct - n_indirect
    if n_screened <= most:
      break
  for kind, n in ((direct, n_direct), (indirect, n_indirect), (screened, n_screened)):
    singles += rng.sample(kind, n)
  rng.shuffle(singles)
  base = rng.choice([view.objects for view in views if not view.lit])
  added = rng.sample(_additions(known, objects, base), 2)
  return [(i,) for i in singles] + [base + more for more in added]


def varied_queries(
  rng: random.Random, views: Sequence[View], objects: Sequence[int], n: int
) -> list[tuple[int, ...]]:
  """Draws n queries on any views: objects first, answers taking turns, then sets of them.

  The sets are unlit views with an addition each, as in the published queries, but of all unlit
  views and without repetition; where these run out, random sets of two to four objects.

  Args:
    rng: the source of chance.
    views: what is shown.
    objects: those of the problem; one in none of the views is undetermined.
    n: at least 1; half of them, rounded up, or all objects, are queries of one object.

  Returns:
    The queries.
  """
  known, turns = world.solve(views), {}
  objects = rng.sample(objects, len(objects))
  singles = []
  for i in objects:
    answer = world.state(known, (i,))
    turns[answer] = turns.get(answer, 0) + 1
    singles.append((turns[answer], i))
  singles.sort(key=operator.itemgetter(0))  # Stable: objects of one turn stay in random order.
  queries = [(i,) for _, i in singles[: n - n // 2]]
  bases = [view.objects for view in views if not view.lit] or [(i,) for i in objects]
  sets = [base + more for base in bases for more in _additions(known, objects, base)]
  rng.shuffle(sets)
  queries += list(dict.fromkeys(sets))[: n - len(queries)]
  while len(queries) < n:
    queries.append(tuple(rng.sample(objects, rng.randint(2, 4))))
  return queries


def _additions(
  known: world.Known, objects: Sequence[int], base: Sequence[int]
) -> list[tuple[int, ...]]:
  """What a query may add to a view: an object, a set that must light it; undetermined ones twice.

  The double weight is the published one.
  """
  decided = known.off | known.on
  more = [(i,) for i in objects if i not in base]
  more += [tuple(i for i in objects if s >> i & 1 and i not in base) for s in known.sets]
  return more + [(i,) for i in objects if not decided >> i & 1 and i not in base]


def _objects(views: Iterable[View]) -> list[int]:
  return list(dict.fromkeys(i for view in views for i in view.objects))


def examples(
  form: Form, split: str, seed: int, index: int, n_questions: int, lesson: float = 1.0
) -> list[Example]:
  """Returns all questions on one problem, a pure function of the arguments.

  Args:
    form: "symbolic" or "text".
    split: a key of `SPLITS`; two splits never draw from the same stream.
    seed: any integer.
    index: of the problem in its split, >= 0.
    n_questions: at least 1; 4 on six views are the published ones, others are varied.
    lesson: how far into a curriculum, in [0, 1]. That share of problems is real, and shows
      1 + 5 * lesson of its six views or more, each number equally likely. The rest is simple: one
      query for each object of three views and for one more, at most n_questions.

  Returns:
    Examples of one context; their group is the query type.
  """
  rules = SPLITS[split]
  rng = random.Random(f"{seed}/{split}/{index}")
  if lesson < 1 and rng.random() >= lesson:
    views = draw_simple_views(rng, rules)
    objects = _objects(views)
    objects.append(rng.choice([i for i in rules.pool if i not in objects]))
    queries = [(i,) for i in rng.sample(objects, min(len(objects), n_questions))]
  else:
    views = draw_views(rng, rules)
    objects = _objects(views)
    if lesson == 1 and n_questions == 4:
      queries = published_queries(rng, views, rules.spared)
    else:
      n_views = rng.randint(1 + int(5 * lesson), len(views))
      views = [views[i] for i in sorted(rng.sample(range(len(views)), n_views))]
      queries = varied_queries(rng, views, objects, n_questions)
  known = world.solve(views)
  answers = world.WORDINGS[form].answers
  return [
    Example(
      prompt=prompt,
      answer=answers[world.state(known, query)],
      choices=answers,
      domain=f"acre_{form}",
      group=world.query_type(known, query),
      id=f"{split}/{index}/{q}",
    )
    for q, (query, prompt) in enumerate(
      zip(queries, world.verbalise(form, views, queries), strict=True)
    )
  ]


@dataclasses.dataclass(frozen=True)
class Problems:
  """Training problems without end: item i is all questions on problem i, and depends on i alone.

  Attributes:
    form: "symbolic" or "text".
    split: "iid", "comp" or "sys"; of the latter two the training side.
    seed: any integer.
    n_questions: per problem, at least 1; see `examples`.
    ramp: problems of the curriculum: `lesson` is 0 for its first third, and grows to 1 in the rest.

  Raises:
    InputError: an attribute is out of its range.
  """

  form: Form
  split: str
  seed: int
  n_questions: int
  ramp: int

  def __post_init__(self):
    for name, known in (("form", tuple(world.WORDINGS)), ("split", ("iid", "comp", "sys"))):
      check_known(f"{name} of the ACRE generator", getattr(self, name), known)
    for name, least in (("n_questions", 1), ("ramp", 0)):
      value = getattr(self, name)
      if value < least:
        raise InputError(f"{name} = {value} of the ACRE generator must be at least {least}.")

  def __len__(self) -> int:
    return 2**40

  def __getitem__(self, index: int) -> list[Example]:
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"problem {index} is outside of 0..{len(self) - 1}")
    lesson = 1.0 if index >= self.ramp else max(0.0, 1.5 * index / self.ramp - 0.5)
    split = f"{self.split}_train"
    return examples(self.form, split, self.seed, index, self.n_questions, lesson)


def label(prompt: str) -> tuple[str, str] | None:
  """Returns domain and query type of a prompt, by the solver; None when it is none of ACRE."""
  read = world.parse(prompt)
  return (
    None if read is None else (f"acre_{read[0]}", world.query_type(world.solve(read[1]), read[2]))
  )
