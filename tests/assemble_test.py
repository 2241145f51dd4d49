"""From sources to a tokenizer that knows what the whole run is about."""

import json

import grain
import pytest
from conftest import tiny

from configs import acre as acre_config
from iclm import config
from iclm.data import acre, assemble, chat, raven
from iclm.data import acre_world as world
from iclm.data.acre_world import View
from iclm.data.records import Example


def row(text):
  return [Example(prompt=text, answer="a", choices=(), domain="", group="all", id="")]


def test_the_tokenizer_knows_what_comes_late_and_what_comes_in_turns():
  few = {"steps": 10, "batch_size": 10, "optimizer__warmup": 1}
  c = tiny(**few, data__tokenizer__texts=60, data__tokenizer__split="words")
  texts = [("early", "late")[i >= 50] if i % 2 else "odd" for i in range(100)]
  made = assemble.make_tokenizer(c, grain.MapDataset.source(list(map(row, texts))))
  assert [len(made.encode(text)) for text in ("early", "late", "odd")] == [1, 1, 1]
  assert made == assemble.make_tokenizer(c, grain.MapDataset.source(list(map(row, texts))))


@pytest.mark.parametrize("form", ["symbolic", "text"])
def test_under_comp_an_object_that_training_never_showed_is_spelled_like_those_that_it_did(form):
  c = config.from_config_dict(acre_config.get_config("comp"))
  trained = [acre.Problems(form, "comp", 0, 4, 0)[i] for i in range(c.data.tokenizer.texts)]
  tok = assemble.make_tokenizer(c, grain.MapDataset.source(trained))

  def lengths(objects):
    texts = [world.verbalise(form, [View((i,), lit=True)], [(i,)])[0] for i in objects]
    return {len(tok.encode(text)) for text in texts}

  # Each object is shown and asked about; in symbols some numbers of both have a digit less.
  seen = lengths(acre.COMP_TRAIN)
  assert lengths(acre.COMP_TEST) == seen
  assert len(seen) == {"symbolic": 2, "text": 1}[form]


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


def test_what_a_record_names_stands_and_a_template_hides_nothing_from_a_solver(tmp_path):
  known, path = acre.examples("text", "iid_val", 0, 0, 1)[0], tmp_path / "records.jsonl"
  told = {"prompt": known.prompt, "answer": known.answer}
  messages = {"input": [{"role": "user", "content": known.prompt}], "ideal": known.answer}
  lines = [told | {"domain": "mine"}, told | {"group": "all"}, messages]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  template = chat.Template("{{ '<' + messages[0].content + '>' }}", (), (), "2026-01-31")
  for found in (assemble.read(str(path), None), assemble.read(str(path), template)):
    groups = [(e.domain, e.group) for e in found]
    assert groups == [("mine", known.group), ("records", "all"), (known.domain, known.group)]
