"""What an evaluation set shares with the training data, and a hash that names each of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from iclm.data import acre_world
from iclm.data.records import Example


class Overlap(NamedTuple):
  """Examples of a set whose prompt was trained on: to the letter, and in canonical form."""

  exact: int
  canonical: int


def measure(
  training: Iterable[Example], sets: Mapping[str, Sequence[Example]]
) -> dict[str, Overlap]:
  """Counts, per set, the examples whose prompt occurs in the training data.

  Args:
    training: what was trained on; read once.
    sets: evaluation sets by name.
  """
  exact, canonical = set(), set()
  wanted = {e.prompt for found in sets.values() for e in found}
  wanted_canonical = {canonical_form(e.content) for found in sets.values() for e in found}
  for e in training:
    if e.prompt in wanted:
      exact.add(e.prompt)
    if (form := canonical_form(e.content)) in wanted_canonical:
      canonical.add(form)
  return {
    name: Overlap(
      sum(e.prompt in exact for e in found),
      sum(canonical_form(e.content) in canonical for e in found),
    )
    for name, found in sets.items()
  }


def canonical_form(prompt: str) -> str:
  """The prompt without what carries no meaning: the order of ACRE's views and objects; else case
  and spacing."""
  read = acre_world.parse(prompt)
  if read is None:
    return " ".join(prompt.lower().split())
  _, views, query = read
  shown = sorted((sorted(view.objects), view.lit) for view in views)
  return json.dumps([shown, sorted(query)])


def digest(examples: Iterable[Example]) -> str:
  """SHA-256 over prompts, answers and choices, in their order."""
  total = hashlib.sha256()
  for _ in feed(examples, total):
    pass
  return total.hexdigest()


def feed(examples: Iterable[Example], total: Any) -> Iterator[Example]:
  """Passes examples on and adds each to a running hash, so that they need be read only once."""
  for e in examples:
    total.update(json.dumps([e.prompt, e.answer, e.choices]).encode())
    yield e
