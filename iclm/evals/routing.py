"""Whether the routes are the domains, and would be again: agreement, calibration, stability.

A route is good in so far as it tells the domain; it is identified in so far as another seed, and
another wording of the same instruction, find it too. What is undefined is None.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from iclm import routing
from iclm.config import InputError


def nmi(domain_N: Int[np.ndarray, "N"], route_N: Int[np.ndarray, "N"]) -> float | None:
  """Mutual information of domain and route over the arithmetic mean of their entropies.

  Returns:
    In [0, 1]; 1 where each tells the other, 0 for one expert that serves every domain. None
    where there is a single domain, and so nothing to tell.

  Source: Manning et al., "Introduction to information retrieval", equation 16.2.
  """
  counts_DE = _contingency(domain_N, route_N)
  if len(counts_DE) < 2:
    return None
  domain, route = _entropy_nats(counts_DE.sum(1)), _entropy_nats(counts_DE.sum(0))
  return max(0.0, 2 * (domain + route - _entropy_nats(counts_DE.ravel())) / (domain + route))


def purity(domain_N: Int[np.ndarray, "N"], route_N: Int[np.ndarray, "N"]) -> float:
  """The share of inputs whose domain is the most frequent one of their expert.

  Not corrected for chance: one expert for all has the share of the largest domain, and one expert
  per input has 1.

  Source: Manning et al., "Introduction to information retrieval", equation 16.1.
  """
  return float(_contingency(domain_N, route_N).max(0).sum() / len(route_N))


def is_majority(
  domain_N: Int[np.ndarray, "N"], route_N: Int[np.ndarray, "N"]
) -> Bool[np.ndarray, "N"]:
  """Where an input is of its expert's most frequent domain: what a router can be right about.

  Several experts may share a domain, so splitting one is no error here. The mean is `purity`. A
  tie goes to the lower domain.
  """
  counts_DE = _contingency(domain_N, route_N)
  _, domain_N = np.unique(domain_N, return_inverse=True)
  _, route_N = np.unique(route_N, return_inverse=True)
  return counts_DE.argmax(0)[route_N] == domain_N


def match(
  domain_N: Int[np.ndarray, "N"],
  route_N: Int[np.ndarray, "N"],
  *,
  n_domains: int,
  n_experts: int,
) -> Int[np.ndarray, "D"]:
  """The expert of each domain, one to one, such that the most inputs are at their domain's.

  Returns:
    -1 for a domain that is left without: there are more domains than experts, or it and the
    expert left to it share no input.

  Source: Kuhn, "The Hungarian method for the assignment problem", 1955.
  """
  counts_DE = np.zeros((n_domains, n_experts), int)
  np.add.at(counts_DE, (domain_N, route_N), 1)
  expert_D = np.full(n_domains, -1)
  for d, e in zip(*linear_sum_assignment(counts_DE, maximize=True), strict=True):
    expert_D[d] = e if counts_DE[d, e] else -1
  return expert_D


def route_entropy(route_N: Int[np.ndarray, "N"]) -> float:
  """Nats of how the inputs spread over the experts: 0 for one, ln E for all alike."""
  return _entropy_nats(np.unique(route_N, return_counts=True)[1])


def balance(route_N: Int[np.ndarray, "N"], n_experts: int) -> float:
  """The effective number of experts over E: 1 when all serve alike, 1 / E when one serves all."""
  usage_E = jnp.asarray(np.bincount(route_N, minlength=n_experts), jnp.float32)
  return float(routing.effective_experts(usage_E)) / n_experts


def ece(confidence_N: Float[np.ndarray, "N"], right_N: Bool[np.ndarray, "N"], n_bins: int) -> float:
  """The expected calibration error: how far confidence is from the share that is right.

  Args:
    confidence_N: in [0, 1].
    right_N: for a router, `is_majority`: matching experts to domains on the same inputs makes
      it a little too right where experts serve few of them.
    n_bins: of equal width.

  Source: Guo et al., "On calibration of modern neural networks", arXiv 1706.04599, equation 3.
  """
  bin_N = np.minimum((confidence_N * n_bins).astype(int), n_bins - 1)
  gap_K = np.bincount(bin_N, weights=confidence_N - right_N, minlength=n_bins)
  return float(np.abs(gap_K).sum() / len(bin_N))


def ari(a_N: Int[np.ndarray, "N"], b_N: Int[np.ndarray, "N"]) -> float | None:
  """The adjusted Rand index of two partitions: 1 when equal up to names, 0 on average by chance.

  Returns:
    None where no partition could disagree: both put all inputs together, or each one apart.

  Source: Hubert and Arabie, "Comparing partitions", 1985.
  """
  counts_AB = _contingency(a_N, b_N)
  together, in_a, in_b, pairs = (
    float((n * (n - 1) / 2).sum())
    for n in (counts_AB, counts_AB.sum(1), counts_AB.sum(0), np.array(len(a_N)))
  )
  if in_a == in_b and in_a in (0.0, pairs):
    return None
  chance = in_a * in_b / pairs
  return (together - chance) / ((in_a + in_b) / 2 - chance)


def flatten(
  emb_NP: Float[np.ndarray, "N P"],
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "2"]]:
  """Embeddings on the plane in which they spread most, by principal components.

  Two clusters that meet on the plane may be far apart beside it: the shares say how much is left.

  Returns:
    xy_N2: centred, in the units of the embeddings; each axis points to where its direction's
      largest entry grows, so that the same embeddings give the same map.
    share_2: of the variance that each axis holds; 0 where nothing varies.

  Source: Pearson, "On lines and planes of closest fit to systems of points in space", 1901.
  """
  # Zeros beside them change nothing, and give a second axis where there is one number or input.
  n, p = emb_NP.shape
  padded = np.zeros((max(n, 2), max(p, 2)))
  padded[:n, :p] = emb_NP - emb_NP.mean(axis=0)
  _, size_K, axis_KP = np.linalg.svd(padded, full_matrices=False)
  axis_2P = axis_KP[:2]
  largest_2 = np.take_along_axis(axis_2P, np.abs(axis_2P).argmax(1)[:, None], axis=1)
  xy_N2 = padded[:n] @ (axis_2P * np.where(largest_2 < 0, -1, 1)).T
  share_2 = size_K[:2] ** 2 / ((size_K**2).sum() or 1.0)
  varies = (size_K**2).sum() > 1e-12 * np.square(emb_NP, dtype=float).sum()  # Beyond rounding.
  return xy_N2, share_2 if varies else np.zeros(2)


def seed_agreement(route_SN: Int[np.ndarray, "S N"]) -> dict[str, Any]:
  """The ARI of each two seeds on the same inputs: without it, no partition was identified.

  Returns:
    {"mean", "min", "pairs": [[s, t, ari]]}; mean and min are over the pairs where the ARI is
    defined, and None when there is none. The pairs share seeds: their spread is no standard error.
  """
  seeds = itertools.combinations(range(len(route_SN)), 2)
  pairs = [[s, t, ari(route_SN[s], route_SN[t])] for s, t in seeds]
  known = [value for *_, value in pairs if value is not None]
  mean = float(np.mean(known)) if known else None
  return {"mean": mean, "min": min(known, default=None), "pairs": pairs}


def stability(route_a_N: Int[np.ndarray, "N"], route_b_N: Int[np.ndarray, "N"]) -> float:
  """The share of inputs whose route a paraphrase of the instruction leaves alone."""
  return float((route_a_N == route_b_N).mean())


def chance_stability(route_a_N: Int[np.ndarray, "N"], route_b_N: Int[np.ndarray, "N"]) -> float:
  """`stability` if both routes were drawn apart at their frequencies; 1 when one serves all."""
  n_experts = int(max(route_a_N.max(), route_b_N.max())) + 1
  a_E, b_E = (np.bincount(r, minlength=n_experts) / len(r) for r in (route_a_N, route_b_N))
  return float(a_E @ b_E)


def report(
  domain_N: Int[np.ndarray, "N"],
  route_N: Int[np.ndarray, "N"],
  confidence_N: Float[np.ndarray, "N"],
  *,
  domains: Sequence[str],
  n_experts: int,
  n_bins: int,
  paraphrase_N: Int[np.ndarray, "N"] | None,
  seeds_SN: Int[np.ndarray, "S N"] | None,
) -> dict[str, Any]:
  """Every figure of this file, JSON-able; whatever is undefined or empty is named in "notes".

  Args:
    domain_N: index into `domains`.
    route_N: the expert that served each input.
    confidence_N: the router's, in [0, 1].
    paraphrase_N: routes of the same inputs under other words, -1 for an input without; None where
      there are none at all.
    seeds_SN: routes of the same inputs by routers of other seeds; None where there are none.

  Raises:
    InputError: no input, an index out of range, or a confidence outside of [0, 1].
  """
  _check(domain_N, route_N, confidence_N, paraphrase_N, len(domains), n_experts, n_bins)
  expert_D = match(domain_N, route_N, n_domains=len(domains), n_experts=n_experts)
  known_N = np.zeros(len(route_N), bool) if paraphrase_N is None else paraphrase_N >= 0
  reworded = None
  if paraphrase_N is not None and known_N.any():
    reworded = route_N[known_N], paraphrase_N[known_N]
  agreement = None if seeds_SN is None else seed_agreement(np.vstack([route_N[None], seeds_SN]))
  figures = {
    "n": len(route_N),
    "nmi": nmi(domain_N, route_N),
    "purity": purity(domain_N, route_N),
    "purity_of_one_expert": float(np.bincount(domain_N).max() / len(domain_N)),
    "matched_accuracy": float((expert_D[domain_N] == route_N).mean()),
    "matching": dict(zip(domains, (int(e) if e >= 0 else None for e in expert_D), strict=True)),
    "usage": (np.bincount(route_N, minlength=n_experts) / len(route_N)).tolist(),
    "entropy_nats": route_entropy(route_N),
    "balance": balance(route_N, n_experts),
    "ece": ece(confidence_N, is_majority(domain_N, route_N), n_bins),
    "n_paraphrased": int(known_N.sum()),
    "stability": None if reworded is None else stability(*reworded),
    "chance_stability": None if reworded is None else chance_stability(*reworded),
    "ari_of_seeds": agreement,
  }
  return figures | {"notes": _notes(figures, domain_N, domains)}


def _notes(figures: dict[str, Any], domain_N: np.ndarray, domains: Sequence[str]) -> list[str]:
  """One sentence for each thing that the figures cannot say by themselves."""
  idle = [str(e) for e, share in enumerate(figures["usage"]) if share == 0]
  n_D = np.bincount(domain_N, minlength=len(domains))
  absent = [name for name, n in zip(domains, n_D, strict=True) if n == 0]
  seeds = figures["ari_of_seeds"]
  blind = [] if seeds is None else [f"{s}-{t}" for s, t, value in seeds["pairs"] if value is None]
  found = {
    "no input reaches expert " + ", ".join(idle): idle,
    "no input is of domain " + ", ".join(absent): absent,
    "all inputs are of one domain: nmi is undefined, and purity and ece say nothing":
      figures["nmi"] is None,
    "one expert serves every input: stability and purity say nothing":
      len(idle) == len(figures["usage"]) - 1,
    "stability is unknown: no paraphrases were routed": figures["stability"] is None,
    f"stability is that of {figures['n_paraphrased']} of {figures['n']} inputs: the rest has no "
    "paraphrase": 0 < figures["n_paraphrased"] < figures["n"],
    "how far seeds agree is unknown: one seed identifies nothing": not (seeds and seeds["pairs"]),
    "ari is undefined where both seeds have one part, or one per input: " + ", ".join(blind): blind,
  }  # fmt: skip
  return [sentence for sentence, holds in found.items() if holds]


def _check(domain_N, route_N, confidence_N, paraphrase_N, n_domains, n_experts, n_bins) -> None:
  if not len(route_N):
    raise InputError("routing quality of no input: give at least one")
  if n_bins < 1:
    raise InputError(f"calibration needs at least 1 bin, got {n_bins}")
  indices = {"domain_N": (domain_N, n_domains), "route_N": (route_N, n_experts)}
  if paraphrase_N is not None:
    indices["paraphrase_N"] = (np.where(paraphrase_N == -1, 0, paraphrase_N), n_experts)
  for name, (index_N, n) in indices.items():
    bad_N = (index_N < 0) | (index_N >= n)
    if bad_N.any():
      raise InputError(f"{name} holds {index_N[bad_N][0]}; valid are 0 to {n - 1}")
  bad_N = ~((confidence_N >= 0) & (confidence_N <= 1))  # NaN is bad too.
  if bad_N.any():
    raise InputError(f"confidence_N holds {confidence_N[bad_N][0]}, which is not in [0, 1]")


def _contingency(a_N: np.ndarray, b_N: np.ndarray) -> Int[np.ndarray, "A B"]:
  """How often each two values meet; values that do not occur have no row and no column."""
  _, a_N = np.unique(a_N, return_inverse=True)
  _, b_N = np.unique(b_N, return_inverse=True)
  counts_AB = np.zeros((a_N.max() + 1, b_N.max() + 1), int)
  np.add.at(counts_AB, (a_N, b_N), 1)
  return counts_AB


def _entropy_nats(counts: np.ndarray) -> float:
  share = counts[counts > 0] / counts.sum()
  return max(0.0, float(-(share * np.log(share)).sum()))
