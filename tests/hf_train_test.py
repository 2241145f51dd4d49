"""A run on a base from a folder of transformers."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from conftest import make_batch
from hf_families import GOLDEN
from small_run import fit, small_config

from iclm import compose, config, hf, sharding, train, workdir
from iclm.config import InputError
from iclm.data import tokenizer

SHAPE = {"d_model": 16, "heads": 4, "kv_heads": 2, "head_size": 4, "d_ff": 24, "layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data) -> pathlib.Path:
  """A Qwen 3 of another maker: more rows than its tokenizer has ids."""
  lines = map(json.loads, data.read_text().splitlines())
  texts = [line[key] for line in lines for key in ("prompt", "answer")]
  made = tokenizer.train(texts, 400, tokenizer.WORDS)
  shape = SHAPE | {"qk_norm": True, "context": 64, "vocab_size": made.vocab_size + 5}
  c = config.from_config_dict(small_config(data, **{f"model.{k}": v for k, v in shape.items()}))
  plain = dataclasses.replace(c, experts=dataclasses.replace(c.experts, kind="none"))
  params = compose.build(plain, made.vocab_size).init(jax.random.key(7))
  path = tmp_path_factory.mktemp("base") / "theirs"
  base = sharding.unbox(params)["base"]
  hf.save_base(base, c.model, path, dtype="float32", max_bytes=10**6, tokenizer=made)
  return path


def changes(folder: pathlib.Path, **more):
  found = {f"model.{k}": v for k, v in hf.read_model(folder).items() if k != "rope_scaling"}
  return (
    found
    | {"checkpoint.init_from": str(folder), "trains.base": False, "steps": 2, "optimizer.warmup": 1}
    | more
  )


def test_a_run_on_a_folder_answers_as_its_base_and_keeps_it(folder, data, tmp_path):
  c = config.from_config_dict(small_config(data, **changes(folder)))
  result = train.fit(c, tmp_path / "run", "test")
  made = tokenizer.load(folder / "tokenizer.json")
  assert result.run.tokenizer == made
  mesh = result.run.mesh
  loaded = hf.load_base(folder, c.model, mesh, fsdp=False)
  jax.tree.map(np.testing.assert_array_equal, result.run.params["base"], loaded)
  assert workdir.load_run(tmp_path / "run").step == 2

  model = compose.build(c, made.vocab_size, mesh)
  fresh = sharding.unbox(model.init(jax.random.key(1))) | {"base": loaded}
  plain = compose.build(
    dataclasses.replace(c, experts=dataclasses.replace(c.experts, kind="none")), made.vocab_size
  )
  batch = make_batch(0, 4, 20)
  got, want = (jax.jit(m.apply)(fresh, batch).logits_BTV for m in (model, plain))
  assert want.shape[-1] == made.vocab_size + 5
  np.testing.assert_array_equal(got, want)


def test_a_tokenizer_that_does_not_fit_and_a_model_that_is_another(folder, data, tmp_path):
  with pytest.raises(InputError, match=r"config\.model\.kv_heads = 1 does not agree with"):
    fit(tmp_path / "a", data, **changes(folder) | {"model.kv_heads": 1})
  assert not (tmp_path / "a").exists()
  other = tmp_path / "other.json"
  other.write_text(tokenizer.train(["one two"], 259, tokenizer.WORDS).to_json())
  bare = shutil.copytree(GOLDEN / "llama", tmp_path / "bare")
  with pytest.raises(InputError, match=r"tokenizer\.json"):
    fit(tmp_path / "b", data, **changes(pathlib.Path(bare)))
  told = r"the tokenizer has 259 ids, but config\.model\.vocab_size = 32"
  with pytest.raises(InputError, match=told):
    fit(tmp_path / "c", data, **changes(pathlib.Path(bare), **{"data.tokenizer.path": str(other)}))
  assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
