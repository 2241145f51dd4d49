"""The sparse shift of a mechanism that an update is about: one operation, on one surface alone."""

from iclm.config import Config, InputError, check_known, nearest
from iclm.data import acre_shift, acre_world, mechanisms
from iclm.data.records import Example

FORMS: dict[str, acre_world.Form] = {f"acre_{form}": form for form in acre_world.WORDINGS}
LIGHT, INVERTED = "light", "inverted"  # The operation of ACRE, and what it may become.


def check(c: Config) -> None:
  """Raises InputError where the shift that a config asks for is none."""
  s = c.study.shift
  if s.surface not in FORMS:
    if s.surface.startswith("acre"):
      raise InputError(f"config.study.shift.surface = {s.surface!r}: {nearest(s.surface, FORMS)}")
    _task(c)
    try:
      examples(c, "test", 0)
    except InputError as error:  # Which begins with the key.
      raise InputError(f"config.study.shift.{error}") from None
    return
  for key, value in (("operation", LIGHT), ("becomes", INVERTED)):
    if getattr(s, key) != value:
      raise InputError(
        f"config.study.shift.{key} = {getattr(s, key)!r}: the only shift of ACRE is that the "
        f"{LIGHT!r} becomes {INVERTED!r}"
      )


def examples(c: Config, part: mechanisms.Part, n: int) -> list[Example]:
  """The first n examples under the shift, of sequences or problems of one part of all there are."""
  s = c.study.shift
  if s.surface in FORMS:
    return acre_shift.inverted(FORMS[s.surface], part, c.seed, n)
  task = mechanisms.TASKS[_task(c)]
  return mechanisms.shift(task, s.surface, s.operation, s.becomes, part=part, seed=c.seed, n=n)


def stays(c: Config, example: Example) -> bool:
  """Whether an example is of the shifted surface, and means what it meant; of ACRE none does, nor
  one whose operation no group tells."""
  s, asked = c.study.shift, example.group.rpartition("/")[2]
  if s.surface in FORMS or example.domain != s.surface or asked in ("", "all"):
    return False
  return s.operation not in asked.split("+")


def _task(c: Config) -> str:
  """The mechanisms task that a run is trained on; "default" where it is another's sequences."""
  for name, source in c.data.train.items():
    builder, _, task = source.tfds.partition("/")
    if builder == "mechanisms":
      check_known(f"the task of config.data.train.{name}.tfds", task, mechanisms.TASKS)
      return task
  return "default"
