"""What every run on a pretrained base has in common; the files of the bases say what they need."""

from ml_collections import config_dict

from configs import base


def on(model: config_dict.ConfigDict, folder: str) -> config_dict.ConfigDict:
  """The reference run on a frozen base from a folder of transformers, with its own tokenizer.

  The router and the experts learn; `--config.trains.base=True` moves the base too, at four times
  its memory (gradient and moments), or with `--config.trains.lower=False` its upper layers and its
  head. Rows are long: the tokenizers of large models split our tasks into more tokens than one that
  was trained on them.
  """
  c = base.get_config()
  c.model = model
  c.checkpoint.init_from = folder
  c.trains.base = False
  c.experts.update(rank=16, alpha=32.0, projections=("q", "k", "v", "o", "gate", "up", "down"))
  c.bottleneck.width = 64
  c.dependence.given = "none"  # Too few answers in a step to tell labels apart.
  c.router.width = 64
  c.optimizer.update(lr=2e-4, b2=0.99)
  c.data.update(seq_len=1_024, questions_per_row=4, counted=64)
  c.update(batch_size=8)
  c.evaluation.batch_size = 8
  return c
