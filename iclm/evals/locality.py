"""What an update moved: hashes of every part before and after, and the outputs that stayed."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from iclm import axes, processes
from iclm.data.records import Example
from iclm.evals.subject import Subject


def fingerprints(params: Any) -> dict[str, str]:
  """SHA-256 of every part: each domain expert by itself, and the other groups whole.

  Returns:
    "domain/0", "domain/1", ..., "base", "router", ... -> hash of names, dtypes, shapes and bytes.
  """
  found = {}
  for group, part in params.items():
    if group != axes.DOMAIN:
      found[group] = _hash(part)
      continue
    for e in range(len(jax.tree.leaves(part)[0])):
      found[f"{group}/{e}"] = _hash(jax.tree.map(lambda x, e=e: x[e], part))
  return found


def _hash(tree: Any) -> str:
  total = hashlib.sha256()
  for path, x in jax.tree.leaves_with_path(tree):
    x = processes.fetch(x)
    total.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}\n".encode())
    total.update(x.tobytes())
  return total.hexdigest()


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
  """Names of the parts that are not bitwise what they were, from the `fingerprints` of both."""
  names = before.keys() | after.keys()
  return sorted(name for name in names if before.get(name) != after.get(name))


def size(params: Any, names: Sequence[str]) -> int:
  """Number of parameters of some parts, as `fingerprints` names them."""
  total = 0
  for name in names:
    group, _, expert = name.partition("/")
    n = sum(x.size for x in jax.tree.leaves(params[group]))
    total += n // len(jax.tree.leaves(params[group])[0]) if expert else n
  return total


def compare(before: Subject, after: Subject, examples: Sequence[Example]) -> dict[str, Any]:
  """How far the answers to some examples moved.

  Returns:
    n, accuracy before and after; `logits_changed`, the predicted positions of which any logit
    differs in any bit; `max_change_nats`, the largest change of an answer's log-likelihood.
  """
  a, b = before.score(examples), after.score(examples)
  pairs = zip(before.logits(examples), after.logits(examples), strict=True)
  changed = sum(int((x.view(np.int32) != y.view(np.int32)).any(axis=1).sum()) for x, y in pairs)
  return {
    "n": len(examples),
    "accuracy": [float(a.correct_N.mean()), float(b.correct_N.mean())],
    "logits_changed": changed,
    "max_change_nats": float(np.abs(a.nll_N - b.nll_N).max()),
  }
