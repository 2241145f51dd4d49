"""Sixteen experts on a frozen Llama 2 7B, from a folder of transformers.

  python -m experiments.train --config=configs/llama2_7b.py --workdir=runs/llama2_7b

6.74 billion parameters, 27.0 GB in float32; over the mesh of sixteen devices, 3.4 GB on each. Made
for a slice of sixteen chips, v5e:4x4 or v5p:2x2x4, for which `experiments.compile` compiles its
step; not run yet. The folder is checkpoints/Llama-2-7b-hf, or
--config.checkpoint.init_from=FOLDER.
"""

from configs import presets, pretrained


def get_config():
  c = pretrained.on(presets.llama2_7b(), "checkpoints/Llama-2-7b-hf")
  c.experts.count = 16
  c.data.seq_len = 2048
  c.update(batch_size=16, mesh={"data": 8, "expert": 2, "model": 1}, fsdp=True)
  c.evaluation.batch_size = 16
  return c
