"""Which parameters move, and how far: AdamW per group of parameters, one by one per domain expert.

The matrices of the base's layers may go by Muon instead (`kind`).

Groups are the top-level keys of the parameter tree. Each group is its own optimizer with its own
clip norm, so that no group feels another one's gradient; the experts of "domain" (every leaf with
the expert axis first) are moreover independent of each other:

- an expert without a gradient in a step keeps parameters, moments and step count bitwise;
- it is clipped by its own norm, and its bias correction counts its own steps.

Source: Loshchilov and Hutter 2019 (arXiv 1711.05101) for AdamW; Liu et al. 2025 (arXiv 2502.16982)
for Muon, by optax. Deviation: laziness is per expert.
`optax.adamw` would move an idle expert by its momentum and its weight decay.
"""

from iclm.optim.decay import decayed
from iclm.optim.frozen import apply_updates
from iclm.optim.groups import GROUPS, LOWER, from_config, group_norms, make
from iclm.optim.lazy import expert_norms
from iclm.optim.schedules import schedule

__all__ = [
  "GROUPS",
  "LOWER",
  "apply_updates",
  "decayed",
  "expert_norms",
  "from_config",
  "group_norms",
  "make",
  "schedule",
]
