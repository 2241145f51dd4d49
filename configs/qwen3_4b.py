"""Four experts on a frozen Qwen 3 4B, from a folder of transformers.

  python -m experiments.train --config=configs/qwen3_4b.py --workdir=runs/qwen3_4b

4.02 billion parameters, 16.1 GB in float32; over the mesh of four devices, 4.0 GB on each.
Computed from the shapes; compiled for a slice of a TPU, not run yet.
The folder is checkpoints/Qwen3-4B, or --config.checkpoint.init_from=FOLDER.
"""

from configs import presets, pretrained


def get_config():
  c = pretrained.on(presets.qwen3_4b(), "checkpoints/Qwen3-4B")
  c.update(mesh={"data": 4, "expert": 1, "model": 1}, fsdp=True)
  return c
