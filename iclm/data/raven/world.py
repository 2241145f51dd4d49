"""The world of RAVEN: panels of figures, in words and back.

Source: Zhang et al., "RAVEN: A Dataset for Relational and Analogical Visual rEasoNing", CVPR 2019,
worded as in Gendron et al., arXiv 2402.02636.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Configuration = Literal["center_single", "in_center_out_center", "distribute_four"]
Form = Literal["symbolic", "text"]
CONFIGURATIONS: tuple[Configuration, ...] = get_args(Configuration)
FORMS: tuple[Form, ...] = get_args(Form)
LETTERS = tuple("ABCDEFGH")  # Of the answers to choose from.

# By level, as every attribute of an entity. Type 0 is never seen.
ATTRIBUTES = ("size", "colour", "type", "angle")
SIZES = ("tiny", "small", "medium", "large", "huge", "giant")
COLOURS = ("red", "orange", "yellow", "lime", "green", "cyan", "blue", "purple", "pink", "white")
TYPES = ("none", "triangle", "square", "pentagon", "hexagon", "circle")
ANGLES = ("-135", "-90", "-45", "0", "45", "90", "135", "180")
WORDS = (SIZES, COLOURS, TYPES, ANGLES)
_SLOTS = {
  "symbolic": ("TL", "TR", "BL", "BR"),
  "text": ("top left", "top right", "bottom left", "bottom right"),
}


class Entity(NamedTuple):
  """A figure: the levels of its attributes, and its place among four, None in the centre."""

  size: int
  colour: int
  type: int
  angle: int
  slot: int | None


Component = tuple[Entity, ...]
Panel = tuple[Component, ...]  # One component, or two: the outside and the inside.


class Prompt(NamedTuple):
  """What a prompt says.

  Attributes:
    form: of the wording.
    configuration: of its panels.
    panels: the eight of the context, row by row.
    answers: the eight to choose from, A first; none in the open form.
  """

  form: Form
  configuration: Configuration
  panels: tuple[Panel, ...]
  answers: tuple[Panel, ...]


_CHOICE = (
  "Find the pattern number 9 that completes the sequence. Pick the letter in front of the correct"
  " pattern that logically follows in the sequence from the answer set. Patterns in the sequence"
  " are preceded by a number from 1 to 8. Patterns in the answer set are preceded by a letter from"
  " A to H. Only return the letter in front of the correct pattern.",
  "\nThe answer is ",
)
_OPEN = (
  "Find the pattern number 9 that completes the sequence. Write the correct pattern with the same"
  " format as in the examples. Patterns in the sequence are preceded by a number from 1 to 8. ",
  "\nThe pattern that logically follows is:\n9. ",
)
_RULER = "-" * 15
_INSIDE = {
  "symbolic": f"[{{}}] \n{_RULER}\n[{{}}] \n{_RULER}",
  "text": "On an image, a second figure is displayed inside a first one. Outside: {}. Inside: {}. ",
}
_ALONE = {"symbolic": "[{}] ", "text": "On an image, {}. "}
_ENTITY = {
  "symbolic": re.compile(r"\(([A-F]), ([A-J]), ([B-F]), ([A-H]),(?: ([TB][LR]))?\)"),
  "text": re.compile(
    r"a (\w+) (\w+) (\w+) rotated at (-?\d+) degrees(?: in the (\w+ \w+))?(?=[.,])"
  ),
}


def _entity(form: Form, entity: Entity) -> str:
  slot = None if entity.slot is None else _SLOTS[form][entity.slot]
  if form == "symbolic":
    letters = ", ".join("ABCDEFGHIJ"[level] for level in entity[:4])
    return f"({letters},)" if slot is None else f"({letters}, {slot})"
  size, colour, type_, angle = (
    words[level] for words, level in zip(WORDS, entity[:4], strict=True)
  )
  place = "" if slot is None else f" in the {slot}"
  return f"a {size} {colour} {type_} rotated at {angle} degrees{place}"


def verbalise_panel(form: Form, panel: Panel) -> str:
  """Returns a panel as it stands in a prompt or an answer."""
  parts = [", ".join(_entity(form, entity) for entity in component) for component in panel]
  return (_ALONE if len(parts) == 1 else _INSIDE)[form].format(*parts)


def verbalise(form: Form, panels: Sequence[Panel], answers: Sequence[Panel]) -> str:
  """Returns the prompt: the eight panels of the context, and the answers where there are any."""
  head, tail = _CHOICE if answers else _OPEN
  names = [*"12345678", *LETTERS[: len(answers)]]
  lines = [
    f"\n{name}. {verbalise_panel(form, panel)}"
    for name, panel in zip(names, [*panels, *answers], strict=True)
  ]
  return head + "".join(lines) + tail


def configuration_of(panel: Panel) -> Configuration:
  """Returns the configuration that a panel is of."""
  if len(panel) == 2:
    return "in_center_out_center"
  return "center_single" if panel[0][0].slot is None else "distribute_four"


def parse_panel(form: Form, text: str) -> Panel | None:
  """Reads a panel back, white space at its ends aside; None when it is none."""
  found = [_read(form, groups) for groups in _ENTITY[form].findall(text)]
  entities = tuple(e for e in found if e is not None)
  slots = [e.slot for e in entities]
  if not entities or len(entities) < len(found):
    return None
  if None not in slots and len(set(slots)) == len(slots):
    panel = (entities,)
  elif set(slots) == {None} and len(slots) <= 2:
    panel = tuple((entity,) for entity in entities)
  else:
    return None
  return panel if verbalise_panel(form, panel).strip() == text.strip() else None


def _read(form: Form, groups: Sequence[str]) -> Entity | None:
  *names, slot = groups
  known = ["ABCDEFGHIJ"] * 4 if form == "symbolic" else [SIZES, COLOURS, TYPES[1:], ANGLES]
  if any(name not in words for name, words in zip(names, known, strict=True)):
    return None
  if slot and slot not in _SLOTS[form]:
    return None
  words = known if form == "symbolic" else WORDS
  levels = [w.index(name) for name, w in zip(names, words, strict=True)]
  return Entity._make([*levels, _SLOTS[form].index(slot) if slot else None])


def parse(prompt: str) -> Prompt | None:
  """Reads a prompt back; None when it is no prompt of RAVEN."""
  for head, tail in (_CHOICE, _OPEN):
    if not (prompt.startswith(head) and prompt.endswith(tail)):
      continue
    _, *pieces = re.split(r"\n[1-8A-H]\. ", prompt[len(head) : -len(tail)])
    if len(pieces) != (16 if head == _CHOICE[0] else 8):
      return None
    form: Form = "symbolic" if pieces[0].startswith("[") else "text"
    panels = tuple(p for piece in pieces if (p := parse_panel(form, piece)) is not None)
    kinds: set[Configuration] = {configuration_of(panel) for panel in panels}
    if len(panels) < len(pieces) or len(kinds) > 1:
      return None
    read = Prompt(form, kinds.pop(), panels[:8], panels[8:])
    return read if verbalise(form, read.panels, read.answers) == prompt else None
  return None
