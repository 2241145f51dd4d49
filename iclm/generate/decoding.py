"""The compiled half of generation: prompts in, tokens out; text is no business of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from iclm import compose
from iclm.data.pipeline import Batch
from iclm.generate.sampling import Sampling, choose
from iclm.routing import Routing


class Spoken(NamedTuple):
  """Rows in the midst of their answers.

  Attributes:
    said_BM: tokens said; what stands behind `n_B` is of no meaning.
    n_B: how many, the end token included.
    left_B: how many more a row may say.
    done_B: it has said the end token, or may say no more; or somebody has set it.
    n: tokens that the longest row has.
    next: where the token said last goes; its one column is tokens, segments, positions.
    key_B: of each row's draws; folded with the token's number.
    cache: of all tokens but the last.
  """

  said_BM: Int[Array, "B M"]
  n_B: Int[Array, "B"]
  left_B: Int[Array, "B"]
  done_B: Bool[Array, "B"]
  n: Int[Array, ""]
  next: Batch
  key_B: Array
  cache: compose.Cache


class Decoding(NamedTuple):
  """Two jitted functions; they hold the compilations, one for each shape.

  read(params, prompts, left_B, key_B, sampling, do, eos_id, room=M) -> (Spoken, Routing or None)
    reads and routes the prompts, and says a first token. Rows of `prompts` are one prompt each,
    from the left, with segment 0 behind it; `left_B` is the most tokens that a row may say, 0 of
    rows of padding only; M is the most that any row may.
  say(params, spoken, sampling, do, eos_id, n) -> Spoken, with at most n tokens more; `spoken`
    is used up.

  `do` acts on routes in `read`, and on streams in both; give both the same.
  """

  read: Callable[..., tuple[Spoken, Routing | None]]
  say: Callable[..., Spoken]


def make(model: compose.Model) -> Decoding:
  """Make it once and keep it."""
  reads = jax.jit(functools.partial(read, model), static_argnames="room")
  return Decoding(reads, jax.jit(functools.partial(say, model), donate_argnums=1))


def read(
  model: compose.Model,
  params: Any,
  prompts: Batch,
  left_B: Int[Array, "B"],
  key_B: Array,
  sampling: Sampling,
  do: compose.Intervention,
  eos_id: Any,
  *,
  room: int,
) -> tuple[Spoken, Routing | None]:
  n_rows, n_tokens = prompts.tokens_BT.shape
  # The last token that a row says is never read.
  cache = compose.empty_cache(n_rows, n_tokens + room - 1)
  last_B1 = jnp.maximum((prompts.segment_BT > 0).sum(axis=1, keepdims=True) - 1, 0)
  output = model.apply(params, prompts, None, do, cache=cache, at_BC=last_B1)
  at_last = lambda x_BT: jnp.take_along_axis(x_BT, last_B1, axis=1)
  column = prompts._replace(
    **{name: at_last(getattr(prompts, name)) for name in Batch._fields if name.endswith("_BT")}
  )
  column = column._replace(prompt_mask_BT=jnp.zeros((n_rows, 1), bool))
  zero_B = jnp.zeros(n_rows, jnp.int32)
  assert output.cache is not None
  spoken = Spoken(
    said_BM=jnp.zeros((n_rows, room), jnp.int32),
    n_B=zero_B,
    left_B=left_B.astype(jnp.int32),
    done_B=left_B <= 0,
    n=jnp.zeros((), jnp.int32),
    next=column,
    key_B=key_B,
    cache=output.cache,
  )
  return _spoken(spoken, output.logits_BTV[:, 0], sampling, eos_id), output.routing


def say(
  model: compose.Model,
  params: Any,
  spoken: Spoken,
  sampling: Sampling,
  do: compose.Intervention,
  eos_id: Any,
  n: Any,
) -> Spoken:
  until = spoken.n + n

  def step(spoken: Spoken) -> Spoken:
    output = model.apply(params, spoken.next, None, do, cache=spoken.cache)
    assert output.cache is not None
    read = spoken._replace(cache=output.cache)
    return _spoken(read, output.logits_BTV[:, 0], sampling, eos_id)

  return jax.lax.while_loop(lambda s: (s.n < until) & ~s.done_B.all(), step, spoken)


def _spoken(spoken: Spoken, logits_BV: Array, sampling: Sampling, eos_id: Any) -> Spoken:
  """One token more; rows that are done say nothing, and what they read does not count."""
  key_B = jax.vmap(jax.random.fold_in, (0, None))(spoken.key_B, spoken.n)
  token_B = choose(logits_BV, key_B, sampling)
  speaks_B = ~spoken.done_B
  left_B = spoken.left_B - speaks_B
  column = spoken.next
  return spoken._replace(
    said_BM=jax.lax.dynamic_update_slice_in_dim(spoken.said_BM, token_B[:, None], spoken.n, axis=1),
    n_B=spoken.n_B + speaks_B,
    left_B=left_B,
    done_B=spoken.done_B | (token_B == eos_id) | (left_B <= 0),
    n=spoken.n + 1,
    next=column._replace(tokens_BT=token_B[:, None], position_BT=column.position_BT + 1),
  )
