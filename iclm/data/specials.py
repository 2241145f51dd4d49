"""The special tokens of a tokenizer of any make: what its file lets expect, and what others say."""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from iclm import config
from iclm.config import InputError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

# Their usual spellings in files of other makers, the likeliest first.
SPELLINGS = {
  "pad": (PAD, "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
  "bos": (BOS, "<s>", "<|begin_of_text|>", "[BOS]", "<|startoftext|>", "<｜begin▁of▁sentence｜>"),
  "eos": (
    *(EOS, "</s>", "<|end_of_text|>", "<|endoftext|>", "[EOS]", "<|im_end|>", "<|eot_id|>"),
    "<｜end▁of▁sentence｜>",
  ),
}
_NAMED = '{"named": '  # How what `kept` reads begins.


def to_json(named: Mapping[str, Any], text: str) -> str:
  """A tokenizer's own JSON with special tokens that it does not tell itself; see `kept`."""
  return json.dumps({"named": dict(named), "json": text})


def kept(text: str, told: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """A tokenizer's own JSON and its special tokens: those that are told, and of `to_json`.

  Raises:
    InputError: the text begins as that of `to_json`, and is none.
  """
  if not text.startswith(_NAMED):
    return text, dict(told)
  try:
    read = json.loads(text)
    named = dict(read["named"])
    return str(read["json"]), named | {"ends": list(named.get("ends", ()))} | dict(told)
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"this is no tokenizer that a run keeps: {error!r}.") from None


def usual(backend: tokenizers.Tokenizer, ids: Mapping[str, int]) -> dict[str, int | None]:
  """The special tokens that a file lets expect which does not say what they are."""
  special = of(backend)
  first = lambda among, names: next((among[name] for name in names if name in among), None)
  usual = {}
  for name, spellings in SPELLINGS.items():
    i = first(special, spellings)
    usual[name] = first(ids, spellings) if i is None else i
  if backend.post_processor is not None:
    backend.no_padding()
    backend.no_truncation()
    bare, whole = (backend.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    usual["bos"] = whole[0] if whole[:1] != bare[:1] else None
  return usual


def of(backend: tokenizers.Tokenizer) -> dict[str, int]:
  """The tokens that a file calls special, with their ids."""
  added = backend.get_added_tokens_decoder()
  return {token.content: i for i, token in added.items() if token.special}


def id_of(backend: tokenizers.Tokenizer, name: str, token: str | int | None) -> int | None:
  """The id of a token that is named as bos, eos or pad; InputError where there is no such token."""
  ids = backend.get_vocab(with_added_tokens=True)
  found = ids.get(token) if isinstance(token, str) else token
  if token is not None and found not in ids.values():
    near = config.nearest(str(token), of(backend))
    raise InputError(f"the tokenizer has no token {token!r}, which is named as its {name}; {near}")
  return found
