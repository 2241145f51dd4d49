"""Every example to be scored once, in batches that say whose answer each position predicts."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from iclm.config import InputError
from iclm.data import pipeline, rows
from iclm.data.records import Example
from iclm.data.rows import Prompts, Question, Row, TooLong
from iclm.data.tokenizer import Tokenizer


class EvalBatch(NamedTuple):
  """A batch that says whose answer each position predicts.

  Attributes:
    batch: `loss_mask_BT` is 1 exactly where `owner_BT` >= 0.
    owner_BT: index in `eval_items` of the candidate whose token or eos is the target; else -1.
    n_truncated: rows that lost tokens of their context.
  """

  batch: pipeline.Batch
  owner_BT: Int[np.ndarray, "B T"]
  n_truncated: int


def eval_items(examples: Sequence[Example]) -> list[tuple[int, str]]:
  """Returns (index of the example, candidate): every choice, or the answer where there is none."""
  return [(i, text) for i, e in enumerate(examples) for text in e.choices or (e.answer,)]


def eval_batches(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  domains: tuple[str, ...],
  *,
  batch_size: int,
  seq_len: int,
  question: Question,
  questions_per_row: int,
  too_long: TooLong,
) -> Iterator[EvalBatch]:
  """Yields every item once, in order, in batches of one shape; padding rows fill the last.

  Args:
    examples: what to score.
    tokenizer: see `rows.pack_all`, as `question` and `too_long`.
    domains: the names that `Batch.domain_B` counts in.
    batch_size: B of every batch.
    seq_len: T of every batch.
    questions_per_row: the most items of a row. Consecutive items of one context share rows while
      they fit; the tokens of an item are the same with and without company.

  Raises:
    InputError: see `rows.pack_all`.
  """
  laid = _eval_rows(examples, tokenizer, seq_len, question, questions_per_row, too_long)
  while chunk := list(itertools.islice(laid, batch_size)):
    packed = [row for row, _, _ in chunk]
    indices = [pipeline.domain_index(example, domains) for _, example, _ in chunk]
    owner_BT = np.full((batch_size, seq_len), -1, np.int32)
    for owner_T, (row, _, first) in zip(owner_BT, chunk, strict=False):
      mask_T = row.loss_mask_T > 0
      owner_T[mask_T] = row.segment_T[mask_T] - 2 + first
    yield EvalBatch(
      batch=pipeline.fill(packed, indices, batch_size, tokenizer),
      owner_BT=owner_BT,
      n_truncated=sum(row.n_cut > 0 for row in packed),
    )


def _eval_rows(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  seq_len: int,
  question: Question,
  questions_per_row: int,
  too_long: TooLong,
) -> Iterator[tuple[Row, Example, int]]:
  """Yields rows with their first example and the index of their first item."""
  if questions_per_row < 1:
    raise InputError(f"questions_per_row = {questions_per_row} must be at least 1.")
  first = 0
  for group in rows.group_rows(examples, len(examples) or 1, question):
    name = ", ".join(example.id for example in group)
    prompts = rows.encode_prompts([e.prompt for e in group], tokenizer, question, name)
    candidates = eval_items(group)
    known = tokenizer.encode_many((text for _, text in candidates), behind=True)
    items = [_Item(group[i], prompts.questions[i], known[text]) for i, text in candidates]
    for context, n_cut, some in _contexts(prompts, items, tokenizer, seq_len, too_long):
      while some:
        sizes = itertools.accumulate(item.size for item in some)
        room = seq_len - len(context)
        fitting = sum(size <= room for size in itertools.islice(sizes, questions_per_row))
        taken, some = some[: max(fitting, 1)], some[max(fitting, 1) :]
        row = rows.lay_out(
          prompts._replace(context=context, questions=[item.question for item in taken]),
          [item.answer for item in taken],
          tokenizer,
          seq_len,
          "answer",
          too_long,
          taken[0].example.id,
        )
        yield row._replace(n_cut=n_cut), taken[0].example, first
        first += len(taken)


class _Item(NamedTuple):
  """A candidate of an example, and the example's question."""

  example: Example
  question: list[int]
  answer: list[int]

  @property
  def size(self) -> int:
    return len(self.question) + len(self.answer)


def _contexts(
  prompts: Prompts,
  items: list[_Item],
  tokenizer: Tokenizer,
  seq_len: int,
  too_long: TooLong,
) -> Iterator[tuple[list[int], int, list[_Item]]]:
  """Items with the context that they share, and how much of it was cut.

  Where the longest has no room, each example's context is cut for its own longest candidate: all
  choices of an example are scored behind the same text, whatever stands beside it.
  """
  longest = lambda some: max(item.size for item in some)
  if too_long == "error" or len(prompts.context) + longest(items) <= seq_len:
    yield prompts.context, 0, items
    return
  for _, own in itertools.groupby(items, key=lambda item: id(item.example)):
    mine = list(own)
    asked = prompts._replace(questions=[item.question for item in mine])
    args = asked, longest(mine), tokenizer, seq_len, too_long, mine[0].example.id
    yield *rows.fit(*args), mine
