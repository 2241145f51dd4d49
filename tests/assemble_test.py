"""From sources to a tokenizer that knows what the whole run is about."""

import grain
from conftest import tiny

from iclm.data import assemble
from iclm.data.records import Example


def row(text):
  return [Example(prompt=text, answer="a", choices=(), domain="", group="all", id="")]


def test_the_tokenizer_knows_what_comes_late_and_what_comes_in_turns():
  c = tiny(steps=10, batch_size=10, data__tokenizer__texts=60, data__tokenizer__split="words")
  texts = [("early", "late")[i >= 50] if i % 2 else "odd" for i in range(100)]
  made = assemble.make_tokenizer(c, grain.MapDataset.source(list(map(row, texts))))
  assert [len(made.encode(text)) for text in ("early", "late", "odd")] == [1, 1, 1]
  assert made == assemble.make_tokenizer(c, grain.MapDataset.source(list(map(row, texts))))
