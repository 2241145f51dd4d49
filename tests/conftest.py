"""What every test shares: strict shapes, and a small model with a hand-made batch."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

# Tests compile much and run little. The old emitter of kernels takes a third of the time of the one
# that goes by MLIR; from jaxlib 0.11 on, which has it no more, fused products are left out, since
# unoptimised they round to 2e-4. A jaxlib does not start with a flag that it does not know.
# Before JAX is imported, or it is not heard.
OLD_EMITTER = "--xla_cpu_use_fusion_emitters=false"
OF_JAXLIB = {
  "0.10": OLD_EMITTER,
  "0.11": "--xla_cpu_experimental_ynn_fusion_type=",
  "0.12": "--xla_cpu_experimental_ynn_fusion_type=",
}
_version = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
QUICK = f"--xla_backend_optimization_level=0 {OF_JAXLIB.get(_version, '')}".strip()
os.environ.setdefault("XLA_FLAGS", QUICK)
# Many tests train or ask the same small model: what one process of a session has compiled, the
# others read, those of xdist and those that tests start. Name a folder to keep it for the next.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _compiled = tempfile.TemporaryDirectory(prefix="iclm-compiled-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import install_import_hook

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("iclm", "beartype.beartype"):
  from iclm import compose, config, sharding
  from iclm.data.pipeline import Batch
  from iclm.nn import transformer  # noqa: F401

from small_run import data, whole  # noqa: F401, fixtures of many files.

from configs import base, presets

VOCAB = 23
SEED = 8  # Of the parameters that `build` draws, under which small models route inputs apart.


def pytest_collection_modifyitems(items):
  """Files with slow tests come first, so that no process ends alone on one of them."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


def tiny(**changes) -> config.Config:
  """A config of a few thousand parameters; `changes` are dotted keys with __ for the dot."""
  c = base.get_config()
  c.model = presets.tiny()
  c.model.update(d_model=16, heads=2, kv_heads=1, head_size=8, d_ff=24, layers=3, trunk_layers=1)
  c.experts.update(count=3, rank=2)
  c.bottleneck.width = 4
  c.router.update(width=4)
  c.dependence.update(features=8, classes=4)
  c.batch_size = 8
  changes = {k.replace("__", "."): v for k, v in changes.items()}
  if changes.get("experts.kind") == "none":
    c.loss.update(beta=0.0, dependence=0.0)
  if changes.get("experts.kind") == "none" or changes.get("router.kind") in config.GIVEN:
    c.loss.update(balance=0.0, zloss=0.0)
  c.update_from_flattened_dict(changes)
  return config.from_config_dict(c)


def make_batch(seed: int, n_rows: int, n_tokens: int, n_questions: int = 2) -> Batch:
  """Random rows: a context, questions of three tokens (the last one the answer), some padding."""
  rng = np.random.default_rng(seed)
  shape = (n_rows, n_tokens)
  segment, position = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  loss = np.zeros(shape, np.float32)
  for b in range(n_rows):
    n_context = n_tokens - 3 * n_questions - int(rng.integers(1, 4))
    segment[b, :n_context], position[b, :n_context] = 1, np.arange(n_context)
    for q in range(n_questions):
      span = slice(n_context + 3 * q, n_context + 3 * q + 3)
      segment[b, span], position[b, span] = q + 2, n_context + np.arange(3)
      loss[b, span] = (0, 1, 1)
  tokens = rng.integers(3, VOCAB, shape).astype(np.int32)
  targets = np.roll(tokens, -1, axis=1)
  domain = rng.integers(0, 3, n_rows).astype(np.int32)
  arrays = (tokens, targets, segment, position, loss, segment == 1, domain)
  return Batch(*map(jnp.asarray, arrays))


def jitted(c: config.Config, vocab_size: int = VOCAB) -> compose.Model:
  """The model with both functions compiled: eager JAX is slow on small shapes."""
  model = compose.build(c, vocab_size)
  init = jax.jit(lambda key: sharding.unbox(model.init(key)))
  return compose.Model(init, jax.jit(model.apply, static_argnames="alone"), model.adapters)


def fresh(c: config.Config):
  """A model and its initial parameters."""
  model = jitted(c)
  return model, model.init(jax.random.key(0))


def draw(model: compose.Model):
  """Parameters of which none is zero, from numpy: compiling JAX's draws takes long."""
  shapes = jax.eval_shape(lambda key: sharding.unbox(model.init(key)), jax.random.key(0))

  def one(path, x):
    name = jax.tree_util.keystr(path)
    # Of each by its name: another part more or less leaves it, and the routes, as they are.
    rng = np.random.default_rng([SEED, *name.encode()])
    scale = x.shape[-2] ** -0.5 if x.ndim > 1 else 0.1
    centre = 1.0 if "gain" in name else 0.0
    return jnp.asarray(centre + scale * rng.normal(size=x.shape), x.dtype)

  return jax.tree.map_with_path(one, shapes)


def build(c: config.Config):
  """A model and parameters of which none is zero."""
  model = jitted(c)
  return model, draw(model)


def on_eight_devices(script: str, *args: str) -> Any:
  """What a script prints last, as JSON; a process of its own, since devices are counted once."""
  flags = f"{QUICK} --xla_force_host_platform_device_count=8"
  path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
  env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
  command = [sys.executable, "-c", script, *args]
  done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def batch() -> Batch:
  return make_batch(0, 8, 20)
