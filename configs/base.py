"""Reference run: four experts on ACRE and the mechanisms task. It holds every key that is read.

  python -m experiments.train --config=configs/base.py --workdir=runs/base

Any key can be changed on the command line: --config.router.kind=vq --config.seed=1
"""

from ml_collections import config_dict

from configs import presets


def source(**given) -> config_dict.ConfigDict:
  """Examples from one of `tfds`, `jsonl` or `acre` (the endless generator)."""
  every = {"tfds": "", "jsonl": "", "acre": "", "split": "", "weight": 1.0, "limit": 0, "ramp": 0}
  return config_dict.create(**(every | given))


def pick(argument: str, table):
  """What a table holds for the argument of a config, which stands in --config=FILE:ARGUMENT.

  Raises:
    KeyError: it holds nothing for that, in a sentence.
  """
  if argument not in table:
    raise KeyError(f"--config=FILE:{argument}: the argument must be one of {', '.join(table)}")
  return table[argument]


def get_config() -> config_dict.ConfigDict:
  """Returns every key the library reads; variants change values only."""
  return config_dict.create(
    seed=0,
    steps=2_000,
    batch_size=64,  # Rows, over all devices.
    accumulate=1,
    log_every=20,
    nonfinite_limit=10,
    topology={"kind": "parallel", "lower": 0, "upper": 1},
    combine="residual",
    compute="routed",
    mesh={"data": 1, "expert": 1, "model": 1},  # Product = device count.
    fsdp=False,
    model=presets.small(),
    experts={
      "kind": "lora",
      "count": 4,
      "invariant": True,
      "rank": 8,
      "alpha": 16.0,
      "dropout": 0.0,
      "projections": ("q", "k", "v", "o"),
    },
    router={
      "kind": "gumbel",
      "level": "input",
      "reads": "trunk",
      "cached": False,
      "detach": False,
      "width": 16,
      "scale": 4.0,
      "fit": True,
      "straight_through": True,
      "gradient": "chosen",
      "tau_start": 1.0,
      "tau_end": 0.3,
      "tau_steps": 1_000,
      "usage_decay": 0.99,
      "revive_below": 0.1,
      "collapse_below": 0.3,
      "collapse_stops": False,
    },
    bottleneck={"kind": "gaussian", "width": 32, "ramp": 0},
    dependence={"kind": "hsic", "given": "label", "features": 64, "classes": 16},
    loss={
      "beta": 1e-3,
      "dependence": 0.1,
      "balance": 0.01,
      "zloss": 1e-4,
      "codebook": 0.0,
      "commitment": 0.0,
      "aux": 0.0,
      "group_dro": 0.0,
    },
    perturb={"drop": 0.0, "patch": 0.0, "swap": 0.0, "ramp": 0},
    optimizer={
      "kind": "adamw",
      "lr": 1e-3,
      "schedule": "cosine",
      "warmup": 100,
      "decay": 0.2,
      "end": 0.1,
      "b1": 0.9,
      "b2": 0.98,
      "eps": 1e-8,
      "weight_decay": 0.01,
      "clip": 1.0,
      "router_lr": 1.0,
    },
    trains={
      "base": True,
      "lower": True,
      "invariant": True,
      "router": True,
      "domain": True,
      "combine": True,
      "only_experts": (),
    },
    data={
      "dir": "~/tensorflow_datasets",
      "train": {
        "acre": source(tfds="acre/symbolic", split="iid_train"),
        "mechanisms": source(tfds="mechanisms/default", split="iid_train"),
      },
      "domains": ("acre_symbolic",),
      "seq_len": 128,
      "question": "last_line",
      "questions_per_row": 4,
      "loss": "answer",
      "counted": 0,
      "too_long": "error",
      "chat_template": "",
      "chat_date": "2026-01-01",
      "tokenizer": {
        "path": "",
        "vocab_size": 1024,
        "split": "numbers",
        "apart": (),
        "texts": 2_000,
      },
    },
    evaluation={
      "every": 500,
      "batch_size": 64,
      "seq_len": 0,
      "draws": 0,
      "sets": {
        "acre_iid": source(tfds="acre/symbolic", split="iid_val", limit=1_000),
        "acre_comp": source(tfds="acre/symbolic", split="comp_published", limit=1_000),
        "mechanisms_iid": source(tfds="mechanisms/default", split="iid_val", limit=1_000),
      },
      "best": "acre_iid",
    },
    checkpoint={"every": 500, "keep": 2, "best": 1, "init_from": ""},
    study={
      "plain_base": False,
      "shift": {
        "surface": "",
        "operation": "",
        "becomes": "",
        "examples": 500,
        "rehearsed": 0,
        "curve": (),
        "steps": 200,
        "lr": 2e-2,
        "base_lr": 3e-3,
        "lora_lr": 1e-3,
      },
    },
  )
