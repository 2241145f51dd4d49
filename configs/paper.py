"""The set-up of Gendron et al. 2024 (arXiv 2402.02636), on a base that two cores can train.

  python -m experiments.train --config=configs/paper.py --workdir=runs/paper

`--config=configs/paper.py:llama2_7b` is the same on the mesh and the frozen base of
`configs/llama2_7b.py`, which is the paper's base; not run yet.

VQ router on a 64-wide projection, two domain experts and the invariant one, concatenated states
into a new head, LoRA of rank 8 and alpha 16 on q, k, v and o, their loss weights. Deviations, each
on purpose: one base instead of K + 2 copies; the router reads the prompt only; RMSNorm
instead of BatchNorm before the head; mutual information in the direction that it is defined in.
"""

from configs import base, llama2_7b

BASES = {"small": base.get_config, "llama2_7b": llama2_7b.get_config}


def get_config(size: str = "small"):
  c = base.pick(size, BASES)()
  c.combine = "concat"
  c.experts.update(count=2, rank=8, alpha=16.0, dropout=0.05, projections=("q", "k", "v", "o"))
  c.router.update(kind="vq", width=64, reads="base")
  c.bottleneck.update(kind="gaussian", width=64)
  c.dependence.update(kind="joint_mi", given="none", features=64)
  c.loss.update(beta=0.0, dependence=10.0, balance=0.0, zloss=0.0)
  c.loss.update(codebook=1.0, commitment=0.25, aux=0.0)
  c.optimizer.update(lr=5e-4)
  return c
