"""How likely a text is behind another: no choices, no end of an answer, any lengths.

  (context, continuation) -> Piece -> rows of a few lengths -> nats, and whether it is greedy

The router reads the context alone. What is too long for the model loses the first tokens of its
context, and none of its continuation.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from iclm import compose, generate, processes, sharding
from iclm.config import Config, InputError
from iclm.data import pipeline, rows
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy


@dataclasses.dataclass(frozen=True)
class Piece:
  """A continuation in tokens, at least one, behind one prompt.

  Attributes:
    end: the end token behind it counts too, as it does for an answer.
    n_cut: tokens that its prompt has lost.
  """

  prompt: rows.Prompts
  continuation: list[int]
  end: bool
  n_cut: int = 0

  def __len__(self) -> int:
    """Tokens of its row: the one that is predicted last is never read."""
    asked = len(self.prompt.context) + len(self.prompt.questions[0])
    return asked + len(self.continuation) - 1 + self.end


class Likelihood(NamedTuple):
  """Of a continuation, given what stands before it."""

  nats: float  # The logarithm of its probability, at most 0; summed over its tokens.
  greedy: bool  # Each of its tokens is the likeliest one there.


def encode(
  context: str, continuation: str, tokenizer: Tokenizer, config: Config, *, end: bool
) -> Piece:
  """Tokenises a pair as a prompt and its answer; an empty context is the token that begins a row.

  A context that leaves no room loses its first tokens, see `rows.shorten`.

  Args:
    end: see `Piece`.

  Raises:
    InputError: there is no continuation, or it does not fit into the context of the model.
  """
  said = tokenizer.encode(continuation, behind=bool(context))
  most = config.evaluation_len
  if not said:
    raise InputError("a continuation is empty; there is nothing to score")
  room = most - (len(said) - 1 + end)
  if room < 1:
    raise InputError(
      f"the continuation {continuation[:40]!r} has {len(said)} tokens, and the context of this "
      f"run is {most}; shorten it, or ask in a longer context (max_length)"
    )
  if context:
    prompt = rows.encode_prompts([context], tokenizer, config.data.asks, "a context")
  else:
    prompt = rows.Prompts([], [[start_of(tokenizer)]], whole=True)
  prompt, n_cut = rows.shorten(prompt, room, tokenizer)
  return Piece(prompt, said, end, n_cut)


def windows(text: str, tokenizer: Tokenizer, config: Config) -> list[Piece]:
  """A text of any length in pieces that predict each of its tokens once.

  The first one follows the token that begins a row. The others are as long as the model allows,
  and each continuation stands behind as many of the tokens before it as fit.

  Source: `get_rolling_token_windows` of EleutherAI's lm-evaluation-harness, context_len = 1.
  """
  tokens, most = tokenizer.encode(text), config.evaluation_len
  start = rows.Prompts([], [[start_of(tokenizer)]], whole=True)
  found = [Piece(start, tokens[:most], end=False)] if tokens else []
  for done in range(most, len(tokens), most):
    until = min(done + most, len(tokens))
    before = tokens[until - most - 1 : done]
    prompt = rows.Prompts(before[:-1], [before[-1:]], whole=True)
    found.append(Piece(prompt, tokens[done:until], end=False))
  return found


def start_of(tokenizer: Tokenizer) -> int:
  """The token that stands where there is no context: the one that begins a row, or ends a text."""
  return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def score(
  scorer: accuracy.Scorer,
  params: Any,
  pieces: Sequence[Piece],
  tokenizer: Tokenizer,
  config: Config,
  mesh: Mesh,
) -> Iterator[tuple[int, Likelihood]]:
  """Yields each piece's index with its likelihood, batch by batch, in no order.

  Rows have the lengths of `generate.bucket`, and batches `config.evaluation_rows` of them:
  one program is compiled for each length that occurs, at most log2 of the context.
  """
  most, size = config.evaluation_len, config.evaluation_rows
  numbered = [_Numbered(i, piece) for i, piece in enumerate(pieces)]
  for taken in generate.batches(numbered, size, most):
    n_tokens = generate.bucket(max(map(len, taken)), most)
    laid = [_lay_out(each, tokenizer, n_tokens) for each in taken]
    batch = pipeline.fill(laid, [-1] * len(laid), size, tokenizer)
    scored = scorer(params, sharding.put_whole(batch, mesh), None, compose.NOTHING)
    logp_BT, hit_BT = processes.fetch((scored.logp_BT, scored.hit_BT))
    counts_BT = batch.loss_mask_BT > 0
    nats_B = np.where(counts_BT, logp_BT, 0).sum(axis=1, dtype=np.float64)
    greedy_B = (hit_BT | ~counts_BT).all(axis=1)
    for b, each in enumerate(taken):
      yield each.index, Likelihood(float(nats_B[b]), bool(greedy_B[b]))


class _Numbered(NamedTuple):
  index: int
  piece: Piece

  def __len__(self) -> int:
    return len(self.piece)


def _lay_out(each: _Numbered, tokenizer: Tokenizer, n_tokens: int) -> rows.Row:
  prompt, said, end = each.piece.prompt, each.piece.continuation, each.piece.end
  name = f"number {each.index + 1}"
  return rows.lay_out(prompt, [said], tokenizer, n_tokens, "answer", "error", name, end)
