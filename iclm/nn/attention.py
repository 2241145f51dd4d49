"""Who sees whom, and attention to keys that lie in a cache and beside it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from iclm.config import InputError, Model


def check_kernel(model: Model, platform: str) -> None:
  """What is trained, measured or compiled has to get the kernel that its config names.

  Args:
    platform: as `jax.default_backend` calls it.

  Raises:
    InputError: cuDNN's, and there is no GPU.
  """
  if model.kernel == "cudnn" and platform != "gpu":
    raise InputError(
      f"config.model.kernel = 'cudnn' needs a GPU, and this is a {platform}; 'xla' runs anywhere"
    )


def implementation(model: Model) -> str:
  """What computes attention here: a run of a GPU is read where there is none, too."""
  return model.kernel if jax.default_backend() == "gpu" else "xla"


def own_mask(
  segment_BT: Int[Array, "B T"], prefix_BT: Bool[Array, "B T"] | None
) -> Bool[Array, "B T T"]:
  """Which key (last axis) a query sees: the shared context, and its own segment so far.

  Args:
    segment_BT: 0 padding, 1 the context that all of a row's questions share, 2.. the questions.
    prefix_BT: positions that see each other both ways (prefix attention); None is causal.

  Returns:
    True where the query may look. A position always sees itself, so that no softmax is empty.
  """
  t = segment_BT.shape[-1]
  q, k = segment_BT[:, :, None], segment_BT[:, None, :]
  causal = jnp.tril(jnp.ones((1, t, t), bool))
  if prefix_BT is not None:
    causal = causal | (prefix_BT[:, :, None] & prefix_BT[:, None, :])
  return (causal & (k > 0) & ((k == q) | (k == 1))) | jnp.eye(t, dtype=bool)[None]


def within(
  mask_BTC: Bool[Array, "B T C"],
  position_BT: Int[Array, "B T"],
  position_BC: Int[Array, "B C"],
  window: int,
) -> Bool[Array, "B T C"]:
  """The mask without keys that lie `window` or more positions from their query; 0: as it is.

  Source: Jiang et al. 2023 (arXiv 2310.06825): a query sees itself and the window - 1 before it.
  """
  if window == 0:
    return mask_BTC
  distance_BTC = jnp.abs(position_BT[:, :, None] - position_BC[:, None, :])
  return mask_BTC & (distance_BTC < window)


def cached_mask(segment_BT: Int[Array, "B T"], held_BC: Int[Array, "B C"]) -> Bool[Array, "B T C"]:
  """Which keys of a cache its new tokens see: all of the context, and of their own segment.

  Args:
    segment_BT: of the new tokens, as in `own_mask`.
    held_BC: of the cache's slots; 0 is a free one.
  """
  q, k = segment_BT[:, :, None], held_BC[:, None, :]
  return (k > 0) & ((k == q) | (k == 1))


def attend_held(
  layer: Int[Array, ""],
  q_BTHK: Float[Array, "B T H K"],
  past: tuple[Any, ...],
  own: Any,
  mask_BTC: Bool[Array, "B T C"],
) -> Float[Array, "B T H K"]:
  """`attend` to what the cache holds of one layer of a loop, and to the tokens' own.

  A branch per layer reads that layer's arrays where they lie. Sliced from a stack, the loop copies
  them first: 13 ms of attention per token against 7, for 24 rows of 256 slots in 4 layers on a CPU.

  Args:
    layer: number of it.
    past: of every layer, k_BHCK and v_BHCK.
    own: k_BHTK and v_BHTK.
    mask_BTC: of the slots of the cache, then of the T tokens.
  """
  branch = lambda held: lambda q, own, mask: attend(q, (held, own), mask)
  return jax.lax.switch(layer, [branch(held) for held in past], q_BTHK, own, mask_BTC)


def attend(
  q_BTHK: Float[Array, "B T H K"], parts: Any, mask_BTC: Bool[Array, "B T C"]
) -> Float[Array, "B T H K"]:
  """Attention to keys that lie in several places, none of which is copied for it.

  Args:
    parts: pairs of k_BHCK and v_BHCK; heads of queries divide into theirs.
    mask_BTC: of the keys of all parts, in their order.
  """
  b, t, n_heads, size = q_BTHK.shape
  n_kv = parts[0][0].shape[1]
  q_BTHGK = q_BTHK.reshape(b, t, n_kv, n_heads // n_kv, size)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  scores = [dot("bthgk,bhck->bhgtc", q_BTHGK, k_BHCK) for k_BHCK, _ in parts]
  scores_BHGTC = jnp.concatenate(scores, axis=-1) * size**-0.5
  scores_BHGTC = jnp.where(mask_BTC[:, None, None], scores_BHGTC, -jnp.inf)
  share_BHGTC = jax.nn.softmax(scores_BHGTC).astype(q_BTHK.dtype)
  ends = np.cumsum([k_BHCK.shape[2] for k_BHCK, _ in parts])[:-1]
  shares = jnp.split(share_BHGTC, ends, axis=-1)
  # In the order of the product: asked for another, XLA has no kernel for bfloat16 on a CPU.
  mixed = [
    dot("bhgtc,bhck->bhgtk", s, v_BHCK) for s, (_, v_BHCK) in zip(shares, parts, strict=True)
  ]
  mixed_BHGTK = jnp.add(*mixed).astype(q_BTHK.dtype)
  return jnp.moveaxis(mixed_BHGTK, 3, 1).reshape(q_BTHK.shape)
