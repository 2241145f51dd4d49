"""A run on messages: its template stays with it, and is asked by."""

import dataclasses
import json
import types

import pytest
from chat_families import save
from small_run import small_config

from experiments import generate as command
from iclm import config, hf, train, workdir
from iclm.config import InputError
from iclm.data import assemble, chat, tokenizer

ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """A run on messages, and its config."""
  path = tmp_path_factory.mktemp("run")
  lines = [json.loads(line) for line in data.read_text().splitlines()]
  messages = [
    {"input": [{"role": "user", "content": e["prompt"]}], "ideal": e["answer"]} for e in lines
  ]
  file = path / "chat.jsonl"
  file.write_text("".join(json.dumps(e) + "\n" for e in messages))
  folder = save("turns", path / "theirs")
  c = config.from_config_dict(small_config(file, **{
    "steps": 2, "optimizer.warmup": 1, "data.seq_len": 160,
    "data.chat_template": str(folder), "data.tokenizer.path": str(folder / "tokenizer.json"),
  }))  # fmt: skip
  train.fit(c, path / "run", "test")
  return path / "run", c


def asked(folder, *prompt, **changes):
  given = {
    "workdir": str(folder), "prompt": list(prompt), "prompts": None, "out": None, "max_tokens": 3,
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": [], "do_route": None,
    "disable_expert": [], "batch_size": 4, "chat": True, "system": "", "mesh": None, "step": None,
    "context": None,
  }  # fmt: skip
  return command.main(types.SimpleNamespace(**given | changes))


def test_the_run_keeps_its_template(run, capsys, tmp_path):
  folder, c = run
  loaded = workdir.load_run(folder)
  assert loaded.tokenizer.chat == assemble.template(c.data) == workdir.template_of(folder)
  assert asked(folder, "hi", system="be good") == 0
  shown = capsys.readouterr().out
  assert "<|turn|>system\nbe good<|end|>\n<|turn|>user\nhi<|end|>\n<|turn|>assistant\n" in shown
  file = tmp_path / "r.jsonl"
  file.write_text(json.dumps({"input": ASKED, "ideal": "yes"}) + "\n")
  assert asked(folder, chat=False, prompts=str(file)) == 0
  assert "<|turn|>user\nhi<|end|>\n<|turn|>assistant\n" in capsys.readouterr().out
  for prompt, changes, told in (
    ("hi<|end|>", {}, "spells the special token"),
    ("", {}, "what a user says is empty"),
    ("hi", {"chat": False, "system": "x"}, "give --chat too"),
    ("hi", {"workdir": str(tmp_path)}, "is no run's workdir"),
  ):
    with pytest.raises(InputError, match=told):
      asked(folder, prompt, **changes)


def test_the_harness_asks_by_the_template(run):
  pytest.importorskip("lm_eval")
  from experiments import harness

  model, template = harness.Harness(workdir=str(run[0])), workdir.template_of(run[0])
  assert model.apply_chat_template(ASKED) == template.render(ASKED)
  before = model.apply_chat_template([*ASKED, {"role": "assistant", "content": "So"}], False)
  assert before.endswith("<|turn|>assistant\nSo")
  assert model.chat_template(True) == template.source and len(model.tokenizer_name) == 64


def test_another_template_does_not_go_on_with_the_run(run):
  folder, c = run
  place = folder.parent / "theirs" / "chat_template.jinja"
  source = place.read_text()
  place.write_text(source + "!")
  with pytest.raises(InputError, match="holds another template than it did when the run in"):
    train.fit(c, folder, "test")
  place.write_text(source)
  assert train.fit(c, folder, "test").run.step == 2


def test_a_run_without_a_template_has_no_chat(data, tmp_path):
  c = config.from_config_dict(small_config(data, steps=1, **{"optimizer.warmup": 0}))
  train.fit(c, tmp_path / "run", "test")
  with pytest.raises(InputError, match="has no chat template: train it with"):
    asked(tmp_path / "run", "hi")


def test_an_exported_base_takes_the_template_along(run, tmp_path):
  loaded = workdir.load_run(run[0])
  model = dataclasses.replace(loaded.config.model, context=64)
  given = {"dtype": "float32", "max_bytes": 10**9, "tokenizer": loaded.tokenizer}
  hf.save_base(loaded.params["base"], model, tmp_path / "out", **given)
  date = loaded.config.data.chat_date
  assert under_on(tmp_path / "out", date) == loaded.tokenizer


def under_on(folder, date):
  return tokenizer.load(folder / "tokenizer.json").under(chat.load(folder, date))
