"""One optimizer for each group of parameters."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array, Float
from optax import contrib

from iclm import axes
from iclm.config import Config, Optimizer
from iclm.optim.decay import decayed, decays
from iclm.optim.frozen import all_but, freeze
from iclm.optim.lazy import lazy_adamw, only
from iclm.optim.schedules import schedule

LOWER = "embedding", "trunk_layers"  # Of the base, in which a tied head is the embedding.
GROUPS = ("base", axes.INVARIANT, axes.DOMAIN, "router", "combine")

ADAM_RMS = 0.2  # Of an update over the learning rate, as Liu et al. find it for AdamW.


def from_config(config: Config) -> optax.GradientTransformation:
  """The optimizer of a run; see `make`."""
  o, trains = config.optimizer, config.trains
  moves = {name: getattr(trains, name) for name in GROUPS}
  if trains.domain and trains.only_experts:
    moves["domain"] = trains.only_experts
  lr = schedule(o.schedule, lr=o.lr, warmup=o.warmup, steps=config.steps, decay=o.decay, end=o.end)
  return make(o, lr, trainable=moves, still=() if trains.lower else LOWER)


def make(
  o: Optimizer,
  lr: optax.Schedule,
  *,
  trainable: Mapping[str, bool | tuple[int, ...]],
  still: tuple[str, ...],
) -> optax.GradientTransformation:
  """AdamW per group, or under `kind = "muon"` Muon for the base; apply with `apply_updates`.

  Args:
    o: decay, on matrices alone (see `UNDECAYED`), is times the learning rate; the clip is the
      largest gradient norm of a group, and of each single domain expert.
    lr: over the steps that were not skipped; that of the router times `router_lr`.
    trainable: group -> whether it moves; for "domain" also the indices of the experts that do.
      What is frozen, a group, an expert or a part of the base, has no moments.
    still: parts of the base that do not move with it.

  Returns:
    A transformation whose state is a dict: group -> the state of its optimizer.
  """

  @functools.cache
  def of(group: str) -> optax.GradientTransformation:
    scale = o.router_lr if group == "router" else 1.0
    moves, rate = trainable[group], lambda step: scale * lr(step)
    if moves is False:
      return freeze()
    if group == axes.DOMAIN:
      every = lazy_adamw(rate, o.b1, o.b2, o.eps, o.weight_decay, o.clip)
      return every if moves is True else only(every, moves)
    if group == "base" and o.kind == "muon":
      moved = muon(rate, o)
    else:
      moved = optax.adamw(rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay, mask=decayed)
    moved = optax.chain(optax.clip_by_global_norm(o.clip), moved)
    return all_but(moved, still) if group == "base" and still else moved

  def init(params):
    return {group: of(group).init(part) for group, part in params.items()}

  def update(updates: Any, state: Any, params: Any = None):
    both = {group: of(group).update(g, state[group], params[group]) for group, g in updates.items()}
    return {group: u for group, (u, _) in both.items()}, {g: s for g, (_, s) in both.items()}

  return optax.GradientTransformation(init, update)


def muon(lr: optax.Schedule, o: Optimizer) -> optax.GradientTransformation:
  """Muon for the matrices of stacked layers, NAdam without weight decay for all else.

  An update has the RMS that AdamW's tends to have, so that one learning rate serves both.

  Source: Liu et al., arXiv 2502.16982. Deviation: theirs has AdamW for all else; optax gives it
  Muon's Nesterov momentum.
  """

  def matrices(params):
    layers_in_out = contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
    of = lambda path, x: layers_in_out if x.ndim == 3 and decays(path) else None
    return jax.tree_util.tree_map_with_path(of, params)

  return contrib.muon(
    lr,
    beta=o.b1,
    eps=o.eps,
    weight_decay=o.weight_decay,
    adam_b1=o.b1,
    adam_b2=o.b2,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=ADAM_RMS,
  )


def group_norms(grads: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
  """Norm of each group's gradient before clipping; "domain" is the norm over all experts."""
  return {group: optax.tree.norm(part) for group, part in grads.items()}
