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


class Decoded(NamedTuple):
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

  prefill(params, prompts, left_B, key_B, sampling, do, end_ids, room=M) -> (Decoded, Routing), or
    None in its place where there are no experts;
    reads and routes the prompts, and says a first token. Rows of `prompts` are one prompt each,
    from the left, with segment 0 behind it; `left_B` is the most tokens that a row may say, 0 of
    rows of padding only; M is the most that any row may.
  decode(params, decoded, sampling, do, end_ids, n) -> Decoded, with at most n tokens more; the old
    one is used up.

  `do` acts on routes in `prefill`, and on streams in both; give both the same.
  """

  prefill: Callable[..., tuple[Decoded, Routing | None]]
  decode: Callable[..., Decoded]


def make(model: compose.Model) -> Decoding:
  """Make it once and keep it."""
  prefills = jax.jit(functools.partial(prefill, model), static_argnames="room")
  return Decoding(prefills, jax.jit(functools.partial(decode, model), donate_argnums=1))


def prefill(
  model: compose.Model,
  params: Any,
  prompts: Batch,
  left_B: Int[Array, "B"],
  key_B: Array,
  sampling: Sampling,
  do: compose.Intervention,
  end_ids: Any,
  *,
  room: int,
) -> tuple[Decoded, Routing | None]:
  """See `Decoding`."""
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
  decoded = Decoded(
    said_BM=jnp.zeros((n_rows, room), jnp.int32),
    n_B=zero_B,
    left_B=left_B.astype(jnp.int32),
    done_B=left_B <= 0,
    n=jnp.zeros((), jnp.int32),
    next=column,
    key_B=key_B,
    cache=output.cache,
  )
  return _said(decoded, output.logits_BTV[:, 0], sampling, end_ids), output.routing


def decode(
  model: compose.Model,
  params: Any,
  decoded: Decoded,
  sampling: Sampling,
  do: compose.Intervention,
  end_ids: Any,
  n: Any,
) -> Decoded:
  """See `Decoding`."""
  until = decoded.n + n
  adapters = model.adapters(params, decoded.cache.routed)

  def step(decoded: Decoded) -> Decoded:
    output = model.apply(params, decoded.next, None, do, cache=decoded.cache, adapters=adapters)
    assert output.cache is not None
    read = decoded._replace(cache=output.cache)
    return _said(read, output.logits_BTV[:, 0], sampling, end_ids)

  return jax.lax.while_loop(lambda s: (s.n < until) & ~s.done_B.all(), step, decoded)


def _said(decoded: Decoded, logits_BV: Array, sampling: Sampling, end_ids: Any) -> Decoded:
  """One token more; rows that are done say nothing, and what they read does not count."""
  key_B = jax.vmap(jax.random.fold_in, (0, None))(decoded.key_B, decoded.n)
  token_B = choose(logits_BV, key_B, sampling)
  speaks_B = ~decoded.done_B
  left_B = decoded.left_B - speaks_B
  column, token_B1 = decoded.next, token_B[:, None]
  said_BM = jax.lax.dynamic_update_slice_in_dim(decoded.said_BM, token_B1, decoded.n, axis=1)
  return decoded._replace(
    said_BM=said_BM,
    n_B=decoded.n_B + speaks_B,
    left_B=left_B,
    done_B=decoded.done_B | jnp.isin(token_B, end_ids) | (left_B <= 0),
    n=decoded.n + 1,
    next=column._replace(tokens_BT=token_B1, position_BT=column.position_BT + 1),
  )
