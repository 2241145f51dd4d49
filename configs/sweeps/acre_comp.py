"""ACRE out of distribution: objects in training and in evaluation are disjoint.

  python -m experiments.sweep --sweep=configs/sweeps/acre_comp.py --workdir=runs/acre_comp --jobs=2

Each run takes about an hour of one core, or three minutes of a GPU that runs eight at a time.
"""

from ml_collections import config_dict

TERMS = ("beta", "dependence", "balance", "zloss", "codebook", "commitment", "aux")
NO_TERMS = {f"loss.{name}": 0.0 for name in TERMS}
SYSTEMS = {
  "dense": {"experts.kind": "none"} | NO_TERMS,
  "iclm": {},
  # Adapters that are always on: one expert, which a uniform router mixes in with weight 1.
  "dense_two_adapters": {
    "experts.count": 1, "router.kind": "uniform", "bottleneck.kind": "none", **NO_TERMS
  },
  "no_bottleneck": {"bottleneck.kind": "none", "loss.beta": 0.0, "loss.dependence": 0.0},
}  # fmt: skip


def sweep_of(split: str) -> config_dict.ConfigDict:
  """Returns the sweep of one of ACRE's splits; see `experiments.sweep`."""
  return config_dict.create(
    config=f"configs/acre.py:{split}",
    base="",
    every=(("evaluation.every", 0), ("evaluation.best", ""), ("checkpoint.best", 0)),
    systems={name: tuple(changes.items()) for name, changes in SYSTEMS.items()},
    seeds=(0, 1, 2),
    baselines=tuple(name for name in SYSTEMS if name.startswith("dense")),
    out_of_distribution=(f"symbolic_{split}_test", f"text_{split}_test"),
    chosen_on=f"symbolic_{split}_train",
    tuning={},
  )


def get_sweep() -> config_dict.ConfigDict:
  return sweep_of("comp")
