"""The learning rate over the steps of a run."""

from typing import Literal

import optax


def schedule(
  kind: Literal["constant", "cosine", "wsd"],
  *,
  lr: float,
  warmup: int,
  steps: int,
  decay: float,
  end: float,
) -> optax.Schedule:
  """Learning rate over steps 0..steps-1: linear warm-up to `lr`, then the shape of `kind`.

  Step t < warmup takes lr (t + 1) / warmup: the first step already counts. Skipped ones do not.

  Args:
    kind: constant; cosine (to the end); wsd (constant, then linear over the last `decay`).
    warmup: steps, in [0, steps).
    decay: share of the steps, at least one of them and none of the warm-up; wsd alone reads it.
    end: the rate at `steps`, over the peak; constant does not read it.

  Source: wsd is Hägele et al. 2024 (arXiv 2405.18392).
  """
  if kind == "constant":
    shape = optax.constant_schedule(lr)
  elif kind == "cosine":
    shape = optax.cosine_decay_schedule(lr, steps - warmup, alpha=end)
  else:
    n_decay = round(decay * steps)
    shape = optax.linear_schedule(lr, end * lr, n_decay, steps - warmup - n_decay)
  if warmup <= 1:  # Step 0 is at the peak already.
    return optax.join_schedules([optax.constant_schedule(lr), shape], [warmup])
  rise = optax.linear_schedule(lr / warmup, lr, warmup - 1)
  return optax.join_schedules([rise, shape], [warmup])
