"""ACRE, text and symbolic from one model, on one large GPU or a TPU slice.

  python -m experiments.train --config=configs/acre_gpu.py --workdir=runs/acre_gpu

Not run yet: no figure stands behind it. On several devices set --config.mesh.data.
"""

from configs import base, presets

FORMS = ("symbolic", "text")
SPLITS = ("iid_val", "comp_published", "sys_published")


def get_config():
  c = base.get_config()
  c.steps = 40_000
  c.batch_size = 256
  c.model = presets.base_30m()
  c.model.update(
    trunk_layers=6,
    attention="prefix",
    rope_theta=1e6,
    qk_init="equal",
  )
  c.experts.update(count=2, rank=16, projections=("q", "k", "v", "o"))
  c.router.update(reads="embed", detach=True, scale=32.0, tau_steps=10_000)
  c.optimizer.update(lr=1e-3, schedule="wsd", warmup=1_000, router_lr=0.1)
  c.data.train = {
    form: base.source(acre=form, split="iid", ramp=400_000, weight=weight)
    for form, weight in zip(FORMS, (1.0, 2.0), strict=True)
  }
  c.data.domains = tuple(f"acre_{form}" for form in FORMS)
  c.data.update(seq_len=768, questions_per_row=8, counted=16)
  c.data.tokenizer.update(split="numbers", vocab_size=1_024)
  c.evaluation.update(every=2_000, batch_size=128)
  c.evaluation.sets = {
    f"{form}_{split}": base.source(tfds=f"acre/{form}", split=split, limit=2_000)
    for form in FORMS
    for split in SPLITS
  }
  c.evaluation.best = "text_iid_val"
  c.checkpoint.update(every=1_000, keep=2, best=1)
  return c
