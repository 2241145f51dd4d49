"""Prompts in, answers out, with the expert that served each and how sure the router was."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from iclm import compose, sharding
from iclm.config import Config, InputError, require
from iclm.data.tokenizer import Tokenizer
from iclm.generate import decoding, prompts
from iclm.generate.sampling import Sampling
from iclm.generate.speech import Speech

STRIDE = 16  # Tokens between two looks at the text, where nobody watches it.


@dataclasses.dataclass(frozen=True)
class Options:
  """How to answer; `check` says what is bad.

  Attributes:
    max_tokens: of an answer, the end token included; the context may end it before.
    temperature: 0 is greedy, and then there is nothing to leave out by top_k and top_p.
    top_k: draw from so many of the likeliest tokens; 0 from all.
    top_p: and of those from the fewest that hold this share, in (0, 1].
    seed: of the draws. A prompt's draws depend on it, on the prompt, and on how many equal ones
      were asked before it in one call.
    stop: strings that end an answer, and are left out of it.
    route: the expert to run whatever the router says; None leaves it to the router.
    disabled: experts whose inputs re-route.
  """

  max_tokens: int
  temperature: float
  top_k: int
  top_p: float
  seed: int
  stop: tuple[str, ...]
  route: int | None
  disabled: tuple[int, ...]


class Answer(NamedTuple):
  """One answer. `finish`: "stop" a stop string was met, "end" the model ended it, "length" it was
  cut. `confidence` is what the router believes of the expert that ran, in [0, 1]; both are None
  for a plain base. `n_cut` is how many of its first tokens a prompt lost that was too long."""

  prompt: str
  text: str
  tokens: list[int]  # The end token, and those of the stop string, included.
  finish: Literal["stop", "end", "length"]
  expert: int | None
  confidence: float | None
  n_cut: int


class Piece(NamedTuple):
  """What is new of the answer to prompt `index`; `answer` is whole with its last piece."""

  index: int
  text: str
  expert: int | None
  confidence: float | None
  answer: Answer | None


def check(options: Options, config: Config) -> None:
  """Raises InputError where options contradict each other or the model."""
  o, n = options, config.experts.count
  require(o.max_tokens >= 1, f"max_tokens = {o.max_tokens} must be at least 1")
  require(0 <= o.temperature < float("inf"), f"temperature = {o.temperature} must be 0 or more")
  require(0 <= o.top_k < 2**31, f"top_k = {o.top_k} must lie in [1, 2**31), or be 0 for all tokens")
  require(0 < o.top_p <= 1, f"top_p = {o.top_p} must lie in (0, 1]")
  require(0 <= o.seed < 2**31, f"seed = {o.seed} must lie in [0, 2**31)")
  require(
    o.temperature > 0 or (o.top_k == 0 and o.top_p == 1),
    f"temperature = 0 is greedy, which top_k = {o.top_k}, top_p = {o.top_p} contradict; set a "
    "temperature above 0",
  )
  require(all(o.stop), "a stop string is empty; every answer would stop before it begins")
  named = [*o.disabled, *([] if o.route is None else [o.route])]
  if not compose.streams(config):
    require(not named, f"a plain base has no expert {named and named[0]} to route to or disable")
    return
  for e in named:
    require(0 <= e < n, f"there is no expert {e}; experts are 0..{n - 1}")
  require(o.route not in o.disabled, f"expert {o.route} is to run, and disabled; choose one")
  require(len(set(o.disabled)) < n, f"all {n} experts are disabled; leave at least one")
  require(
    config.router.level == "input",
    "config.router.level = 'token' has no route of a prompt to keep; generation needs 'input'",
  )
  require(
    config.router.kind != "oracle" or o.route is not None,
    "config.router.kind = 'oracle' routes by domains, and a prompt names none; force a route",
  )


def rows_of(mesh: Mesh, n: int) -> int:
  """The smallest batch of at least `n` rows that the devices of a mesh share evenly."""
  n_shares = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
  return -(-n // n_shares) * n_shares


class Generator:
  """Answers prompts with one model; keep it, since it holds what was compiled.

  Prompts are padded to powers of two, answers have room for powers of two, both up to the context,
  and batches have one size: at most log2(context)^2 programs of each kind are compiled.
  """

  def __init__(
    self,
    config: Config,
    model: compose.Model,
    params: Any,
    tokenizer: Tokenizer,
    mesh: Mesh,
    batch_size: int,
  ):
    if batch_size < 1 or batch_size != rows_of(mesh, batch_size):
      raise InputError(
        f"batch_size = {batch_size} must be a positive multiple of the {rows_of(mesh, 1)} devices "
        "that share the rows of this mesh"
      )
    self._config, self._params, self._tokenizer, self._mesh = config, params, tokenizer, mesh
    self._size = batch_size
    self.decoding = decoding.make(model)

  def __call__(self, texts: Sequence[str], options: Options) -> list[Answer]:
    """The answers, in order.

    Raises:
      InputError: see `check` and `prompts.encode`.
    """
    pieces = self.stream(texts, options, STRIDE)
    found = {piece.index: piece.answer for piece in pieces if piece.answer is not None}
    return [found[i] for i in range(len(texts))]

  def stream(self, texts: Sequence[str], options: Options, stride: int) -> Iterator[Piece]:
    """Yields what is new after every `stride` tokens, from the prompts of a batch in turn.

    Raises:
      InputError: see `check` and `prompts.encode`; before anything is yielded.
    """
    check(options, self._config)
    asked = prompts.encode(texts, self._tokenizer, self._config, options.max_tokens)
    for batch in prompts.batches(asked, self._size, self._config.evaluation_len):
      yield from self._stream_batch(texts, batch, options, stride)

  def _stream_batch(
    self, texts: Sequence[str], batch: Sequence[prompts.Prompt], options: Options, stride: int
  ) -> Iterator[Piece]:
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    given = sampling, self._intervention(options), np.array(self._tokenizer.end_ids)
    decoded, routes = self._read(batch, options, given)
    speeches = {b: Speech(self._tokenizer, options.stop) for b in range(len(batch))}
    heard = 0
    while True:
      said_BM, n_B, done_B = jax.device_get((decoded.said_BM, decoded.n_B, decoded.done_B))
      for b, speech in list(speeches.items()):
        text = speech.hear(said_BM[b, heard : n_B[b]].tolist(), bool(done_B[b]))
        answer = None
        if speech.stopped or done_B[b]:
          prompt, n_cut = texts[batch[b].index], batch[b].n_cut
          answer = self._answer(prompt, n_cut, speeches.pop(b), *routes[b])
        yield Piece(batch[b].index, text, *routes[b], answer)
      if not speeches:
        return
      heard = int(decoded.n)
      shut_B = np.array([b not in speeches for b in range(self._size)])
      decoded = decoded._replace(done_B=decoded.done_B | shut_B)
      decoded = self.decoding.decode(self._params, decoded, *given, stride)

  def _read(
    self, batch: Sequence[prompts.Prompt], options: Options, given: tuple[Any, ...]
  ) -> tuple[decoding.Decoded, list[tuple[int | None, float | None]]]:
    """The first tokens; and each prompt's expert, with the router's confidence in it."""
    context, pad_id = self._config.evaluation_len, self._tokenizer.pad_id
    n_tokens = prompts.bucket(max(map(len, batch)), context)
    rows = sharding.put_whole(prompts.lay_out(batch, self._size, n_tokens, pad_id), self._mesh)
    left_B = np.zeros(self._size, np.int32)
    left_B[: len(batch)] = [min(options.max_tokens, context - len(p) + 1) for p in batch]
    keys_B = self._keys(batch, options.seed)
    room = prompts.bucket(min(options.max_tokens, context), context)
    decoded, routed = self.decoding.prefill(self._params, rows, left_B, keys_B, *given, room=room)
    if routed is None:
      return decoded, [(None, None)] * len(batch)
    routes = zip(routed.index_B.tolist(), routed.confidence_B.tolist(), strict=True)
    return decoded, list(routes)

  def _answer(self, prompt: str, n_cut: int, speech: Speech, expert, confidence) -> Answer:
    ended = speech.tokens[-1] in self._tokenizer.end_ids
    finish = "stop" if speech.stopped else "end" if ended else "length"
    return Answer(prompt, speech.text, speech.tokens, finish, expert, confidence, n_cut)

  def _intervention(self, options: Options) -> compose.Intervention:
    """The same fields whatever is asked: another route is no other program."""
    if not compose.streams(self._config):
      return compose.NOTHING
    route_B = np.full(self._size, -1 if options.route is None else options.route, np.int32)
    enabled_E = ~np.isin(np.arange(self._config.experts.count), options.disabled)
    return compose.Intervention(route_B=jnp.asarray(route_B), enabled_E=jnp.asarray(enabled_E))

  def _keys(self, batch: Sequence[prompts.Prompt], seed: int) -> Array:
    name_B2 = np.zeros((self._size, 2), np.uint32)
    name_B2[: len(batch)] = [(p.identity, p.repeat) for p in batch]
    return _keys(jax.random.key(seed), name_B2)


@jax.jit
def _keys(key: Array, name_B2: Array) -> Array:
  one = lambda name: jax.random.fold_in(jax.random.fold_in(key, name[0]), name[1])
  return jax.vmap(one)(name_B2)
