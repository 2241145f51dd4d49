"""What a run is held against: the same base without experts, and with one dense LoRA."""

import dataclasses
import pathlib

from iclm import config, train
from iclm.config import Config

NO_TERMS = dict.fromkeys((f.name for f in dataclasses.fields(config.Loss)), 0.0)
UNPERTURBED = config.Perturb(drop=0.0, patch=0.0, swap=0.0, ramp=0)


def fit(
  c: Config, folder: pathlib.Path, title: str, free: tuple[tuple[str, ...], ...] = ()
) -> train.Result:
  """`train.fit`; train.Interrupted where it was told to stop, if only while it evaluated."""
  result = train.fit(c, folder, title, free)
  if result.interrupted:
    raise train.Interrupted(
      f"interrupted at step {result.run.step}; the same command goes on from there"
    )
  return result


def plain(c: Config) -> Config:
  """The same base, data, steps and learning rate, without experts."""
  experts = dataclasses.replace(c.experts, kind="none")
  loss = config.Loss(**NO_TERMS)
  return dataclasses.replace(c, experts=experts, loss=loss, perturb=UNPERTURBED)


def dense_lora(c: Config) -> Config:
  """The same base with one adapter that serves every input, as wide as all of the run's together.

  Rank and alpha are those of one expert times the number of the run's experts, the invariant one
  included, so that alpha / rank is the run's. There is no message and nothing to route. Its logits
  are those of its only stream ("logits" of one), so that the base without the adapter is not run
  beside it, as it would be under "residual".

  Raises:
    InputError: the adapter would be wider than the base, or the run's experts have no rank.
  """
  if c.experts.kind == "full":
    raise config.InputError(
      "config.experts.kind = 'full' has no rank that a dense LoRA could match; "
      "config.study.shift.lora_lr = 0 leaves it out"
    )
  n = rank_ratio(c)
  e = c.experts
  if n * e.rank > c.model.d_model:
    raise config.InputError(
      f"the dense LoRA of rank {n} * config.experts.rank = {n * e.rank} is wider than "
      f"config.model.d_model = {c.model.d_model}; config.study.shift.lora_lr = 0 leaves it out"
    )
  return dataclasses.replace(
    c,
    topology=dataclasses.replace(c.topology, kind="parallel"),
    combine="logits",
    compute="routed",
    mesh=dataclasses.replace(c.mesh, data=c.mesh.shares, expert=1),
    experts=dataclasses.replace(
      e, kind="lora", count=1, invariant=False, rank=n * e.rank, alpha=n * e.alpha
    ),
    router=dataclasses.replace(
      c.router, kind="uniform", level="input", reads="embed", fit=False, cached=False
    ),
    bottleneck=dataclasses.replace(c.bottleneck, kind="none"),
    dependence=dataclasses.replace(c.dependence, kind="none"),
    loss=config.Loss(**NO_TERMS),
    perturb=UNPERTURBED,
  )


def rank_ratio(c: Config) -> int:
  """Ranks of the dense LoRA over those of one expert: the experts, and the invariant one."""
  return c.experts.count + c.experts.invariant
