"""What a run cost, from its own log: it holds whatever sittings the run was trained in."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Cost(NamedTuple):
  """seconds of training, the evaluations in between included; the rest are medians."""

  seconds: float
  step_s: float
  tokens_per_s: float


def of_metrics(metrics: Sequence[dict[str, Any]]) -> Cost | None:
  """The cost of a run by the lines of its metrics.jsonl; None where none tells a speed."""
  lines = [m for m in metrics if "wall/step_s" in m]
  if not lines:
    return None
  seconds, before = 0.0, 0.0
  for m in lines:
    seconds += (m["step"] - before) * m["wall/step_s"]
    before = m["step"]
  # The first line holds the compilation too.
  usual = lines[1:] or lines
  step_s, speed = (
    statistics.median(m[k] for m in usual) for k in ("wall/step_s", "wall/tokens_per_s")
  )
  return Cost(seconds, step_s, speed)
