"""Examples of a task, drawn at random: what a case says about a sequence."""

import random
import re
import string
from collections.abc import Sequence

from iclm.config import check_known
from iclm.data.mechanisms import tasks
from iclm.data.mechanisms.operations import OPERATIONS, apply, kind_of
from iclm.data.mechanisms.surfaces import SURFACES, in_one_layout
from iclm.data.mechanisms.tasks import Case, Part, Shift, Split, Task
from iclm.data.records import Example


def example(task: Task, split: str, seed: int, index: int) -> Example:
  """Returns example `index` of a split, a pure function of the arguments; cases take turns.

  Args:
    task: one of `TASKS`, or one of your own.
    split: a key of `splits(task)`.
    seed: any integer.
    index: >= 0.

  Returns:
    An example of the surface's domain, and of group "<kind>/<operation>" or
    "compose/<first>+<second>".

  Raises:
    InputError: the task has no such split, or a setting out of its range.
  """
  found = tasks.splits(task)
  check_known("split of mechanisms", split, found)
  case = found[split].cases[index % len(found[split].cases)]
  rng = random.Random(f"{seed}/{split}/{index}")
  return _written(rng, task, found[split], case, f"{split}/{index}")


def shift(
  task: Task, surface: str, operation: str, becomes: str, part: Part, seed: int, n: int
) -> list[Example]:
  """Returns examples of one surface on which an operation's word now means another operation.

  Args:
    task: what sequences look like.
    surface: where the mechanism has changed.
    operation: its word, which the prompts carry; also the group of the examples.
    becomes: the operation that the answers follow.
    part: which sequences to draw from; see `part_of`.
    seed: any integer.
    n: how many, >= 0.

  Raises:
    InputError: a surface, operation or part is not known, or the operation becomes itself.
  """
  tasks.check_shift(task, Shift(surface, operation, becomes))
  check_known("part of mechanisms", part, ("train", "val", "test"))
  case = Case(surface, (operation,), (becomes,))
  split = Split((case,), part, task.lengths)
  name = f"shift/{surface}/{operation}/{becomes}/{part}"
  return [
    _written(random.Random(f"{seed}/{name}/{i}"), task, split, case, f"{name}/{i}")
    for i in range(n)
  ]


def paraphrase(prompt: str) -> str | None:
  """Returns the prompt in its surface's other phrasing, which asks for the same.

  None where the prompt is in no surface's phrasing, and so no prompt of the task.
  """
  words = "|".join(OPERATIONS)
  surfaces = SURFACES.values()
  for surface in (*surfaces, *map(in_one_layout, surfaces)):
    symbol = "|".join(re.escape(s) for s in sorted(surface.alphabet, key=len, reverse=True))
    holes = {
      "operation": rf"(?P<operation>(?:{words})(?: then (?:{words}))*)",
      "sequence": rf"(?P<sequence>(?:{symbol})(?:{re.escape(surface.separator)}(?:{symbol}))*)",
    }
    parts = string.Formatter().parse(surface.phrasing)
    pattern = "".join(re.escape(text) + (holes[hole] if hole else "") for text, hole, _, _ in parts)
    found = re.fullmatch(pattern, prompt)
    if found:
      return surface.paraphrase.format(**found.groupdict())
  return None


def _written(rng: random.Random, task: Task, split: Split, case: Case, name: str) -> Example:
  while True:
    # Distinct symbols: an operation on places then always changes the sequence.
    sequence = rng.sample(range(task.size), rng.choice(split.lengths))
    meant, said = (apply(x, sequence, task.size) for x in (case.meaning, case.words))
    # Of what is shifted, only what comes to mean something else.
    if tasks.part_of(sequence) == split.part and (case.meaning == case.words or meant != said):
      break
  alphabet, separator, phrasing, _ = tasks.surface_of(task, case.surface)
  shown, answer = (separator.join(alphabet[i] for i in ranks) for ranks in (sequence, meant))
  return Example(
    prompt=phrasing.format(operation=" then ".join(case.words), sequence=shown),
    answer=answer,
    choices=(),
    domain=case.surface,
    group=_group(case.words),
    id=name,
  )


def _group(words: Sequence[str]) -> str:
  return f"{kind_of(words[0])}/{words[0]}" if len(words) == 1 else f"compose/{'+'.join(words)}"
