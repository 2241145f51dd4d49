"""Small folders of a tokenizer and a chat template, and what `transformers` makes of messages.

Its answers lie in tests/golden/chat.json, so that parity is tested without it.
To renew them (extra `parity`): python -m tests.chat_families
"""

import json
import pathlib

import tokenizers

GOLDEN = pathlib.Path(__file__).parent / "golden" / "chat.json"
SPECIALS = ("<pad>", "<s>", "</s>", "<|turn|>", "<|end|>")
DAY = "2026-03-04"

TURNS = """\
{% for message in messages %}
<|turn|>{{ message['role'] }}
{{ message.content }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}
<|turn|>assistant
{% endif %}
"""
BRACKETS = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
  {%- set first = messages[0]['content'] | trim + '\\n\\n' %}
  {%- set messages = messages[1:] %}
{%- else %}
  {%- set first = '' %}
{%- endif %}
{%- for message in messages %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must be user, assistant, user, ...') }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {{- '[ASK] ' + (first if loop.first else '') + message['content'] + ' [/ASK]' }}
  {%- else %}
    {{- ' ' + message['content'] | trim + eos_token }}
  {%- endif %}
{%- endfor %}
"""
DATED = """\
{{- bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}
{% for message in messages %}
{%- if message.content == 'skip' %}{% continue %}{% endif %}
{% generation %}{{ message | tojson }}{% endgeneration %}
{%- endfor %}
{{- '\\n' if add_generation_prompt else eos_token }}"""

# Name -> template, where it lies, and the tokens that are named beside it.
FAMILIES = {
  "turns": (TURNS, "chat_template.jinja", {"eos_token": "<|end|>", "pad_token": "<pad>"}),
  "brackets": (BRACKETS, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"}),
  "dated": (DATED, "chat_template.jinja", {"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
}
CHATS = [
  [{"role": "user", "content": "a b\n c "}],
  [{"role": "system", "content": " be good "}, {"role": "user", "content": 'é "quoted" <b>\n'}],
  [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": " two "},
    {"role": "user", "content": "three\n\nfour"},
  ],
]


def backend() -> tokenizers.Tokenizer:
  """Bytes, the special tokens, and a bos that is put in front of a text."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(list(SPECIALS))
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
  )
  return made


def save(name: str, folder: pathlib.Path) -> pathlib.Path:
  """The folder of a family."""
  source, place, names = FAMILIES[name]
  folder.mkdir()
  backend().save(str(folder / "tokenizer.json"))
  spelt = {k: v if isinstance(v, str) else special(v["content"]) for k, v in names.items()}
  about = {"tokenizer_class": "PreTrainedTokenizerFast"} | spelt
  if place == "chat_template.jinja":
    (folder / place).write_text(source, "utf-8")
  else:
    about["chat_template"] = source
  (folder / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")
  return folder


def special(content: str) -> dict:
  """A token in the long form."""
  form = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
  return form | {"__type": "AddedToken", "content": content, "special": True}


def theirs(folder: pathlib.Path) -> list[dict]:
  """What `transformers` makes of each chat: the text, its ids, and the text that goes on."""
  import transformers

  made = transformers.AutoTokenizer.from_pretrained(folder)
  found = []
  for messages in CHATS:
    text = made.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = {"add_generation_prompt": True, "return_dict": False}
    ids = list(made.apply_chat_template(messages, **given))
    try:
      goes_on = made.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    except ValueError:  # The template has changed the message beyond recognition.
      goes_on = None
    found.append({"text": text, "ids": ids, "goes_on": goes_on})
  return found


if __name__ == "__main__":
  import datetime
  import tempfile
  from unittest import mock

  class Day(datetime.datetime):
    """The one that the template is told."""

    @classmethod
    def now(cls, tz=None):
      return cls.fromisoformat(DAY)

  with (
    tempfile.TemporaryDirectory() as made,
    mock.patch("transformers.utils.chat_template_utils.datetime", Day),
  ):
    golden = {name: theirs(save(name, pathlib.Path(made) / name)) for name in FAMILIES}
  lines = [
    f"  {json.dumps(name)}: [\n"
    + ",\n".join(f"    {json.dumps(one, ensure_ascii=False)}" for one in made)
    + "\n  ]"
    for name, made in golden.items()
  ]
  GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
