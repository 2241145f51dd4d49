"""Six surfaces, six operations and compositions of two, on two cores: the study of what helps.

  python -m experiments.train --config=configs/mechanisms.py --workdir=runs/mechanisms

The splits out of distribution differ from the training data in one thing each; see
`iclm/data/mechanisms`. `configs/sweeps/mechanisms.py` runs it in every variant.
"""

from configs import base, quickstart

SPLITS = ("iid_val", "iid_test", "unseen_pairs", "unseen_compositions", "longer", "new_surface")


def get_config():
  c = quickstart.get_config()
  c.experts.count = 6
  c.optimizer.kind = "muon"
  c.data.train.mechanisms.tfds = "mechanisms/easy"
  c.data.domains = (*c.data.domains, "greek")
  c.data.seq_len = 34
  c.evaluation.update(every=0, best="")
  c.evaluation.sets = {
    name: base.source(tfds="mechanisms/easy", split=name, limit=1_000) for name in SPLITS
  }
  c.checkpoint.update(every=0, keep=1)
  c.study = base.get_config().study
  return c
