"""A file of records loads whole and in order, or says in one sentence why it does not."""

import gzip
import json
import pathlib

import pytest

from iclm.config import InputError
from iclm.data import records

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
PLAIN = '{"prompt": "p", "answer": "a"}'


def write(path: pathlib.Path, *lines: str | bytes) -> pathlib.Path:
  raw = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
  path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
  return path


def test_plain_form_with_and_without_its_optional_keys(tmp_path):
  full = {"prompt": "1+", "answer": 2, "choices": [2, "3"], "domain": "d", "group": "g", "id": 7}
  path = write(tmp_path / "few.jsonl", json.dumps(full), PLAIN, "")
  assert records.load(path) == [
    records.Example("1+", "2", ("2", "3"), "d", "g", "7"),
    records.Example("p", "a", (), "few", "all", "few:2"),
  ]


def test_records_in_the_style_of_corr2cause_load(tmp_path):
  # Premise and hypothesis are the prompt, and the answers to choose from are two.
  told = "Premise: A correlates with B. B is independent of C.\nHypothesis: A causes B. True?"
  record = {"prompt": told, "answer": " no", "choices": [" yes", " no"], "group": "child"}
  chat = {"input": [{"role": "user", "content": told}], "ideal": "no"}
  path = write(tmp_path / "corr2cause.jsonl", json.dumps(record), json.dumps(chat))
  one, other = records.load(path)
  assert one == records.Example(told, " no", (" yes", " no"), "corr2cause", "child", "corr2cause:1")
  assert (other.prompt, other.answer, other.domain) == (told, "no", "corr2cause")


def test_evals_form_joins_contents_by_one_newline(tmp_path):
  messages = [{"role": "system", "content": "a "}, {"role": "user", "content": "b: "}]
  line = json.dumps(
    {"input": messages, "ideal": ["é"], "choices": [], "choice_strings": ["é", "x"]}
  )
  path = write(tmp_path / "val.jsonl.gz", line)
  assert records.load(path) == [records.Example("a \nb: ", "é", ("é", "x"), "val", "all", "val:1")]


MESSAGE = '{"role": "user", "content": "q"}'
BAD = {
  "malformed JSON": '{"prompt": "p", ',
  "an object was expected, this is a list": "[1]",
  "the key 'prompt' is missing; is it 'promt'?": '{"promt": "p", "answer": "a"}',
  "the key 'answer' is missing; there is prompt": '{"prompt": "p"}',
  "the key 'ideal' is missing; is it 'ideel'?": f'{{"input": [{MESSAGE}], "ideel": "a"}}',
  "the key 'content' is missing; is it 'contents'?": '{"input": [{"contents": "q"}], "ideal": "a"}',
  "the key 'choises' is not known; did you mean 'choices'?": PLAIN[:-1] + ', "choises": ["a"]}',
  "the key 'ID' is not known; did you mean 'id'?": PLAIN[:-1] + ', "ID": "x"}',
  "'answer' must be a string, it is a float": '{"prompt": "p", "answer": 1.5}',
  "'answer' must be a string, it is a bool": '{"prompt": "p", "answer": true}',
  "'prompt' must be a string, it is a int": '{"prompt": 1, "answer": "a"}',
  "'prompt' is empty": '{"prompt": "", "answer": "a"}',
  "'ideal' is empty": f'{{"input": [{MESSAGE}], "ideal": ""}}',
  "'ideal' must hold one answer, it holds 2": f'{{"input": [{MESSAGE}], "ideal": ["a", "b"]}}',
  "'input' must be a list of messages, not empty": '{"input": [], "ideal": "a"}',
  "the choices must be a list, they are a str": PLAIN[:-1] + ', "choices": "a"}',
  "the answer 'a' is not among the choices": PLAIN[:-1] + ', "choices": ["b"]}',
  "a choice stands there twice": PLAIN[:-1] + ', "choices": ["a", "a"]}',
  "'prompt' holds a lone surrogate": '{"prompt": "\\ud800", "answer": "a"}',
  "the key 'answer' stands there twice": PLAIN[:-1] + ', "answer": "b"}',
  "there are both 'prompt' and 'input', which": f'{PLAIN[:-1]}, "input": [{MESSAGE}]}}',
  "byte 13 of the line is not UTF-8": b'{"prompt": "\xff", "answer": "a"}',
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_named_with_file_line_reason_and_excerpt(tmp_path, reason):
  path = write(tmp_path / "x.jsonl", PLAIN, BAD[reason], PLAIN)
  with pytest.raises(InputError) as error:
    records.load(path)
  assert str(error.value).startswith(f"{path}:2: {reason}")
  assert "\n" not in str(error.value)


def test_an_excerpt_is_short(tmp_path):
  path = write(tmp_path / "x.jsonl", '{"prompt": "' + "long " * 100 + '"}')
  with pytest.raises(InputError) as error:
    records.load(path)
  assert str(error.value).endswith("...'")
  assert len(str(error.value).split(": ", 2)[2]) < 130


def test_blank_lines_may_only_end_a_file(tmp_path):
  assert len(records.load(write(tmp_path / "x.jsonl", PLAIN, "", "  ", ""))) == 1
  with pytest.raises(InputError, match=r"x.jsonl:2: this line is blank"):
    records.load(write(tmp_path / "x.jsonl", PLAIN, "", PLAIN))


def test_files_that_cannot_be_read(tmp_path):
  whole = write(tmp_path / "val.jsonl.gz", *[PLAIN + " " * i for i in range(200)])
  with pytest.raises(InputError, match=r"no such file; the nearest there is val.jsonl.gz"):
    records.load(tmp_path / "vall.jsonl")
  with pytest.raises(InputError, match="there is no folder"):
    records.load(tmp_path / "no" / "val.jsonl")
  with pytest.raises(InputError, match="this is a folder"):
    records.load(tmp_path)
  cut = tmp_path / "cut.jsonl.gz"
  cut.write_bytes(whole.read_bytes()[:-20])
  with pytest.raises(InputError, match=r"cut.jsonl.gz:\d+: the gzip file is cut off or damaged"):
    records.load(cut)
  cut.write_text("not gzip")
  with pytest.raises(InputError, match="cut off or damaged"):
    records.load(cut)
  for text in ("", "\n \n"):
    with pytest.raises(InputError, match="the file holds no record"):
      records.load(write(tmp_path / "empty.jsonl", text))


@pytest.mark.skipif(not DATA.exists(), reason="the benchmark's data are not here")
def test_real_files_of_every_form():
  acre = records.load(DATA / "acre" / "symbolic" / "IID" / "val.jsonl.gz")
  assert len(acre) == 8000
  assert acre[0].choices == ("0", "1", "2")  # Integers in the file.
  assert acre[0].prompt.endswith("] -> ")
  raven = records.load(DATA / "raven" / "text-open" / "center_single_val.jsonl.gz")
  assert {(e.choices, e.domain) for e in raven} == {((), "center_single_val")}
  assert raven[0].prompt.endswith("\n9. ")
