"""ACRE out of distribution: training shows one view with lit evidence, evaluation shows two.

  python -m experiments.sweep --sweep=configs/sweeps/acre_sys.py --workdir=runs/acre_sys --jobs=2

The systems are those of `configs/sweeps/acre_comp.py`.
"""

from ml_collections import config_dict

from configs.sweeps import acre_comp


def get_sweep() -> config_dict.ConfigDict:
  return acre_comp.sweep_of("sys")
