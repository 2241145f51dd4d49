"""Chat templates: messages become the text that a model of another maker was trained on.

A template is a program of its maker, and runs as `transformers` runs it: in Jinja's sandbox, which
lets it compute a text and nothing else.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from iclm import config, inputs
from iclm.config import InputError

TEMPLATE, ABOUT, TOKENIZER = "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"
MAP = "special_tokens_map.json"
_HERE = "THE_MESSAGE_GOES_ON_HERE "  # Behind a last message that is not over; the space tells.
_SHOWN = 40  # Characters of a content that an error shows.

Messages = Sequence[Mapping[str, str]]  # Each has role and content.


@dataclasses.dataclass(frozen=True)
class Template:
  """How messages are written down; equal ones write alike.

  Attributes:
    source: in Jinja.
    names: (name, token) pairs that the source may use, such as ("eos_token", "<|im_end|>").
    specials: texts that are special tokens, which no content may spell.
    date: of the day that a source is told which asks for it, as YYYY-MM-DD.
  """

  source: str
  names: tuple[tuple[str, str], ...]
  specials: tuple[str, ...]
  date: str

  @functools.cached_property
  def _compiled(self) -> jinja2.Template:
    return _environment(self.date).from_string(self.source)

  def render(self, messages: Messages, *, answer: bool = True) -> str:
    """The text of some messages.

    Args:
      answer: an answer stands directly behind it; else the last message goes on there.

    Raises:
      InputError: the template refuses the messages, such as a role, or a content spells a special
        token, which would become one.
    """
    for i, message in enumerate(messages):
      self.check(message["content"], f"message {i + 1}")
    told = [dict(message) for message in messages]
    if not answer:
      told[-1]["content"] += _HERE
    given = dict(self.names) | {"tools": None, "documents": None}
    try:
      text = self._compiled.render(messages=told, add_generation_prompt=answer, **given)
    except Exception as error:  # It is a program, and may fail in any way.
      roles = ", ".join(message["role"] for message in messages)
      raise InputError(f"the chat template refuses messages of {roles}: {error}") from None
    if answer:
      return text
    before, here, behind = text.rpartition(_HERE.strip())
    if not here:
      raise InputError("the chat template leaves out the last message, which cannot go on there")
    # Where the template strips contents, what went before the end was stripped too.
    return before if behind.startswith(" ") else before.rstrip()

  def check(self, text: str, where: str) -> None:
    """Raises InputError where a text spells a special token."""
    for special in self.specials:
      if special in text:
        raise InputError(
          f"{where} spells the special token {special!r}, which only the chat template may write: "
          f"{text[:_SHOWN]!r}"
        )

  def to_json(self) -> str:
    """Returns what `from_json` turns back into an equal template."""
    return json.dumps(dataclasses.asdict(self), indent=1)

  @classmethod
  def from_json(cls, text: str) -> "Template":
    """The inverse of `to_json`.

    Raises:
      InputError: the text is none of `to_json`.
    """
    try:
      found = json.loads(text)
      names = tuple((name, token) for name, token in found["names"])
      made = cls(found["source"], names, tuple(found["specials"]), found["date"])
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"this is no chat template that a run keeps: {error!r}") from None
    every = (made.source, made.date, *made.specials, *itertools.chain(*names))
    if not all(isinstance(one, str) for one in every):
      raise InputError("this is no chat template that a run keeps: not all of it is text")
    return made


def read(path: pathlib.Path) -> Template:
  """The template that went into this file by `to_json`; InputError where the file is damaged."""
  text = _text(path)
  try:
    return Template.from_json(text)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None


def load(folder: str | pathlib.Path, date: str) -> Template:
  """The template of a folder of `transformers`: of chat_template.jinja or tokenizer_config.json.

  Args:
    date: see `Template`.

  Raises:
    InputError: the folder has no template, a file of it is malformed, or the template is.
  """
  folder = config.path(folder)
  about = named_specials(folder) | _read(folder / ABOUT)
  source = about.get("chat_template")
  if (folder / TEMPLATE).is_file():
    source = _text(folder / TEMPLATE)
  if isinstance(source, list):  # Several, by name.
    named = [one for one in source if isinstance(one, dict) and one.get("name") == "default"]
    source = named[0].get("template") if named else None
  if not isinstance(source, str):
    raise InputError(
      f"{folder} has no chat template: neither {TEMPLATE}, nor a 'chat_template' in {ABOUT}, as a "
      "text or as the one of several whose name is 'default'"
    )
  names = {name: _spelling(value) for name, value in about.items() if name.endswith("_token")}
  pairs = tuple(sorted((name, token) for name, token in names.items() if token is not None))
  specials = _specials(folder / TOKENIZER)
  made = Template(source, pairs, specials, date)
  try:
    _ = made._compiled
  except jinja2.TemplateSyntaxError as error:
    raise InputError(f"{folder}: the chat template is malformed: {error}") from None
  return made


def named_specials(folder: pathlib.Path) -> dict[str, Any]:
  """What a file of its own says of bos_token and the like; ABOUT may overrule it."""
  return _read(folder / MAP) if (folder / MAP).is_file() else {}


def _specials(path: pathlib.Path) -> tuple[str, ...]:
  """What a tokenizer.json says are special tokens."""
  added = _read(path).get("added_tokens", [])
  try:
    found = sorted({one["content"] for one in added if one["special"]})
    "".join(found)  # All are texts, or it raises.
  except (KeyError, TypeError) as error:
    raise InputError(
      f"{path}: added_tokens must be a list of objects with content and special, which it is not: "
      f"{error!r}"
    ) from None
  return tuple(found)


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text("utf-8")
  except (OSError, ValueError) as error:
    told = getattr(error, "strerror", None) or error
    raise InputError(f"{path}: cannot be read, and a chat template needs it: {told}") from None


def _read(path: pathlib.Path) -> dict[str, Any]:
  return inputs.read_object(path, f"there is no {path}, and a chat template needs it")


def _spelling(value: Any) -> str | None:
  """A token as a file names it: a text, an object of several, or nothing."""
  spelt = value.get("content") if isinstance(value, dict) else value
  return spelt if isinstance(spelt, str) else None


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` marks what an assistant says; it writes nothing by itself."""

  tags = {"generation"}  # noqa: RUF012, as the base class has it.

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def _environment(date: str) -> jinja2.Environment:
  """What `transformers` lets a template use (`utils/chat_template_utils.py`), on one day."""
  made = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  made.filters["tojson"] = _to_json
  made.globals["raise_exception"] = _refuse
  made.globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
  made.globals |= {"dict": _dict, "namespace": _Namespace}
  return made


def _dict(*args: Any, **given: Any) -> dict:
  """A function, since the class would hand out more of itself."""
  return dict(*args, **given)


class _Namespace(jinja2.utils.Namespace):
  """Holds nothing whose name begins as Python's internals do."""

  def __init__(*args: Any, **given: Any):  # As the base class: `self` is a name like any other.
    made = dict(*args[1:], **given)
    jinja2.utils.Namespace.__init__(args[0], {name: made[name] for name in map(_public, made)})

  def __setitem__(self, name: str, value: Any) -> None:
    super().__setitem__(_public(name), value)


def _public(name: str) -> str:
  if name.startswith("_"):
    raise jinja2.exceptions.SecurityError(f"a namespace must not hold {name!r}")
  return name


def _to_json(x: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  return json.dumps(
    x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)
