"""JSON that somebody else wrote, or that a person may have edited."""

import json
import pathlib
from typing import Any

from iclm.config import InputError


def read_json(path: pathlib.Path, absent: str) -> Any:
  """The content of a JSON file.

  Args:
    absent: the whole sentence to say where there is no such file.

  Raises:
    InputError: there is none, it cannot be read, or is no JSON.
  """
  try:
    return json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    raise InputError(absent) from None
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror or error}") from None
  except (RecursionError, ValueError) as error:
    raise InputError(f"{path} cannot be read as JSON: {error}") from None


def read_object(path: pathlib.Path, absent: str) -> dict[str, Any]:
  """As `read_json`, of a file that must hold an object."""
  found = read_json(path, absent)
  if not isinstance(found, dict):
    raise InputError(f"{path} must hold one JSON object, not {type(found).__name__}")
  return found
