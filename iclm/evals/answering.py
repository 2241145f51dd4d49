"""Answers that a model gives of its own: greedy, each token read before the next is said.

No cache: every token costs a whole forward pass. That is enough to evaluate small models, and one
shape is compiled.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from iclm import compose, sharding
from iclm.config import Config
from iclm.data import pipeline
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy

# (params, prompts, start_B, end id, most tokens) -> said_BT, see `_answer`.
Answerer = Callable[[Any, pipeline.Batch, Any, int, int], Int[Array, "B T"]]


def make_answerer(model: compose.Model) -> Answerer:
  """The jitted decoding; make it once and keep it, since it holds the compilations."""
  return jax.jit(functools.partial(_answer, model))


def answer(
  answerer: Answerer,
  params: Any,
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  config: Config,
  mesh: Mesh,
  most: int,
) -> list[list[int]]:
  """Answers every prompt once; the rows are those of `accuracy.score`, without right answers.

  Args:
    most: tokens after which an answer is cut, the end token included, at least 1; a full row cuts
      it too.

  Returns:
    The tokens of each answer. Its last one is the end token, unless it was cut.

  Raises:
    InputError: see `accuracy.score`.
  """
  # One to a row: how long an answer gets is not known.
  data = dataclasses.replace(config.data, questions_per_row=1)
  alone = dataclasses.replace(config, data=data)
  plain = [dataclasses.replace(example, choices=()) for example in examples]
  found = []
  for batch, owner_BT, _ in accuracy.batches_of(plain, tokenizer, alone):
    prompts, start_B = _asked(batch, owner_BT, tokenizer.pad_id)
    placed = sharding.put_batch(prompts, mesh)
    said_BT = np.asarray(answerer(params, placed, start_B, tokenizer.eos_id, most))
    for said_T, start, owner_T in zip(said_BT, start_B, owner_BT, strict=True):
      if owner_T.max() >= 0:
        found.append(_until(said_T[start : start + most].tolist(), tokenizer.eos_id))
  return found


def _asked(
  batch: pipeline.Batch, owner_BT: Int[np.ndarray, "B T"], pad_id: int
) -> tuple[pipeline.Batch, Int[np.ndarray, "B"]]:
  """The prompts alone with room for any answer, and where each one's first token is predicted.

  Rows of padding only start at their end.
  """
  asks_BT = owner_BT >= 0
  n = owner_BT.shape[1]
  start_B = np.where(asks_BT.any(axis=1), asks_BT.argmax(axis=1), n)
  behind_BT = np.arange(n) - start_B[:, None]
  last_B = np.minimum(start_B, n - 1)[:, None]
  at = lambda x_BT: np.take_along_axis(x_BT, last_B, axis=1)
  fill = lambda x_BT, values: np.where(behind_BT > 0, values, x_BT).astype(x_BT.dtype)
  prompts = batch._replace(
    tokens_BT=fill(batch.tokens_BT, pad_id),
    segment_BT=fill(batch.segment_BT, at(batch.segment_BT)),
    position_BT=fill(batch.position_BT, at(batch.position_BT) + behind_BT),
  )
  return prompts, start_B


def _answer(
  model: compose.Model, params: Any, prompts: pipeline.Batch, start_B, eos_id, most
) -> Int[Array, "B T"]:
  """From start_B on, at each position the token that is said next; behind the answer any."""
  n_rows, n_tokens = prompts.tokens_BT.shape
  rows_B = jnp.arange(n_rows)

  def goes_on(carry):
    i, _, _, done_B = carry
    return (i < most) & ~done_B.all()

  def say(carry):
    i, tokens_BT, said_BT, done_B = carry
    logits_BTV = model.apply(params, prompts._replace(tokens_BT=tokens_BT)).logits_BTV
    at_B = start_B + i  # Beyond the row nothing is written.
    next_B = logits_BTV[rows_B, at_B].argmax(-1).astype(tokens_BT.dtype)
    said_BT = said_BT.at[rows_B, at_B].set(next_B, mode="drop")
    tokens_BT = tokens_BT.at[rows_B, at_B + 1].set(next_B, mode="drop")
    return i + 1, tokens_BT, said_BT, done_B | (next_B == eos_id) | (at_B + 1 >= n_tokens)

  blank_BT = jnp.zeros_like(prompts.tokens_BT)
  start = jnp.zeros((), jnp.int32), prompts.tokens_BT, blank_BT, start_B >= n_tokens
  return jax.lax.while_loop(goes_on, say, start)[2]


def _until(tokens: list[int], end: int) -> list[int]:
  return tokens[: tokens.index(end) + 1] if end in tokens else tokens
