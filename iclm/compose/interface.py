"""What goes into a composed model besides its inputs, and what comes out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from iclm.compose.cache import Cache
from iclm.routing import Routing

_POSITION = 3  # Folded into the key, so that the other three draw what they drew without it.


class Intervention(NamedTuple):
  """What is done to the model; a field that is None is left alone and costs nothing.

  route_B: expert per input, -1 leaves it alone. enabled_E: False masks the router's logits, so that
  the expert's inputs re-route. use_invariant: False drops the invariant stream. swap_E: an input
  routed to e is served by swap_E[e]. message_SBTZ where patch_SB: stream s of input b speaks with
  this message instead of its own (interchange; the training mean of an expert is its knock-out), in
  the whole row or, where a patch has an axis for positions, there alone.
  speaker_SB: stream s of input b speaks with the message of this input of the batch, -1 is silent.
  """

  route_B: Int[Array, "B"] | None = None
  enabled_E: Bool[Array, "E"] | None = None
  use_invariant: Bool[Array, ""] | None = None
  swap_E: Int[Array, "E"] | None = None
  message_SBTZ: Float[Array, "S B T Z"] | None = None
  patch_SB: Bool[Array, "S B"] | Bool[Array, "S B T"] | None = None
  speaker_SB: Int[Array, "S B"] | None = None


NOTHING = Intervention()


class Draws(NamedTuple):
  """A key for each thing that is drawn; what has none takes its mean, a route its argmax.

  Training draws all of them. The channel that a rate is a claim about draws its messages alone.
  """

  route: Array | None = None
  dropout: Array | None = None
  message: Array | None = None
  position: Array | None = None

  @classmethod
  def of(cls, key: "Array | Draws | None") -> "Draws":
    """All of them from one key, or none of them."""
    if key is None or isinstance(key, Draws):
      return key or cls()
    route, dropout, message = jax.random.split(key, 3)
    return cls(route, dropout, message, jax.random.fold_in(key, _POSITION))


class Output(NamedTuple):
  """logits_BTV in float32. The rest is None where the model has no such part.

  Where `apply` is given positions, T counts them, and not the tokens of a row.

  messages_SBTZ and rate_SBT (nats per position) are in the order of `streams`; alone_SBTV
  is what each stream says alone, on request.
  """

  logits_BTV: Float[Array, "B T V"]
  routing: Routing | None = None
  messages_SBTZ: Float[Array, "S B T Z"] | None = None
  rate_SBT: Float[Array, "S B T"] | None = None
  alone_SBTV: Float[Array, "S B T V"] | None = None
  read_BD: Float[Array, "B D"] | None = None  # States that the router read, their mean per prompt,
  prompt_BP: Float[Array, "B P"] | None = None  # and as it sees them, beside its prototypes.
  cache: Cache | None = None  # The one that was given, with these tokens in it.


class Model(NamedTuple):
  """Pure functions over one parameter tree.

  init(key) -> boxed params: {"base", "invariant", "domain", "router", "combine"}, the parts that
    the config has.
  apply(params, batch, key, do, tau=, alone=, cache=, at_BC=, adapters=) -> Output. `key=None` is
    deterministic: messages take their mean, routes their argmax, nothing is dropped. Of `Draws` in
    its place, what has a key is drawn. With a cache,
    the batch goes on behind the tokens in it, and what was routed to stays: see `compose.cache`.
    `at_BC` are the positions of each row that are asked for; heads are computed for no others, nor
    is the last layer, but for keys and values (and where a router reads the base's last states).
  adapters(params, routing) -> what `apply` goes on with behind a cache of that route, and else
    picks by itself: a loop over tokens would pick and copy it for each. None where nothing is kept.
  """

  init: Callable[[Array], Any]
  apply: Callable[..., Output]
  adapters: Callable[[Any, Routing | None], Any]
