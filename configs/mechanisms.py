"""Six surfaces, six operations and compositions of two, on two cores: the study of what helps.

  python -m experiments.train --config=configs/mechanisms.py --workdir=runs/mechanisms

The splits out of distribution differ from the training data in one thing each; see
`iclm/data/mechanisms`. `configs/sweeps/mechanisms.py` runs it in every variant.
"""

from configs import base, presets

SPLITS = ("iid_val", "iid_test", "unseen_pairs", "unseen_compositions", "longer", "new_surface")


def get_config():
  c = base.get_config()
  c.steps = 1_000
  c.batch_size = 32
  c.model = presets.tiny()
  c.experts.update(count=6, rank=8, projections=("q", "v"))
  c.router.update(reads="embed", detach=True, scale=32.0, tau_steps=500)
  c.dependence.given = "none"
  c.optimizer.update(kind="muon", lr=3e-3, warmup=50, router_lr=0.1)
  c.data.train = {"mechanisms": base.source(tfds="mechanisms/easy", split="iid_train")}
  c.data.domains = ("lower", "upper", "digits", "words", "signs", "greek")
  c.data.update(seq_len=34, question="none", questions_per_row=1)
  c.data.tokenizer.update(split="words", vocab_size=512)
  c.evaluation.update(every=0, batch_size=128)
  c.evaluation.sets = {
    name: base.source(tfds="mechanisms/easy", split=name, limit=1_000) for name in SPLITS
  }
  c.evaluation.best = ""
  c.checkpoint.update(every=0, keep=1, best=0)
  return c
