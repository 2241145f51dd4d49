"""Four experts on a frozen TinyLlama 1.1B, from a folder of transformers.

  python -m experiments.train --config=configs/tinyllama_1b.py --workdir=runs/tinyllama_1b

1.10 billion parameters, 4.4 GB in float32, on one device.
Computed from the shapes; compiled for a slice of a TPU, not run yet.
The folder is checkpoints/TinyLlama-1.1B, or --config.checkpoint.init_from=FOLDER.
"""

from configs import presets, pretrained


def get_config():
  c = pretrained.on(presets.tinyllama_1b(), "checkpoints/TinyLlama-1.1B")
  return c
