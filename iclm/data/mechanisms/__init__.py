"""Mechanisms: sequences with two known factors, what is done to them and how they are written.

The domain of an example is its surface (alphabet, separator, phrasing), its mechanism is the
operation, or a composition of two. Surfaces share nothing but the words of the operations (and the
layout, in "plain"), so that a pair of surface and operation that was never trained can be solved by
what was learnt of each, and so can a composition of operations that were never trained together.
Only here is it known which mechanisms there are, and so can be measured whether experts are
mechanisms.

  surface         sequence     prompt, with the operation "reverse"
  lower           a.b.c.d      Apply reverse to (a.b.c.d):
  upper           K-L-M-N      [K-L-M-N] under reverse is:
  digits          0,1,2,3      From 0,1,2,3 do reverse:
  words           ant/bee/cat  Given <ant/bee/cat>, find its reverse:
  signs           ! # $ %      Using reverse, turn ! # $ % into
  greek           α;β;γ;δ      Let reverse act on "α;β;γ;δ":
  cyrillic        а+б+в+г      Make reverse of {а+б+в+г}:
  blend           a-b-c-d      Given [a-b-c-d] do reverse:

A composition reads "rotate then sort" in place of "reverse", on every surface. The tasks are
"default" (five surfaces, no compositions), by growing difficulty "easy", "full" and "hard", and
"plain", six alphabets in one layout, which has no new surface; what is trained and what is held
out, and why, is told by `pairs`, `compositions` and `splits`.

A surface is new if it was never trained, and solvable if what it is made of was: "blend" writes the
letters of "lower" with the dashes and brackets of "upper" and with words of "words" and "digits".
Who knows the order of those letters and what the operations do needs nothing else.

No symbol stands beside a space in one place and beside punctuation in another, and the answer
starts right behind the prompt: a tokenizer that splits words from punctuation gives every symbol
one token of its own.
"""

from iclm.data.mechanisms.examples import example, paraphrase, shift
from iclm.data.mechanisms.operations import OPERATIONS, apply, kind_of
from iclm.data.mechanisms.solver import solve
from iclm.data.mechanisms.surfaces import SURFACES, Surface
from iclm.data.mechanisms.tasks import (
  TASKS,
  Case,
  Part,
  Shift,
  Split,
  Task,
  compositions,
  pairs,
  part_of,
  splits,
  surface_of,
)

__all__ = [
  "OPERATIONS",
  "SURFACES",
  "TASKS",
  "Case",
  "Part",
  "Shift",
  "Split",
  "Surface",
  "Task",
  "apply",
  "compositions",
  "example",
  "kind_of",
  "pairs",
  "paraphrase",
  "part_of",
  "shift",
  "solve",
  "splits",
  "surface_of",
]
