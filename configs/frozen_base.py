"""The quickstart's experts on a base that is frozen before it can do the task: each is used.

  python -m experiments.train --config=configs/frozen_base.py:base --workdir=runs/frozen/base
  python -m experiments.train --config=configs/frozen_base.py:experts --workdir=runs/frozen/experts

The experts have matrices of their own. What is expected is that each owns a surface.
"""

from configs import base, quickstart


def _base(c) -> None:
  c.steps = 300
  c.experts.kind = "none"
  c.loss.update(beta=0.0, dependence=0.0, balance=0.0, zloss=0.0)


def _experts(c) -> None:
  c.trains.base = False
  c.experts.update(kind="full", projections=("q", "k", "v", "o", "gate", "up", "down"))
  c.checkpoint.init_from = "runs/frozen/base"


def get_config(part: str = "experts"):
  """`part` is base, or experts on the base in runs/frozen/base (checkpoint.init_from)."""
  change = base.pick(part, {"base": _base, "experts": _experts})
  c = quickstart.get_config()
  c.model.trunk_layers = 2  # Experts own the upper half, as in all that was published of it.
  c.evaluation.update(every=0, best="")
  c.evaluation.sets.iid_val = base.source(tfds="mechanisms/default", split="iid_val", limit=1_000)
  c.study.plain_base = False
  c.study.shift.surface = ""
  change(c)
  return c
