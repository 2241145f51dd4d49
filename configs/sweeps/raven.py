"""RAVEN out of distribution: trained on one configuration, evaluated on two others.

  python -m experiments.sweep --sweep=configs/sweeps/raven.py --workdir=runs/raven_sweep --jobs=2

The systems are those of `configs/sweeps/acre_comp.py`. Dense and iclm have been run with five
seeds, the others with one: see `experiments/results/README.md`.
"""

from ml_collections import config_dict

from configs.sweeps import acre_comp


def get_sweep() -> config_dict.ConfigDict:
  out = ("in_center_out_center", "distribute_four")
  return acre_comp.few_systems("configs/raven.py", 3_000, out, "center_single")
