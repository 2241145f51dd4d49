"""What a folder of a run goes on with, and what it refuses or forgets."""

import json
import shutil

import pytest
from small_run import fit

from configs import base
from iclm import progress, workdir
from iclm.config import InputError

SHORT = {"steps": 4, "optimizer.warmup": 1, "evaluation.every": 0, "checkpoint.every": 2}


def test_a_run_does_not_go_on_with_other_data(data, tmp_path):
  mine = tmp_path / "mine.jsonl"
  mine.write_text(data.read_text())
  trained = {"data.train.mechanisms": base.source(jsonl=str(mine))}
  fit(tmp_path / "run", data, **SHORT, **trained)
  lines = mine.read_text().splitlines(keepends=True)
  mine.write_text("".join([*lines[1:], lines[0]]))
  with pytest.raises(
    InputError, match=r"data of config\.data\.train\.mechanisms are not those that"
  ):
    fit(tmp_path / "run", data, **SHORT, **trained)
  mine.write_text("".join(lines))
  assert fit(tmp_path / "run", data, **SHORT, **trained).run.step == 4


def test_a_first_command_that_came_to_nothing_leaves_the_folder_free(data, tmp_path):
  folder = tmp_path / "run"
  narrow = {"data.seq_len": 12, "evaluation.seq_len": 64}
  with pytest.raises(InputError, match=r"the row needs \d+ tokens and seq_len is 12"):
    fit(folder, data, **SHORT, **narrow)
  assert not {workdir.CONFIG, workdir.TOKENIZER} & {path.name for path in folder.iterdir()}
  assert fit(folder, data, **SHORT).run.step == 4
  # But a run that has got anywhere stays what it is.
  with pytest.raises(InputError, match=r"holds another config's run: config\.data\.seq_len"):
    fit(folder, data, **SHORT, **narrow)
  assert (folder / workdir.CONFIG).exists() and (folder / workdir.TOKENIZER).exists()


def test_a_run_goes_on_without_what_it_started_from(data, tmp_path):
  fit(tmp_path / "first", data, **SHORT)
  given = SHORT | {"checkpoint.init_from": str(tmp_path / "first")}
  fit(tmp_path / "run", data, **given)
  shutil.rmtree(tmp_path / "first")
  shutil.rmtree(tmp_path / "run" / workdir.CHECKPOINTS / "4")
  assert fit(tmp_path / "run", data, **given).run.step == 4
  shutil.rmtree(tmp_path / "run" / workdir.CHECKPOINTS)
  with pytest.raises(InputError, match="is no run's workdir: there is no such folder"):
    fit(tmp_path / "run", data, **given)


def test_a_row_that_fits_nowhere_is_told_before_the_first_step(data, tmp_path):
  mine = tmp_path / "mine.jsonl"
  lines = data.read_text().splitlines(keepends=True)
  long = json.loads(lines[-1]) | {"id": "the long one"}
  long["prompt"] *= 20
  mine.write_text("".join([*lines, json.dumps(long) + "\n"]))
  trained = {"data.train.mechanisms": base.source(jsonl=str(mine))}
  steps = {"steps": 1, "optimizer.warmup": 0, "evaluation.every": 0}  # Which would not come to it.
  with pytest.raises(InputError, match="the long one: the row needs"):
    fit(tmp_path / "run", data, **steps, **trained)
  # Nor is it taken where the first command was killed before it had a checkpoint.
  mine.write_text("".join(lines))
  fit(tmp_path / "run", data, **steps, **trained)
  shutil.rmtree(tmp_path / "run" / workdir.CHECKPOINTS)
  mine.write_text("".join([*lines, json.dumps(long) + "\n"]))
  with pytest.raises(InputError, match="the long one: the row needs"):
    fit(tmp_path / "run", data, **steps, **trained)


def test_an_oracle_knows_every_domain_of_its_data(data, tmp_path):
  given = {"router.kind": "oracle", "loss.balance": 0.0, "loss.zloss": 0.0, "experts.count": 2}
  with pytest.raises(
    InputError, match=r"none of config\.data\.domains, by which .* 'oracle' routes"
  ):
    fit(tmp_path / "run", data, **SHORT, **given, **{"data.domains": ("Lower", "Upper")})


def test_a_damaged_line_of_a_log_costs_itself_alone(tmp_path):
  path = tmp_path / progress.METRICS
  good = [json.dumps({"step": step, "loss_nats": 1.0}) for step in (1, 2, 3, 4)]
  bad = ["garbage", "5", "[]", "null", '"x"', '{"step": null}', '{"step": "a"}', "{}"]
  path.write_text("\n".join([good[0], *bad, *good[1:], '{"step": 5, "loss']))
  assert progress._cut_back(path, 3) == 4
  assert path.read_text().splitlines() == good[:3]
