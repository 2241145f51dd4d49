"""The learning rate over the steps of a run."""

import optax

from iclm.config import InputError, nearest


def schedule(
  kind: str, *, lr: float, warmup: int, steps: int, decay: float, end: float
) -> optax.Schedule:
  """Learning rate over global steps 0..steps-1: linear warm-up to `lr`, then the shape of `kind`.

  Step t < warmup takes lr (t + 1) / warmup: the first step already counts.

  Args:
    kind: constant; cosine (to the end); wsd (constant, then linear over the last `decay`).
    decay: share of the steps, in (0, 1]; wsd alone reads it.
    end: the rate at `steps`, over the peak; constant does not read it.

  Raises:
    InputError: unknown kind, or no step is left after the warm-up.

  Source: wsd is Hägele et al. 2024 (arXiv 2405.18392).
  """
  if not 0 <= warmup < steps:
    raise InputError(f"optimizer.warmup = {warmup} must lie in [0, steps = {steps})")
  n_decay = round(decay * steps)
  if kind == "constant":
    shape = optax.constant_schedule(lr)
  elif kind == "cosine":
    shape = optax.cosine_decay_schedule(lr, steps - warmup, alpha=end)
  elif kind == "wsd":
    if not 1 <= n_decay <= steps - warmup:
      raise InputError(
        f"optimizer.decay = {decay} of {steps} steps must be between 1 step and the "
        f"{steps - warmup} that follow the warm-up"
      )
    shape = optax.linear_schedule(lr, end * lr, n_decay, steps - warmup - n_decay)
  else:
    raise InputError(
      f"optimizer.schedule = {kind!r}: {nearest(kind, ('constant', 'cosine', 'wsd'))}"
    )
  if warmup <= 1:  # Step 0 is at the peak already.
    return optax.join_schedules([optax.constant_schedule(lr), shape], [warmup])
  rise = optax.linear_schedule(lr / warmup, lr, warmup - 1)
  return optax.join_schedules([rise, shape], [warmup])
