"""Answers to open prompts of RAVEN, compared in what the context determines.

Exact match is the wrong measure there: what the context leaves open was drawn by chance.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from iclm.config import InputError
from iclm.data import raven
from iclm.data.records import Example
from iclm.evals.subject import Subject


def check(examples: Sequence[Example]) -> None:
  """Raises InputError where the right answer to an open prompt of RAVEN is none."""
  for e in examples:
    read = raven.parse(e.content)
    if read is not None and not read.answers:
      try:
        raven.right_panel(e.content, e.answer)
      except InputError as error:
        raise InputError(f"{e.id}: {error}") from None


def report(
  subject: Subject, examples: Sequence[Example], correct_N: Bool[np.ndarray, "N"]
) -> dict[str, Any]:
  """How often the model's own greedy answers are right, beside the solver's.

  An answer that has outgrown the longest right one, or its row, is cut, and wrong in everything.

  Args:
    examples: of any kind; the report is on the open prompts of RAVEN that a rule fits.
    correct_N: of `accuracy.Scores`, by which all others are measured.

  Returns:
    {} where there is none of those, else {"determined": ...}: n, accuracy and the solver's, the
    `ceiling`; the same by attribute, among the examples that determine it, and by configuration;
    and, where there are others, n and accuracy of the `rest`.

  Raises:
    InputError: see `answering.answer` and `raven.score`.
  """
  solved = {i: found for i, e in enumerate(examples) if (found := _solved(e))}
  if not solved:
    return {}
  asked = [examples[i] for i in solved]
  most = 1 + max(len(subject.tokenizer.encode(e.answer, behind=True)) for e in asked)
  rights, by_attribute = [], collections.defaultdict(list)
  by_configuration = collections.defaultdict(list)
  said = subject.answer(asked, most)
  for e, tokens, (configuration, answer) in zip(asked, said, solved.values(), strict=True):
    mine, solvers = _score(e, _text(subject, tokens)), _score(e, answer)
    rights.append((mine.right, solvers.right))
    by_configuration[configuration].append(rights[-1])
    for name, right in mine.parts.items():
      by_attribute[name].append((right, solvers.parts[name]))
  found = _shares(rights)
  found["by_attribute"] = {name: _shares(pairs) for name, pairs in by_attribute.items()}
  found["by_configuration"] = {name: _shares(pairs) for name, pairs in by_configuration.items()}
  rest = [bool(right) for i, right in enumerate(correct_N) if i not in solved]
  if rest:
    found["rest"] = {"n": len(rest), "accuracy": float(np.mean(rest))}
  return {"determined": found}


def measured(found: Mapping[str, Any]) -> Mapping[str, Any]:
  """Of a set's summary n and accuracy: of what the context determines where that is what counts,
  and of all else as it is.

  Args:
    found: of `accuracy.summarise`, with what `report` adds.
  """
  part = found["determined"] if "determined" in found else found
  if "rest" not in part:
    return {"n": part["n"], "accuracy": part["accuracy"]}
  n = part["n"] + part["rest"]["n"]
  return {"n": n, "accuracy": sum(of["n"] * of["accuracy"] for of in (part, part["rest"])) / n}


def _solved(example: Example) -> tuple[str, str] | None:
  """Configuration and the solver's answer of an open prompt; None for every other prompt."""
  read = raven.parse(example.content)
  answer = None if read is None or read.answers else raven.predict(example.content)
  return None if read is None or answer is None else (read.configuration, answer)


def _text(subject: Subject, tokens: Sequence[int]) -> str:
  ends = tokens[-1] in subject.tokenizer.end_ids
  return subject.tokenizer.decode(tokens[:-1], behind=True) if ends else ""


def _score(example: Example, answer: str) -> raven.Score:
  return raven.score(example.content, example.answer, answer)


def _shares(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
  """Of pairs (the model's answer is right, the solver's is)."""
  accuracy, ceiling = np.mean(pairs, axis=0).tolist()
  return {"n": len(pairs), "accuracy": accuracy, "ceiling": ceiling}
