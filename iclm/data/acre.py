"""ACRE: is the light on? Problems drawn by the published rules, solved by logic, put into words.

A problem is six views of objects under a light, which is lit iff a visible object activates it.
Three of the views are a demonstration: one object lights it, another does not, both together do.
The other three are the evidence, one of them lit (kind A) or two (kind B).

Source: Zhang et al., "ACRE: Abstract Causal REasoning Beyond Covariation", CVPR 2021, worded as in
Gendron et al., arXiv 2402.02636. Deviations: the order inside a view is random (the published one
lists inert objects last, which gives them away), kinds A and B are equally likely instead of
equally frequent, and `comp` and `sys` are splits by the rules of the former paper, which the
published conversion lost: `comp_published` and `sys_published` lie inside the support of `iid`.
"""

import operator
import random
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from iclm.config import InputError
from iclm.data.records import Example

Form = Literal["symbolic", "text"]
FORMS = ("symbolic", "text")
TYPES = ("direct", "indirect", "screen_off", "potential")

SHAPES = ("cube", "cylinder", "sphere")
COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
MATERIALS = ("rubber", "metal")
OBJECTS = tuple(range(48))  # id = 16 * shape + 2 * colour + material.
_SENTENCES = tuple(
  f"A {colour} {shape} in {material} is visible. "
  for shape in SHAPES
  for colour in COLOURS
  for material in MATERIALS
)
_OBJECT_OF = {sentence: i for i, sentence in enumerate(_SENTENCES)}

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


class View(NamedTuple):
  """What stood under the light, and whether it was lit."""

  objects: tuple[int, ...]
  lit: bool


class Known(NamedTuple):
  """What views entail; a set of objects is the integer with their bits.

  Attributes:
    off: objects of some unlit view: they do not activate the light.
    on: the one object that can have lit some view: it does.
    sets: the smallest sets of two and more of which one object must activate it, `on` apart.
    lit: objects of some lit view.
    alone: objects that were the only one of a lit view.
  """

  off: int
  on: int
  sets: tuple[int, ...]
  lit: int
  alone: int


def bits(objects: Iterable[int]) -> int:
  """Returns the set of the objects as an integer."""
  found = 0
  for i in objects:
    found |= 1 << i
  return found


def solve(views: Iterable[View]) -> Known:
  """Returns all that follows from the views under "lit iff a visible object activates it"."""
  off = lit = on = alone = 0
  shown = []
  for objects, is_lit in views:
    view = bits(objects)
    if is_lit:
      lit |= view
      shown.append(view)
      if len(objects) == 1:
        alone |= view
    else:
      off |= view
  rests = {view & ~off for view in shown}
  for rest in rests:
    if not rest & (rest - 1):  # A single bit.
      on |= rest
  open_ = [rest for rest in rests if not rest & on]
  sets = sorted(r for r in open_ if not any(other & r == other != r for other in open_))
  return Known(off, on, tuple(sets), lit, alone)


def state(known: Known, query: Sequence[int]) -> int:
  """Returns the light's state over the query's objects: 0 off, 1 undetermined, 2 on."""
  asked = bits(query)
  if asked & known.on or any(s & asked == s for s in known.sets):
    return 2
  return 1 if asked & ~known.off else 0


def query_type(known: Known, query: Sequence[int]) -> str:
  """Returns what it takes to answer, one of `TYPES`: that of the part which decides.

  direct: seen to light it alone, or only seen unlit. indirect: found by elimination. screen_off:
  inert, though seen in a lit view. potential: undetermined. Where all objects are inert the last
  one counts, which in published queries is the one that was added to a view.
  """
  rest = bits(query) & ~known.off
  if not rest:
    return "screen_off" if known.lit >> query[-1] & 1 else "direct"
  if rest & known.on:
    return "direct" if rest & known.on & known.alone else "indirect"
  return "indirect" if any(s & rest == s for s in known.sets) else "potential"


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
  known, objects = solve(views), _objects(views)
  of_type = {kind: [i for i in objects if query_type(known, (i,)) == kind] for kind in TYPES}
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
  known, turns = solve(views), {}
  objects = rng.sample(objects, len(objects))
  singles = []
  for i in objects:
    answer = state(known, (i,))
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


def _additions(known: Known, objects: Sequence[int], base: Sequence[int]) -> list[tuple[int, ...]]:
  """What a query may add to a view: an object, a set that must light it; undetermined ones twice.

  The double weight is the published one.
  """
  decided = known.off | known.on
  more = [(i,) for i in objects if i not in base]
  more += [tuple(i for i in objects if s >> i & 1 and i not in base) for s in known.sets]
  return more + [(i,) for i in objects if not decided >> i & 1 and i not in base]


def _objects(views: Iterable[View]) -> list[int]:
  return list(dict.fromkeys(i for view in views for i in view.objects))


class Wording(NamedTuple):
  """One form: the first lines of a prompt, what follows the objects of a view or query, answers."""

  head: str
  view: tuple[str, str]
  query: str
  answers: tuple[str, str, str]


WORDINGS = {
  "symbolic": Wording(
    "Figure out the pattern in the following examples and apply it to the test case. Your answer"
    " must follow the format of the examples. You can answer 1 if the solution cannot be"
    " determined. Your answer must be one of the following choices:\n0.\n1.\n2.\n",
    (" -> 0\n", " -> 2\n"),
    " -> ",
    ("0", "1", "2"),
  ),
  "text": Wording(
    "Objects of various color, shape, and texture are displayed. Some objects may contain a device"
    " to turn a light on if displayed. From the observations, deduce if the light is on, off, or"
    " if the state cannot be determined. Your answer must contain a single word:\n"
    "on.\noff.\nundetermined.\n",
    ("The light is off.\n", "The light is on.\n"),
    "The state of the light is ",
    ("off", "undetermined", "on"),
  ),
}


def _worded(form: Form, objects: Iterable[int]) -> str:
  return str(list(objects)) if form == "symbolic" else "".join([_SENTENCES[i] for i in objects])


def verbalise(form: Form, views: Iterable[View], queries: Iterable[Sequence[int]]) -> list[str]:
  """Returns the prompt of each query; they share all but their last line."""
  head, view_ends, query_end, _ = WORDINGS[form]
  context = head + "".join([_worded(form, objects) + view_ends[lit] for objects, lit in views])
  return [context + _worded(form, query) + query_end for query in queries]


def parse(prompt: str) -> tuple[Form, list[View], tuple[int, ...]] | None:
  """Reads a prompt back into form, views and query; None when it is no prompt of ACRE."""
  for form, (head, view_ends, query_end, _) in WORDINGS.items():
    if not prompt.startswith(head):
      continue
    *lines, last = prompt[len(head) :].split("\n")
    views = []
    for line in lines:
      lit = (line + "\n").endswith(view_ends[1])
      objects = _read(form, line + "\n", view_ends[lit])
      if objects is None:
        return None
      views.append(View(objects, lit))
    query = _read(form, last, query_end)
    return None if query is None else (form, views, query)
  return None


def _read(form: Form, line: str, end: str) -> tuple[int, ...] | None:
  worded = line.removesuffix(end)
  if form == "symbolic":
    objects = tuple(int(i) for i in re.findall(r"\d{1,2}", worded))
  else:
    objects = tuple(_OBJECT_OF.get(s + ". ", -1) for s in worded.split(". ")[:-1])
  known = bool(objects) and set(objects) <= set(OBJECTS)
  return objects if known and _worded(form, objects) + end == line else None


def label(prompt: str) -> tuple[str, str] | None:
  """Returns domain and query type of a prompt, by the solver; None when it is none of ACRE."""
  read = parse(prompt)
  return None if read is None else (f"acre_{read[0]}", query_type(solve(read[1]), read[2]))


def group_of(prompt: str) -> str | None:
  """Returns the query type of a prompt, one of `TYPES`; None when it is no prompt of ACRE."""
  known = label(prompt)
  return None if known is None else known[1]
