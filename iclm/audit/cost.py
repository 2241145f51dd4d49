"""What a run cost, from its own log, which holds all the sittings that the run was trained in."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Cost(NamedTuple):
  """seconds of training, the evaluations in between included; the rest are medians."""

  seconds: float
  step_s: float
  tokens_per_s: float


def of_metrics(metrics: Sequence[dict[str, Any]]) -> Cost | None:
  """The cost of a run by the lines of its metrics.jsonl; None where none tells a speed.

  What a killed sitting did behind its last line is in no log, and not in the seconds.
  """
  lines = [m for m in metrics if "wall/step_s" in m]
  if not lines:
    return None
  seconds, step, wall_s, usual = 0.0, 0, 0.0, []
  for m in lines:
    passed_s = m["wall/s"] - wall_s
    # The clock of a resumed run starts anew: then it does not show what the steps took.
    if step and math.isclose(passed_s, m["wall/step_s"] * (m["step"] - step), rel_tol=1e-6):
      seconds += passed_s
      usual.append(m)
    else:
      seconds += m["wall/s"]
    step, wall_s = m["step"], m["wall/s"]
  # The first line of a sitting holds the compilation too.
  step_s, speed = (
    statistics.median(m[k] for m in usual or lines) for k in ("wall/step_s", "wall/tokens_per_s")
  )
  return Cost(seconds, step_s, speed)
