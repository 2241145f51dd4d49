"""ACRE out of distribution: objects in training and in evaluation are disjoint.

  python -m experiments.sweep --sweep=configs/sweeps/acre_comp.py --workdir=runs/acre_comp --jobs=2

What has been run of it is in `experiments/results/README.md`. A run takes an hour or more of one
core; the rate is that of the config for every system.
"""

from ml_collections import config_dict

from configs.sweeps import mechanisms

NAMES = ("dense", "dense_twice_the_steps", "dense_two_adapters", "iclm", "no_bottleneck")


def few_systems(
  config: str, steps: int, out_of_distribution: tuple[str, ...], chosen_on: str
) -> config_dict.ConfigDict:
  """The model, three baselines and one ablation on a task whose runs are long; see
  `experiments.sweep`. Nothing is tuned, and nothing is evaluated before the end.

  Args:
    steps: of the config.
  """
  systems = {name: mechanisms.SYSTEMS[name] for name in NAMES}
  systems["dense_twice_the_steps"] = mechanisms.DENSE | {"steps": 2 * steps}
  return config_dict.create(
    config=config,
    base="",
    every=(("evaluation.every", 0), ("evaluation.best", ""), ("checkpoint.best", 0)),
    systems={name: tuple(changes.items()) for name, changes in systems.items()},
    seeds=(0, 1, 2, 3, 4),
    baselines=tuple(name for name in NAMES if name in mechanisms.BASELINES),
    out_of_distribution=out_of_distribution,
    chosen_on=chosen_on,
    tuning={},
  )


def get_sweep() -> config_dict.ConfigDict:
  out = ("symbolic_comp_test", "text_comp_test")
  return few_systems("configs/acre.py:comp", 13_000, out, "symbolic_comp_train")
