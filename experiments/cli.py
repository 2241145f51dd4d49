"""How every command starts and ends: flags, one sentence for bad input, exit codes.

0 done   2 bad input   3 the run stopped itself   143 interrupted by SIGTERM, resumable
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from ml_collections import config_dict, config_flags

from iclm import config, train

INTERRUPTED = 143


def run(main: Callable[[Any], int | None]) -> None:
  """Parses the flags, runs `main(flags.FLAGS)`, and turns bad input into exit code 2."""
  logging.getLogger("absl").setLevel(logging.ERROR)

  def guarded(argv: list[str]) -> int:
    if len(argv) > 1:
      return _say(f"{argv[1]!r} is not a flag; flags start with --")
    try:
      return main(flags.FLAGS) or 0
    except config.InputError as error:
      return _say(str(error))
    except train.RunStopped as error:
      print(f"stopped: {error}", file=sys.stderr)
      return 3

  app.run(guarded, flags_parser=_parse)


def read_config(value: Any) -> config.Config:
  """The ConfigDict of a `--config` flag, checked."""
  return config.from_config_dict(value)


def _parse(argv: list[str]) -> list[str]:
  """Unknown flags, misspelt keys, wrong types and broken config files are bad input."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sentence = str(error)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    sentence = str(error.args[0] if error.args else error)
  except OSError as error:
    sentence = f"cannot read the config {error.filename or ''}: {error.strerror or error}"
  sys.exit(_say(" ".join(sentence.split())))


def _say(sentence: str) -> int:
  print(f"error: {sentence}", file=sys.stderr)
  return 2


__all__ = ["INTERRUPTED", "config_dict", "config_flags", "read_config", "run"]
