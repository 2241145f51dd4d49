"""Four experts on a frozen Llama 2 7B, from a folder of transformers.

  python -m experiments.train --config=configs/llama2_7b.py --workdir=runs/llama2_7b

6.74 billion parameters, 27.0 GB in float32; over the mesh of eight devices, 3.5 GB on each.
Computed from the shapes; not run yet. The folder is checkpoints/Llama-2-7b-hf,
or --config.checkpoint.init_from=FOLDER.
"""

from configs import presets, pretrained


def get_config():
  c = pretrained.on(presets.llama2_7b(), "checkpoints/Llama-2-7b-hf")
  c.update(mesh={"data": 4, "expert": 1, "model": 2}, fsdp=True)
  return c
