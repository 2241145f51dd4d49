"""One record and how a jsonl file of records is read: a bad line is an error, never a skip."""

import dataclasses
import difflib
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from iclm.config import InputError
from iclm.data import chat

FIELDS = "prompt", "answer", "choices", "domain", "group", "id"  # Of a record, as it is stored.
_EMPTY = None, []  # Values that say nothing.
_EXCERPT = 60  # Characters of a bad line that an error shows.
_REQUIRED = ("prompt", "answer", "input", "ideal")
_OPTIONAL = ("choices", "choice_strings", "domain", "group", "id")

Label = Callable[[str], tuple[str, str] | None]


@dataclasses.dataclass(frozen=True)
class Example:
  """A prompt and the answer that stands directly behind it.

  Attributes:
    prompt: what the model reads; the router sees nothing else.
    answer: what the model has to say.
    choices: the answers to choose from, the right one among them; may be empty.
    domain: the name of the domain, for evaluation only.
    group: query type or rule, for break-downs.
    id: names the record in reports and errors.
    plain: the prompt without its chat template; empty where it has none.
  """

  prompt: str
  answer: str
  choices: tuple[str, ...]
  domain: str
  group: str
  id: str
  plain: str = ""

  @property
  def content(self) -> str:
    """What the prompt asks, without a chat template: what solvers and canonical forms read."""
    return self.plain or self.prompt

  @property
  def record(self) -> dict[str, Any]:
    """What a file of records has of it."""
    return {name: getattr(self, name) for name in FIELDS}


def load(
  path: str | pathlib.Path,
  template: chat.Template | None = None,
  label: Label = lambda _: None,
) -> list[Example]:
  """Reads every record of a jsonl or jsonl.gz file, in order, or raises at the first bad line.

  Two forms may be mixed: `{"prompt", "answer"}` and the "evals" form `{"input": [{"role",
  "content"}], "ideal"}`, whose contents are joined by one newline. Optional keys: choices (or
  choice_strings), domain (else the file's name without its endings), group (else "all") and id
  (else "<stem>:<line>").

  Args:
    path: the file; a name that ends in .gz is gunzipped.
    template: writes the messages of the "evals" form instead; prompts of the other form stand as
      they are.
    label: tells domain and group by a prompt, without its template; what a record names itself
      stands.

  Returns:
    The examples, at least one.

  Raises:
    InputError: the file is missing, unreadable or empty, or a line is bad.
  """
  path = pathlib.Path(path)
  stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
  examples, blank = [], None
  for number, raw in _lines(path):
    if not raw.strip():
      blank = blank or number
      continue
    if blank:
      raise InputError(f"{path}:{blank}: this line is blank, yet records follow it; remove it.")
    try:
      text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
      shown = raw[:_EXCERPT].decode("utf-8", "replace")
      raise InputError(
        f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8: {_excerpt(shown)}"
      ) from None
    try:
      examples.append(_example(text, stem, f"{stem}:{number}", template, label))
    except InputError as error:
      raise InputError(f"{path}:{number}: {error}: {_excerpt(text)}") from None
  if not examples:
    raise InputError(f"{path}: the file holds no record; write one JSON object per line.")
  return examples


def missing(path: str | pathlib.Path) -> InputError:
  """Returns the error for a path that is no file: it names the nearest file of its folder."""
  path = pathlib.Path(path)
  if path.is_dir():
    return InputError(f"{path}: this is a folder; name a file in it.")
  try:
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
  except OSError:
    return InputError(f"{path}: there is no folder {path.parent}.")
  near = difflib.get_close_matches(path.name, names, n=1, cutoff=0)
  hint = f"the nearest there is {near[0]}" if near else "its folder holds no file"
  return InputError(f"{path}: there is no such file; {hint}.")


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Yields (line number from 1, line) of a file; what cannot be read is an InputError."""
  if not path.is_file():
    raise missing(path)
  number = 0
  try:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
      for number, line in enumerate(file, 1):
        yield number, line
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{path}:{number + 1}: the gzip file is cut off or damaged: {error}") from None
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from None


def _example(
  text: str, domain: str, name: str, template: chat.Template | None, label: Label
) -> Example:
  try:
    record = json.loads(text, object_pairs_hook=_once)
  except InputError:
    raise
  except (ValueError, RecursionError) as error:
    raise InputError(f"malformed JSON ({error})") from None
  if not isinstance(record, dict):
    raise InputError(f"an object was expected, this is a {type(record).__name__}")
  _refuse_misspelt(record)
  for one, other in (("prompt", "input"), ("answer", "ideal"), ("choices", "choice_strings")):
    if record.get(one) not in _EMPTY and record.get(other) not in _EMPTY:
      raise InputError(f"there are both {one!r} and {other!r}, which say the same; give one")
  if "input" in record or ("ideal" in record and "prompt" not in record):
    given = _required(record, "input")
    prompt, plain = (_joined(given, of) for of in (template, None))
    key, answer = "ideal", _required(record, "ideal")
    if isinstance(answer, list):
      if len(answer) != 1:
        raise InputError(f"'ideal' must hold one answer, it holds {len(answer)}")
      answer = answer[0]
  else:
    prompt = plain = _text(_required(record, "prompt"), "prompt", numbers=False)
    key, answer = "answer", _required(record, "answer")
  answer = _text(answer, key, numbers=True)
  given = (record[key] for key in ("choices", "choice_strings") if record.get(key) not in _EMPTY)
  choices = _choices(next(given, []), answer)
  if template is not None:
    for said in (answer, *choices):
      template.check(said, f"{key!r} or a choice")
  domain, group = ("group" not in record and label(plain)) or (domain, "all")
  return Example(
    prompt=prompt,
    answer=answer,
    choices=choices,
    domain=_text(record.get("domain", domain), "domain", numbers=False),
    group=_text(record.get("group", group), "group", numbers=True),
    id=_text(record.get("id", name), "id", numbers=True),
    plain="" if plain == prompt else plain,
  )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON whose keys are each given once; the last of two would win in silence."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise InputError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
  return found


def _required(record: dict[str, Any], key: str) -> Any:
  if key in record:
    return record[key]
  near = difflib.get_close_matches(key, record, n=1)
  hint = f"; is it {near[0]!r}?" if near else f"; there is {', '.join(record) or '{}'}"
  raise InputError(f"the key {key!r} is missing{hint}")


def _refuse_misspelt(record: dict[str, Any]) -> None:
  # Other keys are the user's own, but a near miss of an optional one would be lost in silence.
  for key in record:
    if key in _REQUIRED or key in _OPTIONAL:
      continue
    near = difflib.get_close_matches(key.lower(), _OPTIONAL, n=1, cutoff=0.85)
    if near:
      raise InputError(f"the key {key!r} is not known; did you mean {near[0]!r}?")


def _joined(messages: Any, template: chat.Template | None) -> str:
  if not isinstance(messages, list) or not messages:
    raise InputError("'input' must be a list of messages, not empty")
  contents = []
  for message in messages:
    if not isinstance(message, dict):
      raise InputError("a message of 'input' must be an object with 'role' and 'content'")
    content = _required(message, "content")
    if not isinstance(content, str):
      raise InputError(f"'content' must be a string, it is a {type(content).__name__}")
    contents.append(content)
    if template and not isinstance(_required(message, "role"), str):
      raise InputError(f"'role' must be a string, it is a {type(message['role']).__name__}")
  if template:
    return _text(template.render(messages), "input", numbers=False)
  return _text("\n".join(contents), "input", numbers=False)


def _choices(values: Any, answer: str) -> tuple[str, ...]:
  if not isinstance(values, list):
    raise InputError(f"the choices must be a list, they are a {type(values).__name__}")
  choices = tuple(_text(value, "choices", numbers=True) for value in values)
  if len(set(choices)) != len(choices):
    raise InputError("a choice stands there twice")
  if choices and answer not in choices:
    raise InputError(f"the answer {_excerpt(answer)} is not among the choices")
  return choices


def _text(value: Any, key: str, numbers: bool) -> str:
  if numbers and isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str):
    raise InputError(f"{key!r} must be a string, it is a {type(value).__name__}")
  if not value:
    raise InputError(f"{key!r} is empty")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError:
    raise InputError(f"{key!r} holds a lone surrogate, which is no text") from None
  return value


def _excerpt(text: str) -> str:
  return repr(text if len(text) <= _EXCERPT else text[: _EXCERPT - 3] + "...")
