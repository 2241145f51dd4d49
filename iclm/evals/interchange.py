"""What each stream's message carries: the cost of speaking with the message of another input.

A message is decoded by the receiver's own expert. Inputs of another domain are usually served by
another one, whose messages are in a code of its own: what their messages cost says little of what
they carry. Partners of the same route and of another one are hence reported apart.

Source: Geiger et al., "Causal abstractions of neural networks", arXiv 2106.02997.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from iclm import compose, progress
from iclm.data import rows
from iclm.data.records import Example
from iclm.evals import effects
from iclm.evals.accuracy import Scores
from iclm.evals.interventions import prolonged
from iclm.evals.subject import Subject, speaking

ROUTES = ("same_route", "other_route")


class Partners(NamedTuple):
  """For each input another one of a kind, at random; -1 where there is none.

  Attributes:
    by_route_RN: one of the same route, and one of another.
    pick_N: which of both is a partner drawn whatever its route.
  """

  by_route_RN: Int[np.ndarray, "R N"]
  pick_N: Int[np.ndarray, "N"]


def interchange(
  subject: Subject, examples: Sequence[Example], without: Scores, seed: int
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
  """The loss of speaking with another input's message, per stream and kind of partner.

  A partner shares its input's domain but not its group, its group but not its domain, or neither,
  the baseline. A message that carries the domain and nothing else costs nothing from a partner of
  the same domain and route.

  Args:
    without: scores of the examples under no intervention.
    seed: of the choice of partners and of the bootstrap.

  Returns:
    stream -> partner ("same_domain", "same_group", "any": neither) -> n, nats (mean loss), ci95,
    accuracy (mean change), accuracy_ci95, whatever the partner's route; and the same again under
    "same_route" and "other_route". None where fewer than `effects.MIN_INPUTS` inputs have such a
    partner. Then notes on what is missing.
  """
  said = subject.messages(examples)
  names = compose.streams(subject.config)
  context_N = rows.contexts(examples, subject.config.data.asks)
  estimator = effects.Estimator(context_N, seed)
  found: dict[str, dict[str, Any]] = {name: {} for name in names}
  each = list(itertools.product(_partners(examples, said.index_N, seed).items(), names))
  for (kind, partners), name in progress.watch(each, len(each), "messages interchanged"):
    only, changes = [name == other for other in names], []
    for partner_N in partners.by_route_RN:
      do = speaking(prolonged(said, np.maximum(partner_N, 0)), only)
      # Where nobody has a partner there is nothing to score.
      under = subject.score(examples, do) if (partner_N >= 0).any() else without
      changes.append(effects.change(under, without))
    label = f"interchange of {name} from {kind}"
    picked = effects.Change(
      *(np.where(partners.pick_N == 0, *pair) for pair in zip(*changes, strict=True))
    )
    row = _row(estimator, picked, partners.pick_N >= 0, label)
    for route, x, partner_N in zip(ROUTES, changes, partners.by_route_RN, strict=True):
      row[route] = _row(estimator, x, partner_N >= 0, f"{label}, {route}")
    found[name][kind] = row
  return found, _of_one(examples) + estimator.notes


def _of_one(examples: Sequence[Example]) -> list[str]:
  """What the kind "any" cannot be, which differs in what differs at all."""
  return [
    f"all inputs are of one {name}: so is any other one whose message an input gets"
    for name in ("domain", "group")
    if len({getattr(e, name) for e in examples}) == 1
  ]


def _row(
  estimator: effects.Estimator, change: effects.Change, has_N: Bool[np.ndarray, "N"], label: str
) -> dict[str, Any]:
  n, row = int(has_N.sum()), estimator.row(change, has_N, label)
  return {"n": n} | (row if n >= effects.MIN_INPUTS else dict.fromkeys(row))


def _partners(
  examples: Sequence[Example], route_N: Int[np.ndarray, "N"], seed: int
) -> dict[str, Partners]:
  """Partners of each kind; what all inputs share cannot differ, and need not."""
  rng = np.random.default_rng(seed)
  domain_N, group_N = (
    np.unique([getattr(e, name) for e in examples], return_inverse=True)[1]
    for name in ("domain", "group")
  )
  differs = lambda x_N, i: (x_N != x_N[i]) | (np.ptp(x_N) == 0)
  kinds: dict[str, Callable[[int], np.ndarray]] = {
    "same_domain": lambda i: (domain_N == domain_N[i]) & (group_N != group_N[i]),
    "same_group": lambda i: (group_N == group_N[i]) & (domain_N != domain_N[i]),
    "any": lambda i: differs(domain_N, i) & differs(group_N, i),
  }
  found = {}
  for kind, of in kinds.items():
    by_route_RN, pick_N = np.full((2, len(examples)), -1), np.full(len(examples), -1)
    for i in range(len(examples)):
      mask_N = of(i) & (np.arange(len(examples)) != i)
      mine, others = (np.nonzero(mask_N & on_N)[0] for on_N in _by_route(route_N, i))
      for r, known in enumerate((mine, others)):
        if len(known):
          by_route_RN[r, i] = rng.choice(known)
      if len(mine) + len(others):
        pick_N[i] = int(rng.integers(len(mine) + len(others)) >= len(mine))
    found[kind] = Partners(by_route_RN, pick_N)
  return found


def _by_route(route_N: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
  return route_N == route_N[i], route_N != route_N[i]
