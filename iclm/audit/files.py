"""What a page reads of a run's folder."""

import json
import pathlib
from typing import Any

from iclm.config import InputError


def read_json(path: pathlib.Path, wanted: str) -> Any:
  """The content of a JSON file.

  Args:
    wanted: what to name instead, told where there is no such file.

  Raises:
    InputError: there is no such file, or it is no JSON.
  """
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise InputError(f"there is no {path}; {wanted}") from None
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read {path}: {error}") from None


def read_results(folder: pathlib.Path) -> dict[str, Any]:
  """The results.json of a finished run."""
  path = folder / "results.json"
  results = read_json(path, "name the folder of a complete run, or of a sweep")
  if not isinstance(results, dict) or not results.keys() >= {"sets", "train_s", "provenance"}:
    raise InputError(f"{path} is not what experiments.train writes; name the folder of a run")
  return results


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl, in order, but for a last one that is not finished; none
  where there is no such file."""
  path = folder / "metrics.jsonl"
  if not path.exists():
    return []
  try:
    whole, _, _ = path.read_text("utf-8", "replace").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read {path}: {error}") from None
