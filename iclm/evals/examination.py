"""All that interventions, independence and routes say of a model, as one JSON-able dict."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from iclm import axes, compose
from iclm.config import Config, InputError
from iclm.data import mechanisms, rows
from iclm.data.records import Example
from iclm.evals import (
  independence,
  interchange,
  interventions,
  probing,
  routing,
  statistics,
)
from iclm.evals.accuracy import Scores
from iclm.evals.subject import Messages, Subject, served_by

# Of the independence report and the calibration; each row of the report names its own n.
N_PERMUTATIONS, N_FEATURES, N_STATES = 199, 64, 8
N_BINS, N_FOLDS, RIDGE, LEVEL = 10, 5, 1e-2, 0.95
MAX_EXPERTS = 8  # Pairs of domain experts grow with the square of their number.
N_MAPPED = 300  # Examples of the map of prompts: more would cover each other.


def check(config: Config) -> None:
  """Only experts that serve whole inputs can be examined.

  Raises:
    InputError: there are no experts, or each token has its own.
  """
  if not compose.streams(config):
    raise InputError("a plain base has no experts to examine")
  if config.router.level == "token":
    raise InputError(
      "config.router.level = 'token' has no one route of an input to intervene on or to compare; "
      "'input' has"
    )


def intervene(
  subject: Subject,
  examples: Sequence[Example],
  reference: Sequence[Example],
  seed: int,
  other_seeds: Sequence[Subject],
) -> dict[str, Any]:
  """Effects of interventions, quality of the routes, and the map of what the router reads.

  Args:
    reference: training examples, whose messages stand in for those knocked out.
    other_seeds: the same run of other seeds, whose routes are compared; may be empty.

  Raises:
    InputError: see `check`.
  """
  check(subject.config)
  measured = interventions.measure(subject, examples, reference, seed)
  c = subject.config
  found = interventions.report(measured, examples, c.experts.count, seed, c.data.asks)
  if c.bottleneck.kind != "none":
    told = interchange.interchange(subject, examples, measured.without, seed)
    found["interchange"] = told[0]
    found["notes"] += told[1]
  routed = _routes(subject, examples, measured.without, other_seeds) | {
    "regret_nats": found["regret_nats"],
    "map": _map(subject, examples, measured.without, seed),
  }
  return {"interventions": found, "routing": routed}


def _map(
  subject: Subject, examples: Sequence[Example], scores: Scores, seed: int
) -> dict[str, Any]:
  """Where some prompts lie for the router, on a plane."""
  n = min(N_MAPPED, len(examples))
  pick = np.sort(np.random.default_rng(seed).choice(len(examples), n, replace=False))
  xy_N2, share_2 = routing.flatten(subject.prompts([examples[i] for i in pick]))
  return {
    "xy": xy_N2.round(4).tolist(),
    "share": share_2.tolist(),
    "domain": [examples[i].domain for i in pick],
    "expert": scores.index_N[pick].tolist(),
  }


def _routes(
  subject: Subject, examples: Sequence[Example], scores: Scores, other_seeds: Sequence[Subject]
) -> dict[str, Any]:
  """See `routing.report`; "nmi_group" is with what is asked instead of the domain, "seeds" numbers
  the runs of its pairs, "paraphrase" has the accuracy."""
  domains, domain_N = np.unique([e.domain for e in examples], return_inverse=True)
  paraphrase_N, paraphrased = _paraphrased(subject, examples, scores)
  found = routing.report(
    domain_N,
    scores.index_N,
    scores.confidence_N,
    domains=[str(d) for d in domains],
    n_experts=subject.config.experts.count,
    n_bins=N_BINS,
    paraphrase_N=paraphrase_N,
    seeds_SN=np.array([s.score(examples).index_N for s in other_seeds]) if other_seeds else None,
  )
  seeds = [s.config.seed for s in (subject, *other_seeds)]
  group_N = np.unique([e.group for e in examples], return_inverse=True)[1]
  nmi_group = routing.nmi(group_N, scores.index_N)
  if nmi_group is None:
    found["notes"].append("nmi_group is undefined: all inputs are of one group")
  return found | {"nmi_group": nmi_group, "seeds": seeds, "paraphrase": paraphrased}


def _paraphrased(
  subject: Subject, examples: Sequence[Example], scores: Scores
) -> tuple[np.ndarray | None, dict[str, Any]]:
  """Routes under other words, -1 where there are none, and the accuracy of both on the others."""
  other = [_reworded(e) for e in examples]
  known = [i for i, prompt in enumerate(other) if prompt is not None]
  if not known:
    return None, {"accuracy": None, "note": "no prompt has a paraphrase: only mechanisms has them"}
  said = [dataclasses.replace(examples[i], prompt=other[i] or "") for i in known]
  try:
    under = subject.score(said)
  except InputError as error:  # Other words may be more tokens than a row has.
    return None, {"accuracy": None, "note": str(error)}
  route_N = np.full(len(examples), -1)
  route_N[known] = under.index_N
  accuracy = [float(scores.correct_N[known].mean()), float(under.correct_N.mean())]
  return route_N, {"accuracy": accuracy, "note": None}


def _reworded(example: Example) -> str | None:
  """The prompt in other words, in the same chat template where it has one."""
  words = mechanisms.paraphrase(example.content)
  if words is None or example.content not in example.prompt:
    return None
  return example.prompt.replace(example.content, words)


def independence_of(subject: Subject, examples: Sequence[Example], seed: int) -> dict[str, Any]:
  """How dependent the streams are, what a probe reads in them, and the worst domain.

  Without a bottleneck there are no messages, and only the last of these.

  Of examples on one context only the first counts: the estimators take rows as independent. A
  message is that at the first predicted position, drawn, not its mean. The pair of the streams is
  compared unconditionally and within the label, which is the answer's first token as in training;
  two domain experts within the label, each being made to serve every example.

  Raises:
    InputError: see `check`.
  """
  check(subject.config)
  context_N = rows.contexts(examples, subject.config.data.asks)
  worst = {"worst_domain": _worst_domain(subject, examples, context_N)}
  if subject.config.bottleneck.kind == "none":
    notes = ["a model without a bottleneck has no messages to compare"]
    return {"independence": [], "independence_notes": notes, "probes": {}} | worst
  alone = [examples[i] for i in np.sort(np.unique(context_N, return_index=True)[1])]
  keys = jax.random.split(jax.random.key(seed), subject.config.experts.count + 1)
  label_N = np.array([subject.label(e) for e in alone])
  said = subject.messages(alone, key=keys[-1])
  pairs = []
  if len(said.z_SNPZ) > 1:
    x_NZ, y_NZ = said.z_SNPZ[:, :, 0]
    pairs = [
      independence.Pair(f"{axes.INVARIANT}, {axes.DOMAIN}", x_NZ, y_NZ, None),
      independence.Pair(f"{axes.INVARIANT}, {axes.DOMAIN} | label", x_NZ, y_NZ, label_N),
    ]
  pairs += _domain_pairs(subject, alone, label_N, keys)
  compared = independence.report(
    pairs,
    n_permutations=N_PERMUTATIONS,
    n_features=N_FEATURES,
    n_states=N_STATES,
    seed=seed,
  )
  return {
    "independence": compared,
    "independence_notes": _left_out(len(examples), len(alone), subject.config.experts.count),
    "probes": _probes(subject, alone, said, seed),
  } | worst


def _worst_domain(subject: Subject, examples: Sequence[Example], context_N) -> dict[str, Any]:
  right_N = subject.score(examples).correct_N
  domain_N = np.array([e.domain for e in examples])
  at = {str(d): domain_N == d for d in np.unique(domain_N)}
  return statistics.worst_domain(
    {d: right_N[on_N] for d, on_N in at.items()},
    {d: len(np.unique(context_N[on_N])) for d, on_N in at.items()},
    level=LEVEL,
  )


def _left_out(n: int, n_alone: int, n_experts: int) -> list[str]:
  """One sentence for each thing that the report of independence does not look at."""
  found = {
    f"{n - n_alone} of {n} examples share a context with an earlier one, and are left out":
      n_alone < n,
    f"of {n_experts} domain experts only the first {MAX_EXPERTS} are compared with each other":
      n_experts > MAX_EXPERTS,
  }  # fmt: skip
  return [sentence for sentence, holds in found.items() if holds]


def _domain_pairs(subject: Subject, alone, label_N, keys) -> list[independence.Pair]:
  """Every two domain experts on the same examples, which each of them is made to serve."""
  n = subject.config.experts.count
  first = min(n, MAX_EXPERTS)
  said_ENZ = [
    subject.messages(alone, served_by(e), key=keys[e]).z_SNPZ[-1, :, 0] for e in range(first)
  ]
  name = lambda e, f: f"{axes.DOMAIN} {e}, {axes.DOMAIN} {f} | label"
  return [
    independence.Pair(name(e, f), said_ENZ[e], said_ENZ[f], label_N)
    for e, f in itertools.combinations(range(first), 2)
  ]


def _probes(
  subject: Subject, alone: Sequence[Example], said: Messages, seed: int
) -> dict[str, dict[str, Any]]:
  """stream -> label ("domain", "group") -> what a linear probe reads of it in the message."""
  found: dict[str, dict[str, Any]] = {}
  for name, z_NPZ in zip(compose.streams(subject.config), said.z_SNPZ, strict=True):
    found[name] = {}
    for label in ("domain", "group"):
      label_N = np.unique([getattr(e, label) for e in alone], return_inverse=True)[1]
      found[name][label] = probing.probe(
        z_NPZ[:, 0], label_N, n_folds=N_FOLDS, ridge=RIDGE, level=LEVEL, seed=seed
      )
  return found
