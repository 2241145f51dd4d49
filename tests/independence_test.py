"""Messages whose dependence is known, and messages that no estimator should speak about."""

import json

import numpy as np
import pytest

from iclm.config import InputError
from iclm.evals import independence, probing, similarity
from iclm.evals.independence import Pair

N = 96
SETTINGS = {"n_permutations": 99, "n_features": 16, "n_states": 4, "seed": 0}
PROBE = {"n_folds": 5, "ridge": 1e-3, "level": 0.95, "seed": 0}


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def report(*pairs, **changes):
  rows = independence.report(pairs, **SETTINGS | changes)
  assert "NaN" not in json.dumps(rows)
  return {(row["pair"], row["estimator"]): row for row in rows}


def p_values(draw, n):
  """(nHSIC, MI) for n draws of a pair."""
  rows = report(*(Pair(str(i), *draw(i)) for i in range(n)))
  return np.array([[rows[str(i), e]["p"] for e in ("nhsic", "joint_mi")] for i in range(n)])


# The null.


def test_independent_messages_are_called_so():
  # 95 of 100 on average: a p-value is at most 0.05 in one of twenty draws.
  p = p_values(lambda i: (normal(2 * i, N, 3), normal(2 * i + 1, N, 3), None), 100)
  assert ((p > 0.05).sum(0) >= 85).all()


def test_dependent_messages_are_called_so():
  def draw(i):
    x_NZ = normal(2 * i, N, 3)
    return x_NZ, x_NZ + normal(2 * i + 1, N, 3), None

  p = p_values(draw, 20)
  assert (p == 0.01).mean() > 0.9  # The lowest that 99 permutations can give.


def common_cause(i):
  label_N = np.arange(N) % 2
  cause_NZ = np.repeat(2.0 * label_N[:, None] - 1, 3, axis=1).astype(np.float32)
  return cause_NZ + normal(2 * i, N, 3), cause_NZ + normal(2 * i + 1, N, 3), label_N


def test_a_common_cause_is_seen_without_the_label_and_not_given_it():
  p = p_values(lambda i: (*common_cause(i)[:2], None), 20)
  assert (p <= 0.05).all()
  # Permuting within the label keeps what the label explains on both sides of the comparison.
  p = p_values(common_cause, 40)
  assert ((p > 0.05).mean(0) >= 0.85).all()


def test_a_collider_is_seen_given_the_label_only():
  # The label is the exclusive or of two coins: each is a function of the other given it.
  a_N, b_N = np.random.default_rng(1).integers(0, 2, (2, N))
  x_NZ, y_NZ = (
    np.float32(2.0 * z_N[:, None] - 1) + np.zeros((1, 3), np.float32) for z_N in (a_N, b_N)
  )
  rows = report(Pair("none", x_NZ, y_NZ, None), Pair("given", x_NZ, y_NZ, a_N ^ b_N))
  for estimator in ("nhsic", "joint_mi"):
    assert rows["none", estimator]["p"] > 0.05 and rows["given", estimator]["p"] == 0.01
  np.testing.assert_allclose(rows["given", "nhsic"]["value"], 1.0, atol=1e-3)
  assert rows["given", "joint_mi"]["value"] > 0.6  # ln 2 = 0.693 where the coin is fair.


def test_equal_draws_count_as_high():
  # x is 1 in two rows of 96, y in half of the rows and in both of those. A permutation puts both
  # in one half with probability 47 / 95, and then the dependence is the same as here, but for the
  # order of the sums. 99 draws: a standard error of 0.05.
  x_NZ, y_NZ = np.zeros((2, N, 3), np.float32)
  x_NZ[:2], y_NZ[: N // 2] = 1.0, 1.0
  rows = report(Pair("p", x_NZ, y_NZ, None))
  for estimator in ("nhsic", "joint_mi"):
    np.testing.assert_allclose(rows["p", estimator]["p"], 47 / 95, atol=0.15)


def test_the_null_of_the_information_is_its_bias():
  # Independent, 4 x 4 states, 96 rows: (4 - 1)^2 / 192 = 0.047 nats; twice that in two halves.
  x_NZ, y_NZ, half_N = normal(1, N, 3), normal(2, N, 3), np.arange(N) % 2
  rows = report(Pair("all", x_NZ, y_NZ, None), Pair("halves", x_NZ, y_NZ, half_N))
  whole, halves = rows["all", "joint_mi"], rows["halves", "joint_mi"]
  np.testing.assert_allclose(whole["null_mean"], 9 / 192, rtol=0.15)
  np.testing.assert_allclose(halves["null_mean"], 9 / 96, rtol=0.25)  # To first order in 1 / n.
  # 9 / (2 * 0.05) = 90 rows keep it below 0.05 nats: there are 96, and then 48.
  assert whole["n_needed"] == halves["n_needed"] == 90
  assert whole["note"] is None and "48 rows in a class, 90 keep the bias" in halves["note"]


def test_a_class_does_not_use_up_the_symbols():
  # Two classes far apart: symbols of the messages themselves would name the class and no more.
  label_N = np.arange(N) % 2
  x_NZ = normal(3, N, 3)
  shift_NZ = 100.0 * np.repeat(label_N[:, None], 3, axis=1).astype(np.float32)
  rows = report(Pair("p", x_NZ + shift_NZ, x_NZ + shift_NZ, label_N), n_states=2)
  # Two symbols, about as frequent and equal in both messages: ln 2 = 0.69.
  assert rows["p", "joint_mi"]["value"] > 0.6 and rows["p", "joint_mi"]["p"] == 0.01


def test_identical_experts_and_the_same_report_twice():
  x_NZ = normal(4, N, 3)
  pair = Pair("same", x_NZ, x_NZ, None)
  rows = report(pair)
  np.testing.assert_allclose(rows["same", "nhsic"]["value"], 1.0, atol=1e-4)
  np.testing.assert_allclose(rows["same", "cka"]["value"], 1.0, rtol=1e-6)
  assert rows["same", "club"]["value"] is None and "infinite" in rows["same", "club"]["note"]
  assert rows["same", "nhsic"]["p"] == rows["same", "joint_mi"]["p"] == 0.01
  assert 1.2 < rows["same", "joint_mi"]["value"] <= np.log(4)  # The entropy of the symbols.
  assert rows["same", "nhsic"]["null_p95"] < 0.1
  assert rows["same", "cka"]["p"] is rows["same", "cka"]["null_p95"] is None
  assert (
    report(Pair("other", x_NZ, normal(5, N, 3), None), pair)["same", "nhsic"]
    == (rows["same", "nhsic"])
  )


# What no estimator should speak about.


def test_small_and_constant_classes_are_skipped_and_named():
  # Classes of 33, 31 and 32 rows; in the last, x says nothing.
  label_N = np.repeat([0, 1, 7], [33, 31, 32])
  x_NZ, y_NZ = normal(6, N, 3), normal(7, N, 3)
  x_NZ[label_N == 7] = 1000.1
  rows = report(Pair("p", x_NZ, y_NZ, label_N))
  for row in rows.values():
    assert row["n"] == 33 and row["n_classes"] == 1 and row["n_classes_skipped"] == 2
    assert "fewer than 32 rows in class 1" in row["note"]
    assert "x is constant up to single rows in class 7" in row["note"]
    assert row["value"] is not None
  many = report(Pair("p", x_NZ, y_NZ, np.arange(N)))["p", "nhsic"]
  assert many["value"] is None and many["note"] == f"fewer than 32 rows in {N} classes"
  assert "bias" in rows["p", "joint_mi"]["note"]  # 33 rows where 4 x 4 states need 90.


@pytest.mark.parametrize(
  ("x_NZ", "note"),
  [
    (np.full((N, 3), 1000.1, np.float32), "x is constant"),
    (np.eye(N, 1, dtype=np.float32) * np.ones((1, 3), np.float32), "x is constant"),
    (np.full((N, 3), np.nan, np.float32), "x is not finite"),
    (normal(8, 31, 3), "fewer than 32 rows"),
    (normal(8, 0, 3), "no rows"),
  ],
  ids=["constant", "one row differs", "nan", "few", "none"],
)
def test_undefined_pairs_have_no_value_and_a_reason(x_NZ, note):
  for row in report(Pair("p", x_NZ, normal(9, len(x_NZ), 3), None)).values():
    assert row["value"] is row["p"] is row["null_p95"] is None and row["n"] == 0
    assert note in row["note"]


def test_too_few_rows_for_one_estimator_alone():
  rows = report(Pair("p", normal(10, 40, 20), normal(11, 40, 20), None), n_states=50)
  assert rows["p", "nhsic"]["value"] is not None
  assert rows["p", "joint_mi"]["note"] == "40 rows cannot fill 50 symbols"
  assert rows["p", "club"]["note"] == "fewer rows than the fit needs"
  assert rows["p", "club"]["n_needed"] == 42  # Two widths of 20, the class mean, and one more.


def test_bad_settings_are_refused():
  with pytest.raises(InputError, match="at least 19"):
    report(n_permutations=18)
  with pytest.raises(InputError, match="65"):
    report(n_states=65)
  with pytest.raises(InputError, match=r"'p' .* 'y_NY': 39"):
    report(Pair("p", normal(0, 40, 2), normal(1, 39, 2), None))


# Plain values.


def test_cka_by_hand():
  # Orthogonal columns of two +-1 patterns: X = (a, 2b), Y = a. |X^T Y|^2 = n^2,
  # |X^T X| = n sqrt(1 + 16), |Y^T Y| = n.
  a_N1, b_N1 = np.tile([[1.0], [-1.0]], (8, 1)), np.repeat([[1.0], [-1.0]], 8, axis=0)
  x_NZ = np.hstack([a_N1, 2 * b_N1])
  np.testing.assert_allclose(similarity.linear_cka(x_NZ, a_N1), 17**-0.5)
  np.testing.assert_allclose(similarity.linear_cka(x_NZ, 5 - 3 * x_NZ[:, ::-1]), 1.0)
  assert similarity.linear_cka(a_N1, b_N1) == 0.0
  assert similarity.linear_cka(a_N1, np.ones((16, 1))) is None


def test_club_by_hand():
  # y = a + b with a, b orthogonal: x = a explains half, r^2 = 1/2, so the bound is 1 where
  # Gaussians would share ln(2) / 2. Whatever scales and mixes columns does not matter.
  a_N1, b_N1 = np.tile([[1.0], [-1.0]], (8, 1)), np.repeat([[1.0], [-1.0]], 8, axis=0)
  y_N1 = a_N1 + b_N1
  np.testing.assert_allclose(similarity.club(a_N1, y_N1), 1.0)
  wide_NY = np.hstack([7 * y_N1 + 2, -y_N1, np.ones((16, 1))])
  np.testing.assert_allclose(similarity.club(3 * a_N1, wide_NY), 1.0)
  np.testing.assert_allclose(similarity.club(a_N1, b_N1), 0.0, atol=1e-12)
  assert similarity.club(a_N1, 2 * a_N1) is None


def test_club_is_the_contrast_of_log_likelihoods():
  # The definition, with a Gaussian q of full covariance fitted by least squares.
  x_NZ, noise_NY = normal(12, 50, 3).astype(float), normal(13, 50, 2)
  y_NY = x_NZ[:, :2] + noise_NY
  x_NZ, y_NY = x_NZ - x_NZ.mean(0, keepdims=True), y_NY - y_NY.mean(0, keepdims=True)
  mean_NY = x_NZ @ np.linalg.lstsq(x_NZ, y_NY, rcond=None)[0]
  precision_YY = np.linalg.inv((y_NY - mean_NY).T @ (y_NY - mean_NY) / 50)
  gap_NNY = y_NY[None] - mean_NY[:, None]
  log_q_NN = -0.5 * np.einsum("ijy,yz,ijz->ij", gap_NNY, precision_YY, gap_NNY)
  direct = np.diag(log_q_NN).mean() - log_q_NN.mean()
  np.testing.assert_allclose(similarity.club(x_NZ, y_NY), direct, rtol=1e-6)


# The probe and the worst domain.


def test_the_probe_names_all_of_three_classes_on_a_line():
  label_N = np.repeat([0, 1, 2], [30, 30, 60])
  x_NZ = (label_N[:, None] * 10.0 + normal(14, 120, 1)).astype(np.float32)
  result = probing.probe(x_NZ, label_N, **PROBE)
  assert result["accuracy"] == 1.0 and result["majority"] == 0.5 and result["note"] is None
  assert result["low"] > 0.95 and result["high"] == 1.0


def test_the_probe_reads_a_known_share():
  # Two unit Gaussians two apart, equally frequent: the best rule is right with Phi(1) = 0.841.
  label_N = np.arange(4_000) % 2
  x_NZ = (2.0 * label_N[:, None] * np.eye(1, 3) + normal(15, 4_000, 3)).astype(np.float32)
  result = probing.probe(x_NZ, label_N, **PROBE)
  np.testing.assert_allclose(result["accuracy"], 0.841, atol=0.02)
  assert result["low"] < 0.841 < result["high"]


def test_the_probe_finds_nothing_in_noise_however_wide():
  # 64 columns for 100 rows fit the label on the rows seen; on the others it is a coin.
  label_N = np.arange(100) % 2
  result = probing.probe(normal(16, 100, 64), label_N, **PROBE)
  assert result["low"] < 0.5 < result["high"] and result["majority"] == 0.5


def test_the_probe_reads_a_one_hot_domain_that_has_no_spread():
  label_N = np.arange(60) % 3
  assert probing.probe(np.eye(3)[label_N], label_N, **PROBE)["accuracy"] == 1.0


@pytest.mark.parametrize(
  ("x_NZ", "label_N", "note"),
  [
    (np.full((20, 2), 0.1), np.arange(20) % 2, "the representation is constant"),
    (np.full((20, 2), np.nan), np.arange(20) % 2, "not finite"),
    (normal(17, 20, 2), np.zeros(20, int), "1 labels have 5 rows or more"),
    (normal(17, 4, 2), np.arange(4), "0 labels"),
  ],
)
def test_what_cannot_be_probed_says_why(x_NZ, label_N, note):
  result = probing.probe(x_NZ, label_N, **PROBE)
  assert result["accuracy"] is result["low"] is None and note in result["note"]
  assert "NaN" not in json.dumps(result)


def test_rare_labels_are_skipped_and_counted():
  label_N = np.repeat([0, 1, 2], [10, 10, 4])
  result = probing.probe(label_N[:, None].astype(float), label_N, **PROBE)
  assert result["n"] == 20 and result["n_classes_skipped"] == 1 and "fewer rows" in result["note"]
