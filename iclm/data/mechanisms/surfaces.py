"""How a sequence is written: alphabets in their order, separators and phrasings."""

from typing import NamedTuple

SIZE = 16  # Symbols of an alphabet; a task uses the first ones.


class Surface(NamedTuple):
  """How a sequence is written.

  Attributes:
    alphabet: its symbols, in the order that the operations on it go by.
    separator: between two symbols.
    phrasing: the prompt, with holes for operation and sequence.
  """

  alphabet: tuple[str, ...]
  separator: str
  phrasing: str


_LETTERS = tuple("abcdefghijklmnop")
_ANIMALS = "ant bee cat dog elk fox gnu hen ibis jay kiwi lynx mole newt owl pig"

SURFACES = {
  "lower": Surface(_LETTERS, ".", "Apply {operation} to ({sequence}):"),
  "upper": Surface(tuple("KLMNOPQRSTUVWXYZ"), "-", "[{sequence}] under {operation} is:"),
  "digits": Surface(tuple(map(str, range(SIZE))), ",", "From {sequence} do {operation}:"),
  "words": Surface(tuple(_ANIMALS.split()), "/", "Given <{sequence}>, find its {operation}:"),
  "signs": Surface(tuple("!#$%&*+=?@^~|{}\\"), " ", "Using {operation}, turn {sequence} into "),
  "greek": Surface(tuple("αβγδεζηθικλμνξοπ"), ";", 'Let {operation} act on "{sequence}":'),
  # Made of what others show: letters of `lower`, dashes and brackets of `upper`, words of `words`
  # and `digits`. Nothing in it is new but that these come together.
  "blend": Surface(_LETTERS, "-", "Given [{sequence}] do {operation}:"),
}
