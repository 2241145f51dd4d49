"""What a step costs: a frozen base, four projections adapted, answers of four tokens.

  python -m experiments.bench --suite=train --size=S --experts=2,32 --out=bench.json

It is not trained: `experiments.bench` measures its step with random tokens.
"""

from configs import base, presets


def _on_gpu(shape, **changes):
  """With the kernel that knows what is causal; of a layer nothing that costs is computed again."""
  shape.update(kernel="cudnn", remat="light", **changes)
  return shape


# Size -> shape of the base, vocabulary, rows and tokens of a batch.
SIZES = {
  "S": (presets.bench_small, 512, 8, 256),
  "M": (presets.bench_medium, 1024, 8, 256),
  "1b": (lambda: _on_gpu(presets.tinyllama_1b()), 32_000, 8, 2048),
  "7b": (lambda: _on_gpu(presets.llama2_7b()), 32_000, 8, 2048),
  # Matrices of each expert's own, of every layer of 1b, with their moments are 12 GB per expert.
  "1b_4_layers": (lambda: _on_gpu(presets.tinyllama_1b(), layers=4), 32_000, 8, 2048),
}


def get_config(size: str = "S"):
  shape, vocab_size, rows, tokens = base.pick(size, SIZES)
  c = base.get_config()
  c.model = shape()
  c.model.trunk_layers = 0
  c.batch_size = rows
  c.experts.update(rank=8, alpha=16.0, projections=("q", "k", "v", "o"))
  c.router.reads = "base"  # An own frozen forward pass, which the residual combine needs too.
  c.trains.base = False
  c.data.update(seq_len=tokens, question="none", questions_per_row=1, counted=4)
  c.data.tokenizer.vocab_size = vocab_size
  return c
