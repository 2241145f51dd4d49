"""What a page reads of a run's folder."""

import json
import math
import pathlib
from typing import Any

from iclm import inputs, progress, workdir
from iclm.config import InputError


def read_results(folder: pathlib.Path) -> dict[str, Any]:
  """The results.json of a finished run."""
  path = folder / workdir.RESULTS
  absent = f"there is no {path}; name the folder of a complete run, or of a sweep"
  results = inputs.read_json(path, absent)
  try:
    whole = "commit" in results["provenance"] and "train_s" in results
    sets = results["sets"].values()
    whole &= all(math.isfinite(one["accuracy"] + one["n"]) and "by_group" in one for one in sets)
  except (AttributeError, KeyError, TypeError):
    whole = False
  if not whole:
    raise InputError(f"{path} is not what experiments.train writes; name the folder of a run")
  return results


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl, in order, but for a last one that is not finished; none
  where there is no such file."""
  path = folder / progress.METRICS
  if not path.exists():
    return []
  try:
    whole, _, _ = path.read_text("utf-8", "replace").rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read {path}: {error}") from None
  if not all(isinstance(line, dict) and "step" in line for line in lines):
    raise InputError(f"{path} holds a line that is no object with a step")
  return lines
