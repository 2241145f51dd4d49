"""The world of ACRE: objects, what views of them entail, and both in words.

Source: Zhang et al., "ACRE: Abstract Causal REasoning Beyond Covariation", CVPR 2021, worded as in
Gendron et al., arXiv 2402.02636.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Form = Literal["symbolic", "text"]
TYPES = ("direct", "indirect", "screen_off", "potential")

SHAPES = ("cube", "cylinder", "sphere")
COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
MATERIALS = ("rubber", "metal")
# Of object 16 * shape + 2 * colour + material.
_SENTENCES = tuple(
  f"A {colour} {shape} in {material} is visible. "
  for shape in SHAPES
  for colour in COLOURS
  for material in MATERIALS
)
_OBJECT_OF = {sentence: i for i, sentence in enumerate(_SENTENCES)}


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
  rests = {view & ~off for view in shown} - {0}  # Empty: the views contradict each other.
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


class Wording(NamedTuple):
  """One form: the first lines of a prompt, what follows the objects of a view or query, answers."""

  head: str
  view: tuple[str, str]
  query: str
  answers: tuple[str, str, str]


WORDINGS: dict[Form, Wording] = {
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
  known = bool(objects) and set(objects) <= set(_OBJECT_OF.values())
  return objects if known and _worded(form, objects) + end == line else None
