"""Experts on the frozen base of `configs/pretrain_base.py`, one for each of its seven domains.

  python -m experiments.train --config=configs/on_base.py --workdir=runs/on_base

Result (seed 0, 19 minutes): the routes are the domains, and the experts, trained on what their base
was trained on, add 0.006 on the mechanisms and nothing on the others.

The base is a folder of transformers, runs/base_hf, or --config.checkpoint.init_from=FOLDER.
"""

from configs import base, pretrain_base


def get_config(size: str = "small"):
  c = base.get_config()
  c.model = pretrain_base.get_config(size).model
  c.steps = 1_000
  c.batch_size = 32
  c.checkpoint.update(init_from="runs/base_hf", every=500, keep=2)
  c.trains.base = False
  c.experts.update(count=7, rank=8)
  c.router.update(reads="embed", detach=True, scale=32.0)
  c.optimizer.update(lr=2e-3, router_lr=0.1)
  pretrain_base.data(c)
  c.data.train.acre.ramp = 0  # The base has been through the simple problems.
  return c
