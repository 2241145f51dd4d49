"""ACRE out of distribution: objects in training and in evaluation are disjoint.

  python -m experiments.sweep --sweep=configs/sweeps/acre_comp.py --workdir=runs/acre_comp --jobs=2

What has been run of it is in `experiments/results/README.md`.
"""

from ml_collections import config_dict

from configs.sweeps import mechanisms

NAMES = ("dense", "dense_two_adapters", "iclm", "no_bottleneck")


def sweep_of(split: str) -> config_dict.ConfigDict:
  """Returns the sweep of one of ACRE's splits; see `experiments.sweep`."""
  return config_dict.create(
    config=f"configs/acre.py:{split}",
    base="",
    every=(("evaluation.every", 0), ("evaluation.best", ""), ("checkpoint.best", 0)),
    systems={name: tuple(mechanisms.SYSTEMS[name].items()) for name in NAMES},
    seeds=(0, 1, 2),
    baselines=tuple(name for name in NAMES if name in mechanisms.BASELINES),
    out_of_distribution=(f"symbolic_{split}_test", f"text_{split}_test"),
    chosen_on=f"symbolic_{split}_train",
    tuning={},
  )


def get_sweep() -> config_dict.ConfigDict:
  return sweep_of("comp")
