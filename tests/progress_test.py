"""What a run leaves behind to be watched."""

import json

import pytest

from iclm import progress
from iclm.config import InputError


def lines(folder):
  return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, start, *steps, steps_in_all=10):
  with progress.Log(folder, start, steps_in_all, "t") as log:
    for n in steps:
      log.train(n, {"loss_nats": 1.0 / n}, tokens_per_step=5)


def test_lines_behind_the_restored_step_and_half_lines_are_cut(tmp_path, capsys):
  write(tmp_path, 0, 2, 4, 6)
  assert "goes on" not in capsys.readouterr().err
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "loss')
  write(tmp_path, 4, 6)
  assert "t goes on from step 4: of steps up to 6 no checkpoint" in capsys.readouterr().err
  assert [x["step"] for x in lines(tmp_path)] == [2, 4, 6]


def test_json_knows_no_nan(tmp_path):
  with progress.Log(tmp_path, 0, 1, "t") as log:
    log.train(1, {"loss_nats": float("nan"), "x": 2.0}, tokens_per_step=5)
  (line,) = lines(tmp_path)
  assert (line["loss_nats"], line["x"]) == (None, 2.0)


def test_plain_lines_tell_steps_loss_speed_and_eta(tmp_path, capsys):
  write(tmp_path, 0, 2)
  told = capsys.readouterr().err
  assert "t step 2/10 loss 0.5000 nats" in told and "tokens/s" in told and "ETA" in told


def test_an_unwritable_folder_is_told(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(InputError, match="cannot write"):
    write(tmp_path, 0, 2)
