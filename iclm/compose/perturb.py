"""Random interventions for training: what a model must do without, or in spite of, now and then."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from iclm.compose import serving
from iclm.compose.interface import NOTHING, Intervention
from iclm.config import Config


def perturb(config: Config, n_inputs: int, key: Array, step: Int[Array, ""]) -> Intervention:
  """Draws for each input whether a stream is silenced, or patched, and another expert serves it.

  A silenced stream's message is zero; a patched one's is that of an input drawn evenly. No input
  loses both streams.

  Args:
    n_inputs: rows of the batch.
    key: of this step.
    step: how many were taken; the probabilities rise over the first `config.perturb.ramp` ones.
  """
  p = config.perturb
  if p.drop == p.patch == p.swap == 0:
    return NOTHING
  k_message, k_stream, k_speaker, k_swap, k_expert = jax.random.split(key, 5)
  now = jnp.minimum(1.0, (step + 1) / max(p.ramp, 1))
  u_B = jax.random.uniform(k_message, (n_inputs,))
  n_streams = len(serving.streams(config))
  chosen_B = jax.random.randint(k_stream, (n_inputs,), 0, n_streams)
  chosen_SB = jnp.arange(n_streams)[:, None] == chosen_B[None]
  do = NOTHING
  if p.drop + p.patch > 0:
    own_B = jnp.arange(n_inputs)
    other_B = jax.random.randint(k_speaker, (n_inputs,), 0, n_inputs)
    speaker_B = jnp.where(u_B < now * p.drop, -1, other_B)
    touched_B = u_B < now * (p.drop + p.patch)
    do = do._replace(
      speaker_SB=jnp.where(chosen_SB & touched_B[None], speaker_B[None], own_B[None])
    )
  if p.swap > 0:
    swapped_B = jax.random.uniform(k_swap, (n_inputs,)) < now * p.swap
    expert_B = jax.random.randint(k_expert, (n_inputs,), 0, config.experts.count)
    do = do._replace(route_B=jnp.where(swapped_B, expert_B, -1))
  return do
