"""What a linear probe reads of a label in a representation it was not fitted on."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from iclm.config import InputError
from iclm.evals import similarity, statistics


def probe(
  x_NZ: Float[np.ndarray, "N Z"],
  label_N: Int[np.ndarray, "N"],
  *,
  n_folds: int,
  ridge: float,
  level: float,
  seed: int,
) -> dict[str, Any]:
  """How well a linear probe tells the label of unseen rows, beside the most frequent label.

  Fisher's discriminant: class means under one covariance. Not least squares on one-hot labels,
  which never names the middle one of three classes on a line.

  Args:
    x_NZ: a representation, such as the invariant stream's.
    label_N: what it should not tell, such as the domain.
    n_folds: at least 2; every row is predicted once, from the other folds.
    ridge: > 0, added to the covariance of the representation, whose mean variance is 1.
    level: coverage of Wilson's interval, as if the predictions were independent.
    seed: of the folds, over which each label is spread evenly.

  Returns:
    {"accuracy", "low", "high", "majority", "n", "n_classes_skipped", "note"}; labels with fewer
    rows than folds are skipped. Accuracy is None, and `note` says why, when there is nothing to
    tell apart or to read.

  Raises:
    InputError: fewer than 2 folds, or no ridge.
  """
  if n_folds < 2 or ridge <= 0:
    raise InputError(f"a probe needs 2 folds and a ridge above 0, got {n_folds} and {ridge}")
  _, label_N, n_L = np.unique(label_N, return_inverse=True, return_counts=True)
  kept_L = n_L >= n_folds
  x_NZ, label_N = x_NZ[kept_L[label_N]], label_N[kept_L[label_N]]
  n, n_skipped = len(x_NZ), int((~kept_L).sum())
  note = f"{n_skipped} labels have fewer rows than {n_folds} folds" if n_skipped else None
  estimate = statistics.Estimate(None, None, None, n, None)
  if kept_L.sum() < 2:
    note = f"{kept_L.sum()} labels have {n_folds} rows or more: there is nothing to tell apart"
  elif not np.isfinite(x_NZ).all():
    note = "the representation is not finite"
  elif not similarity.standardise(x_NZ).any():
    note = "the representation is constant"
  else:
    n_right = _n_right(similarity.standardise(x_NZ), label_N, n_folds, ridge, seed)
    estimate = statistics.wilson_interval(n_right, n, level=level)
  figures = {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
  figures |= {"majority": float(n_L.max() / n) if n else None, "n": n}
  return figures | {"n_classes_skipped": n_skipped, "note": note}


def _n_right(x_NZ, label_N, n_folds: int, ridge: float, seed: int) -> int:
  """Rows whose label is predicted from the other folds."""
  rng = np.random.default_rng(seed)
  labels = np.unique(label_N)
  fold_N = np.zeros(len(label_N), int)
  for label in labels:
    rows = rng.permutation(np.flatnonzero(label_N == label))
    fold_N[rows] = np.arange(len(rows)) % n_folds
  n_right = 0
  for fold in range(n_folds):
    seen_N = fold_N != fold
    score_NL = _discriminant(x_NZ[seen_N], label_N[seen_N], labels, ridge, x_NZ[~seen_N])
    n_right += int((labels[score_NL.argmax(1)] == label_N[~seen_N]).sum())
  return n_right


def _discriminant(x_NZ, label_N, labels, ridge: float, new_MZ) -> Float[np.ndarray, "M L"]:
  """log p(x, label) up to a constant of the row: Gaussians of one covariance, at their shares."""
  member_NL = (label_N[:, None] == labels).astype(np.float64)
  n_L = member_NL.sum(0)
  mean_LZ = member_NL.T @ x_NZ / n_L[:, None]
  spread_NZ = x_NZ - member_NL @ mean_LZ
  cov_ZZ = spread_NZ.T @ spread_NZ / len(x_NZ) + ridge * np.eye(x_NZ.shape[1])
  weight_ZL = np.linalg.solve(cov_ZZ, mean_LZ.T)
  offset_L = np.log(n_L / len(x_NZ)) - 0.5 * (mean_LZ * weight_ZL.T).sum(1)
  return new_MZ @ weight_ZL + offset_L
