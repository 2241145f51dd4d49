"""What a run leaves behind to be watched."""

import json
import os
import resource
import struct

import pytest
from tensorboardX.proto import event_pb2

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


def events(path):
  """A record is its length in 8 bytes, a checksum in 4, itself, and another checksum."""
  data, found = path.read_bytes(), []
  while data:
    (n,) = struct.unpack("<Q", data[:8])
    found.append(event_pb2.Event.FromString(data[12 : 12 + n]))
    data = data[16 + n :]
  return found


def test_tensorboard_has_what_metrics_have_after_a_resume(tmp_path):
  write(tmp_path, 0, 2, 4, 6)
  (first,) = (tmp_path / "tensorboard").iterdir()
  first = first.rename(tmp_path / "first")  # Names are by the second.
  write(tmp_path, 4, 6)
  (second,) = (tmp_path / "tensorboard").iterdir()
  assert [e.step for e in events(first) if e.summary.value] == [2, 4, 6]
  _, begun, after = events(second)
  # From there on what the first file told counts no more: not from the restored step on.
  assert (begun.step, begun.session_log.status) == (5, event_pb2.SessionLog.START)
  told = {value.tag: value.simple_value for value in after.summary.value}
  assert after.step == 6 and told["loss_nats"] == pytest.approx(1 / 6)


def test_a_full_disk_ends_it_at_once(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
  try:
    with pytest.raises(InputError, match=r"cannot write .*: File too large"):
      write(tmp_path, 0, *range(1, 100))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_nobody_who_listens_is_no_error():
  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, "w") as gone:
    progress.tell("a", gone)
    progress.tell("b", gone)


def test_a_torn_end_is_dropped_whatever_its_bytes(tmp_path):
  write(tmp_path, 0, 2, 4)
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(b"\xff\x00\xfe")
  write(tmp_path, 4, 6)
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
