"""What each part of the model does where the experts are used: on a base frozen half-trained.

  python -m experiments.sweep --sweep=configs/sweeps/frozen_base.py --workdir=runs/frozen_study \
    --jobs=2

Every seed has a base of its own, from which all systems of that seed start. Each run takes about
two minutes of one core.
"""

from ml_collections import config_dict

from configs.sweeps.mechanisms import NO_BOTTLENECK, NO_ROUTER, VQ

BASE = "base"
NO_TERMS = {f"loss.{name}": 0.0 for name in ("beta", "dependence", "balance", "zloss")}
# Matrices that are always on: one expert serves all, and says what it has to without a limit.
ALWAYS_ON = {"experts.count": 1, "router.kind": "random", "bottleneck.kind": "none"} | NO_TERMS

SYSTEMS = {
  BASE: {"steps": 300, "experts.kind": "none", "trains.base": True} | NO_TERMS,
  "dense_one": ALWAYS_ON | {"experts.invariant": False},
  "dense_two": ALWAYS_ON,
  "dense_two_thrice_the_steps": ALWAYS_ON | {"steps": 3_000},
  "dense_two_group_dro": ALWAYS_ON | {"loss.group_dro": 0.01},
  "dense_lora": ALWAYS_ON | {"experts.kind": "lora", "experts.rank": 32, "experts.alpha": 32.0},
  "iclm": {},
  "one_expert": {"experts.count": 1},
  "three_experts": {"experts.count": 3},
  "ten_experts": {"experts.count": 10},
  "no_invariant": {"experts.invariant": False, "loss.dependence": 0.0},
  "no_bottleneck": NO_BOTTLENECK,
  "no_bottleneck_thrice_the_steps": NO_BOTTLENECK | {"steps": 3_000},
  "no_bottleneck_random_router": NO_BOTTLENECK | NO_ROUTER | {"router.kind": "random"},
  "beta_0": {"loss.beta": 0.0},
  "tenth_beta": {"loss.beta": 1e-4},
  "ten_times_beta": {"loss.beta": 1e-2},
  "no_dependence": {"loss.dependence": 0.0},
  "ten_times_dependence": {"loss.dependence": 1.0},
  "no_straight_through": {"router.straight_through": False},
  "oracle_router": {"router.kind": "oracle"} | NO_ROUTER,
  "random_router": {"router.kind": "random"} | NO_ROUTER,
  "vq_router": VQ,
  "kmeans_router": {"router.kind": "kmeans"},
  # Not on a frozen base: what is left to be had.
  "base_trains_along": {"experts.kind": "none", "trains.base": True} | NO_TERMS,
}  # fmt: skip

BASELINES = tuple(name for name in SYSTEMS if name.startswith("dense"))
OWN_RATE = {*BASELINES, "iclm", "base_trains_along"}
LIKE = {name: "iclm" for name in SYSTEMS if name not in OWN_RATE and name != BASE}


def get_sweep() -> config_dict.ConfigDict:
  """Returns the config that is varied, what each system changes in it, the base that all others
  start from, the seeds, and how rates and the best baseline are chosen; see `experiments.sweep`."""
  return config_dict.create(
    config="configs/frozen_base.py:experts",
    base=BASE,
    every=(),
    systems={name: tuple(changes.items()) for name, changes in SYSTEMS.items()},
    seeds=(0, 1, 2, 3, 4),
    baselines=BASELINES,
    out_of_distribution=("unseen_pairs",),
    chosen_on="iid_val",
    tuning={"key": "optimizer.lr", "tries": (1e-3, 3e-3, 1e-2), "like": LIKE},
  )
