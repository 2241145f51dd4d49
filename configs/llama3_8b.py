"""Four experts on a frozen Llama 3.1 8B, from a folder of transformers.

  python -m experiments.train --config=configs/llama3_8b.py --workdir=runs/llama3_8b

8.03 billion parameters, 32.1 GB in float32; over the mesh of eight devices, 4.5 GB on each.
Computed from the shapes. Its step compiles for a slice of eight chips, v5e:2x4, by
`experiments.compile`, and takes 9.0 GiB of 16 there; not run yet.
The folder is checkpoints/Llama-3.1-8B, or --config.checkpoint.init_from=FOLDER.
"""

from configs import presets, pretrained


def get_config():
  c = pretrained.on(presets.llama3_8b(), "checkpoints/Llama-3.1-8B")
  c.update(mesh={"data": 4, "expert": 1, "model": 2}, fsdp=True)
  return c
