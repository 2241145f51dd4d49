"""Rotary positions: how fast each pair of a head turns, and what stretches it to longer inputs.

Su et al. 2021 (arXiv 2104.09864). Pairs are (i, i + K/2): halves, as the released weights of the
Llama family expect, not neighbours.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from iclm.config import Model, RopeScaling


def angles(model: Model, position_BT: Int[Array, "B T"]) -> Float[Array, "B T K"]:
  """The angle by which each element of a head turns at a position, in radians."""
  half = model.head_size // 2
  inverse = model.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if model.rope_scaling.kind != "none":
    inverse = inverse * jnp.asarray(slowed(model))
  angle = jnp.einsum("bt,k->btk", position_BT.astype(jnp.float32), inverse)
  return jnp.concatenate([angle, angle], axis=-1)


def slowed(model: Model) -> Float[np.ndarray, "half"]:
  """What the speed of each pair is multiplied with, in (0, 1].

  linear: 1 / factor for every pair. Source: Chen et al. 2023 (arXiv 2306.15595).
  llama3: a pair that turns more than `high_freq_factor` times within `original_length` keeps its
    speed, one that turns less than `low_freq_factor` times gets 1 / factor, and between the two it
    is mixed linearly. Source: the code that Meta released with Llama 3.1.
  """
  s: RopeScaling = model.rope_scaling
  half = model.head_size // 2
  if s.kind == "linear":
    return np.full(half, 1 / s.factor, np.float32)
  radians = float(model.rope_theta) ** (-np.arange(half) / half)  # Per token.
  turns = s.original_length * radians / (2 * np.pi)
  kept = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
  kept = np.clip(kept, 0.0, 1.0)
  return (kept + (1 - kept) / s.factor).astype(np.float32)
