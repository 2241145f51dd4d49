"""Answers that a model gives of its own: greedy, each token read before the next is said."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from iclm import compose, generate, processes, sharding
from iclm.config import Config
from iclm.data import pipeline
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy


def answer(
  decoding: generate.Decoding,
  params: Any,
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  config: Config,
  mesh: Mesh,
  most: int,
) -> list[list[int]]:
  """Answers every prompt once; the rows are those of `accuracy.score`, without right answers.

  Args:
    decoding: of the model; keep it, since it holds the compilations.
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
  found, ends = [], np.array(tokenizer.end_ids)
  for batch, owner_BT, _ in accuracy.batches_of(plain, tokenizer, alone):
    prompts, left_B = _asked(batch, owner_BT, tokenizer.pad_id)
    left_B, n_tokens = np.minimum(left_B, most), owner_BT.shape[1]
    room = generate.bucket(min(most, n_tokens), n_tokens)
    given = generate.GREEDY, compose.NOTHING, ends
    placed = sharding.put_whole(prompts, mesh)
    keys_B = jax.random.split(jax.random.key(0), len(left_B))  # Greedy draws nothing.
    decoded, _ = decoding.prefill(params, placed, left_B, keys_B, *given, room=room)
    decoded = decoding.decode(params, decoded, *given, room)
    for said_M, n in zip(*processes.fetch((decoded.said_BM, decoded.n_B)), strict=True):
      if n:
        found.append(said_M[:n].tolist())
  return found


def _asked(
  batch: pipeline.Batch, owner_BT: Int[np.ndarray, "B T"], pad_id: int
) -> tuple[pipeline.Batch, Int[np.ndarray, "B"]]:
  """The prompts alone, and how many tokens fit behind each one; 0 for rows of padding only."""
  asks_BT = owner_BT >= 0
  n = owner_BT.shape[1]
  start_B = np.where(asks_BT.any(axis=1), asks_BT.argmax(axis=1), n)  # Of the last prompt token.
  behind_BT = np.arange(n) > start_B[:, None]
  fill = lambda x_BT, value: np.where(behind_BT, value, x_BT).astype(x_BT.dtype)
  prompts = batch._replace(
    tokens_BT=fill(batch.tokens_BT, pad_id),
    segment_BT=fill(batch.segment_BT, 0),
    position_BT=fill(batch.position_BT, 0),
  )
  return prompts, n - start_B
