"""Messages become what `transformers` makes of them; only a template writes special tokens."""

import datetime
import json
import shutil

import numpy as np
import pytest
import tokenizers
from chat_families import BRACKETS, CHATS, DAY, FAMILIES, GOLDEN, backend, save, theirs
from conftest import tiny

from iclm import workdir
from iclm.config import InputError
from iclm.data import assemble, chat, records, rows, tokenizer
from iclm.generate import prompts

ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  made = tmp_path_factory.mktemp("chat")
  return {name: save(name, made / name) for name in FAMILIES}


def under(folder):
  return tokenizer.load(folder / "tokenizer.json").under(chat.load(folder, DAY))


def compare(folder, expected):
  made = under(folder)
  for messages, want in zip(CHATS, expected, strict=True):
    text = made.chat.render(messages)
    assert text == want["text"]
    assert made.encode(text) == want["ids"]
    # The packing puts nothing before what the template has written.
    [prompt] = prompts.encode([text], made, config_of(question="none"))
    assert [*prompt.context, *prompt.question] == want["ids"]
    if want["goes_on"] is not None:
      assert made.chat.render(messages, answer=False) == want["goes_on"]


def config_of(**changes):
  rows_of = {"seq_len": 200, "questions_per_row": 1, "question": "none"} | changes
  return tiny(**{f"data__{k}": v for k, v in rows_of.items()})


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_and_ids_are_those_that_transformers_once_gave(name, folders):
  compare(folders[name], json.loads(GOLDEN.read_text("utf-8"))[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_and_ids_are_those_of_transformers(name, folders):
  pytest.importorskip("transformers")
  made = theirs(folders[name])
  today = datetime.date.today().strftime("%d %b %Y")
  day = datetime.date.fromisoformat(DAY).strftime("%d %b %Y")
  if name != "dated":
    compare(folders[name], made)
  else:
    assert [one["text"].replace(today, day) for one in made] == [
      one["text"] for one in json.loads(GOLDEN.read_text("utf-8"))[name]
    ]


def test_bos_eos_and_pad(folders):
  plain = tokenizer.load(folders["turns"] / "tokenizer.json")
  token = lambda made, i: backend().id_to_token(i)
  assert [token(plain, i) for i in (plain.bos_id, plain.eos_id, plain.pad_id)] == [
    "<s>", "</s>", "<pad>",
  ]  # fmt: skip
  made = under(folders["turns"])
  assert (made.bos_id, token(made, made.eos_id)) == (None, "<|end|>")
  # A file that says how to complete a text, and puts nothing in front, has no bos.
  bare = backend()
  bare.post_processor = tokenizers.processors.ByteLevel()
  assert tokenizer.Tokenizer.from_json(bare.to_str()).bos_id is None


def test_text_is_a_special_token_only_where_a_template_wrote_it(folders):
  made = under(folders["turns"])
  plain = made.under(None)
  assert len(plain.encode("<|end|>")) == 7 and len(made.encode("<|end|>")) == 1
  assert plain == tokenizer.load(folders["turns"] / "tokenizer.json") != made
  with pytest.raises(InputError, match=r"message 1 spells the special token '<\|end\|>'"):
    made.chat.render([{"role": "user", "content": "a<|end|>b"}])


def record(**changes):
  return json.dumps({"input": ASKED, "ideal": "yes", "choices": ["yes", "no"]} | changes)


def test_records_are_written_by_the_template_and_the_answer_alone_counts(folders, tmp_path):
  path = tmp_path / "r.jsonl"
  path.write_text(f'{record()}\n{{"prompt": "<|turn|>x", "answer": "y"}}\n')
  made = under(folders["turns"])
  one, other = assemble.read(str(path), made.chat)
  assert one.prompt == made.chat.render(ASKED) and other.prompt == "<|turn|>x"
  plain = assemble.read(str(path), None)
  assert [e.prompt for e in plain] == [e.content for e in (one, other)] == ["hi", "<|turn|>x"]
  packed = {"seq_len": 60, "question": "none", "loss": "answer", "too_long": "error"}
  [row] = rows.pack_all([[one]], made, **packed)
  n = len(made.encode(one.prompt))
  said = [*made.encode("yes"), made.eos_id]
  counted_T = row.loss_mask_T > 0
  assert row.targets_T[counted_T].tolist() == said
  assert np.flatnonzero(counted_T).tolist() == list(range(n - 1, n - 1 + len(said)))
  assert row.prompt_mask_T.sum() == n
  # Padding is on the right, whatever a folder says of its own.
  assert np.flatnonzero(row.segment_T).tolist() == list(range(n + len(said) - 1))


def test_bad_records_are_told_with_their_line(folders, tmp_path):
  path = tmp_path / "r.jsonl"
  bad = {
    "the chat template refuses messages of system, assistant: roles must be": record(
      input=[{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]
    ),
    "the key 'role' is missing": record(input=[{"content": "x"}]),
    "'ideal' or a choice spells the special token '</s>'": record(ideal="</s>", choices=[]),
    "'role' must be a string": record(input=[{"content": "x", "role": 3}]),
  }
  template = chat.load(folders["brackets"], DAY)
  for told, line in bad.items():
    path.write_text(f"{record()}\n{line}\n")
    with pytest.raises(InputError, match=rf"r\.jsonl:2: {told}"):
      records.load(path, template=template)


def test_templates_at_fault(folders, tmp_path):
  def copy(name, source, about=None):
    folder = shutil.copytree(folders["brackets"], tmp_path / name)
    found = {"chat_template": source, "eos_token": "</s>"} if about is None else about
    (folder / "tokenizer_config.json").write_text(json.dumps(found))
    return folder

  for source, told in (
    ("{% if %}", "the chat template is malformed: Expected an expression"),
    ("{% sing %}", "the chat template is malformed: Encountered unknown tag 'sing'"),
    (None, r"has no chat template: neither chat_template\.jinja, nor"),
  ):
    with pytest.raises(InputError, match=told):
      chat.load(copy(told[-12:].strip("'$"), source), DAY)
  with pytest.raises(InputError, match=r"there is no .*absent/tokenizer_config\.json, and"):
    chat.load(tmp_path / "absent", DAY)
  for i, source in enumerate((
    "{{ messages[0].missing.more }}",
    "{{ messages.append(1) }}",  # Nothing that a template is given changes.
    "{{ ''.__class__.__mro__ }}",  # And Python's insides are out of reach.
    "{% set n = namespace(__class__=1) %}",
    "{{ 'a' + 1 }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
  )):  # fmt: skip
    made = chat.load(copy(f"run{i}", source), DAY)
    with pytest.raises(InputError, match="the chat template refuses messages of user: "):
      made.render(ASKED)
  foreign = copy("foreign", "x", {"chat_template": "x", "eos_token": "<|bye|>"})
  with pytest.raises(InputError, match=r"eos_token '<\|bye\|>' is no token of the tokenizer"):
    under(foreign)
  several = [{"name": "tool", "template": "t"}, {"name": "default", "template": BRACKETS}]
  assert chat.load(copy("many", several), DAY).source == BRACKETS
  gone = chat.load(copy("gone", "nothing"), DAY)
  with pytest.raises(InputError, match="leaves out the last message"):
    gone.render(ASKED, answer=False)
  with pytest.raises(InputError, match=r"chat_date = '2026-2-30' is no day"):
    config_of(chat_date="2026-2-30")


@pytest.mark.parametrize(
  ("file", "changes", "told"),
  [
    ("tokenizer_config.json", {"chat_template": ["x"]}, "has no chat template: neither"),
    ("tokenizer_config.json", {"chat_template": [{"template": "x"}]}, "has no chat template: "),
    ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "has no chat template: "),
    ("tokenizer.json", {"added_tokens": None}, r"tokenizer\.json: added_tokens must be a list of"),
    ("tokenizer.json", {"added_tokens": [3]}, r"tokenizer\.json: added_tokens must be a list of"),
    ("tokenizer.json", {"added_tokens": [{"content": "x"}]}, "objects with content and special"),
    ("tokenizer.json", {"added_tokens": [{"content": 3, "special": True}]}, "must be a list of"),
    ("chat_template.jinja", None, r"chat_template\.jinja: cannot be read, .* can't decode"),
    (
      "tokenizer_config.json",
      None,
      r"tokenizer_config\.json cannot be read as JSON: .* can't decode",
    ),
  ],
)
def test_files_of_a_folder_at_fault(file, changes, told, folders, tmp_path):
  path = shutil.copytree(folders["brackets"], tmp_path / "theirs") / file
  if changes is None:
    path.write_bytes(b"\xff")
  else:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))
  with pytest.raises(InputError, match=told) as error:
    chat.load(tmp_path / "theirs", DAY)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text", ["{", "[]", "{}", '{"source": 1, "names": [], "specials": [], "date": "x"}', "\udcff"]
)
def test_a_kept_template_that_is_damaged(text, tmp_path):
  (tmp_path / workdir.CHAT).write_bytes(text.encode("utf-8", "surrogateescape"))
  with pytest.raises(InputError, match=r"chat\.json: "):
    workdir.template_of(tmp_path)


def test_a_template_is_equal_to_its_json(folders):
  made = chat.load(folders["dated"], DAY)
  assert chat.Template.from_json(made.to_json()) == made
  assert hash(made) == hash(chat.Template.from_json(made.to_json()))
  assert made != chat.load(folders["dated"], "2026-03-05")
