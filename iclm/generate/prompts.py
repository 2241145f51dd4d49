"""Prompts as rows of a few lengths, so that one process compiles a few programs, not one a prompt.

A prompt's bucket depends on its own length alone: company does not change its shape.
"""

import collections
import dataclasses
import re
import zlib
from collections.abc import Sequence, Sized
from typing import NamedTuple, TypeVar

import numpy as np

from iclm.config import Config, InputError
from iclm.data import rows
from iclm.data.pipeline import Batch
from iclm.data.tokenizer import Tokenizer

Row = TypeVar("Row", bound=Sized)
SHORTEST = 16  # Tokens of the smallest bucket.


class Prompt(NamedTuple):
  """One prompt in tokens: what the router reads, and what only the model does.

  `identity` is a hash of the tokens, `repeat` the number of equal prompts before: a draw depends on
  the two, and not on what else is asked.
  """

  index: int
  context: list[int]
  question: list[int]
  whole: bool  # The question is merely the last token, and the router reads it too.
  identity: int
  repeat: int
  n_cut: int  # Of its first tokens, lost so that it fits.

  def __len__(self) -> int:
    return len(self.context) + len(self.question)


def with_context(config: Config, n: int) -> Config:
  """The config of a model that is asked in rows of n tokens, prompt and answer together.

  Raises:
    InputError: there is no such row, or the base was made for shorter ones.
  """
  most = config.model.context
  if n < 1 or 0 < most < n:
    told = f"lie in 1..{most}, which the base was made for" if most else "be at least 1"
    raise InputError(f"a context of {n} tokens is none; it must {told}")
  return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, seq_len=n))


def bucket(n: int, most: int) -> int:
  """The smallest power of two that holds n, from `SHORTEST` on, or `most` where that is less."""
  return min(max(SHORTEST, 1 << (n - 1).bit_length()), most)


def encode(
  texts: Sequence[str], tokenizer: Tokenizer, config: Config, max_tokens: int = 1
) -> list[Prompt]:
  """Tokenises prompts as training does.

  Where `config.data.too_long` says so, a prompt loses its first tokens, until its answer has room
  for `max_tokens`, or for half of the context where that is less.

  Raises:
    InputError: one is empty, no text, or longer than the context and not to be cut.
  """
  found, seen, most = [], collections.Counter(), config.evaluation_len
  for i, text in enumerate(texts):
    name = f"number {i + 1}"
    if not text:
      raise InputError(f"prompt {name} is empty; a model needs one token to answer to.")
    if re.search("[\ud800-\udfff]", text):
      raise InputError(f"prompt {name} holds bytes that are no UTF-8; save or type it as UTF-8")
    prompt = rows.encode_prompts([text], tokenizer, config.data.asks, name)
    n_cut = 0
    if config.data.too_long == "truncate_left":
      room = max(1, min(max_tokens, most // 2))
      prompt, n_cut = rows.shorten(prompt, most + 1 - room, tokenizer)
    context, [question], whole = prompt
    n = len(context) + len(question)
    if n > most:
      raise InputError(
        f"prompt {name} has {n} tokens, and the context of this run is {most}; shorten it by "
        f"{n - most}, or ask in a longer context (--context, at most that of the base)"
      )
    identity = zlib.crc32(np.asarray([*context, *question], "<i4").tobytes())
    found.append(Prompt(i, context, question, whole, identity, seen[identity], n_cut))
    seen[identity] += 1
  return found


def batches(prompts: Sequence[Row], size: int, most: int) -> list[list[Row]]:
  """At most `size` prompts, or longer rows, of one bucket each, in order within a bucket."""
  by_bucket = collections.defaultdict(list)
  for prompt in prompts:
    by_bucket[bucket(len(prompt), most)].append(prompt)
  return [same[i : i + size] for same in by_bucket.values() for i in range(0, len(same), size)]


def lay_out(prompts: Sequence[Prompt], size: int, n_tokens: int, pad_id: int) -> Batch:
  """Rows of prompts alone, as `rows.lay_out` has them in front of an answer; then rows of padding.

  Args:
    size: rows.
    n_tokens: of each row, at least as many as of the longest prompt.
  """
  shape = (size, n_tokens)
  tokens_BT = np.full(shape, pad_id, np.int32)
  segment_BT, position_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  prompt_mask_BT = np.zeros(shape, np.bool_)
  for b, prompt in enumerate(prompts):
    n, n_context = len(prompt), len(prompt.context)
    tokens_BT[b, :n] = [*prompt.context, *prompt.question]
    segment_BT[b, :n_context], segment_BT[b, n_context:n] = 1, 2
    position_BT[b, :n] = np.arange(n)
    prompt_mask_BT[b, : n_context + prompt.whole] = True
  return Batch(
    tokens_BT=tokens_BT,
    targets_BT=tokens_BT,
    segment_BT=segment_BT,
    position_BT=position_BT,
    loss_mask_BT=np.zeros(shape, np.float32),
    prompt_mask_BT=prompt_mask_BT,
    domain_B=np.full(size, -1, np.int32),
  )
