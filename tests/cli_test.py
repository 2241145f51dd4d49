"""The commands as a user types them: what they write, and one sentence for bad input."""

import errno
import gzip
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest
import rich.table
from small_run import fit

from experiments import cli, evaluate
from iclm import progress
from iclm.config import InputError

ROOT = pathlib.Path(__file__).parents[1]


def asked(folder, out, *paths, draws=0, examined=False, others=(), mesh=None, step=None):
  flag = types.SimpleNamespace(workdir=str(folder), data=list(map(str, paths)), out=str(out))
  flag.draws, flag.examine, flag.seed_workdir = draws, 50, list(map(str, others))
  flag.interventions = flag.independence = examined
  flag.mesh, flag.step = mesh, step
  return evaluate.main(flag)


def write(path, *records):
  lines = "".join(json.dumps(r) + "\n" for r in records)
  path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
  return path


def test_evaluate_writes_the_promised_json(whole, data, tmp_path):
  evals = {"input": [{"role": "system", "content": "Apply reverse to (a.b.c.d):"}], "ideal": "d"}
  chosen = {"prompt": "From 0,1 do sort:", "answer": "0", "choices": ["0", "1"], "domain": "digits"}
  paths = data, write(tmp_path / "b.jsonl.gz", evals), write(tmp_path / "c.jsonl", chosen, chosen)
  out = tmp_path / "out.json"
  assert asked(whole[0], out, *paths, draws=2) == 0
  sets = json.loads(out.read_text())["sets"]
  assert [s["path"] for s in sets] == list(map(str, paths))
  assert [s["n"] for s in sets] == [60, 1, 2]
  for s in sets:
    assert s["nll_nats"] > 0 and 0 <= s["accuracy"] <= 1 and s["sampled"]["draws"] == 2
    assert set(s["streams"]) == set(s["rate_nats"]) == {"invariant", "domain"}
    assert sum(g["n"] for g in s["by_group"].values()) == s["n"]
    assert sum(g["n"] for g in s["by_domain"].values()) == s["n"]
    assert all(abs(sum(r) - 1) < 1e-9 and len(r) == 2 for r in s["routes"].values())
  assert set(sets[0]["by_domain"]) == {"lower", "upper", "digits", "words", "signs"}


def test_evaluate_examines_what_it_is_asked_to(whole, data, tmp_path):
  out = tmp_path / "out.json"
  assert asked(whole[0], out, data, examined=True) == 0
  found = json.loads(out.read_text())
  domains = ["digits", "lower", "signs", "upper", "words"]
  assert found["interventions"]["domains"] == domains
  assert found["examined"] == [{"path": str(data), "n": 50, "of": 60, "share": 1.0}]
  for name in ("force", "knockout"):
    matrix, ci95 = (f[name] for f in (found["interventions"], found["interventions"]["ci95"]))
    assert len(matrix) == len(ci95) == 2 and {len(row) for row in matrix} == {5}
  assert found["interventions"]["regret_nats"] == found["routing"]["regret_nats"] >= 0
  assert set(found["routing"]) >= {"nmi", "nmi_group", "purity", "ece"}
  drawn = found["routing"]["map"]
  assert len(drawn["xy"]) == len(drawn["domain"]) == len(drawn["expert"]) == 50
  assert set(drawn["domain"]) == set(domains) and set(drawn["expert"]) <= {0, 1}
  assert drawn["share"][0] >= drawn["share"][1] >= 0 and sum(drawn["share"]) <= 1 + 1e-9
  pairs = {row["pair"] for row in found["independence"]}
  assert pairs == {"invariant, domain", "invariant, domain | label", "domain 0, domain 1 | label"}
  assert all({"estimator", "value", "null_p95", "p"} <= set(r) for r in found["independence"])
  assert set(found["probes"]) == {"invariant", "domain"} and "risk" in found["worst_domain"]


def test_the_results_do_not_replace_the_data(whole, tmp_path):
  path = write(tmp_path / "a.jsonl", {"prompt": "From 0,1 do sort:", "answer": "0"})
  with pytest.raises(InputError, match="is a file of --data, which it would replace"):
    asked(whole[0], path, path)


def test_what_is_examined_of_a_file_is_drawn_and_not_its_head():
  records = list(range(1000))
  drawn = evaluate._sample(records, 100, seed=0)
  assert drawn == sorted(drawn) == evaluate._sample(records, 100, seed=0)
  assert drawn != evaluate._sample(records, 100, seed=1)
  # The mean place of 100 of 1000 is 499.5 with a standard error of about 27.
  assert abs(sum(drawn) / 100 - 499.5) < 90
  assert evaluate._sample(records, 2000, seed=0) == records


@pytest.mark.slow
def test_routes_are_compared_with_those_of_another_seed_and_of_a_paraphrase(
  whole,
  data,
  tmp_path,
):
  other, longer, out = tmp_path / "seed1", tmp_path / "longer", tmp_path / "out.json"
  fit(other, data, steps=24, seed=1)
  assert asked(whole[0], out, data, examined=True, others=[other]) == 0
  found = json.loads(out.read_text())["routing"]
  assert found["seeds"] == [0, 1]
  [[s, t, ari]] = found["ari_of_seeds"]["pairs"]
  assert (s, t) == (0, 1) and found["ari_of_seeds"]["mean"] == ari
  assert 0 <= found["stability"] <= 1 and len(found["paraphrase"]["accuracy"]) == 2
  assert found["paraphrase"]["note"] is None

  foreign = write(tmp_path / "b.jsonl", {"prompt": "Which of 1,2?", "answer": "1", "domain": "d"})
  assert asked(whole[0], out, data, foreign, examined=True) == 0
  found = json.loads(out.read_text())
  assert [(s["n"], s["of"]) for s in found["examined"]] == [(50, 60), (1, 1)]
  assert found["examined"][1]["share"] == 1 / 51
  found = found["routing"]
  assert found["n_paraphrased"] == 50 and "50 of 51 inputs" in " / ".join(found["notes"])
  assert asked(whole[0], out, foreign, examined=True) == 0
  found = json.loads(out.read_text())["routing"]
  assert found["stability"] is None and found["paraphrase"]["accuracy"] is None
  assert "no prompt has a paraphrase" in found["paraphrase"]["note"]

  shutil.copytree(other, longer)
  edited = json.loads((longer / "config.json").read_text())
  edited["optimizer"]["lr"] = 0.5
  (longer / "config.json").write_text(json.dumps(edited))
  for others, examined, told in (
    ([other], False, "--interventions"),
    ([whole[0]], True, "has seed 0, as"),
    ([other, other], True, "has seed 1, as"),
    ([longer], True, r"longer is no other seed of .*config\.optimizer\.lr is 0\.5 there"),
    ([tmp_path], True, "no run's workdir"),
  ):
    with pytest.raises(InputError, match=told):
      asked(whole[0], out, data, examined=examined, others=others)


@pytest.mark.parametrize(
  ("content", "told"),
  [
    ("", "a.jsonl"),
    ('{"prompt": "p", "answer": "a"}\n{"prompt": \n', r"a\.jsonl:2: malformed"),
    ('{"prompt": "p"}\n', "answer"),
    ('{"prompt": "p", "answer": "a", "choices": ["b"]}\n', "choices"),
    (
      '{"prompt": "' + "x " * 400 + '", "answer": "a"}\n',
      r"a\.jsonl: .*the row needs .* seq_len is .*; shorten it",
    ),
  ],
)
def test_bad_data_is_told_and_nothing_written(whole, tmp_path, content, told):
  path, out = tmp_path / "a.jsonl", tmp_path / "out.json"
  path.write_text(content)
  with pytest.raises(InputError, match=told):
    asked(whole[0], out, path)
  assert not out.exists()


def test_no_run_no_data_no_room_is_told(whole, data, tmp_path):
  with pytest.raises(InputError, match=r"no\.jsonl"):
    asked(whole[0], tmp_path / "o.json", tmp_path / "no.jsonl")
  with pytest.raises(InputError, match="no run's workdir"):
    asked(tmp_path / "nothing", tmp_path / "o.json", data)
  with pytest.raises(InputError, match="cannot make the folder"):
    asked(whole[0], data / "o.json", data)


def test_a_run_of_many_devices_is_read_on_few(whole, data, tmp_path):
  many = tmp_path / "many"
  shutil.copytree(whole[0], many)
  told = json.loads((many / "config.json").read_text())
  told["mesh"] = {"data": 2, "expert": 2, "model": 1}
  (many / "config.json").write_text(json.dumps(told))
  with pytest.raises(InputError, match=r"4 devices, config.mesh = 2x2x1, and here are 1; .*1x1x1"):
    asked(many, tmp_path / "o.json", data)
  for mesh, sentence in (
    ("4", "'4' must be DATAxEXPERTxMODEL"),
    ("1x0x1", "'1x0x1' must be DATAxEXPERTxMODEL"),
    ("3x1x1", "needs 3 devices, but there are 1"),  # 4 rows of training need not divide.
    ("2x1x1", "needs 2 devices, but there are 1"),
  ):
    with pytest.raises(InputError, match=sentence):
      asked(many, tmp_path / "o.json", data, mesh=mesh)
  assert not (tmp_path / "o.json").exists()
  found = []
  for folder, mesh in ((many, "1x1x1"), (whole[0], None)):
    assert asked(folder, tmp_path / "o.json", data, mesh=mesh) == 0
    found.append(json.loads((tmp_path / "o.json").read_text())["sets"])
  assert found[0] == found[1]


def test_tables_are_wide_and_plain_where_they_are_piped(capsys, monkeypatch):
  monkeypatch.delenv("COLUMNS", raising=False)
  table = rich.table.Table("a" * 60, "b" * 60)
  table.add_row("c" * 60, "d" * 60)
  cli.console().print(table)
  out = capsys.readouterr().out
  assert "c" * 60 in out and "d" * 60 in out and "\x1b" not in out
  odd = rich.table.Table("name")
  odd.add_row("[/reverse] [bold]x :smile:")  # Names are the user's, and no markup.
  cli.console().print(odd)
  assert "[/reverse] [bold]x :smile:" in capsys.readouterr().out
  monkeypatch.setenv("COLUMNS", "40")
  cli.console().print(table)
  assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def run(*argv, module="experiments.train"):
  command = [sys.executable, "-m", module, *argv]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
  ("argv", "told"),
  [
    (
      ["--config=configs/quickstart.py", "--config.router.knid=vq"],
      r"config\.router has no key 'knid'; did you mean 'kind'\?$",
    ),
    (
      ["--config=configs/quickstart.py", "--config.bottleneck.qqq=3"],
      r"has no key 'qqq'; valid are kind, ramp, width$",
    ),
    (["--config=configs/quickstart.py", "--config.steps.x=3"], "has no keys: it is 1000$"),
    (["--config=configs/quickstart.py", "--config.steps=many"], "steps"),
    (["--config=configs/quikstart.py"], r"quikstart\.py.*configs/quickstart\.py"),
    (["--config=configs/frozen_base.py:base", "--config.model.remat=ligth"], "mean 'light'"),
    (["--config=configs/frozen_base.py:bse"], "FILE:bse: the argument must be one of base, exp"),
    (["--config=configs/quickstart.py", "--config.mesh.data=64"], "batch_size|devices"),
    (
      [
        "--config=configs/quickstart.py",
        "--config.model.kernel=cudnn",
        "--config.model.dtype=bfloat16",
      ],
      "cudnn' needs a GPU, and this is a cpu",
    ),
    (["--config=configs/quickstart.py", "--config.experts.rank=999"], "rank = 999"),
    (["--config=configs/quickstart.py", "--wrokdir=x"], "workdir|wrokdir"),
    (["stray"], "stray|config"),
  ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(argv, told, tmp_path):
  done = run(*argv, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2, done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1 and re.search(told, errors[0]), done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("module", "named"),
  [("train", ("config", "workdir", "processes")), ("evaluate", ("workdir", "data", "step"))],
)
def test_help_lists_every_flag_of_a_command(module, named):
  told = run("--help", module=f"experiments.{module}").stdout
  for flag in named:
    assert f"--{flag}: " in told


def test_a_full_disk_while_logging_is_told(data, tmp_path, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(progress.os, "fsync", full)
  with pytest.raises(InputError, match=r"cannot write in .*run: No space left"):
    fit(tmp_path / "run", data, steps=4, **{"evaluation.every": 0})


def test_what_a_console_cannot_show_costs_nothing_else(monkeypatch):
  shown = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
  assert cli.told(lambda: print("a → b")) == 0
  assert shown.getvalue() == b"a ? b\n"


def test_ctrl_c_is_told_wherever_it_comes(capsys):
  def stopped():
    raise KeyboardInterrupt

  assert cli.told(stopped) == cli.INTERRUPTED
  assert "interrupted" in capsys.readouterr().err


def test_a_folder_without_a_name_is_none():
  # What follows would be refused, too, before anything is written.
  done = run("--config=configs/quickstart.py", "--config.steps=-1", "--workdir=")
  assert done.returncode == 2 and "--workdir= names no folder" in done.stderr
