"""The answer to a prompt from its text alone, sharing nothing with the generator but the alphabets.

It reads neither phrasings nor splits: the sequence is the longest run of one alphabet's symbols
between equal separators, and the operations are the words it knows, in their order.
"""

import re
from collections.abc import Callable, Mapping

from iclm.data.mechanisms.surfaces import SURFACES

Symbols = list[str]


def _swapped(found: Symbols) -> Symbols:
  found = list(found)
  found[0], found[-1] = found[-1], found[0]
  return found


def _woven(found: Symbols) -> Symbols:
  left, woven = list(found), []
  while left:
    woven.append(left.pop(0 if len(woven) % 2 == 0 else -1))
  return woven


# From a sequence and its alphabet.
_MEANING: dict[str, Callable[[Symbols, Symbols], Symbols]] = {
  "reverse": lambda found, _: list(reversed(found)),
  "rotate": lambda found, _: found[1:] + found[:1],
  "swap": lambda found, _: _swapped(found),
  "weave": lambda found, _: _woven(found),
  "sort": lambda found, alphabet: [s for s in alphabet if s in found],
  "successor": lambda found, alphabet: _renamed(found, alphabet, alphabet[1:] + alphabet[:1]),
  "opposite": lambda found, alphabet: _renamed(found, alphabet, alphabet[::-1]),
  "antipode": lambda found, alphabet: _renamed(
    found, alphabet, alphabet[len(alphabet) // 2 :] + alphabet[: len(alphabet) // 2]
  ),
}


def _renamed(found: Symbols, names: Symbols, new_names: Symbols) -> Symbols:
  rename = dict(zip(names, new_names, strict=True))
  return [rename[symbol] for symbol in found]


def solve(prompt: str, size: int, shifted: Mapping[str, str]) -> str:
  """Returns the one right answer to a prompt.

  Args:
    prompt: of any surface, with one operation or more.
    size: symbols of the alphabets in use, which the prompt does not tell.
    shifted: operations that mean another one here, and which; mostly {}.

  Raises:
    ValueError: the text has no operation or no sequence of the task.
  """
  alphabets = [surface.alphabet[:size] for surface in SURFACES.values()]
  run, alphabet = max(((_run(prompt, a), list(a)) for a in alphabets), key=lambda r: len(r[0]))
  words = [word for word in re.findall(r"[a-z]+", prompt) if word in _MEANING]
  if not run or not words:
    raise ValueError(f"no prompt of the mechanisms task: {prompt!r}")
  separator = re.sub("|".join(_longest_first(alphabet)), "", run)[0]
  found = run.split(separator)
  for word in words:
    found = _MEANING[shifted.get(word, word)](found, alphabet)
  return separator.join(found)


def _run(prompt: str, alphabet: tuple[str, ...]) -> str:
  """The sequence of an alphabet's symbols in a prompt; "" where there is none."""
  symbol = "(?:" + "|".join(_longest_first(list(alphabet))) + ")"
  runs = re.finditer(rf"(?<!\w){symbol}(\W){symbol}(?:\1{symbol})+(?!\w)", prompt)
  return max((run.group() for run in runs), key=len, default="")


def _longest_first(alphabet: Symbols) -> list[str]:
  """Patterns of the symbols: "10" before "1"."""
  return [re.escape(symbol) for symbol in sorted(alphabet, key=len, reverse=True)]
