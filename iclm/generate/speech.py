"""The text of one answer while it is being said: nothing is shown that may yet be taken back."""

from collections.abc import Sequence

from iclm.data.tokenizer import Tokenizer

_BROKEN = "\ufffd"  # What a character decodes to whose last bytes are not said yet.


class Speech:
  """Tokens in, text out, up to the first stop string, wherever tokens begin and end.

  Attributes:
    tokens: that were heard; behind the one that completes a stop string none is.
    text: all of it, the stop string and what follows left out.
    stopped: a stop string was met.
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
    self.tokens, self.text, self.stopped = [], "", False
    self._tokenizer, self._stop, self._shown = tokenizer, tuple(stop), 0
    # A special token spells nothing, and is met by its id.
    self._ids = {tokenizer.special_id(one) for one in stop} - {None}

  def hear(self, tokens: Sequence[int], last: bool) -> str:
    """Returns the text that is new and certain; all that is left where these are the last."""
    if not self.stopped:
      self._read(tokens)
    certain = self.text if last or self.stopped else self.text[: self._certain()]
    new, self._shown = certain[self._shown :], max(self._shown, len(certain))
    return new

  def _read(self, tokens: Sequence[int]) -> None:
    if not self._stop:
      self.tokens += tokens
      self.text = self._decode(self.tokens)
      return
    for token in tokens:  # One by one: what is met may be another text with the next.
      self.tokens.append(token)
      self.text = self._decode(self.tokens)
      met = [self.text.index(stop) for stop in self._stop if stop in self.text]
      if met or token in self._ids:
        self.stopped, self.text = True, self.text[: min(met, default=len(self.text))]
        return

  def _decode(self, tokens: Sequence[int]) -> str:
    """An end spells nothing, though it need be no special token."""
    said = [i for i in tokens if i not in self._tokenizer.end_ids]
    return self._tokenizer.decode(said, behind=True)

  def _certain(self) -> int:
    """Characters before what may become a stop string, or another character."""
    n = len(self.text.rstrip(_BROKEN))
    whole = len(self.tokens)
    while whole and self._tokenizer.is_byte(self.tokens[whole - 1]):
      whole -= 1
    if whole < len(self.tokens):  # One bad byte more, and all of them spell something else.
      n = min(n, len(self._decode(self.tokens[:whole])))
    first = max(0, n - max(map(len, self._stop), default=0))
    begins = lambda i: any(stop.startswith(self.text[i:n]) for stop in self._stop)
    return next((i for i in range(first, n) if begins(i)), n)
