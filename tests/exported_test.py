"""An exported run: what it keeps, who reads it, and that nobody trains on in it."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expert_command_test import told
from generate_command_test import ASKED, asked
from small_run import fit

from experiments import evaluate
from iclm import config, manifest, train, workdir
from iclm.config import InputError
from iclm.data import assemble
from iclm.evals.subject import Subject


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp("runs") / "run"
  fit(folder, data, steps=2, **{"optimizer.warmup": 1})
  return folder


@pytest.fixture(scope="module")
def exported(trained):
  out = trained.parent / "exported"
  assert told(trained, export="run", dtype="bfloat16", out=str(out)) == 0
  return out


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_is_the_run_in_bfloat16_and_nothing_more(trained, exported):
  before, after = (workdir.load_run(folder) for folder in (trained, exported))
  same(after.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), before.params))
  assert (after.config, after.tokenizer, after.step) == (before.config, before.tokenizer, 2)
  assert {p.name for p in exported.iterdir()} == {
    "config.json", "tokenizer.json", "results.json", "params"
  }  # fmt: skip
  assert (exported / "results.json").read_bytes() == (trained / "results.json").read_bytes()
  leaves = manifest.read(exported / "params" / "2")["leaves"]
  assert len(leaves) == len(jax.tree.leaves(before.params))
  assert all(kind.startswith("bfloat16[") for kind in leaves.values())
  # It can be given away: nothing in it names the folder that it was written in.
  files = [p for p in (exported / "params").rglob("*") if p.is_file()]
  assert not any(b".exported." in p.read_bytes() for p in files)


def test_the_outputs_are_the_runs_own_bitwise_in_float32(trained, exported, data, tmp_path):
  told(trained, export="run", out=str(tmp_path / "out"))
  # Once rounded, nothing more is lost.
  told(exported, export="run", dtype="bfloat16", out=str(tmp_path / "again"))
  examples = assemble.read(str(data), None)[:8]
  run, float32, bfloat16, again = (
    np.concatenate(list(Subject(*workdir.load_run(folder).parts).logits(examples)))
    for folder in (trained, tmp_path / "out", exported, tmp_path / "again")
  )
  same(float32, run)
  same(again, bfloat16)
  # bfloat16 keeps 8 bits of a weight, an error of at most 2 ** -9 of it in each product.
  assert 0 < np.abs(bfloat16 - run).max() < 2**-5 * np.abs(run).max()


def test_commands_read_it_as_any_run(exported, data, tmp_path):
  answers, scores = tmp_path / "answers.jsonl", tmp_path / "scores.json"
  assert asked(exported, ASKED, out=str(answers)) == 0
  assert json.loads(answers.read_text())["step"] == 2
  given = {
    "workdir": str(exported), "data": [str(data)], "out": str(scores), "draws": 0, "examine": 8,
    "interventions": False, "independence": False, "seed_workdir": [], "mesh": None, "step": None,
  }  # fmt: skip
  assert evaluate.main(types.SimpleNamespace(**given)) == 0
  assert json.loads(scores.read_text())["sets"][0]["n"] == 60


def test_another_run_starts_from_it(exported, data, tmp_path):
  base = workdir.load_run(exported).params["base"]
  changes = {"steps": 1, "optimizer.warmup": 0, "trains.base": False}
  result = fit(tmp_path / "run", data, **changes, **{"checkpoint.init_from": str(exported)})
  same(result.run.params["base"], base)  # Which did not train.


def test_nobody_trains_on_in_it(exported, data):
  before = {p: p.stat().st_mtime_ns for p in exported.rglob("*")}
  with pytest.raises(InputError, match=r"holds an exported run.*checkpoint.init_from=.*another"):
    train.fit(workdir.config_of(exported), exported, "test")
  assert {p: p.stat().st_mtime_ns for p in exported.rglob("*")} == before


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    ({"export": "run", "dtype": "float16"}, "float16 may not hold all of a run"),
    ({"export": "run", "merged": True}, "--merged merges the expert that --export names"),
    ({"put": "run", "adapter": "x"}, "--put=run: an adapter goes into an expert"),
    ({"put": "0", "adapter": "x"}, "was exported; put the adapter into the run that it was"),
  ],
)
def test_bad_input_is_one_sentence(given, sentence, exported, tmp_path):
  with pytest.raises(InputError, match=sentence):
    told(exported, out=str(tmp_path / "out"), **given)
  assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(trained, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("x")
  with pytest.raises(InputError, match="out exists already"):
    told(trained, export="run", out=str(tmp_path / "out"))
  assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_damaged_one_is_named(exported, tmp_path):
  out = tmp_path / "out"
  told(exported, export="run", dtype="bfloat16", out=str(out))
  file = max((out / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  held = bytearray(file.read_bytes())
  held[len(held) // 2] ^= 1
  file.write_bytes(held)
  with pytest.raises(InputError, match=f"is good.*SHA-256 of .*{file.name}"):
    workdir.load_run(out)
  (out / "config.json").write_text(json.dumps(config.to_dict(workdir.config_of(out)) | {"new": 1}))
  with pytest.raises(InputError, match=r"config\.new is not a key"):
    workdir.load_run(out)
