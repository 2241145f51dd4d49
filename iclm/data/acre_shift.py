"""A mechanism of ACRE that has shifted in one of its forms: the light works the other way round."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

from iclm.data import acre
from iclm.data.acre_world import Form
from iclm.data.records import Example


def inverted(form: Form, part: Literal["train", "val", "test"], seed: int, n: int) -> list[Example]:
  """Returns examples under an inverted light: asked for, it is on where the rule says off.

  What cannot be determined still cannot, and the views show the light as ever: only what the answer
  makes of them has changed.

  Args:
    form: "symbolic" or "text".
    part: "train", "val" or "test", which never draw from the same stream. In "train" all published
      questions on a problem follow each other; else there is one of each problem.
    seed: any integer.
    n: how many, >= 0.
  """

  def drawn() -> Iterator[Example]:
    for i in itertools.count():
      found = acre.examples(form, f"iid_{part}", seed, i, 4)
      yield from found if part == "train" else [found[i % 4]]

  def turned(e: Example) -> Example:
    answer = e.choices[::-1][e.choices.index(e.answer)]
    return dataclasses.replace(e, answer=answer, id=f"shift/{form}/{e.id}")

  return [turned(e) for e in itertools.islice(drawn(), n)]
