"""How every command starts and ends: flags, one sentence for bad input, exit codes.

0 done   1 a run of a sweep or a step of gcloud failed, or a bug   2 bad input
3 the run stopped itself, or a step does not fit   4 another process of the run was lost, resumable
143 interrupted; a run or a sweep goes on by the same command
"""

import io
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import hosts, update
from iclm import axes, config, progress, train, workdir

INTERRUPTED = 143
# What was compiled once is read from here the next time, as when a run is resumed.
CACHE = pathlib.Path("~/.cache/iclm/xla").expanduser()
# What reading a file of Python that somebody else wrote may raise.
BROKEN = (
  ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError,
  RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip
PIPED_WIDTH = 200  # Columns of a table that goes to a file or another program.


def run(main: Callable[[Any], int | None]) -> None:
  """Parses the flags, runs `main(flags.FLAGS)`, and turns bad input into exit code 2."""

  def refusing(flag: flags.FlagValues, words: Sequence[str]) -> int | None:
    if words:
      raise config.InputError(f"{words[0]!r} is not a flag; flags start with --")
    return main(flag)

  _run(refusing)


def run_with_words(main: Callable[[Any, Sequence[str]], int | None]) -> None:
  """As `run`, for a command that also takes words, before and between flags and behind a --."""
  flags.FLAGS.set_gnu_getopt(True)
  _run(main)


def told(main: Callable[[], int | None]) -> int:
  """Runs `main()`, and returns the exit code that its end deserves; for commands without flags."""
  return _outcome(main)[0]


def _run(main: Callable[[Any, Sequence[str]], int | None]) -> None:
  def guarded(argv: list[str]) -> int:
    code, orderly = _outcome(lambda: main(flags.FLAGS, argv[1:]))
    hosts.leave(code, orderly, code == INTERRUPTED and not orderly)
    return code

  app.run(guarded, flags_parser=_parse)


def _outcome(main: Callable[[], int | None]) -> tuple[int, bool]:
  """The exit code, and whether every process of the run ends alike."""
  if isinstance(sys.stdout, io.TextIOWrapper):  # A console that cannot show a character.
    sys.stdout.reconfigure(errors="replace")
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
  try:
    return main() or 0, True
  except config.InputError as error:
    return _say(str(error)), False
  except KeyboardInterrupt:  # Outside of what ends in order: while data are read, say.
    progress.tell("interrupted", sys.stderr)
    return INTERRUPTED, False
  except train.Interrupted as error:
    progress.tell(str(error), sys.stdout)
    return INTERRUPTED, True
  except train.RunStopped as error:
    progress.tell(f"stopped: {error}", sys.stderr)
    return 3, False
  except Exception as error:
    if not hosts.joined():
      raise
    if hosts.is_loss(error):
      hosts.lose(" ".join(str(error).split()))
    traceback.print_exc()
    return 1, False


def define_run() -> None:
  """The flags of a command that reads a trained run."""
  flags.disclaim_key_flags()  # --help lists them with the command's own.
  flags.DEFINE_string("workdir", None, "The folder of a trained run.")
  flags.DEFINE_string("step", None, "Its checkpoint: a number, or best. None: the newest good one.")
  flags.DEFINE_string("mesh", None, "Devices for data, experts, model: 8x1x1. None: the run's own.")


def step_of(asked: str | None) -> workdir.At | None:
  """Which checkpoint a flag names; InputError where it is neither a number nor best."""
  if asked is None or asked == "best":
    return asked  # type: ignore[return-value]
  if not asked.isdecimal():
    raise config.InputError(f"step = {asked!r} must be a number, or best")
  return int(asked)


def mesh_of(folder: pathlib.Path, asked: str | None) -> config.Mesh:
  """The mesh to read a run on: its own, or what was asked for.

  Raises:
    InputError: there is no run, that is no mesh, or its own needs more devices.
  """
  c = workdir.config_of(folder)
  if asked is None:
    if c.mesh.devices > jax.device_count():
      raise config.InputError(
        f"{folder} was trained on {c.mesh.devices} devices, config.mesh = {c.mesh}, and here are "
        f"{jax.device_count()}; name a mesh that fits them, as 1x1x1"
      )
    return c.mesh
  if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", asked):
    raise config.InputError(
      f"mesh = {asked!r} must be {'x'.join(map(str.upper, axes.MESH))}, as 1x1x1"
    )
  return config.Mesh(**dict(zip(axes.MESH, map(int, asked.split("x")), strict=True)))


def config_of(argv: Sequence[str]) -> config.Config:
  """The config that flags as --config=FILE and --config.KEY=VALUE come to in `experiments.train`.

  Raises:
    InputError: the file is no config, or `experiments.train` would refuse it.
  """
  try:
    read = _read(argv)
  except (flags.Error, OSError, *BROKEN) as error:
    stray = _stray(argv)
    told = f"with these flags: {stray}" if stray else f"is no config: {sentence(error)}"
    raise config.InputError(f"{_file(argv)} {told}") from None
  c = config.from_config_dict(read)
  update.check(c)
  return c


def _read(argv: Sequence[str]) -> Any:
  """What a config file comes to under flags; raises what reading it may raise."""
  holder, words = flags.FlagValues(), [sys.argv[0], *argv]
  config_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=words)
  holder(words)
  found = holder["config"].value
  dict(found)  # One that was not found is told where it is looked at first.
  return found


def _file(argv: Sequence[str]) -> str:
  """The config file that flags name, in any way that absl reads."""
  for word, behind in zip(argv, [*argv[1:], ""], strict=True):
    if named := re.fullmatch(r"--?c(?:onfig)?(=.*)?", word):
      return named[1][1:] if named[1] else behind
  return ""


def console() -> rich.console.Console:
  """Where tables are printed: as wide as the terminal, or wide and plain where there is none.

  COLUMNS in the environment sets another width. What is printed stands as it is: names of groups
  and domains are the user's, and may look like markup.
  """
  piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
  return rich.console.Console(width=PIPED_WIDTH if piped else None, markup=False, emoji=False)


def _parse(argv: list[str]) -> list[str]:
  """Unknown flags, misspelt keys, wrong types and broken config files are bad input."""
  try:
    rest = flags.FLAGS(argv)
    # TFDS and orbax tell much, and what goes wrong there is raised.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().setLevel("CRITICAL")
    return rest
  except flags.Error as error:
    told = str(error)
  except BROKEN as error:
    told = _stray(argv) or sentence(error)
  except OSError as error:
    told = f"cannot read the config {error.filename or ''}: {error.strerror or error}"
  sys.exit(_say(" ".join(told.split())))


def _stray(argv: Sequence[str]) -> str | None:
  """What is told of the first flag that names a key which its config does not have, if one does."""
  try:
    read = _read([f"--config={_file(argv)}"])
  except (flags.Error, OSError, *BROKEN):
    return None  # It is not the flags.
  for word in argv:
    if not (found := re.match(r"--?(?:no)?config\.([^=]+)", word)):
      continue
    where, level = "config", read
    for name in (part.partition("[")[0] for part in found[1].split(".")):
      if not hasattr(level, "keys"):
        return f"{where} of {found[0]} has no keys: it is {level!r}"
      if name not in level:
        return f"{where} has no key {name!r}; {config.nearest(name, level)}"
      where, level = f"{where}.{name}", level[name]
  return None


def sentence(error: Exception) -> str:
  """What one of `BROKEN` says, in one line, and in which file and line if it knows."""
  if isinstance(error, SyntaxError | ImportError):
    return str(error)
  told = str(error.args[0] if error.args else error)
  return " ".join(told.replace("\\n", " ").replace("\\'", "'").split())


def _say(sentence: str) -> int:
  progress.tell(f"error: {sentence}", sys.stderr)
  return 2
