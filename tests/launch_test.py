"""Starting runs on Cloud TPU and on one machine: the exact commands, and what is refused.

The goldens are renewed with RENEW=1 pytest -n0 tests/launch_test.py, after reading what changed.
"""

import os
import pathlib
import subprocess
import types

import pytest

from experiments.launch import local, slices, tpu
from iclm.config import InputError

GOLDEN = pathlib.Path(__file__).parent / "golden"
TRAIN = ["--config=configs/acre.py", "--workdir=/mnt/iclm/a b", "--config.mesh.data=16"]
POD = {
  "name": "pod", "zone": "us-west4-a", "type": "v5litepod-16", "project": "", "queued": True,
  "spot": True, "share": "10.0.0.2:/vol1", "out": "runs/pod", "dry_run": True,
}  # fmt: skip
HOST = [*TRAIN[:2], "--config.mesh.data=8"]
CUDNN = ["all", *TRAIN, "--config.model.kernel=cudnn"]
ONE_HOST = {"type": "v6e-8", "project": "mine", "queued": False, "spot": False, "share": ""}


def asked(words, **changes):
  return tpu.main(types.SimpleNamespace(**(POD | changes)), words)


@pytest.mark.parametrize(
  ("name", "words", "changes"),
  [("tpu_pod.txt", TRAIN, {}), ("tpu_host.txt", HOST, ONE_HOST)],
)
def test_a_dry_run_prints_the_commands_of_the_golden(name, words, changes, capsys):
  assert asked(["all", *words], **changes) == 0
  printed = capsys.readouterr().out
  if os.environ.get("RENEW"):
    (GOLDEN / name).write_text(printed)
  assert printed == (GOLDEN / name).read_text()


def test_all_is_its_steps_in_order(capsys):
  asked(["all", *TRAIN])
  every = capsys.readouterr().out
  for step in tpu.STEPS:
    asked([step, *TRAIN])
  assert capsys.readouterr().out == every


@pytest.mark.parametrize(
  ("words", "changes", "told"),
  [
    ([], {}, "the first word must be what to do, and is none; valid are create, install"),
    (["creat"], {}, "'creat'; did you mean 'create'"),
    (["create"], {"type": "v5e-16"}, "v5e-16 is no accelerator type; did you mean 'v6e-16'"),
    (["create"], {"type": ""}, "--type= is no accelerator type; valid are v4-1024"),
    (["create"], {"zone": ""}, "--zone= must be the zone of the TPU, such as us-west4-a"),
    (["create"], {"zone": "us-west4"}, "--zone=us-west4 must be the zone"),
    (["create"], {"name": ""}, "--name= must begin with a lowercase letter"),
    (["create"], {"name": "My_Pod"}, "--name=My_Pod must begin with a lowercase letter"),
    (["create"], {"name": "pod-"}, "--name=pod- must"),
    (["create"], {"name": "p" * 64}, "must .* have at most 63"),
    (["create"], {"share": ""}, "v5litepod-16 has 4 hosts, whose processes share one workdir"),
    (["create"], {"share": "vol1"}, "--share=vol1 must be SERVER:/VOLUME"),
    (["run", "--config=c.py"], {}, "--workdir= is missing behind the --"),
    (["run", "--workdir=/mnt/iclm/a"], {}, "--config= is missing behind the --"),
    (["run", "--config=c.py", "--workdir=runs/a"], {}, "runs/a is not on the share"),
    (["run", "--config=c.py", "--workdir=~/a"], ONE_HOST, "write no ~ in it"),
    (["run", "--config=c.py", "--workdir="], ONE_HOST, r"--workdir=\. must name a folder"),
    (["run", "--config=c.py", "--workdir=/mnt/iclm/../a"], {}, r"without \.\."),
    (["create"], {"share": "", "type": "v6e-8"}, "--spot: where the TPU is taken away its disk"),
    (["fetch", *TRAIN], {"out": ""}, "--out= names no folder"),
    (["all", *TRAIN, "--dry_run"], {}, "--dry_run stands behind the --, where only flags of"),
    (["create", "--dry_run"], {}, "--dry_run stands behind the --"),
    (["create", "--workdir=/mnt/iclm/a"], {}, "--config= is missing behind the --"),
    (["all", *TRAIN[:2]], {}, "config.mesh = 1x1x1 asks for 1 devices, and .* has 16; choose"),
    (
      ["all", *TRAIN, "--config.stpes=5"],
      {},
      "acre.py .*: config has no key 'stpes'; did",
    ),
    (["all", *TRAIN], ONE_HOST, "config.mesh = 16x1x1 asks for 16 devices, and --type=v6e-8 has 8"),
    (["all", "--config=configs/nope.py", *TRAIN[1:]], {}, "nope.py is no config"),
    ([*CUDNN, "--config.model.dtype=bfloat16"], {}, "needs a GPU, and this is a tpu"),
    (["all", *TRAIN, "--config.study.shift.surface=digits"], {}, "study.shift"),
  ],
)
def test_bad_input_is_told_before_anything_is_run(words, changes, told, monkeypatch):
  monkeypatch.setattr(tpu, "_run", None)
  with pytest.raises(InputError, match=told):
    asked(words, **{"dry_run": False} | changes)


def test_a_config_that_no_host_would_get_is_refused(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("from configs.acre import get_config\n")
  with pytest.raises(InputError, match=r"mine\.py is not in the last commit"):
    asked(["create", f"--config={path}", *TRAIN[1:]])


def test_a_workdir_within_the_repository_is_fetched_from_there(capsys):
  for given, found in (("runs/a", "pod:iclm/runs/a"), ("/tmp/a", "pod:/tmp/a")):
    asked(["fetch", "--config=c.py", f"--workdir={given}"], share="", type="v5litepod-8")
    assert f" {found} " in capsys.readouterr().out


def test_hosts_and_chips_of_slices():
  found = {name: slices.of(name)[:2] for name in ("v5litepod-8", "v5litepod-16", "v6e-1")}
  assert found == {"v5litepod-8": (1, 8), "v5litepod-16": (4, 16), "v6e-1": (1, 1)}
  # Two cores to a chip, four chips to a host.
  assert slices.of("v5p-32")[:2] == (4, 16) and slices.of("v4-8")[:2] == (1, 4)


def program(path, script):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/bash\n{script}\n")
  path.chmod(0o755)


def test_the_first_failure_ends_it_and_names_what_costs_money(tmp_path, monkeypatch, capfd):
  program(tmp_path / "bin" / "git", "exit 0")
  program(
    tmp_path / "bin" / "gcloud", 'echo "$*" >> calls; [[ $* != *ssh* ]] || exit 7; echo ACTIVE'
  )
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  (tmp_path / "configs").symlink_to(GOLDEN.parents[1] / "configs")
  monkeypatch.chdir(tmp_path)
  assert asked(["all", *TRAIN], dry_run=False) == 1
  calls = (tmp_path / "calls").read_text().splitlines()
  assert [call.split()[3] for call in calls] == ["create", "describe", "scp", "ssh"]
  said = capfd.readouterr()
  assert said.out.count("+ ") == 6  # With mkdir and git archive.
  assert said.err == (
    "error: install ended with 7; the TPU pod in us-west4-a may be there and cost money until it "
    "is deleted: gcloud compute tpus queued-resources delete pod --force --quiet "
    "--zone=us-west4-a\n"
  )


def test_ctrl_c_names_what_costs_money(monkeypatch, capfd):
  def interrupted(*_, **__):  # No signal: where tests run in the background, it may be ignored.
    raise KeyboardInterrupt

  monkeypatch.setattr(tpu.subprocess, "run", interrupted)
  assert asked(["logs"], dry_run=False) == 143
  assert "error: logs was interrupted; the TPU pod in us-west4-a may be" in capfd.readouterr().err


def test_without_gcloud_it_says_so(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert asked(["create"], dry_run=False) == 1
  assert "create ended with No such file or directory; the TPU pod" in capfd.readouterr().err


def test_a_host_runs_what_it_is_told_and_logs_end_as_the_training_did(tmp_path):
  """The remote lines of run and logs, by a shell, with a Python that prints its words."""
  # It goes on until it is told to end: a line that waited for it would never come back.
  wait = "until [ -e $HOME/end ]; do sleep 0.05; done"
  program(tmp_path / "venv" / "bin" / "python", f'printf "<%s>\\n" "$@"; {wait}; exit 3')
  (tmp_path / "iclm").mkdir()
  pod = tpu.Pod("p", "z", "v4-16", "", False, False, "s:/v", "out", (*TRAIN, "--config.x=('a b',)"))
  lines = []
  for step in ("run", "logs"):
    ((*_, line, _),) = tpu.commands(pod, step)
    lines.append(line.removeprefix("--command="))
  env = os.environ | {"HOME": str(tmp_path)}
  shell = lambda line: subprocess.run(
    ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
  )
  assert shell(lines[0]).returncode == 0
  (tmp_path / "end").touch()
  followed = shell(lines[1])
  words = ["-m", "experiments.train", *TRAIN, "--config.x=('a b',)", "--distributed"]
  assert followed.stdout.splitlines() == [f"<{word}>" for word in words]
  assert followed.returncode == 3


@pytest.mark.parametrize(
  ("words", "changes", "told"),
  [
    (TRAIN, {"processes": 0}, "--processes=0 must be at least 1"),
    (TRAIN, {"devices": 0}, "--devices=0 must be at least 1"),
    (TRAIN[:1], {}, "--workdir= is missing"),
    ([*TRAIN, "--process=1"], {}, "--process=1 stands behind the --"),
    ([*TRAIN, "--config", "x"], {}, "x stands behind the --"),
  ],
)
def test_local_runs_refuse_what_cannot_be(words, changes, told):
  flag = types.SimpleNamespace(**{"processes": 2, "devices": 4} | changes)
  with pytest.raises(InputError, match=told):
    local.main(flag, words)  # type: ignore[arg-type]
