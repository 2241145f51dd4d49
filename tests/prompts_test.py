"""A frozen base that reads each training prompt once: the same run, without its forward pass."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build, make_batch, tiny
from small_run import fit, small_config

from iclm import config, manifest, sharding, workdir
from iclm.config import InputError
from iclm.data import assemble, prompt_cache
from iclm.train import prompts

READS = {"combine": "logits", "router.reads": "base", "trains.base": False, "steps": 8}
KEPT = READS | {"router.cached": True}


def losses(folder):
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return [line["loss_nats"] for line in lines if "loss_nats" in line]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp("runs") / "kept"
  return folder, fit(folder, data, **KEPT)


def test_what_is_kept_is_what_the_router_reads_and_takes_its_place():
  model, params = build(tiny(combine="logits", router__reads="base"))
  batch = make_batch(0, 8, 20)
  out = model.apply(params, batch)
  # The mean of the base's last states over the prompt, which a hand's breadth of code gives too.
  again = model.apply(params, batch._replace(read_BD=out.read_BD))
  np.testing.assert_array_equal(again.logits_BTV, out.logits_BTV)
  np.testing.assert_array_equal(again.prompt_BP, out.prompt_BP)
  # And it alone decides: with what another input's prompt says, its route is that input's.
  turned = model.apply(params, batch._replace(read_BD=jnp.roll(out.read_BD, 1, axis=0)))
  np.testing.assert_array_equal(turned.routing.index_B, jnp.roll(out.routing.index_B, 1))


def test_the_base_has_no_pass_of_its_own_then():
  model, params = build(tiny(combine="logits", router__reads="base"))
  batch = make_batch(0, 8, 20)
  with_read = batch._replace(read_BD=model.apply(params, batch).read_BD)
  # Two scans for the base, upper layers and the last, two for the streams, and one of the trunk.
  count = lambda b: str(jax.make_jaxpr(model.apply)(params, b)).count("scan[")
  assert count(batch) == 5 and count(with_read) == 3


def test_a_run_learns_the_same_with_it(tmp_path, data, run):
  folder, result = run
  fit(tmp_path / "reads", data, **READS)
  np.testing.assert_allclose(losses(folder), losses(tmp_path / "reads"), rtol=1e-5)
  array_ND = np.load(folder / prompts.FOLDER / "0.npy")
  assert array_ND.shape == (60, 16) and array_ND.dtype == np.float32
  # Each row of the file is that of the source, by the run's own model on a batch of it.
  c = result.run.config
  rows = prompt_cache.Rows(assemble.sources(c)["mechanisms"], array_ND)
  loader = assemble.loader(c, rows, result.run.tokenizer, *sharding.share(result.run.mesh))
  batch = sharding.put_batch(loader.batch(3), result.run.mesh)
  np.testing.assert_array_equal(batch.read_BD, array_ND[12:16])
  read_BD = result.run.model.apply(result.run.params, batch._replace(read_BD=None)).read_BD
  np.testing.assert_allclose(read_BD, array_ND[12:16], rtol=1e-5, atol=1e-6)


def test_a_run_that_goes_on_reads_the_file_or_makes_it_anew(tmp_path, data, run):
  c = config.from_config_dict(small_config(data, **KEPT))
  folder, result = run
  path = folder / prompts.FOLDER / "0.npy"
  whole, stamp = path.read_bytes(), path.stat().st_mtime_ns
  fit(folder, data, **KEPT)
  assert path.stat().st_mtime_ns == stamp
  path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # One bit flips.
  fit(folder, data, **KEPT)
  assert path.read_bytes() == whole
  path.unlink()
  fit(folder, data, **KEPT)
  assert path.read_bytes() == whole
  assert {p.name for p in path.parent.iterdir()} == {path.name, manifest.NAME}
  assert c.steps == result.run.step


def test_a_source_of_any_name_is_kept_within_the_folder(tmp_path, run):
  (_, model, _, tokenizer, mesh, _), state = workdir.load_state(run[0])
  c = run[1].run.config
  rows = assemble.sources(c)["mechanisms"]
  sources = {f"{tmp_path}/elsewhere": rows, "mechanisms/default": rows[:8]}
  loader = assemble.loader(c, rows, tokenizer, *sharding.share(mesh))
  (tmp_path / "run").mkdir()
  found = prompts.keep(c, model, state, mesh, loader, sources, tmp_path / "run")
  there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
  assert there == {f"run/prompts/{name}" for name in ("0.npy", "1.npy", manifest.NAME)}
  one, other = (of[3].read_D for of in found.values())
  np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
  # What lies there is of these sources, in this order, or is made anew.
  kept = tmp_path / "run" / "prompts"
  n_rows = {name: len(of) for name, of in sources.items()}
  assert prompts._is_whole(kept, n_rows)
  assert not prompts._is_whole(kept, dict(reversed(n_rows.items())))


@pytest.mark.parametrize(
  "change, need",
  [
    ({"combine": "residual"}, "combine other than 'residual'"),
    ({"router.reads": "trunk"}, "router.reads = 'base'"),
    ({"router.level": "token"}, "router.level = 'input'"),
    ({"router.kind": "random"}, "router.kind that looks at the prompt"),
    ({"trains.base": True}, "trains.base = False"),
    ({"model.position_gap": 3}, "model.position_gap = 1"),
  ],
)
def test_what_would_not_stay_the_same_is_refused(data, change, need):
  with pytest.raises(InputError, match=f"config.router.cached = True needs config.{need}"):
    config.from_config_dict(small_config(data, **(KEPT | change)))
