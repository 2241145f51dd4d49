"""Examples that share a context share a row, and no question's tokens depend on its neighbours.

  segment    1  1  1  1    2  2  2    3  3  3  3    0  0
  tokens   bos  c  c  c    q  q  a    q  a  a  a  pad  pad
  targets    c  c  c  -    q  a eos   a  a  a eos   -  -
  counted                     x  x    x  x  x  x
  position   0  1  2  3    4  5  6    4  5  6  7    0  0

A token sees its own segment and segment 1, up to itself.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from iclm.config import InputError
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer

Question = Literal["none", "last_line"]
Loss = Literal["answer", "all"]
TooLong = Literal["error", "truncate_left"]


class Row(NamedTuple):
  """One row of a batch, see `pipeline.Batch`, and how many context tokens were cut off."""

  tokens_T: Int[np.ndarray, "T"]
  targets_T: Int[np.ndarray, "T"]
  segment_T: Int[np.ndarray, "T"]
  position_T: Int[np.ndarray, "T"]
  loss_mask_T: Float[np.ndarray, "T"]
  prompt_mask_T: Bool[np.ndarray, "T"]
  n_cut: int


class Prompts(NamedTuple):
  """The tokens of prompts with one context.

  Attributes:
    context: shared by all questions, bos included.
    questions: the rest of each prompt, at least one token each.
    whole: each question is merely the last token of the prompt, and the router sees it too.
  """

  context: list[int]
  questions: list[list[int]]
  whole: bool


def contexts(examples: Sequence[Example], question: Question) -> Int[np.ndarray, "N"]:
  """Numbers the contexts of examples: those that share one are no independent draws."""
  known: dict[str, int] = {}  # An array of texts would give each the room of the longest.
  shared = (split_prompt(example.prompt, question)[0] for example in examples)
  return np.array([known.setdefault(context, len(known)) for context in shared], int)


def split_prompt(prompt: str, question: Question) -> tuple[str, str]:
  """Splits a prompt into what its neighbours may share, and its own question.

  Args:
    prompt: the text.
    question: "last_line": what follows the last newline; the newline ends the context. "none":
      the whole prompt is context. So it is under "last_line" too when nothing follows the last
      newline, or there is none.

  Returns:
    The context, and the question or "".
  """
  head, newline, tail = prompt.rpartition("\n")
  if question == "none" or not newline or not tail:
    return prompt, ""
  return head + newline, tail


def group_rows(
  examples: Sequence[Example], questions_per_row: int, question: Question
) -> list[list[Example]]:
  """Gathers consecutive examples of equal context and domain; a whole prompt stays alone.

  Args:
    examples: in the order in which they are to appear.
    questions_per_row: the most examples of a row, at least 1.
    question: see `split_prompt`.

  Returns:
    The examples of each row; flattened they are `examples`.
  """
  rows, last = [], None
  for example in examples:
    context, asked = split_prompt(example.prompt, question)
    key = (example.domain, context) if asked else None
    if key is None or key != last or len(rows[-1]) == questions_per_row:
      rows.append([])
    rows[-1].append(example)
    last = key
  return rows


def encode_prompts(
  prompts: Sequence[str], tokenizer: Tokenizer, question: Question, name: str
) -> Prompts:
  """Tokenises prompts with one context: context and question apart, so that packing is free.

  Args:
    prompts: at least one; see `split_prompt` for what they share.
    tokenizer: adds no special ids; bos is put in front here.
    question: see `split_prompt`.
    name: what errors call the prompts.

  Returns:
    The tokens, for training, evaluation and generation alike.

  Raises:
    InputError: a prompt is empty.
    ValueError: the contexts differ.
  """
  splits = [split_prompt(prompt, question) for prompt in prompts]
  known = tokenizer.encode_many(context for context, _ in splits)
  asked = tokenizer.encode_many((question for _, question in splits), behind=True)
  return _join(splits, known, asked, tokenizer, name)


def shorten(prompt: Prompts, n_tokens: int, tokenizer: Tokenizer) -> tuple[Prompts, int]:
  """Returns a prompt of at most `n_tokens`, at least 1, and how many of its first ones are gone.

  bos stays where there is room for it. A question that is too long by itself is cut as context,
  and the router reads what is left of it.

  Args:
    prompt: with one question.
  """
  context, [question], whole = prompt
  n_cut = len(context) + len(question) - n_tokens
  if n_cut <= 0:
    return prompt, 0
  n_bos = min(int(tokenizer.bos_id is not None), n_tokens - 1)
  if n_bos + len(question) > n_tokens:
    tokens = [*context, *question]
    context, question, whole = tokens[:-1], tokens[-1:], True
  return Prompts(context[:n_bos] + context[n_bos + n_cut :], [question], whole), n_cut


def pack_all(
  groups: Sequence[Sequence[Example]],
  tokenizer: Tokenizer,
  *,
  seq_len: int,
  question: Question,
  loss: Loss,
  too_long: TooLong,
) -> list[Row]:
  """Lays the examples of each group out as one row; tokenised together, on several cores.

  Args:
    groups: of examples with one context, at least one, as `group_rows` gathers them.
    tokenizer: encodes context, question and answer apart.
    seq_len: T, tokens of a row.
    question: see `split_prompt`.
    loss: "answer" counts the answer and its eos; "all" also what context and question predict.
    too_long: "truncate_left" drops the first tokens of the context behind bos, and says how many
      in `Row.n_cut`.

  Returns:
    The rows, padded to `seq_len`.

  Raises:
    InputError: a prompt or answer is empty, or a row is too long.
    ValueError: the contexts of a group differ.
  """
  splits = [[split_prompt(e.prompt, question) for e in group] for group in groups]
  answers = [[e.answer for e in group] for group in groups]
  flat = [split for group in splits for split in group]
  known = tokenizer.encode_many(context for context, _ in flat)
  behind = tokenizer.encode_many(itertools.chain((asked for _, asked in flat), *answers), True)
  rows = []
  for group, split, said in zip(groups, splits, answers, strict=True):
    name = ", ".join(e.id for e in group)
    prompts = _join(split, known, behind, tokenizer, name)
    row = lay_out(prompts, [behind[a] for a in said], tokenizer, seq_len, loss, too_long, name)
    rows.append(row)
  return rows


def _join(
  splits: Sequence[tuple[str, str]],
  known: Mapping[str, list[int]],
  behind: Mapping[str, list[int]],
  tokenizer: Tokenizer,
  name: str,
) -> Prompts:
  """Joins the known tokens of contexts, and of questions, to prompts; see `encode_prompts`."""
  if len({(context, not asked) for context, asked in splits}) != 1:
    raise ValueError(f"the prompts of {name} do not share one context")
  context = known[splits[0][0]]
  whole = not splits[0][1]
  if whole:  # The last token moves over: it predicts the first token of the answer.
    context, questions = context[:-1], [context[-1:] for _ in splits]
  else:
    questions = [behind[asked] for _, asked in splits]
  if not all(questions):
    raise InputError(f"the prompt of {name} is empty; a model needs one token to answer to.")
  bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  return Prompts(bos + context, questions, whole)


def lay_out(
  prompts: Prompts,
  answers: Sequence[list[int]],
  tokenizer: Tokenizer,
  seq_len: int,
  loss: Loss,
  too_long: TooLong,
  name: str,
  end: bool = True,
) -> Row:
  """Lays tokens out as one row, an answer without eos behind each question; see `pack_all`.

  Args:
    end: the end of an answer is predicted too; if not, its last token needs no place in the row.
  """
  if not all(answers):
    raise InputError(f"an answer of {name} is empty; the model would have nothing to say.")
  said = [
    [*question, *answer, *[tokenizer.eos_id][: int(end)]]
    for question, answer in zip(prompts.questions, answers, strict=True)
  ]
  own = sum(map(len, said)) - len(said)
  context, n_cut = fit(prompts, own, tokenizer, seq_len, too_long, name)
  start, everything = len(context), loss == "all"
  # The last token of the context predicts nothing, unless the prompt continues in one way only.
  beyond = prompts.questions[0][0] if prompts.whole else tokenizer.pad_id
  tokens, segments, positions = list(context), [1] * start, list(range(start))
  targets = [*context[1:], beyond][:start]
  counts = [*[everything] * (start - 1), everything and prompts.whole][:start]
  for k, (question, whole) in enumerate(zip(prompts.questions, said, strict=True)):
    n = len(whole) - 1
    tokens += whole[:-1]
    targets += whole[1:]
    segments += [k + 2] * n
    positions += range(start, start + n)
    counts += [everything] * (len(question) - 1) + [True] * (n + 1 - len(question))
  return Row(
    tokens_T=_padded(tokens, seq_len, tokenizer.pad_id, np.int32),
    targets_T=_padded(targets, seq_len, tokenizer.pad_id, np.int32),
    segment_T=_padded(segments, seq_len, 0, np.int32),
    position_T=_padded(positions, seq_len, 0, np.int32),
    loss_mask_T=_padded(counts, seq_len, 0, np.float32),
    prompt_mask_T=_padded([True] * (start + prompts.whole), seq_len, False, np.bool_),
    n_cut=n_cut,
  )


def fit(
  prompts: Prompts,
  own: int,
  tokenizer: Tokenizer,
  seq_len: int,
  too_long: TooLong,
  name: str,
) -> tuple[list[int], int]:
  """Returns the context that fits before `own` tokens, and the number of tokens cut off.

  Raises:
    InputError: it does not fit, and is not to be cut, or would not fit without any context.
  """
  needed = len(prompts.context) + own
  if needed <= seq_len:
    return prompts.context, 0
  row = f"{name}: the row needs {needed} tokens and seq_len is {seq_len}; shorten it, or train with"
  row += f" seq_len >= {needed}"
  row += " or fewer questions_per_row" if len(prompts.questions) > 1 else ""
  n_bos = int(tokenizer.bos_id is not None)
  if too_long == "error":
    raise InputError(f"{row}, or too_long = 'truncate_left'.")
  if n_bos + own > seq_len:
    raise InputError(f"{row}: even without any context it needs {n_bos + own}.")
  n_cut = needed - seq_len
  return prompts.context[:n_bos] + prompts.context[n_bos + n_cut :], n_cut


def _padded(values: Sequence[int], length: int, fill: int, dtype: type) -> np.ndarray:
  array = np.full(length, fill, dtype)
  array[: len(values)] = values
  return array
