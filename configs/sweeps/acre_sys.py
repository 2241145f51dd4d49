"""ACRE out of distribution: training shows one view with lit evidence, evaluation shows two.

  python -m experiments.sweep --sweep=configs/sweeps/acre_sys.py --workdir=runs/acre_sys --jobs=2

The systems are those of `configs/sweeps/acre_comp.py`.
"""

from ml_collections import config_dict

from configs.sweeps import acre_comp


def get_sweep() -> config_dict.ConfigDict:
  out = ("symbolic_sys_test", "text_sys_test")
  return acre_comp.few_systems("configs/acre.py:sys", 13_000, out, "symbolic_sys_train")
