"""The quickstart's experts on a base that is frozen before it can do the task: each is necessary.

  python -m experiments.train --config=configs/frozen_base.py:base --workdir=runs/frozen/base
  python -m experiments.train --config=configs/frozen_base.py:experts --workdir=runs/frozen/experts

The experts have matrices of their own. Predicted, before any run: each owns a surface.
"""

from configs import quickstart


def get_config(part: str = "experts"):
  """`part` is base, or experts on the base in runs/frozen/base (checkpoint.init_from)."""
  c = quickstart.get_config()
  c.evaluation.every = 0
  c.study.plain_base = False
  c.study.shift.surface = ""
  if part == "base":
    c.steps = 300
    c.experts.kind = "none"
    c.loss.update(beta=0.0, dependence=0.0, balance=0.0, zloss=0.0)
    return c
  c.trains.base = False
  c.experts.update(kind="full", projections=("q", "k", "v", "o", "gate", "up", "down"))
  c.checkpoint.init_from = "runs/frozen/base"
  return c
