"""The command as a user types it: what it shows and writes, and one sentence for bad input."""

import io
import json
import subprocess
import sys
import types

import pytest
from cli_test import ROOT

from experiments import generate as command
from iclm.config import InputError

ASKED = "From 0,1,2 do sort:"


def asked(folder, *prompt, **changes):
  given = {
    "workdir": str(folder), "prompt": list(prompt), "prompts": None, "out": None, "max_tokens": 5,
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": [], "do_route": None,
    "disable_expert": [], "batch_size": 4, "chat": False, "system": "", "mesh": None, "step": None,
    "context": None,
  }  # fmt: skip
  return command.main(types.SimpleNamespace(**given | changes))


def test_it_shows_and_writes_answers_with_their_experts(whole, tmp_path, capsys):
  out, file = tmp_path / "out.jsonl", tmp_path / "prompts.txt"
  file.write_text(f"{ASKED}\nApply reverse to (a.b.c.d):\n")
  assert asked(whole[0], ASKED, prompts=str(file), out=str(out), stop=["\0"]) == 0
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert [r["prompt"] for r in records] == [ASKED, *file.read_text().splitlines()]
  assert records[0]["answer"] == records[1]["answer"]
  shown = capsys.readouterr().out
  for r in records:
    assert r["expert"] in (0, 1) and 0 < r["confidence"] <= 1 and r["do_route"] is None
    assert f"[expert {r['expert']}, to which the router gives {r['confidence']:.3f}]" in shown
    assert (
      f"{r['prompt']}{r['answer']}\n[{r['finish']} after {r['tokens']} tokens; no stop" in shown
    )


def test_one_prompt_is_streamed_as_a_batch_answers_it(whole, tmp_path, capsys):
  many, one = tmp_path / "many.jsonl", tmp_path / "one.jsonl"
  asked(whole[0], ASKED, ASKED, out=str(many), do_route=1)
  capsys.readouterr()
  asked(whole[0], ASKED, out=str(one), do_route=1)
  [record] = map(json.loads, one.read_text().splitlines())
  assert record["answer"] == json.loads(many.read_text().splitlines()[0])["answer"]
  assert record["expert"] == record["do_route"] == 1
  assert f"{ASKED}{record['answer']}\n[{record['finish']} after" in capsys.readouterr().out
  jsonl = tmp_path / "records.jsonl"
  jsonl.write_text(json.dumps({"prompt": ASKED, "answer": "0"}) + "\n")
  asked(whole[0], prompts=str(jsonl), out=str(one), do_route=1)
  assert json.loads(one.read_text()) == record


def test_without_prompts_and_without_an_input_there_is_nothing_to_do(whole, monkeypatch):
  monkeypatch.setattr(sys, "stdin", None)
  with pytest.raises(InputError, match="no input to read prompts from; give --prompt"):
    asked(whole[0])


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_on_a_terminal_it_answers_line_by_line(whole, capsys, monkeypatch):
  monkeypatch.setattr(sys, "stdin", Terminal(f"{ASKED}\n\n{ASKED}\n"))
  assert asked(whole[0]) == 0
  told = capsys.readouterr()
  assert told.out.count("> [expert") == 2 and told.out.count(ASKED) == 2
  assert "is empty" in told.err
  monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
  with pytest.raises(InputError, match="is empty"):
    asked(whole[0])


@pytest.mark.parametrize(
  ("prompt", "changes", "told"),
  [
    ("", {}, "is empty"),
    ("x " * 400, {}, "the context of this run is"),
    (ASKED, {"do_route": 2}, r"no expert 2; experts are 0\.\.1"),
    (ASKED, {"disable_expert": [0, 1]}, "all 2 experts are disabled"),
    (ASKED, {"do_route": 0, "disable_expert": [0]}, "expert 0 is to run, and disabled"),
    (ASKED, {"temperature": 1.0, "top_p": 2.0}, "top_p = 2.0"),
    (ASKED, {"top_k": 3}, "temperature = 0 is greedy"),
    (ASKED, {"prompts": "absent.txt"}, r"absent\.txt"),
    (ASKED, {"out": "."}, "cannot write"),
  ],
)
def test_bad_input_is_told_and_nothing_written(
  whole,
  tmp_path,
  prompt,
  changes,
  told,
):
  out = tmp_path / "out.jsonl"
  paths = {k: str(tmp_path / changes[k]) for k in ("out", "prompts") if k in changes}
  with pytest.raises(InputError, match=told):
    asked(whole[0], prompt, **{"out": str(out)} | changes | paths)
  assert not out.exists()


def test_out_without_a_prompt_no_run_and_an_empty_file_are_told(whole, tmp_path):
  with pytest.raises(InputError, match="--out takes the answers"):
    asked(whole[0], out=str(tmp_path / "o"))
  with pytest.raises(InputError, match="no run's workdir"):
    asked(tmp_path / "nothing", ASKED)
  both = tmp_path / "both.jsonl"
  both.write_text('{"prompt": "a", "answer": "b"}\n')
  with pytest.raises(InputError, match="is the file of --prompts, which it would replace"):
    asked(whole[0], prompts=str(both), out=str(both))
  empty = tmp_path / "empty.txt"
  empty.write_text("")
  with pytest.raises(InputError, match="holds no prompt"):
    asked(whole[0], prompts=str(empty))
  empty.write_text("a\nb\n", "utf-8-sig")
  assert command._lines(empty) == ["a", "b"]
  empty.write_text("a\n\nb\n")
  with pytest.raises(InputError, match=r"empty\.txt:2: the prompt is empty"):
    asked(whole[0], prompts=str(empty))


@pytest.mark.parametrize(
  ("flag", "told"), [("--top_p=0", "top_p = 0"), ("--do_rout=1", "do_rout"), ("--top_k=x", "top_k")]
)
def test_bad_flags_are_one_sentence_and_exit_code_2(whole, flag, told):
  argv = ["-m", "experiments.generate", f"--workdir={whole[0]}", f"--prompt={ASKED}", flag]
  argv += ["--temperature=1"]
  done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert told in error
