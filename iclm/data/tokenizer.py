"""Tokens are a lossless function of the text, and the tokenizer is one string of JSON."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsInt

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from iclm.config import InputError
from iclm.data import records, specials
from iclm.data.chat import Template

# Numbers, words with the space before them, white space, and runs of everything else.
WORDS = r"\p{N}+| ?\p{L}+|\s+|[^\p{L}\p{N}\s]+"
# Numbers, and all that stands between two of them in one piece: fixed phrases become one token.
NUMBERS = r"\p{N}+"
# Numbers and whole sentences: what a text says over and over, word for word, becomes one token.
SENTENCES = r"\p{N}+|\p{L}[^.\p{N}]*\.\s?"
# Numbers and single capitals, each with the marks behind it: what a symbolic form is made of.
SYMBOLS = r"(?:\p{N}+|\b\p{Lu})[^\p{L}\p{N}]+"
# Numbers, words, single marks or spaces, points and brackets with the space behind them; six words
# and more in a row are a fixed phrase. A symbol of any surface is one token, an instruction is few.
PHRASES = r"\p{L}+(?:[ ,]+\p{L}+){5,}|\p{N}+|\p{L}+|[,.:;()\[\]]+\s*|\s+|[^\p{L}\p{N}\s,.:;()\[\]]+"

# What a text is laid behind to see how it goes on: the first with which it does not join.
_MARKS = "\n", ":", "a"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer that adds nothing by itself; two are equal when their JSON and template are.

  Text that spells a special token is text: only the packing puts special ids into a row. Under a
  chat template it is that token, and the packing puts none in front: the template writes them all.

  Attributes:
    json: the whole tokenizer, in the format of the `tokenizers` library.
    vocab_size: one more than the largest id.
    pad_id: stands in padding; the id of eos when the file has no padding token.
    bos_id: begins a row; None when the file has none.
    eos_id: ends an answer.
    ends: other ids that end an answer which a model gives.
    chat: how messages become prompts; None joins their contents.
    named: (name, id) pairs of the special tokens that others name than the JSON alone lets expect.
  """

  json: str = dataclasses.field(repr=False)
  vocab_size: int
  pad_id: int
  bos_id: int | None
  eos_id: int
  chat: Template | None = None
  named: tuple[tuple[str, int | None], ...] = ()
  ends: tuple[int, ...] = ()

  @functools.cached_property
  def _backend(self) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(self.json)
    backend.encode_special_tokens = self.chat is None  # Not part of the JSON.
    backend.no_padding()
    backend.no_truncation()
    return backend

  @functools.cached_property
  def _leads(self) -> bool:
    """A text that begins is given a space (Llama 2), which one that goes on must not get."""
    anchor, a = self._ids(_MARKS[0]), self._ids("a")
    return self._text([*anchor, *a]) != self._text(anchor) + self._text(a)

  @functools.cached_property
  def end_ids(self) -> tuple[int, ...]:
    """All ids that end an answer, that of eos first."""
    return self.eos_id, *self.ends

  def special_id(self, text: str) -> int | None:
    """The id of the special token that a text spells; None where it spells none."""
    return specials.of(self._backend).get(text)

  def is_byte(self, i: int) -> bool:
    """Whether a token is one byte (<0x0A>) of a character that has none of its own (Llama 2)."""
    return _BYTE.fullmatch(self._backend.id_to_token(i) or "") is not None

  def encode(self, text: str, behind: bool = False) -> list[int]:
    """Returns the ids of the text, without special ones; see `encode_many`."""
    return self.encode_many([text], behind)[text]

  def encode_many(self, texts: Iterable[str], behind: bool = False) -> dict[str, list[int]]:
    """Returns the ids of each distinct text; several cores work on it, outside of Python's lock.

    Args:
      behind: each goes on behind another text, as an answer does: the two together spell what
        they spell apart, and no space comes between them. What is the text's own is told by the
        offsets of its tokens behind a mark.
    """
    found: dict[str, list[int] | None] = dict.fromkeys(texts)
    for mark in _MARKS if behind and self._leads else ("",):
      left = [text for text, own in found.items() if own is None]
      encodings = self._backend.encode_batch([mark + x for x in left], add_special_tokens=False)
      found |= {
        text: _own(encoding, len(mark)) for text, encoding in zip(left, encodings, strict=True)
      }
    return {text: self._ids(text) if own is None else own for text, own in found.items()}

  def decode(self, ids: Iterable[SupportsInt], behind: bool = False) -> str:
    """Returns the text of the ids; special ones spell nothing.

    Args:
      behind: they go on behind other text; see `encode_many`.
    """
    if not (behind and self._leads):
      return self._text(ids)
    anchor = self._ids(_MARKS[0])
    return self._text([*anchor, *ids])[len(self._text(anchor)) :]

  def _ids(self, text: str) -> list[int]:
    return self._backend.encode(text, add_special_tokens=False).ids

  def _text(self, ids: Iterable[SupportsInt]) -> str:
    return self._backend.decode(list(map(int, ids)), skip_special_tokens=True)

  def to_json(self) -> str:
    """Returns what `from_json` turns back into an equal tokenizer."""
    if not self.named and not self.ends:
      return self.json
    ends = {"ends": list(self.ends)} if self.ends else {}
    return specials.to_json(dict(self.named) | ends, self.json)

  def under(self, template: Template | None) -> "Tokenizer":
    """Returns this tokenizer for prompts of a template, whose eos_token ends an answer.

    Raises:
      InputError: the template names no eos_token, or one that this tokenizer does not have.
    """
    plain = Tokenizer.from_json(self.to_json())
    if template is None:
      return plain
    spelt = dict(template.names).get("eos_token", "")
    eos_id = self._backend.token_to_id(spelt)
    if eos_id is None:
      raise InputError(
        f"the chat template's eos_token {spelt!r} is no token of the tokenizer; take both from one "
        "folder"
      )
    ends = tuple(i for i in plain.end_ids if i != eos_id)
    return dataclasses.replace(plain, bos_id=None, eos_id=eos_id, ends=ends, chat=template)

  @classmethod
  def from_json(cls, text: str, told: Mapping[str, Any] | None = None) -> "Tokenizer":
    """Reads a tokenizer of any make, or what `to_json` gave, and finds its special tokens.

    They are those that are told, else those of the usual names, of which a special token comes
    before any other. Where the JSON says how to complete a text, bos is what that puts in front, if
    anything, unless it is told that there is none.

    Args:
      told: bos, eos or pad -> a token or its id, or None where there is no bos; ends -> a list of
        tokens or ids that end an answer too.

    Raises:
      InputError: the text is no tokenizer, has no end-of-sequence token, or not one that is told.
    """
    text, told = specials.kept(text, told or {})
    try:
      backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises bare Exception.
      raise InputError(f"this is no tokenizer.json: {error}.") from None
    ids = backend.get_vocab(with_added_tokens=True)
    usual = specials.usual(backend, ids)
    told = dict(told)
    ends = [specials.id_of(backend, "eos", token) for token in told.pop("ends", ())]
    named = {name: specials.id_of(backend, name, token) for name, token in told.items()}
    if backend.post_processor is not None and named.get("bos") is not None:
      del named["bos"]
    eos_id = named.get("eos", usual["eos"])
    if eos_id is None:
      known = list(specials.SPELLINGS["eos"])
      raise InputError(f"the tokenizer has no end-of-sequence token; name one of {known}.")
    if usual["pad"] is None:
      usual["pad"] = eos_id
    found = usual | named
    return cls(
      json=text,
      vocab_size=max(ids.values()) + 1,
      pad_id=eos_id if found["pad"] is None else found["pad"],  # Padding is masked: any id serves.
      bos_id=found["bos"],
      eos_id=eos_id,
      named=tuple(sorted((name, i) for name, i in named.items() if i != usual[name])),
      ends=tuple(i for i in dict.fromkeys(ends) if i is not None and i != eos_id),
    )


def train(
  texts: Iterable[str], vocab_size: int, split: str, apart: Sequence[str] = ()
) -> Tokenizer:
  """Learns a byte-level BPE vocabulary: any text is encoded without loss, none is unknown.

  The result depends on the texts, not on their order in memory or on threads.

  Args:
    texts: what to count pairs in.
    vocab_size: upper limit, at least 259 (3 special tokens, 256 bytes); little text yields less.
    split: regular expression (Oniguruma); merges never cross the border of a match. What lies
      between two matches is one piece. `WORDS`, `NUMBERS`, `SENTENCES`, `SYMBOLS`, `PHRASES` are
      good ones.
    apart: strings that stand alone, with a space behind them, whatever `split` says. Where
      combinations of them are held out: one that is often seen would become a token of its own, and
      one that is held out would not.

  Returns:
    The tokenizer; <pad> has id 0, <bos> 1, <eos> 2.

  Raises:
    InputError: the vocabulary is too small, the expression is malformed, or a string of `apart` is
      empty.
  """
  smallest = 3 + len(pre_tokenizers.ByteLevel.alphabet())
  if vocab_size < smallest:
    raise InputError(f"vocab_size = {vocab_size} is too small; the least is {smallest}.")
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *_splits(split, apart),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[specials.PAD, specials.BOS, specials.EOS],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  # A merge that spells a special token would take its id: never let one see the whole spelling.
  special = re.compile("|".join((specials.PAD, specials.BOS, specials.EOS)))
  backend.train_from_iterator((piece for text in texts for piece in special.split(text)), trainer)
  return Tokenizer.from_json(backend.to_str())


def _splits(split: str, apart: Sequence[str]) -> list[pre_tokenizers.Split]:
  """What cuts a text into the pieces that no merge leaves; see `train`."""
  try:
    pattern = tokenizers.Regex(split)
  except Exception as error:  # The library raises bare Exception.
    raise InputError(f"split = {split!r} is no regular expression: {error}.") from None
  if "" in apart:
    raise InputError(f"apart = {tuple(apart)!r} holds an empty string; leave it out.")
  found = [pre_tokenizers.Split(pattern, "isolated")]
  if apart:
    longest_first = sorted(apart, key=len, reverse=True)  # Or one that begins another hides it.
    alone = tokenizers.Regex(rf"(?:{'|'.join(map(re.escape, longest_first))}) ?")
    found.insert(0, pre_tokenizers.Split(alone, "isolated"))
  return found


def load(path: str | pathlib.Path, told: Mapping[str, Any] | None = None) -> Tokenizer:
  """Reads a tokenizer.json of any make.

  Args:
    told: see `Tokenizer.from_json`.

  Raises:
    InputError: the file is missing, or see `Tokenizer.from_json`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise records.missing(path)
  try:
    text = path.read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: cannot be read as text: {error}.") from None
  try:
    return Tokenizer.from_json(text, told)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None


def _own(encoding: tokenizers.Encoding, n_mark: int) -> list[int] | None:
  """The ids behind the first `n_mark` characters; None where a token spans the border."""
  if not n_mark:
    return encoding.ids
  if any(start < n_mark < end for start, end in encoding.offsets):
    return None
  spans = zip(encoding.ids, encoding.offsets, strict=True)
  return [i for i, (start, _) in spans if start >= n_mark]
