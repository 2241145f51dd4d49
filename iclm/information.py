"""How much a message carries, and how much two messages share: arrays in, nats or a ratio out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, Shaped

from iclm.config import InputError

MIN_CLASS = 32  # Samples below which a conditional dependence is skipped, not guessed.
MAX_STATES = 64  # Above it the plug-in bias of `joint_mi`, (C - 1)^2 / 2n, hides what it measures.
_DEGENERATE = 1e-12  # A squared distance, or a product of two self-dependences, that counts as 0.


class Dependence(NamedTuple):
  """A dependence and what it stands on; `n_used == 0` says that `value` is undefined."""

  value: Float[Array, ""]
  n_used: Int32[Array, ""]
  n_skipped: Int32[Array, ""]


def gaussian_rate(
  mu_Z: Float[Array, "*N Z"], log_sigma_Z: Float[Array, "*N Z"]
) -> Float[Array, "*N"]:
  """KL(N(mu, sigma^2) || N(0, I)): an upper bound on the nats that a message carries.

  Args:
    mu_Z: means of the message.
    log_sigma_Z: logarithms of its standard deviations.

  Returns:
    Nats per position, summed over Z; 0 where the message is the prior.

  Source: Alemi et al., "Deep variational information bottleneck", arXiv 1612.00410, section 3.
  """
  mu_Z, log_sigma_Z = mu_Z.astype(jnp.float32), log_sigma_Z.astype(jnp.float32)
  # expm1: the sum sigma^2 - 1 - log sigma^2 loses its digits near the prior.
  nats_Z = 0.5 * (jnp.square(mu_Z) + jnp.expm1(2 * log_sigma_Z)) - log_sigma_Z
  return nats_Z.sum(-1)


def sample_message(
  key: PRNGKeyArray | None, mu_Z: Float[Array, "*N Z"], log_sigma_Z: Float[Array, "*N Z"]
) -> Float[Array, "*N Z"]:
  """A draw from N(mu, sigma^2), differentiable in both; the mean when there is no key."""
  if key is None:
    return mu_Z
  return mu_Z + jnp.exp(log_sigma_Z) * jax.random.normal(key, mu_Z.shape, mu_Z.dtype)


def nhsic(
  x_NZ: Float[Array, "N Z"],
  y_NY: Float[Array, "N Y"],
  mask_N: Shaped[Array, "N"],
  key: PRNGKeyArray,
  n_features: int,
) -> Float[Array, ""]:
  """Normalised dependence of two messages: about 0 when independent, 1 when one is the other.

  The numerator is unbiased, so independent messages average to 0 at any N and single values may
  be negative. Invariant to shifts and scales of either message. Time N * F^2, memory (N + F) * F.

  Args:
    x_NZ: one message.
    y_NY: the other; equal widths share their random frequencies, hence 1 for equal messages.
    mask_N: non-zero where the row counts.
    key: draws the frequencies.
    n_features: frequencies per message; F = 2 * n_features.

  Returns:
    A ratio in [-1, 1]; 0 below four rows or when a message is constant. Gradients are finite.

  Source: Song et al., "Feature selection via dependence maximization", JMLR 2012, equation 5
  (unbiased HSIC); Rahimi and Recht, NeurIPS 2007 (features). Deviation: bandwidth from the mean
  squared distance in place of the median one, without a gradient.
  """
  member_NG = (mask_N > 0)[:, None].astype(jnp.float32)
  return _nhsic_per_class(x_NZ, y_NY, member_NG, key, n_features)[0]


def dependence(
  x_NZ: Float[Array, "N Z"],
  y_NY: Float[Array, "N Y"],
  mask_N: Shaped[Array, "N"],
  groups_N: Int[Array, "N"] | None,
  n_groups: int,
  key: PRNGKeyArray,
  n_features: int,
) -> Dependence:
  """`nhsic`, unconditional or given a class, averaged over the classes large enough to tell.

  Which class to condition on depends on the causal graph: the label for two copies of a common
  cause, nothing where the label is a common effect. Memory G * F * (N + F), time G * N * F^2 for
  G classes: made for G up to about 64.

  Args:
    x_NZ, y_NY, mask_N, key, n_features: see `nhsic`.
    groups_N: class ids; a row outside [0, n_groups) counts in no class. None: unconditional.
    n_groups: number of classes; not looked at when `groups_N` is None.

  Returns:
    value: mean of the classes weighted by their rows; 0, as a loss, when no class is used.
    n_used: classes with at least `MIN_CLASS` rows; 0 says that `value` is undefined.
    n_skipped: classes with fewer rows, but some.
  """
  member_NG = (mask_N > 0)[:, None].astype(jnp.float32)
  if groups_N is not None:
    member_NG = member_NG * jax.nn.one_hot(groups_N, n_groups)
  value_G = _nhsic_per_class(x_NZ, y_NY, member_NG, key, n_features)
  n_G = member_NG.sum(0)
  used_G = n_G >= MIN_CLASS
  weight_G = jnp.where(used_G, n_G, 0.0)
  value = (weight_G * value_G).sum() / jnp.maximum(weight_G.sum(), 1.0)
  n_skipped = ((n_G > 0) & ~used_G).sum(dtype=jnp.int32)
  return Dependence(value, used_G.sum(dtype=jnp.int32), n_skipped)


def dependence_by_order(
  x_NZ: Float[Array, "N Z"],
  y_NY: Float[Array, "N Y"],
  groups_N: Int[Array, "N"],
  rows_GM: Int[Array, "G M"],
  order_PN: Int[Array, "P N"],
  key: PRNGKeyArray,
  n_features: int,
) -> Float[Array, "P"]:
  """`dependence` of x and y[order] given a class, for each order: what chance makes of it.

  An order permutes y within its classes, so that features and norms stay as they are and only the
  products of x and y are new: time P * G * M * F^2, where `dependence` takes P * G * N * F^2.

  Args:
    x_NZ, y_NY, key, n_features: see `nhsic`.
    groups_N: class ids; a row outside [0, G) counts in no class.
    rows_GM: the rows of each class, and N behind them; every class has at least `MIN_CLASS`.
    order_PN: permutations of range(N), each of which keeps every row's class.
  """
  member_NG = jax.nn.one_hot(groups_N, len(rows_GM))
  x_NF, y_NF = (_features(z_NZ, member_NG, key, n_features) for z_NZ in (x_NZ, y_NY))
  norm_G = _hsic_per_class(x_NF, x_NF, member_NG) * _hsic_per_class(y_NF, y_NF, member_NG)
  n_G = member_NG.sum(0)
  # Row N, behind the last one, is read as zeros.
  by_class = lambda z_NF: jnp.take(z_NF, rows_GM, axis=0, mode="fill", fill_value=0.0)
  x_GMF = by_class(x_NF)
  k_GM = jnp.square(x_GMF).sum(2)

  def under(order_N):
    y_GMF = by_class(y_NF[order_N])
    l_GM = jnp.square(y_GMF).sum(2)
    cross_GFF = jnp.einsum("gmf,gmh->gfh", x_GMF, y_GMF, precision="highest")
    xy_G = _hsic(cross_GFF, (k_GM * l_GM).sum(1), k_GM.sum(1), l_GM.sum(1), n_G)
    return (n_G * _normalised(xy_G, norm_G, n_G)).sum() / n_G.sum()

  return jax.lax.map(under, order_PN)


def joint_mi(
  p_NC: Float[Array, "N C"], q_NC: Float[Array, "N K"], mask_N: Shaped[Array, "N"]
) -> Float[Array, ""]:
  """Mutual information of two soft symbols: KL(joint || product of the marginals).

  The joint is the mean of the outer products, one GEMM. No clamp: an impossible pair adds 0, with
  gradient 0. Plug-in estimate: too high by about (C - 1)^2 / 2n nats for n independent draws.

  Args:
    p_NC: distributions, rows sum to 1.
    q_NC: distributions, rows sum to 1; its number of states may be another.
    mask_N: non-zero where the row counts.

  Returns:
    Nats, at least 0 up to rounding; 0 when the mask is empty.

  Raises:
    InputError: more than `MAX_STATES` states.
  """
  n_states = max(p_NC.shape[-1], q_NC.shape[-1])
  if n_states > MAX_STATES:
    raise InputError(f"joint_mi of {n_states} states is mostly bias: use at most {MAX_STATES}")
  counts_N1 = (mask_N > 0)[:, None]
  p_NC = jnp.where(counts_N1, p_NC.astype(jnp.float32), 0.0)
  q_NC = jnp.where(counts_N1, q_NC.astype(jnp.float32), 0.0)
  joint_CC = jnp.matmul(p_NC.T, q_NC, precision="highest") / jnp.maximum(counts_N1.sum(), 1)
  possible_CC = joint_CC > 0
  # Logarithms of 1 where a pair is impossible: the gradient of 0 log 0 would be NaN.
  log_joint_CC, log_p_CC, log_q_CC = (
    jnp.log(jnp.where(possible_CC, jnp.broadcast_to(x_CC, joint_CC.shape), 1.0))
    for x_CC in (joint_CC, joint_CC.sum(1, keepdims=True), joint_CC.sum(0, keepdims=True))
  )
  return (joint_CC * (log_joint_CC - log_p_CC - log_q_CC)).sum()


def _nhsic_per_class(x_NZ, y_NY, member_NG, key, n_features) -> Float[Array, "G"]:
  """`nhsic` within each class; `member_NG` holds 1 where row n counts in class g, else 0."""
  # One key for both: messages of equal width meet the same kernel.
  x_NF = _features(x_NZ, member_NG, key, n_features)
  y_NF = _features(y_NY, member_NG, key, n_features)
  xy_G = _hsic_per_class(x_NF, y_NF, member_NG)
  norm_G = _hsic_per_class(x_NF, x_NF, member_NG) * _hsic_per_class(y_NF, y_NF, member_NG)
  return _normalised(xy_G, norm_G, member_NG.sum(0))


def _normalised(xy_G, norm_G, n_G) -> Float[Array, "G"]:
  """The ratio of nHSIC; 0 where it is undefined."""
  defined_G = (norm_G > _DEGENERATE) & (n_G >= 4)
  return jnp.where(defined_G, xy_G / jnp.sqrt(jnp.where(defined_G, norm_G, 1.0)), 0.0)


def _features(x_NZ, member_NG, key, n_features) -> Float[Array, "N F"]:
  """Random Fourier features of a Gaussian kernel, centred within each class, 0 outside of all.

  The kernel is exp(-d^2 / m), m the mean squared distance of two rows of the class.
  """
  counts_N1 = member_NG.sum(1, keepdims=True) > 0
  x_NZ = jnp.where(counts_N1, x_NZ.astype(jnp.float32), 0.0)
  # The kernel is invariant to a shift, so the gradient need not know of this one.
  x_NZ = x_NZ - jax.lax.stop_gradient(_class_mean(x_NZ, member_NG))
  power_N1 = jnp.square(x_NZ).sum(1, keepdims=True)
  m_N1 = jax.lax.stop_gradient(2 * _class_mean(power_N1, member_NG))
  m_N1 = jnp.where(m_N1 > _DEGENERATE, m_N1, 1.0)
  w_ZF = jax.random.normal(key, (x_NZ.shape[1], n_features)) * jnp.sqrt(2.0)
  # Full precision throughout: U-statistics are small differences, which TPUs' bfloat16 would lose.
  phase_NF = jnp.matmul(x_NZ * jax.lax.rsqrt(m_N1), w_ZF, precision="highest")
  phi_NF = jnp.concatenate([jnp.cos(phase_NF), jnp.sin(phase_NF)], 1) * n_features**-0.5
  return jnp.where(counts_N1, phi_NF - _class_mean(phi_NF, member_NG), 0.0)


def _class_mean(x_NF, member_NG) -> Float[Array, "N F"]:
  """For each row, the mean of the rows of its class; 0 for a row of none."""
  share_NG = member_NG / jnp.maximum(member_NG.sum(0, keepdims=True), 1.0)
  mean_GF = jnp.matmul(share_NG.T, x_NF, precision="highest")
  return jnp.matmul(member_NG, mean_GF, precision="highest")


def _hsic_per_class(x_NF, y_NF, member_NG) -> Float[Array, "G"]:
  """Unbiased HSIC within each class, from features centred there."""
  k_N, l_N = jnp.square(x_NF).sum(1), jnp.square(y_NF).sum(1)
  cross_GFF = jnp.einsum("ng,nf,nh->gfh", member_NG, x_NF, y_NF, precision="highest")
  kl_G, k_G, l_G = jnp.matmul(jnp.stack([k_N * l_N, k_N, l_N]), member_NG, precision="highest")
  return _hsic(cross_GFF, kl_G, k_G, l_G, member_NG.sum(0))


def _hsic(cross_GFF, kl_G, k_G, l_G, n_G) -> Float[Array, "G"]:
  """Unbiased HSIC of n rows, from X^T Y of centred features and sums of the kernels' diagonals.

  Song's U-statistic does not change when a_i + a_j is added to the off-diagonal of a kernel, so
  features may be centred. Their kernel's rows then sum to 0, and with k_i, l_i its diagonals

    n (n - 3) HSIC = |X^T Y|^2 - n / (n - 2) sum k_i l_i + sum k_i sum l_i / ((n - 1)(n - 2)).
  """
  n_G = jnp.maximum(n_G, 4.0)
  same_G = n_G / (n_G - 2) * kl_G
  total_G = k_G * l_G / ((n_G - 1) * (n_G - 2))
  return (jnp.square(cross_GFF).sum((1, 2)) - same_G + total_G) / (n_G * (n_G - 3))
