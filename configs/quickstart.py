"""Five surfaces, six operations, five experts, on two cores in minutes.

  python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

Trains a model of independent mechanisms and its plain base alike, then shifts one surface's
operation and retrains that surface's expert alone.
"""

from configs import base, presets


def get_config():
  c = base.get_config()
  c.steps = 1_000
  c.batch_size = 32
  c.model = presets.tiny()
  c.model.trunk_layers = 0  # An update cannot reach what a trunk has done already.
  c.experts.update(count=5, rank=8, projections=("q", "v"))
  c.router.update(reads="embed", detach=True, scale=32.0, tau_steps=500)
  c.dependence.given = "none"
  c.optimizer.update(lr=3e-3, warmup=50, router_lr=0.1)
  c.data.train = {"mechanisms": base.source(tfds="mechanisms/default", split="iid_train")}
  c.data.domains = ("lower", "upper", "digits", "words", "signs")
  c.data.update(seq_len=36, question="none", questions_per_row=1, counted=16)
  c.data.tokenizer.update(split="words", vocab_size=512)
  c.evaluation.update(every=500, batch_size=128)
  c.evaluation.sets = {
    "iid_test": base.source(tfds="mechanisms/default", split="iid_test", limit=1_000),
    "unseen_pairs": base.source(tfds="mechanisms/default", split="unseen_pairs", limit=1_000),
  }
  c.evaluation.best = "iid_test"
  c.checkpoint.update(every=200, keep=2, best=0)
  c.study.plain_base = True
  c.study.shift.update(
    surface="digits",
    operation="reverse",
    becomes="rotate",
    examples=500,
    rehearsed=500,  # Without them the expert loses half or more of the rest.
    steps=500,
    lr=1e-2,
    base_lr=3e-4,
    lora_lr=0.0,  # 3e-3 sets a dense LoRA beside it, in another half minute.
  )
  return c
