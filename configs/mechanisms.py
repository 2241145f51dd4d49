"""Six alphabets, six operations and compositions of two, in one layout: the study of what helps.

  python -m experiments.train --config=configs/mechanisms.py --workdir=runs/mechanisms

The splits out of distribution differ from the training data in one thing each; see
`iclm/data/mechanisms`. `configs/sweeps/mechanisms.py` runs it in every variant.
"""

from configs import base, quickstart

SPLITS = ("iid_val", "iid_test", "unseen_pairs", "unseen_compositions", "longer", "shifted")


def get_config():
  c = quickstart.get_config()
  c.steps = 1_200
  c.batch_size = 64
  c.model.trunk_layers = 2  # As in all that was published of it.
  c.model.position_gap = 3  # Without it no model that was tried answers one longer input.
  c.experts.count = 6
  c.optimizer.kind = "muon"
  c.data.train.mechanisms.tfds = "mechanisms/plain"
  c.data.domains = ("lower", "upper", "digits", "words", "cyrillic", "greek")
  c.data.seq_len = 26
  c.evaluation.update(every=0, best="", seq_len=34)
  c.evaluation.sets = {
    name: base.source(tfds="mechanisms/plain", split=name, limit=1_000) for name in SPLITS
  }
  c.checkpoint.update(every=0, keep=1)
  c.study = base.get_config().study
  return c
