"""A checkpoint is whole, or it is not one: whatever happens to the disk or to the process."""

import logging
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iclm.checkpoints import Checkpoints
from iclm.config import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]


class State(NamedTuple):
  step: int
  params: dict
  data: np.ndarray


def state_of(step, n=1000):
  rng = np.random.default_rng(step)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {"base": {"w": draw(n)}, "half": draw(3, 2).astype(jnp.bfloat16), "n": jnp.int32(step)}
  return State(step, params, np.arange(step, step + 5))


def abstract(state):
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x
  return jax.tree.map(shape, state)


def assert_same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert type(a) is type(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def opened(directory, keep=2, best=0):
  return Checkpoints(directory, keep=keep, best=best)


def filled(directory, steps=(1, 2), **kwargs):
  with opened(directory, **kwargs) as c:
    for step in steps:
      c.save(step, state_of(step), {"step": step}, None)
  return c


def files_of(path):
  return sorted(p for p in path.rglob("*") if p.is_file())


def run(script, *args, **env):
  command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | env
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def test_what_is_saved_comes_back(tmp_path):
  meta = {"config": {"lr": 1e-3}, "tokenizer": "{}", "position": 7}
  with opened(tmp_path / "checkpoints") as c:
    assert c.steps() == [] and c.newest() is None and c.best_step() is None
    assert c.restore(abstract(state_of(0))) is None
    c.save(1, state_of(1), meta, 0.5)
    c.save(2, state_of(2), meta | {"position": 8}, None)
    c.wait()
    assert c.steps() == [1, 2]
    for wish, step in ((None, 2), (1, 1), (2, 2)):
      restored = c.restore(abstract(state_of(0)), wish)
      assert (restored.step, restored.meta["position"]) == (step, 6 + step)
      assert_same(restored.state, state_of(step))
    assert c.read_meta(1) == meta
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "1").iterdir()) == [
      "manifest.json",
      "meta.json",
      "state",
    ]


def test_the_state_may_be_donated_or_changed_once_save_returns(tmp_path):
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x, y = jnp.zeros((2000, 1000)), np.zeros((2000, 100))
  with opened(tmp_path) as c:
    c.save(1, {"x": x, "y": y}, {}, None)
    y += 1
    for _ in range(3):
      x = add(x)
    x.block_until_ready()
    like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype), "y": y}
    restored = c.restore(like).state
  assert not restored["x"].any() and not restored["y"].any()


def test_newest_and_best_are_kept(tmp_path):
  # keep = 2, best = 2: of equal metrics the newer ranks higher, NaN and None do not rank.
  metrics = {1: 0.9, 2: 0.5, 3: 0.9, 4: 0.1, 5: float("nan"), 6: None, 7: 0.2}
  with opened(tmp_path, keep=2, best=2) as c:
    for step, metric in metrics.items():
      c.save(step, state_of(step), {}, metric)
    c.wait()
    assert c.steps() == [1, 3, 6, 7]
    assert c.best_step() == 3
  assert sorted(os.listdir(tmp_path)) == ["1", "3", "6", "7"]
  with opened(tmp_path, keep=1, best=1) as c:
    c.save(8, state_of(8), {}, 0.3)
    c.wait()
    assert c.best_step() == 3 and c.steps() == [3, 8]


def test_the_step_just_saved_is_never_the_one_to_go(tmp_path):
  filled(tmp_path, (10, 20), keep=2)
  filled(tmp_path, (5,), keep=1)  # A branch from an older step.
  assert opened(tmp_path).steps() == [5, 20]


def test_a_step_is_replaced(tmp_path):
  filled(tmp_path, (1,))
  with opened(tmp_path) as c:
    c.save(1, state_of(9), {"new": True}, 0.5)
    restored = c.restore(abstract(state_of(0)))
  assert restored.meta == {"new": True}
  assert_same(restored.state, state_of(9))
  assert os.listdir(tmp_path) == ["1"]


def test_a_bad_step_is_named_and_the_one_before_restored(tmp_path, caplog):
  filled(tmp_path, (1, 2, 3))  # keep = 2: 2 and 3 stand.
  data = max((p for p in files_of(tmp_path / "3" / "state")), key=lambda p: p.stat().st_size)
  harmed = bytearray(data.read_bytes())
  harmed[len(harmed) // 2] ^= 1
  data.write_bytes(harmed)
  with opened(tmp_path) as c:
    with caplog.at_level(logging.WARNING):
      restored = c.restore(abstract(state_of(0)))
    assert str(data.relative_to(tmp_path / "3")) in caplog.text
    assert str(tmp_path / "3") in caplog.text
    assert restored.step == 2
    assert_same(restored.state, state_of(2))
    with pytest.raises(
      InputError, match=f"3 is bad: the SHA-256 of {data.relative_to(tmp_path / '3')}"
    ):
      c.restore(abstract(state_of(0)), 3)
    # The bad step does not push the good one out, and makes way for a new save.
    c.save(4, state_of(4), {}, None)
    c.wait()
    assert c.steps() == [2, 4]
    (tmp_path / "4" / "meta.json").write_text("{")
    (tmp_path / "2" / "meta.json").unlink()
    with pytest.raises(InputError, match=r"good, of steps \[2, 4\]: meta.json cannot be read"):
      c.restore(abstract(state_of(0)))
    with pytest.raises(InputError, match=r"meta\.json has 1 bytes where 2 were written"):
      c.read_meta(4)


def test_another_state_is_told_by_its_first_leaf(tmp_path):
  filled(tmp_path, (1,))
  good = abstract(state_of(1))
  shorter = jax.ShapeDtypeStruct((9,), jnp.float32)
  with opened(tmp_path) as c:
    for params, message in (
      ({"base": {"w": shorter}}, r"params/base/w is float32\[1000\] there and float32\[9\] here"),
      ({"new": shorter}, r"params/new is absent there and float32\[9\] here"),
      ({"n": 3}, r"params/n is int32\[\] there and int here"),
    ):
      with pytest.raises(InputError, match=message):
        c.restore(good._replace(params=good.params | params))
    fewer = {k: v for k, v in good.params.items() if k != "half"}
    told = r"params/half is bfloat16\[3, 2\] there and absent here; .* another version of iclm"
    with pytest.raises(InputError, match=told):
      c.restore(good._replace(params=fewer))


def test_what_is_wrong_is_said(tmp_path):
  filled(tmp_path, (1, 8))
  with pytest.raises(InputError, match="no checkpoint of step 7; nearest is 8"):
    opened(tmp_path).restore({}, 7)
  with pytest.raises(InputError, match="no checkpoint of step 7; nearest is none"):
    opened(tmp_path / "none").read_meta(7)


def test_leftovers_are_no_checkpoints_and_go(tmp_path):
  filled(tmp_path, (1,))
  for name in ("2.new", "3.new", "3"):
    shutil.copytree(tmp_path / "1", tmp_path / name)
    (tmp_path / name / "manifest.json").unlink()
  (tmp_path / "notes").mkdir()
  assert opened(tmp_path).steps() == [1]
  filled(tmp_path, (2,))
  assert sorted(os.listdir(tmp_path)) == ["1", "2", "notes"]


MESHES = """
  import sys, jax, numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
  from iclm.checkpoints import Checkpoints
  devices = np.array(jax.devices())
  assert devices.size == 8
  line, grid = Mesh(devices, ("data",)), Mesh(devices.reshape(2, 4), ("data", "expert"))
  x, y = np.arange(8 * 12.0).reshape(8, 12).astype(np.float32), np.arange(5.0)
  state = {"x": jax.device_put(x, NamedSharding(line, P("data"))),
           "y": jax.device_put(y.astype(np.float32), NamedSharding(line, P()))}
  one = SingleDeviceSharding(devices[3])
  with Checkpoints(sys.argv[1], keep=1, best=0) as c:
    c.save(1, state, {}, None)
    c.wait()
    for sharding in (NamedSharding(grid, P("expert", "data")), NamedSharding(grid, P()), one):
      like = {"x": jax.ShapeDtypeStruct((8, 12), np.float32, sharding=sharding),
              "y": jax.ShapeDtypeStruct((5,), np.float32)}
      back = c.restore(like).state
      assert back["x"].sharding == sharding, back["x"].sharding
      np.testing.assert_array_equal(back["x"], x)
      np.testing.assert_array_equal(back["y"], y)
"""


def test_restore_onto_another_mesh(tmp_path):
  process = run(MESHES, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8")
  _, errors = process.communicate()
  assert process.returncode == 0, errors.decode()
  like = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in (("x", (8, 12)), ("y", (5,)))
  }
  with opened(tmp_path) as c:
    back = c.restore(like).state
  np.testing.assert_array_equal(back["x"].reshape(-1), np.arange(96.0))
