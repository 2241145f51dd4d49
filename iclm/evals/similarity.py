"""How alike two representations are: plain values, of which chance alone makes more than 0."""

import numpy as np
from jaxtyping import Float

_ROUNDING = 1e-6  # A spread, relative to the largest entry, that float32 arithmetic explains.


def standardise(x_NZ: Float[np.ndarray, "N Z"]) -> Float[np.ndarray, "N Z"]:
  """Columns of mean 0 whose mean variance is 1, in float64; 0 where constant up to rounding."""
  spread_NZ = x_NZ.astype(np.float64) - x_NZ.mean(0, dtype=np.float64)
  rms = np.sqrt(np.square(spread_NZ).mean())
  if rms <= _ROUNDING * np.abs(x_NZ).max():
    return np.zeros_like(spread_NZ)
  return spread_NZ / rms


def linear_cka(x_NZ: Float[np.ndarray, "N Z"], y_NY: Float[np.ndarray, "N Y"]) -> float | None:
  """How alike two representations are up to rotation and scale: |X^T Y|^2 / |X^T X| |Y^T Y|.

  Returns:
    In [0, 1]; about sqrt(Z Y) / N for independent ones, not 0. None where one is constant.

  Source: Kornblith et al., "Similarity of neural network representations revisited", arXiv
  1905.00414, section 3.
  """
  x_NZ, y_NY = standardise(x_NZ), standardise(y_NY)
  norms = np.linalg.norm(x_NZ.T @ x_NZ) * np.linalg.norm(y_NY.T @ y_NY)
  return float(np.square(x_NZ.T @ y_NY).sum() / norms) if norms else None


def club(x_NZ: Float[np.ndarray, "N Z"], y_NY: Float[np.ndarray, "N Y"]) -> float | None:
  """The contrastive log-ratio bound on the mutual information, in nats, for a Gaussian q(y | x).

  With q the least-squares fit of y on x and a full covariance, the mean of log q(y | x) over the
  pairs less that over all N^2 of them is the sum of r^2 / (1 - r^2) over the canonical
  correlations r. Of Gaussians it bounds the information, -sum of ln(1 - r^2) / 2, from above.

  Returns:
    About Z Y / N for independent messages, as q is fitted to the rows it judges. None where one
    is constant, or a direction of y is linear in x and the bound infinite: always, up to N = Z + Y.

  Source: Cheng et al., arXiv 2006.12013, section 3.2. Deviation: a linear q in closed form in
  place of a network, so a nonlinear dependence is not seen.
  """
  r_K = np.linalg.svd(_basis(x_NZ).T @ _basis(y_NY), compute_uv=False)
  if not len(r_K) or r_K.max() > 1 - 1e-6:
    return None
  return float((r_K**2 / (1 - r_K**2)).sum())


def _basis(x_NZ: np.ndarray) -> Float[np.ndarray, "N K"]:
  """Orthonormal columns that span the centred ones."""
  u_NK, s_K, _ = np.linalg.svd(standardise(x_NZ), full_matrices=False)
  return u_NK[:, s_K > 1e-6 * max(s_K[0], 1e-6)]
