"""Taking experts out of a run, and putting them in, as a user does."""

import dataclasses
import json
import resource
import shutil
import types

import jax
import numpy as np
import pytest
from hf_families import GOLDEN
from small_run import small_config

from experiments import expert as command
from iclm import config, hf, train, workdir
from iclm.config import InputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
  plain = {"bottleneck.kind": "none", "loss.beta": 0.0, "loss.dependence": 0.0}
  c = config.from_config_dict(small_config(data, **plain, **{"steps": 2, "optimizer.warmup": 1}))
  folder = tmp_path_factory.mktemp("runs") / "run"
  train.fit(c, folder, "test")
  return folder


def told(folder, **given):
  every = {"export": None, "merged": False, "dtype": "float32", "put": None, "adapter": None}
  every |= {"workdir": str(folder), "mesh": None, "step": None}
  return command.main(types.SimpleNamespace(**every | given))


def test_out_and_in_again(trained, tmp_path, capsys):
  out, new = tmp_path / "adapter", tmp_path / "new"
  assert told(trained, export="1", out=str(out)) == 0
  assert f"{out} names no base for peft to load it on; --export=base" in capsys.readouterr().out
  assert told(trained, put="0", adapter=str(out), out=str(new)) == 0
  assert "does not say by hash" not in capsys.readouterr().out
  before, after = (workdir.load_run(folder) for folder in (trained, new))
  metas = []
  for folder in (trained, new):
    with workdir.checkpoints(folder, before.config) as saves:
      metas.append(saves.read_meta(before.step))
  assert metas[0] == metas[1] and {"data_sha256", "train_s", "starts"} < metas[0].keys()
  assert after.step == before.step and after.tokenizer == before.tokenizer
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  for name in before.params.keys() - {"domain"}:
    same(before.params[name], after.params[name])
  of = lambda run, e: jax.tree.map(lambda x: x[e], run.params["domain"])
  same(of(before, 1), of(after, 1))
  theirs, mine = of(before, 1)["adapter"], of(after, 0)["adapter"]
  # Where b is zero, a says nothing, and both come along.
  same(theirs, mine)
  # A run whose base is another one does not take it.
  with pytest.raises(InputError, match="is for another base"):
    c = dataclasses.replace(before.config, seed=5)
    train.fit(c, tmp_path / "other", "test")
    told(tmp_path / "other", put="0", adapter=str(out), out=str(tmp_path / "none"))
  assert not (tmp_path / "none").exists()


def test_a_run_that_is_read_on_few_devices_stays_one_of_many(trained, tmp_path):
  many, out = shutil.copytree(trained, tmp_path / "many"), tmp_path / "out"
  config_json = json.loads((many / "config.json").read_text())
  config_json["mesh"]["data"] = 4
  (many / "config.json").write_text(json.dumps(config_json))
  assert told(many, export="run", mesh="1x1x1", out=str(out)) == 0
  assert workdir.config_of(out) == workdir.config_of(many)
  assert workdir.load_run(out, config.Mesh(1, 1, 1)).step == 2
  with pytest.raises(InputError, match=r"out cannot lie on the mesh 1x3x1: .*count = 2 does not"):
    workdir.load_run(out, config.Mesh(1, 3, 1))


def test_what_cannot_be_written_leaves_nothing_behind(trained, tmp_path):
  adapter, new = tmp_path / "adapter", tmp_path / "new"
  told(trained, export="1", out=str(adapter))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # As of a disk that is full.
  try:
    with pytest.raises(InputError, match="cannot write"):
      told(trained, put="0", adapter=str(adapter), out=str(new))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
  assert told(trained, put="0", adapter=str(adapter), out=str(new)) == 0


def test_an_adapter_names_its_base_where_that_is_still_the_folder_s(trained):
  c = workdir.config_of(trained)
  for source, trains, want in (
    (str(GOLDEN / "llama"), False, str(GOLDEN / "llama")),
    (str(GOLDEN / "llama"), True, ""),
    (str(trained), False, ""),
    ("", False, ""),
  ):
    checkpoint = dataclasses.replace(c.checkpoint, init_from=source)
    moves = dataclasses.replace(c.trains, base=trains)
    assert command.base_name(dataclasses.replace(c, checkpoint=checkpoint, trains=moves)) == want


def test_bases_and_merged_ones_are_folders_of_transformers(trained, tmp_path):
  run = workdir.load_run(trained)
  for name, given in (("base", {}), ("invariant", {"merged": True})):
    told(trained, export=name, out=str(tmp_path / name), **given)
    assert hf.is_folder(tmp_path / name)
    theirs = hf.load_tokenizer(tmp_path / name)
    assert (theirs.bos_id, theirs.end_ids) == (run.tokenizer.bos_id, run.tokenizer.end_ids)
    assert theirs.encode("From 0,1 do") == run.tokenizer.encode("From 0,1 do")
    # Its config does not say for how long an input its base is made.
    assert hf.read_model(tmp_path / name)["context"] == run.config.evaluation_len
  assert not run.config.model.context
  model = dataclasses.replace(run.config.model, vocab_size=run.params["base"]["embedding"].shape[0])
  base = hf.load_base(tmp_path / "base", model, run.mesh, fsdp=False)
  jax.tree.map(np.testing.assert_array_equal, base, run.params["base"])


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    ({}, "give --export to take an expert out, or --put"),
    ({"export": "1", "put": "1"}, "give --export to take an expert out, or --put"),
    ({"put": "1"}, "--adapter names the folder that --put puts in"),
    ({"export": "base", "merged": True}, "--merged merges the expert that --export names"),
    ({"export": "first"}, "'first' is no expert: name its number"),
    ({"export": "7"}, r"there is no expert 7; experts are 0\.\."),
    ({"put": "base", "adapter": "x"}, "--put=base: an adapter goes into an expert"),
    ({"put": "0", "adapter": "nowhere"}, "nowhere holds no adapter_config.json"),
  ],
)
def test_bad_input_is_one_sentence(given, sentence, trained, tmp_path):
  with pytest.raises(InputError, match=sentence):
    told(trained, out=str(tmp_path / "out"), **given)
  assert not (tmp_path / "out").exists()
  assert json.loads((trained / "results.json").read_text())
