"""A run in EleutherAI's harness (extra `eval`), on tasks that lie beside the test."""

import json
import os
import pathlib
import random
import subprocess
import sys
import types

import numpy as np
import pytest
from cli_test import ROOT
from cli_test import asked as evaluate

from iclm import generate, workdir
from iclm.config import InputError

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("lm_eval.tasks")

from experiments import harness  # noqa: E402
from experiments import lm_eval as command  # noqa: E402

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: prompt
target_delimiter: ""
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: "{{choices.index(answer)}}"
metric_list: [{metric: acc}]
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_target: "{{prompt}}{{answer}}"
metric_list: [{metric: bits_per_byte}]
"""
ANSWER = """\
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory) -> pathlib.Path:
  """A folder of three tasks on one file; choices are answers of other records, of other lengths."""
  folder = tmp_path_factory.mktemp("tasks")
  records, rng = [json.loads(line) for line in data.read_text().splitlines()], random.Random(0)
  answers = sorted({record["answer"] for record in records})
  for record in records:
    others = [answer for answer in answers if answer != record["answer"]]
    record["choices"] = rng.sample([record["answer"], *rng.sample(others, 3)], 4)
  file = folder / "chosen.jsonl"
  file.write_text("".join(json.dumps(record) + "\n" for record in records))
  for name, kind in (("choice", CHOICE), ("rolling", ROLLING), ("answer", ANSWER)):
    head = TASK.format(name=f"local_{name}", file=file, cache=folder / "cache")
    (folder / f"{name}.yaml").write_text(head + kind)
  return folder


def run(tasks, *names, **arguments):
  manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
  model = harness.Harness(**arguments)
  found = lm_eval.simple_evaluate(
    model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, log_samples=True
  )
  return found["results"], found["samples"]


def test_a_local_task_has_the_accuracy_of_evaluate(whole, tasks, tmp_path):
  out = tmp_path / "out.json"
  assert evaluate(whole[0], out, tasks / "chosen.jsonl") == 0
  [ours] = json.loads(out.read_text())["sets"]
  results, samples = run(tasks, "local_choice", workdir=str(whole[0]), end=True)
  assert results["local_choice"]["acc,none"] == ours["accuracy"]
  assert 0 < ours["accuracy"] < 1 and len(samples["local_choice"]) == ours["n"] == 60


def requests(*args):
  return [types.SimpleNamespace(args=each) for each in args]


@pytest.fixture(scope="module")
def model(whole):
  return harness.Harness(workdir=str(whole[0]), batch_size="7")


def test_the_end_counts_where_it_is_asked_for(whole, model):
  pair = ("Apply reverse to (a.b.c.d):", "d.c.b.a")
  [(without, _)] = model.loglikelihood(requests(pair), disable_tqdm=True)
  ending = harness.Harness(workdir=str(whole[0]), end=True, mesh="1x1x1")
  [(with_end, _)] = ending.loglikelihood(requests(pair), disable_tqdm=True)
  [(empty, _)] = model.loglikelihood(requests(("", "d.c.b.a")), disable_tqdm=True)
  assert with_end < without < 0 and np.isfinite(empty)
  # One of 900 words: it loses its beginning, and nothing is refused.
  [(cut, _)] = model.loglikelihood(requests(("a." * 900, "d")), disable_tqdm=True)
  assert np.isfinite(cut)


def test_rolling_texts_of_any_length(model):
  short, long = "From 0,1,2 do sort:", "From 0,1,2 do sort:" * 20
  found = model.loglikelihood_rolling(requests((short,), (long,), ("",)), disable_tqdm=True)
  [(same, _)] = model.loglikelihood(requests(("", short)), disable_tqdm=True)
  np.testing.assert_allclose(found[0], same, rtol=1e-6)
  assert found[1] < found[0] and found[2] == 0.0


def test_answers_are_those_of_generate(whole, model):
  texts = ["From 0,1,2 do sort:", "Apply reverse to (a.b.c.d):"]
  asked = {"until": ["."], "max_gen_toks": 6, "do_sample": False, "temperature": 0.7}
  other = {"until": [], "max_gen_toks": 3}
  found = model.generate_until(
    requests((texts[0], asked), (texts[1], other), (texts[1], asked)), disable_tqdm=True
  )
  loaded = workdir.load_run(whole[0])
  generator = generate.Generator(*loaded.parts, 2)
  options = harness.options_of(asked)
  assert options.temperature == 0 and options.stop == (".",) and options.max_tokens == 6
  first, second = generator(texts, options)
  assert [found[0], found[2]] == [first.text, second.text]
  assert found[1] == generator(texts, harness.options_of(other))[1].text
  # A prompt of 900 words leaves room for its answer.
  assert isinstance(model.generate_until(requests(("a." * 900, asked)), True)[0], str)


def test_arguments_that_nothing_would_follow_are_refused(whole, tmp_path):
  for arguments, told in (
    ({"ends": True}, "'ends' is not known: did you mean 'end'?"),
    ({"end": "maybe"}, "end = 'maybe' must be True or False"),
    ({"batch_size": "many"}, "batch_size = 'many' must be a whole number"),
    ({"workdir": str(tmp_path / "nothing")}, "no run's workdir"),
  ):
    with pytest.raises(InputError, match=told):
      harness.Harness(**{"workdir": str(whole[0])} | arguments)
  for asked, told in (
    ({"num_beams": 4}, "'num_beams' is not known"),
    ({"temperature": "hot"}, "temperature = 'hot' must be a number"),
    ({"max_gen_toks": 2.5}, r"max_gen_toks = 2\.5 must be a whole number"),
    ({"until": 5}, "until = 5 must be texts"),
    ({"do_sample": "no"}, "do_sample = 'no' must be true or false"),
  ):
    with pytest.raises(InputError, match=told):
      harness.options_of(asked)
  assert harness.options_of({"temperature": 1, "top_p": 0}).top_p == 0  # Refused, not replaced.
  assert harness.options_of({"max_gen_toks": "7", "until": None}).max_tokens == 7


def test_no_answer_is_given_before_all_requests_are_checked(model):
  asked = {"until": ["."], "max_gen_toks": 2}
  model.cache_hook.add_partial = lambda *_: pytest.fail("an answer was given")
  for bad, told in (({"num_beams": 1}, "num_beams"), ({"max_gen_toks": 0}, "max_tokens = 0")):
    with pytest.raises(InputError, match=told):
      model.generate_until(requests(("a", asked), ("b", bad)), disable_tqdm=True)


def test_without_the_extra_the_command_says_so(monkeypatch):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  with pytest.raises(InputError, match=r"lm_eval is not installed; pip install -e '\.\[eval\]'"):
    command.main()


@pytest.mark.slow
def test_the_command(whole, tasks, tmp_path):
  def command(*argv):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    argv = [sys.executable, "-m", "experiments.lm_eval", "--model", "iclm", *argv]
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

  names = "local_choice,local_rolling,local_answer"
  more = "--tasks", names, "--include_path", str(tasks), "--output_path", str(tmp_path)
  done = command("--model_args", f"workdir={whole[0]},end=True", *more, "--batch_size", "8")
  assert done.returncode == 0, done.stderr[-3000:]
  [path] = tmp_path.rglob("results_*.json")
  found = json.loads(path.read_text())["results"]
  out = tmp_path / "out.json"
  assert evaluate(whole[0], out, tasks / "chosen.jsonl") == 0
  [ours] = json.loads(out.read_text())["sets"]
  assert found["local_choice"]["acc,none"] == ours["accuracy"]
  assert found["local_rolling"]["bits_per_byte,none"] > 0
  assert found["local_answer"]["exact_match,none"] >= 0

  bad = command("--model_args", f"workdir={whole[0]}", "--tasks", "local_choise")
  assert bad.returncode == 2 and "error: Tasks not found: local_choise; " in bad.stderr
  bad = command("--model_args", "end=True", *more)
  assert bad.returncode == 2 and "must name the folder of a run" in bad.stderr
  bad = command("--model_args", f"workdir={tmp_path / 'none'}", *more)
  assert bad.returncode == 2 and "Traceback" not in bad.stderr
  [error] = [line for line in bad.stderr.splitlines() if line.startswith("error: ")]
  assert "no run's workdir" in error
