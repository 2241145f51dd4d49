"""Intervals and corrections for what was measured: what is undefined is None, with the reason."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int

from iclm.config import InputError


class Estimate(NamedTuple):
  """A mean and its interval; a field that is None is undefined, and `note` says why."""

  value: float | None
  low: float | None
  high: float | None
  n: int
  note: str | None


def bootstrap_ci(
  values_N: Float[np.ndarray, "N"],
  *,
  seed: int,
  n_draws: int,
  level: float,
  cluster_N: Int[np.ndarray, "N"] | None = None,
) -> Estimate:
  """The mean and its percentile bootstrap interval: for examples, of which there are many.

  Args:
    values_N: one number per example; independent draws, unless there are clusters.
    seed: the same seed gives the same interval.
    n_draws: resamples, at least 1; some 2,000 for a level of 0.95.
    level: coverage in (0, 1).
    cluster_N: values of one cluster are drawn together, and only clusters are independent.

  Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3; clusters
  after Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8.
  """
  _check_level(level)
  if n_draws < 1:
    raise InputError(f"a bootstrap needs at least 1 draw, got {n_draws}")
  flat = _undefined(values_N)
  if flat is not None:
    return flat
  sum_C, n_C = values_N, np.ones(len(values_N))
  if cluster_N is not None:
    _, cluster_N = np.unique(cluster_N, return_inverse=True)
    sum_C, n_C = np.bincount(cluster_N, weights=values_N), np.bincount(cluster_N)
  rng, n, mean = np.random.default_rng(seed), len(n_C), float(values_N.mean())
  if n < 2 or _are_equal(sum_C / n_C):
    note = f"{n} clusters of values with equal means tell no spread"
    return Estimate(mean, None, None, len(values_N), note)
  # One resample at a time: all at once would hold n_draws * N numbers.
  picks = (rng.integers(0, n, n) for _ in range(n_draws))
  means = [sum_C[pick].sum() / n_C[pick].sum() for pick in picks]
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return Estimate(mean, float(low), float(high), len(values_N), None)


def t_interval(values_S: Float[np.ndarray, "S"], *, level: float) -> Estimate:
  """The mean and Student's interval: for seeds, of which there are few.

  Args:
    values_S: one number per seed, about normal.
    level: coverage in (0, 1).
  """
  _check_level(level)
  flat = _undefined(values_S)
  if flat is not None:
    return flat
  n, mean = len(values_S), values_S.mean()
  half = scipy.special.stdtrit(n - 1, (1 + level) / 2) * values_S.std(ddof=1) / np.sqrt(n)
  return Estimate(float(mean), float(mean - half), float(mean + half), n, None)


def wilson_interval(n_right: float, n: int, *, level: float) -> Estimate:
  """An accuracy and Wilson's interval, which stays in [0, 1] and is honest at 0 and at 1.

  Args:
    n_right: of n independent answers; a share of them times n where only some are independent.
    level: coverage in (0, 1).

  Source: Wilson, "Probable inference", JASA 1927.
  """
  _check_level(level)
  if not 0 <= n_right <= n:
    raise InputError(f"{n_right} right answers of {n}")
  if n < 2:
    return Estimate(n_right / n if n else None, None, None, n, _too_few(n))
  share, z2 = n_right / n, float(scipy.special.ndtri((1 + level) / 2)) ** 2
  centre = (share + z2 / (2 * n)) / (1 + z2 / n)
  half = (z2 * (share * (1 - share) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
  # At a share of 0 or 1 one bound is the share itself, up to rounding.
  return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0), n, None)


def worst_domain(
  correct: Mapping[str, Bool[np.ndarray, "_"]], n_contexts: Mapping[str, int], *, level: float
) -> dict[str, Any]:
  """The domain with the lowest accuracy, its risk, 1 - accuracy, and Wilson's interval.

  The lowest of several estimates is too low on average, the more so the smaller the domains.

  Args:
    correct: per domain, whether each example was right; the first wins a tie.
    n_contexts: per domain, how many contexts its examples have: the interval is that of so many
      answers, as if those on one context were all alike, and so at least as wide as it should be.
    level: coverage of the interval of the accuracy.

  Returns:
    {"domain", "accuracy", "low", "high", "risk", "n", "n_contexts", "note"}; `note` names the
    domains with too few contexts for an interval, which are left out. All are None when that
    leaves none.
  """
  estimates = {
    name: wilson_interval(
      int(right_N.sum()) * n_contexts[name] / max(len(right_N), 1), n_contexts[name], level=level
    )
    for name, right_N in correct.items()
  }
  known = [
    (e.value, i, name)
    for i, (name, e) in enumerate(estimates.items())
    if e.value is not None and e.low is not None
  ]
  left_out = [f"{name} ({e.note})" for name, e in estimates.items() if e.low is None]
  note = "left out: " + ", ".join(left_out) if left_out else None
  if not known:
    blank = dict.fromkeys(("domain", "accuracy", "low", "high", "risk", "n", "n_contexts"))
    return blank | {"note": note or "no domain was given"}
  accuracy, _, name = min(known)
  _, low, high, n, _ = estimates[name]
  found = {"domain": name, "accuracy": accuracy, "low": low, "high": high, "risk": 1 - accuracy}
  return found | {"n": len(correct[name]), "n_contexts": n, "note": note}


def paired_difference(
  a_N: Float[np.ndarray, "N"],
  b_N: Float[np.ndarray, "N"],
  *,
  seed: int,
  n_draws: int,
  level: float,
) -> Estimate:
  """The mean of a - b on the same examples, and its bootstrap interval over the examples."""
  return bootstrap_ci(a_N - b_N, seed=seed, n_draws=n_draws, level=level)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """P-values adjusted for their number: below 0.05 holds for all of them at once.

  Args:
    p_values: in [0, 1]; an undefined one (None) stays so, and is no test that was made.

  Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
  """
  made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
  adjusted: list[float | None] = [None] * len(p_values)
  highest = 0.0
  for rank, (p, i) in enumerate(made):
    # What is rejected later was harder to reject: adjusted values never fall.
    highest = max(highest, min(1.0, (len(made) - rank) * p))
    adjusted[i] = highest
  return adjusted


def _undefined(values_N: np.ndarray) -> Estimate | None:
  """What can be said of values that have no interval; None of those that have one."""
  n = len(values_N)
  n_broken = n - int(np.isfinite(values_N).sum())
  if n_broken:
    return Estimate(None, None, None, n, f"{n_broken} of {n} values are not finite")
  if n < 2:
    return Estimate(float(values_N[0]) if n else None, None, None, n, _too_few(n))
  if _are_equal(values_N):
    note = f"all {n} values are equal, which tells no spread"
    return Estimate(float(values_N[0]), None, None, n, note)
  return None


def _are_equal(values_N: np.ndarray) -> bool:
  """Up to rounding: differences of accuracies that are all one tenth are not bitwise so."""
  return bool(np.ptp(values_N) <= 1e-12 * max(1.0, np.abs(values_N).max()))


def _too_few(n: int) -> str:
  return f"an interval needs at least 2 values, got {n}"


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise InputError(f"level = {level} is no coverage: it lies between 0 and 1")
