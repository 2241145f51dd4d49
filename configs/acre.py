"""ACRE in symbolic form, from the generator, on two cores.

  python -m experiments.train --config=configs/acre.py --workdir=runs/acre

Result (seed 0, two shared cores, 70 minutes, commit 6478110), real validation files, exact match:
IID 0.914, Comp 0.898, Sys 0.905; indirect 0.755, 0.785, 0.696.

Against the plateau at which objects are not yet told apart: three views of one object each at
first, many questions per context, prefix attention, and heads that attend to their like.
"""

from configs import base, presets

FORM = "symbolic"


def get_config():
  c = base.get_config()
  c.steps = 9_000
  c.batch_size = 16
  c.model = presets.tiny()
  c.model.update(layers=5, trunk_layers=4, attention="prefix", rope_theta=1e6, qk_init="equal")
  c.experts.update(count=2, rank=8, projections=("q", "v"))
  c.router.update(reads="embed", detach=True, scale=32.0)
  c.optimizer.update(lr=3e-3, schedule="wsd", warmup=100, decay=0.3, router_lr=0.1)
  c.data.train = {"acre": base.source(acre=FORM, split="iid", ramp=45_000)}
  c.data.domains = (f"acre_{FORM}",)
  c.data.update(seq_len=160, questions_per_row=8)  # The longest row met needs 149.
  c.data.tokenizer.update(split="numbers", vocab_size=512)
  c.evaluation.update(every=1_000, batch_size=32)
  c.evaluation.sets = {
    name: base.source(tfds=f"acre/{FORM}", split=split, limit=1_000)
    for name, split in (
      ("iid", "iid_val"),
      ("comp_published", "comp_published"),
      ("sys_published", "sys_published"),
    )
  }
  c.evaluation.best = "iid"
  c.checkpoint.update(every=500, keep=2, best=1)
  return c
