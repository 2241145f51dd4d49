"""Intervals and corrections against numbers derived by hand."""

import numpy as np
import pytest

from iclm.config import InputError
from iclm.evals import statistics

BOOT = {"seed": 0, "n_draws": 2_000}


def test_bootstrap_of_two_values():
  # Resamples of (0, 1) have the means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4. The quantiles at
  # 0.025 and 0.975 are hence 0 and 1, those at 0.3 and 0.7 are both 1/2.
  values_N = np.array([0.0, 1.0])
  assert statistics.bootstrap_ci(values_N, level=0.95, **BOOT) == (0.5, 0.0, 1.0, 2, None)
  assert statistics.bootstrap_ci(values_N, level=0.4, **BOOT) == (0.5, 0.5, 0.5, 2, None)


def test_bootstrap_of_clusters_draws_them_whole():
  # 40 questions on each of 10 contexts, all right or all wrong: 10 draws of a coin, not 400. The
  # standard error is 1/2 / sqrt(10) = 0.158, of 400 it would be 0.025.
  values_N, cluster_N = np.repeat([0.0, 1.0] * 5, 40), np.repeat(np.arange(10), 40)
  estimate = statistics.bootstrap_ci(values_N, level=0.95, cluster_N=cluster_N, **BOOT)
  assert estimate[:3] == pytest.approx((0.5, 0.2, 0.8)) and estimate.n == 400
  # Every value a cluster of its own is no cluster at all.
  own_N, some_N = np.arange(50), np.random.default_rng(0).normal(size=50)
  apart = statistics.bootstrap_ci(some_N, level=0.95, cluster_N=own_N, **BOOT)
  assert apart[:3] == pytest.approx(statistics.bootstrap_ci(some_N, level=0.95, **BOOT)[:3])
  # One context, and contexts that do not differ, tell no spread.
  for cluster_N, n in ((np.zeros(400, int), 1), (np.arange(400) // 80, 5)):
    found = statistics.bootstrap_ci(values_N, level=0.95, cluster_N=cluster_N, **BOOT)
    assert found == (
      0.5,
      None,
      None,
      400,
      f"{n} clusters of values with equal means tell no spread",
    )


def test_bootstrap_is_a_function_of_its_seed_and_has_the_standard_error():
  # The mean of 400 fair coins has the standard error 1/2 / sqrt(400) = 0.025: +- 0.049.
  values_N = np.tile([0.0, 1.0], 200)
  estimate = statistics.bootstrap_ci(values_N, level=0.95, **BOOT)
  assert estimate == statistics.bootstrap_ci(values_N, level=0.95, **BOOT)
  np.testing.assert_allclose(estimate[:3], [0.5, 0.451, 0.549], atol=0.005)


def test_t_interval_of_three_seeds():
  # Mean 2, deviation 1, standard error 1 / sqrt 3; Student's 0.975 quantile with 2 degrees of
  # freedom is 4.302653: +- 2.484138.
  estimate = statistics.t_interval(np.array([1.0, 2.0, 3.0]), level=0.95)
  np.testing.assert_allclose(estimate[:3], [2.0, 2 - 2.484138, 2 + 2.484138], rtol=1e-6)
  assert estimate.n == 3 and estimate.note is None


def test_wilson_interval_by_hand():
  # z^2 = 3.841459. 8 of 10: centre (0.8 + 0.192073) / 1.384146 = 0.716740, half-width
  # sqrt(3.841459 (0.016 + 0.009604)) / 1.384146 = 0.226577. 10 of 10: from 1 / 1.384146 to 1.
  estimate = statistics.wilson_interval(8, 10, level=0.95)
  np.testing.assert_allclose(estimate[:3], [0.8, 0.490163, 0.943317], atol=2e-5)
  estimate = statistics.wilson_interval(10, 10, level=0.95)
  np.testing.assert_allclose(estimate[:3], [1.0, 0.722467, 1.0], atol=1e-6)


def test_paired_difference_keeps_the_pairs():
  # a and b vary by far more than a - b, which is (1, 0) repeated: mean 1/2, as the coins above.
  b_N = np.arange(400.0)
  a_N = b_N + np.tile([0.0, 1.0], 200)
  estimate = statistics.paired_difference(a_N, b_N, level=0.95, **BOOT)
  np.testing.assert_allclose(estimate[:3], [0.5, 0.451, 0.549], atol=0.005)


def test_holm_by_hand():
  # Ascending: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, 0.04 -> 0.06 (never falls).
  np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
  # What was not tested does not count: 2 * 0.02, and 0.9 capped by nothing.
  assert statistics.holm([0.02, None, 0.9]) == [0.04, None, 0.9]
  assert statistics.holm([0.8, 0.7]) == [1.0, 1.0]
  assert statistics.holm([]) == []


@pytest.mark.parametrize(
  ("values", "value", "note"),
  [
    ([], None, "at least 2 values, got 0"),
    ([0.25], 0.25, "at least 2 values, got 1"),
    ([0.5, 0.5, 0.5], 0.5, "all 3 values are equal"),
    ([0.5, np.nan, np.inf], None, "2 of 3 values are not finite"),
  ],
)
def test_what_has_no_interval_says_why(values, value, note):
  values_N = np.array(values, float)
  for estimate in (
    statistics.bootstrap_ci(values_N, level=0.95, **BOOT),
    statistics.t_interval(values_N, level=0.95),
  ):
    assert estimate[:4] == (value, None, None, len(values)) and note in estimate.note


def test_an_accuracy_of_one_example_has_no_interval():
  assert statistics.wilson_interval(1, 1, level=0.95)[:3] == (1.0, None, None)
  assert statistics.wilson_interval(0, 0, level=0.95)[:3] == (None, None, None)


def test_bad_arguments_are_told():
  values_N = np.array([0.0, 1.0])
  with pytest.raises(InputError, match=r"95"):
    statistics.t_interval(values_N, level=95.0)
  with pytest.raises(InputError, match="0"):
    statistics.bootstrap_ci(values_N, seed=0, n_draws=0, level=0.95)
  with pytest.raises(InputError, match="3 right answers of 2"):
    statistics.wilson_interval(3, 2, level=0.95)


def test_the_worst_domain_is_the_lowest_that_can_be_told():
  right = {"a": np.arange(10) < 8, "b": np.arange(20) < 10, "c": np.zeros(1, bool)}
  of = lambda right, **n: statistics.worst_domain(
    right, {name: len(r) for name, r in right.items()} | n, level=0.95
  )
  result = of(right)
  assert result["domain"] == "b" and result["accuracy"] == result["risk"] == 0.5
  # Wilson at one half: 1/2 +- z / 2 sqrt(n + z^2), z = 1.96, n = 20.
  np.testing.assert_allclose(result["low"], 0.5 - 0.98 / (20 + 1.96**2) ** 0.5, atol=1e-4)
  assert result["n"] == 20 and "c (an interval needs at least 2 values, got 1)" in result["note"]
  # Five contexts of four questions tell as much as five answers.
  shared = of(right, b=5)
  np.testing.assert_allclose(shared["low"], 0.5 - 0.98 / (5 + 1.96**2) ** 0.5, atol=1e-4)
  assert shared["accuracy"] == 0.5 and (shared["n"], shared["n_contexts"]) == (20, 5)
  nothing = of({"c": np.zeros(0, bool)})
  assert nothing["domain"] is nothing["risk"] is None and "c" in nothing["note"]
  assert of({})["note"] == "no domain was given"
