"""From sources to a tokenizer that knows what the whole run is about."""

import json

import grain
from conftest import tiny

from iclm.data import acre, assemble, raven
from iclm.data.records import Example


def row(text):
  return [Example(prompt=text, answer="a", choices=(), domain="", group="all", id="")]


def test_the_tokenizer_knows_what_comes_late_and_what_comes_in_turns():
  c = tiny(steps=10, batch_size=10, data__tokenizer__texts=60, data__tokenizer__split="words")
  texts = [("early", "late")[i >= 50] if i % 2 else "odd" for i in range(100)]
  made = assemble.make_tokenizer(c, grain.MapDataset.source(list(map(row, texts))))
  assert [len(made.encode(text)) for text in ("early", "late", "odd")] == [1, 1, 1]
  assert made == assemble.make_tokenizer(c, grain.MapDataset.source(list(map(row, texts))))


def test_records_without_a_group_are_labelled_by_the_solvers(tmp_path):
  known = [
    acre.examples("text", "iid_val", 0, 0, 4)[0],
    raven.example("center_single", "text", "open", "iid_val", 0, 0),
    raven.example("distribute_four", "symbolic", "published", "iid_val", 0, 0),
  ]
  path = tmp_path / "records.jsonl"
  path.write_text(
    "".join(json.dumps({"prompt": e.prompt, "answer": e.answer}) + "\n" for e in known)
  )
  found = assemble.read(str(path), None)
  assert [(e.domain, e.group) for e in found] == [(e.domain, e.group) for e in known]
