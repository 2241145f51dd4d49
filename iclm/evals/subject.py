"""A trained model that can be asked: how it scores, and what its streams say."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from iclm import compose, generate, processes, sharding
from iclm.config import Config, InputError
from iclm.data.pipeline import Batch
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer
from iclm.evals import accuracy, answering, likelihood


class Messages(NamedTuple):
  """Messages where the answers of N examples are predicted, the end token included.

  Attributes:
    z_SNPZ: streams as in `compose.streams`; 0 behind the end of an answer.
    mask_NP: the positions of each answer.
    index_N: the expert that served the example.
  """

  z_SNPZ: Float[np.ndarray, "S N P Z"]
  mask_NP: Bool[np.ndarray, "N P"]
  index_N: Int[np.ndarray, "N"]


class Subject:
  """One model under examination; compiles once per kind of intervention."""

  def __init__(
    self,
    config: Config,
    model: compose.Model,
    params: Any,
    tokenizer: Tokenizer,
    mesh: Mesh,
  ):
    self.config, self.tokenizer, self._mesh, self._params = config, tokenizer, mesh, params
    self._scorer = accuracy.make_scorer(config, model)
    self._plain_scorer = accuracy.make_scorer(config, model, alone=False)
    self._decoding = generate.make_decoding(model)
    self._speaker = jax.jit(functools.partial(_speak, model))
    self._logits = jax.jit(lambda params, batch: model.apply(params, batch).logits_BTV)
    self._reader = jax.jit(lambda params, batch: model.apply(params, batch).prompt_BP)

  def score(
    self,
    examples: Sequence[Example],
    do: compose.Intervention | accuracy.PerBatch = compose.NOTHING,
    key: Array | None = None,
  ) -> accuracy.Scores:
    """See `accuracy.score`."""
    args = self._params, examples, self.tokenizer, self.config, self._mesh
    return accuracy.score(self._scorer, *args, do=do, key=key)

  def answer(self, examples: Sequence[Example], most: int) -> list[list[int]]:
    """See `answering.answer`."""
    args = self._params, examples, self.tokenizer, self.config, self._mesh
    return answering.answer(self._decoding, *args, most)

  def likelihoods(
    self, pieces: Sequence[likelihood.Piece]
  ) -> Iterator[tuple[int, likelihood.Likelihood]]:
    """See `likelihood.score`."""
    args = self._params, pieces, self.tokenizer, self.config, self._mesh
    return likelihood.score(self._plain_scorer, *args)

  def label(self, example: Example) -> int:
    """The first token of the right answer: the class within which messages are compared."""
    return self.tokenizer.encode(example.answer, behind=True)[0]

  def logits(self, examples: Sequence[Example]) -> Iterator[Float[np.ndarray, "M V"]]:
    """Yields, batch by batch, the logits of every position that predicts an answer."""
    for batch, owner_BT, _ in accuracy.batches_of(examples, self.tokenizer, self.config):
      found = self._logits(self._params, sharding.put_whole(batch, self._mesh))
      yield processes.fetch(found)[owner_BT >= 0]

  def prompts(self, examples: Sequence[Example]) -> Float[np.ndarray, "N P"]:
    """What the router reads of each example, beside which it lays its prototypes.

    Raises:
      InputError: no router reads a whole prompt: there is none, or it routes token by token.
    """
    if not compose.streams(self.config) or self.config.router.level != "input":
      raise InputError("a model without experts, or routed by token, embeds no prompt as a whole")
    alone = [dataclasses.replace(example, choices=()) for example in examples]
    found_NP = np.zeros((len(alone), self.config.router.width), np.float32)
    for batch, owner_BT, _ in accuracy.batches_of(alone, self.tokenizer, self.config):
      read = self._reader(self._params, sharding.put_whole(batch, self._mesh))
      prompt_BP = processes.fetch(read)
      row_M, column_M = np.nonzero(owner_BT >= 0)
      found_NP[owner_BT[row_M, column_M]] = prompt_BP[row_M]
    return found_NP

  def messages(
    self,
    examples: Sequence[Example],
    do: compose.Intervention | accuracy.PerBatch = compose.NOTHING,
    key: Array | None = None,
  ) -> Messages:
    """What the streams say while the right answers are predicted.

    Args:
      do: as of `accuracy.score`.
      key: None takes the means of the messages; else they are drawn. Routes are never drawn.

    Raises:
      InputError: the model has no messages, or there are no examples.
    """
    if not compose.streams(self.config) or self.config.bottleneck.kind == "none":
      raise InputError("a model without experts or bottleneck has no messages to look at")
    if not examples:
      raise InputError("there is no example to take messages from")
    plain = [dataclasses.replace(example, choices=()) for example in examples]
    owners, places, routes, said = [], [], [], []
    batches = accuracy.batches_of(plain, self.tokenizer, self.config)
    for i, (batch, owner_BT, _) in enumerate(batches):
      noise = None if key is None else jax.random.fold_in(key, i)
      done = do(owner_BT, accuracy.places(owner_BT)) if callable(do) else do
      args = sharding.put_whole(batch, self._mesh), noise, done
      z_SBTZ, index_B = processes.fetch(self._speaker(self._params, *args))
      mask_BT = owner_BT >= 0
      owners.append(owner_BT[mask_BT])
      places.append(accuracy.places(owner_BT)[mask_BT])
      routes.append(np.broadcast_to(index_B[:, None], mask_BT.shape)[mask_BT])
      said.append(z_SBTZ[:, mask_BT])
    owner_M, place_M, route_M = map(np.concatenate, (owners, places, routes))
    z_SMZ = np.concatenate(said, axis=1)
    mask_NP = np.zeros((len(examples), place_M.max() + 1), bool)
    mask_NP[owner_M, place_M] = True
    z_SNPZ = np.zeros((len(z_SMZ), *mask_NP.shape, z_SMZ.shape[-1]), np.float32)
    z_SNPZ[:, owner_M, place_M] = z_SMZ
    index_N = np.zeros(len(examples), int)
    index_N[owner_M] = route_M
    return Messages(z_SNPZ, mask_NP, index_N)


def speaking(z_SNPZ: Float[np.ndarray, "S N P Z"], streams: Sequence[bool]) -> accuracy.PerBatch:
  """The intervention under which example n speaks with z_SNPZ[:, n] on some of its streams, where
  its answer is predicted.

  Args:
    z_SNPZ: a message for each place of an answer; the last one serves places beyond P.
    streams: for each stream, whether it is patched.
  """

  def do(example_BT, place_BT):
    place_BT = np.clip(place_BT, 0, z_SNPZ.shape[2] - 1)
    message_SBTZ = z_SNPZ[:, np.maximum(example_BT, 0), place_BT]
    # Elsewhere a stream keeps its own: in the topology `around` the core hears of the prompt too.
    patch_SBT = np.array(streams)[:, None, None] & (example_BT >= 0)
    return compose.Intervention(
      message_SBTZ=jnp.asarray(message_SBTZ), patch_SB=jnp.asarray(patch_SBT)
    )

  return do


def served_by(expert: int) -> accuracy.PerBatch:
  """The intervention under which one expert serves every input, alone.

  By route and not by swap, which is a permutation: a router that mixes experts would mix on.
  """
  return lambda example_BT, _: compose.Intervention(route_B=jnp.full(len(example_BT), expert))


def _speak(model: compose.Model, params: Any, batch: Batch, key, do: compose.Intervention):
  output = model.apply(params, batch, compose.Draws(message=key), do)
  assert output.routing is not None
  return output.messages_SBTZ, output.routing.index_B
