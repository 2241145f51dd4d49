"""How a sequence is written: alphabets in their order, separators and phrasings."""

from typing import NamedTuple

SIZE = 16  # Symbols of an alphabet; a task uses the first ones.


class Surface(NamedTuple):
  """How a sequence is written.

  Attributes:
    alphabet: its symbols, in the order that the operations on it go by.
    separator: between two symbols.
    phrasing: the prompt, with holes for operation and sequence.
    paraphrase: the same with the words in another order. They stay the surface's own words, spelt
      so that a tokenizer of the phrasings mostly knows them; it is never trained on.
  """

  alphabet: tuple[str, ...]
  separator: str
  phrasing: str
  paraphrase: str


_LETTERS = tuple("abcdefghijklmnop")
_ANIMALS = "ant bee cat dog elk fox gnu hen ibis jay kiwi lynx mole newt owl pig"

SURFACES = {
  "lower": Surface(
    _LETTERS,
    ".",
    "Apply {operation} to ({sequence}):",
    "Apply to ({sequence}) {operation}:",
  ),
  "upper": Surface(
    tuple("KLMNOPQRSTUVWXYZ"),
    "-",
    "[{sequence}] under {operation} is:",
    "under {operation} [{sequence}] is:",
  ),
  "digits": Surface(
    tuple(map(str, range(SIZE))),
    ",",
    "From {sequence} do {operation}:",
    "do {operation} From {sequence}:",
  ),
  "words": Surface(
    tuple(_ANIMALS.split()),
    "/",
    "Given <{sequence}>, find its {operation}:",
    "find its {operation}, Given <{sequence}>:",
  ),
  "signs": Surface(
    tuple("!#$%&*+=?@^~|{}\\"),
    " ",
    "Using {operation}, turn {sequence} into ",
    "turn {sequence} Using {operation}, into ",
  ),
  "greek": Surface(
    tuple("αβγδεζηθικλμνξοπ"),
    ";",
    'Let {operation} act on "{sequence}":',
    'act on "{sequence}" Let {operation}:',
  ),
  "cyrillic": Surface(
    tuple("абвгдежзиклмнопр"),
    "+",
    "Make {operation} of {{{sequence}}}:",
    "of {{{sequence}}} Make {operation}:",
  ),
  # Made of what others show: letters of `lower`, dashes and brackets of `upper`, words of `words`
  # and `digits`. Nothing in it is new but that these come together.
  "blend": Surface(
    _LETTERS,
    "-",
    "Given [{sequence}] do {operation}:",
    "do {operation} Given [{sequence}]:",
  ),
}


def in_one_layout(surface: Surface) -> Surface:
  """Returns the alphabet in the layout that all surfaces of a plain task share."""
  return Surface(surface.alphabet, ",", "{operation}({sequence}):", "({sequence}){operation}:")
