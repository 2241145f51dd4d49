"""What each part of the model does on the mechanisms task: systems that differ in one thing.

  python -m experiments.sweep --sweep=configs/sweeps/mechanisms.py --workdir=runs/sweep --jobs=2

Baselines first, then the model and what it loses without each part, then what was tried for it to
gain. Each run takes two to six minutes of one core.
"""

from ml_collections import config_dict

TERMS = ("beta", "dependence", "balance", "zloss", "codebook", "commitment", "aux")
NO_TERMS = {f"loss.{name}": 0.0 for name in TERMS}
NO_ROUTER = {"loss.balance": 0.0, "loss.zloss": 0.0}
NO_BOTTLENECK = {"bottleneck.kind": "none", "loss.beta": 0.0, "loss.dependence": 0.0}
VQ = {"router.kind": "vq", "loss.codebook": 1.0, "loss.commitment": 0.25} | NO_ROUTER
DENSE = {"experts.kind": "none"} | NO_TERMS
# Adapters that are always on: one expert, which a uniform router mixes in with weight 1.
ALWAYS_ON = {
  "experts.count": 1,
  "router.kind": "uniform",
  "bottleneck.kind": "none",
} | NO_TERMS
ONE = ALWAYS_ON | {"experts.invariant": False}
AROUND = {
  "topology.kind": "around",
  "combine": "none",
  "model.trunk_layers": 0,
  "loss.dependence": 0.0,
  "loss.beta": 1e-4,
}

SYSTEMS = {
  "dense": DENSE,
  "dense_twice_the_steps": DENSE | {"steps": 2_400},
  "dense_group_dro": DENSE | {"loss.group_dro": 0.01},
  "dense_two_adapters": ALWAYS_ON,
  # Of rank 8 are two adapters that are active, and seven in all; alpha is twice the rank, as there.
  "dense_lora_active_rank": ONE | {"experts.rank": 16, "experts.alpha": 32.0},
  "dense_lora_total_rank": ONE | {"experts.rank": 56, "experts.alpha": 112.0},
  "dense_token_level": {"router.level": "token"},
  "dense_consecutive": DENSE | {"model.position_gap": 1},
  "iclm": {},
  "no_invariant": {"experts.invariant": False, "loss.dependence": 0.0},
  "no_bottleneck": NO_BOTTLENECK,
  "no_dependence": {"loss.dependence": 0.0},
  "no_straight_through": {"router.straight_through": False},
  "oracle_router": {"router.kind": "oracle"} | NO_ROUTER,
  "random_router": {"router.kind": "random"} | NO_ROUTER,
  "vq_router": VQ,
  "kmeans_router": {"router.kind": "kmeans"},
  "around": AROUND,
  "drop": {"perturb.drop": 0.5, "perturb.ramp": 600},
  "patch": {"perturb.patch": 0.5, "perturb.ramp": 600},
  "swap": {"perturb.swap": 0.25, "perturb.ramp": 600},
  "rate_limit": {"loss.beta": 0.03, "bottleneck.ramp": 600},
  **{f"experts_{n}": {"experts.count": n} for n in (1, 2, 4, 12, 16)},
  "beta_0": {"loss.beta": 0.0},
  "beta_tenth": {"loss.beta": 1e-4},
  "beta_ten_times": {"loss.beta": 1e-2},
  "dependence_tenth": {"loss.dependence": 0.01},
  "dependence_ten_times": {"loss.dependence": 1.0},
  "dependence_hundred_times": {"loss.dependence": 10.0},
}  # fmt: skip

# The model without one of its parts, or with another one, keeps its learning rate.
OWN_RATE = {"iclm", "around", *(name for name in SYSTEMS if name.startswith("dense"))}
LIKE = {name: "iclm" for name in SYSTEMS if name not in OWN_RATE}
BASELINES = tuple(name for name in SYSTEMS if name.startswith("dense"))


def get_sweep() -> config_dict.ConfigDict:
  """Returns the config that is varied, what each system changes in it, the seeds, and the set on
  which each system's rate and the best of the baselines are chosen; see `experiments.sweep`."""
  # Dots are no keys of a ConfigDict: each override is a pair.
  return config_dict.create(
    config="configs/mechanisms.py",
    base="",
    every=(),
    systems={name: tuple(changes.items()) for name, changes in SYSTEMS.items()},
    seeds=(0, 1, 2, 3, 4),
    baselines=BASELINES,
    out_of_distribution=("unseen_pairs", "unseen_compositions", "longer"),
    chosen_on="iid_val",
    tuning={"key": "optimizer.lr", "tries": (3e-3, 6e-3), "like": LIKE},
  )
