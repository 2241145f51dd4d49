"""How dependent two messages are, beside what chance gives.

A diagnostic, never a proof of independent mechanisms. Rows are taken as independent draws, one per
prompt: several answers on one context would make every null too narrow. Messages are sampled ones:
the estimators do not feel a scale, so a mean of 1e-6 nats would be as loud as one of 1.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from iclm import information, progress
from iclm.config import InputError
from iclm.evals import similarity
from iclm.routing import prototypes

ESTIMATORS = ("nhsic", "joint_mi", "cka", "club")
BIAS_NATS = 0.05  # The plug-in bias of the mutual information above which its row says so.
MAX_NAMED = 8  # Classes that a note names; of more it says how many.
_TIE = 1e-5  # Draws that differ by less are equal: float32 sums depend on their order.


class Pair(NamedTuple):
  """Two messages of the same inputs, and the class within which they are compared."""

  name: str
  x_NZ: Float[np.ndarray, "N Z"]
  y_NY: Float[np.ndarray, "N Y"]
  class_N: Int[np.ndarray, "N"] | None  # None: unconditional. Which is right: see `information`.


class _Usable(NamedTuple):
  """A pair without what cannot be estimated: rows of a skipped class are of class -1."""

  x_NZ: np.ndarray
  y_NY: np.ndarray
  class_N: np.ndarray
  n_classes: int  # Those that are used.
  n_skipped: int
  note: str | None

  @property
  def n(self) -> int:
    return int((self.class_N >= 0).sum())

  @property
  def member_GN(self) -> np.ndarray:
    return self.class_N[None] == np.arange(self.n_classes)[:, None]

  def residuals(self) -> tuple[np.ndarray, np.ndarray]:
    """Both messages less their class means; 0 in the rows that are not used."""
    member_GN = self.member_GN.astype(np.float64)
    share_GN = member_GN / member_GN.sum(1, keepdims=True)
    used_N1 = (self.class_N >= 0)[:, None]
    x_NZ, y_NY = (
      np.where(used_N1, z_NZ - member_GN.T @ (share_GN @ z_NZ), 0.0)
      for z_NZ in (self.x_NZ, self.y_NY)
    )
    return x_NZ, y_NY


def report(
  pairs: Sequence[Pair], *, n_permutations: int, n_features: int, n_states: int, seed: int
) -> list[dict[str, Any]]:
  """Four JSON-able rows per pair: nHSIC and forward MI beside their nulls, CKA and CLUB plain.

  A row holds pair, estimator, value, null_mean, null_p95, p, n, n_classes, n_classes_skipped,
  n_needed and note. Values are over the classes of at least `information.MIN_CLASS` rows in which
  neither message is constant. What is undefined is None, and `note` says why. `null_mean` is what
  the estimator reads at this size when there is nothing: for MI, its plug-in bias of about
  (C - 1)^2 / 2n nats per class. `n_needed` is rows per class.

  Args:
    pairs: any number; each gets the null that it would get alone.
    n_permutations: of y within its class, at least 19, so that p = 1 / (1 + n) can reach 0.05.
    n_features: random frequencies of nHSIC; time grows with its square.
    n_states: symbols per message for MI, in [2, `information.MAX_STATES`].
    seed: of the permutations, the frequencies and the symbols.

  Raises:
    InputError: too few permutations, a number of states out of range, or a pair of unequal lengths.

  Source: p-values after Phipson and Smyth, "Permutation p-values should never be zero", 2010.
  """
  if n_permutations < 19:
    raise InputError(f"{n_permutations} permutations cannot give p <= 0.05: use at least 19")
  if not 2 <= n_states <= information.MAX_STATES:
    raise InputError(f"n_states = {n_states} is not in [2, {information.MAX_STATES}]")
  rows = []
  for pair in progress.watch(pairs, len(pairs), "pairs of messages compared"):
    _check_lengths(pair)
    usable = _usable(pair, seed, n_features)
    found: dict[str, dict[str, Any]] = {name: {} for name in ESTIMATORS}
    if usable.n_classes:
      order_PN = _orders(usable.class_N, n_permutations, seed)
      found["nhsic"] = _nhsic_row(usable, order_PN, seed, n_features)
      found["joint_mi"] = _mi_row(usable, order_PN, seed, n_states)
      found["cka"] = {"value": similarity.linear_cka(*usable.residuals())}
      found["club"] = _club_row(usable)
    rows += [_row(pair.name, name, usable, row) for name, row in found.items()]
  return rows


def _check_lengths(pair: Pair) -> None:
  lengths = {"x_NZ": len(pair.x_NZ), "y_NY": len(pair.y_NY)}
  if pair.class_N is not None:
    lengths["class_N"] = len(pair.class_N)
  if len(set(lengths.values())) > 1:
    raise InputError(f"pair {pair.name!r} needs arrays of one length, got {lengths}")


def _usable(pair: Pair, seed: int, n_features: int) -> _Usable:
  """Skips the classes that tell nothing, and says which they are."""
  messages = {"x": pair.x_NZ, "y": pair.y_NY}
  class_N = np.zeros(len(pair.x_NZ), int) if pair.class_N is None else pair.class_N
  names_G, class_N, n_G = np.unique(class_N, return_inverse=True, return_counts=True)
  broken = [
    f"{name} is not finite" for name, z_NZ in messages.items() if not np.isfinite(z_NZ).all()
  ]
  if broken or not len(class_N):
    note = "; ".join(broken) or "no rows"
    return _Usable(pair.x_NZ, pair.y_NY, np.full_like(class_N, -1), 0, len(names_G), note)
  x_NZ, y_NY = (similarity.standardise(z_NZ) for z_NZ in messages.values())
  large_G = n_G >= information.MIN_CLASS
  flat = {
    f"{name} is constant up to single rows": large_G
    & ~_varies(z_NZ, class_N, large_G, seed, n_features)
    for name, z_NZ in zip(messages, (x_NZ, y_NY), strict=True)
  }
  skipped = {f"fewer than {information.MIN_CLASS} rows": ~large_G} | flat
  kept_G = ~np.any(list(skipped.values()), axis=0)
  notes = []
  for why, which_G in skipped.items():
    where = names_G[which_G]
    if not len(where):
      continue
    named = len(where) <= MAX_NAMED
    which = f"class {', '.join(map(str, where))}" if named else f"{len(where)} classes"
    notes.append(why if pair.class_N is None else f"{why} in {which}")
  renamed_G = np.where(kept_G, kept_G.cumsum() - 1, -1)
  n_kept = int(kept_G.sum())
  note = "; ".join(notes) or None
  return _Usable(x_NZ, y_NY, renamed_G[class_N], n_kept, len(n_G) - n_kept, note)


def _varies(z_NZ, class_N, large_G, seed: int, n_features: int) -> Bool[np.ndarray, "G"]:
  """Where nHSIC is defined: a message depends on itself, unless single rows are all its spread."""
  key, varies_G = jax.random.key(seed), np.zeros(len(large_G), bool)
  for g in np.flatnonzero(large_G):
    # It is 1, 0 where undefined, or -1 where the estimate of the message's own spread is negative.
    varies_G[g] = _nhsic(z_NZ, z_NZ, class_N == g, key, n_features) > 0.5
  return varies_G


def _orders(class_N: np.ndarray, n_permutations: int, seed: int) -> Int[np.ndarray, "P N"]:
  """The order as it is, then permutations within the classes."""
  rng = np.random.default_rng(seed)
  order_PN = np.tile(np.arange(len(class_N)), (n_permutations + 1, 1))
  for g in range(class_N.max() + 1):
    rows = np.flatnonzero(class_N == g)
    order_PN[1:, rows] = rng.permuted(order_PN[1:, rows], axis=1)
  return order_PN


def _nhsic_row(usable: _Usable, order_PN, seed: int, n_features: int) -> dict[str, Any]:
  key, class_N = jax.random.key(seed), usable.class_N
  of_class = [np.flatnonzero(class_N == g) for g in range(usable.n_classes)]
  rows_GM = np.full((len(of_class), max(map(len, of_class))), len(class_N))
  for row_M, rows in zip(rows_GM, of_class, strict=True):
    row_M[: len(rows)] = rows
  draws_P = _nhsic_draws(usable.x_NZ, usable.y_NY, class_N, rows_GM, order_PN, key, n_features)
  return _beside_null(np.asarray(draws_P))


def _mi_row(usable: _Usable, order_PN, seed: int, n_states: int) -> dict[str, Any]:
  """Of symbols of what a message says beyond its class: else the class would use them all up."""
  if len(usable.class_N) < n_states:
    return {"note": f"{len(usable.class_N)} rows cannot fill {n_states} symbols"}
  x_NC, y_NC = (_symbols(z_NZ, seed, n_states) for z_NZ in usable.residuals())
  free = [int(s_NC[usable.class_N >= 0].any(0).sum()) - 1 for s_NC in (x_NC, y_NC)]
  if not all(free):
    return {"note": "all rows fall into one symbol"}
  needed = max(information.MIN_CLASS, math.ceil(free[0] * free[1] / (2 * BIAS_NATS)))
  row = _beside_null(np.asarray(_mi_draws(x_NC, y_NC, usable.member_GN, order_PN)))
  row["n_needed"] = needed
  smallest = int(usable.member_GN.sum(1).min())
  if smallest < needed:
    row["note"] = (
      f"{smallest} rows in a class, {needed} keep the bias below {BIAS_NATS} nats: "
      "compare the value with null_mean"
    )
  return row


def _symbols(x_NZ: np.ndarray, seed: int, n_states: int) -> Float[np.ndarray, "N C"]:
  """One-hot clusters of the rows.

  They start at rows drawn by rank, so that they depend on what was said and not on which input
  said it: equal messages get equal symbols, and independent ones an exact null.
  """
  sorted_NZ = x_NZ[np.lexsort(x_NZ.T)]
  return np.asarray(_nearest(jax.random.key(seed), sorted_NZ, x_NZ, n_states))


def _club_row(usable: _Usable) -> dict[str, Any]:
  width = usable.x_NZ.shape[1] + usable.y_NY.shape[1]
  row: dict[str, Any] = {"value": similarity.club(*usable.residuals())}
  # More than Z + Y rows beside one per class, whose mean is fitted too.
  row["n_needed"] = max(information.MIN_CLASS, width // usable.n_classes + 2)
  if row["value"] is None:
    few = usable.n <= width + usable.n_classes
    row["note"] = "fewer rows than the fit needs" if few else "infinite: y is partly linear in x"
  return row


def _row(pair: str, estimator: str, usable: _Usable, found: dict[str, Any]) -> dict[str, Any]:
  row = {"pair": pair, "estimator": estimator, "value": None, "null_mean": None}
  row |= {"null_p95": None, "p": None, "n": usable.n, "n_classes": usable.n_classes}
  row |= {"n_classes_skipped": usable.n_skipped, "n_needed": information.MIN_CLASS}
  notes = [note for note in (usable.note, found.get("note")) if note]
  return row | found | {"note": "; ".join(notes) or None}


def _beside_null(draws_P: np.ndarray) -> dict[str, Any]:
  value, null_P = draws_P[0], draws_P[1:]
  n_as_high = int((null_P >= value - _TIE).sum())
  return {
    "value": float(value),
    "null_mean": float(null_P.mean()),
    "null_p95": float(np.quantile(null_P, 0.95)),
    "p": (1 + n_as_high) / (1 + len(null_P)),
  }


_nhsic = jax.jit(information.nhsic, static_argnames="n_features")
_nhsic_draws = jax.jit(information.dependence_by_order, static_argnames="n_features")


@jax.jit
def _mi_draws(x_NC, y_NC, member_GN, order_PN):
  """Mutual information given the class, for each order of y."""
  weight_G = member_GN.sum(1) / member_GN.sum()

  def draw(order_N):
    mi_G = jax.vmap(information.joint_mi, (None, None, 0))(x_NC, y_NC[order_N], member_GN)
    return (weight_G * mi_G).sum()

  return jax.lax.map(draw, order_PN)


@functools.partial(jax.jit, static_argnames="n_states")
def _nearest(key, sorted_NZ, x_NZ, n_states: int):
  """Each row's nearest of `n_states` k-means centres, one-hot."""
  centres_CZ = prototypes.fit_kmeans(key, sorted_NZ, n_states, n_iter=20, n_restarts=4)
  return jax.nn.one_hot(prototypes.distance(x_NZ, centres_CZ).argmin(-1), n_states)
