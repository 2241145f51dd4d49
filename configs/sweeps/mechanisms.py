"""What each part of the model does for the quickstart's task: systems that differ in one thing.

  python -m experiments.sweep --sweep=configs/sweeps/mechanisms.py --workdir=runs/sweep

Ten systems times five seeds, about two minutes each on two cores. Not run in full yet.
"""

from ml_collections import config_dict


def get_sweep() -> config_dict.ConfigDict:
  """Returns the config that is varied, what each system changes in it, and the seeds."""
  no_terms = {
    f"loss.{name}": 0.0
    for name in ("beta", "dependence", "balance", "zloss", "codebook", "commitment", "aux")
  }
  no_router = {"loss.balance": 0.0, "loss.zloss": 0.0}
  systems = {
    "iclm": {},
    "dense": {"experts.kind": "none"} | no_terms,
    "no_invariant": {"experts.invariant": False, "loss.dependence": 0.0},
    "no_bottleneck": {"bottleneck.kind": "none", "loss.beta": 0.0, "loss.dependence": 0.0},
    "no_dependence": {"loss.dependence": 0.0},
    "no_straight_through": {"router.straight_through": False},
    "random_router": {"router.kind": "random"} | no_router,
    "oracle_router": {"router.kind": "oracle"} | no_router,
    "vq_router": {
      "router.kind": "vq", "loss.codebook": 1.0, "loss.commitment": 0.25, **no_router
    },
    "token_level": {"router.level": "token"},
  }  # fmt: skip
  # Dots are no keys of a ConfigDict: each override is a pair.
  return config_dict.create(
    config="configs/quickstart.py",
    every=(("study.plain_base", False), ("study.shift.surface", "")),
    systems={name: tuple(changes.items()) for name, changes in systems.items()},
    seeds=(0, 1, 2, 3, 4),
  )
