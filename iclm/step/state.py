"""What a run carries from step to step, and how it is born in its shards."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from iclm import compose, sharding
from iclm.config import Config


class TrainState(NamedTuple):
  """Everything that the next step depends on, besides its batch and the run's key."""

  step: Int[Array, ""]
  params: Any
  opt_state: Any
  usage_E: Float[Array, "E"]  # Running share of inputs per expert.
  group_G: Float[Array, "G"]  # Weight of each domain in the answer term under `loss.group_dro`.
  skipped: Int[Array, ""]  # Non-finite steps so far,
  skipped_in_a_row: Int[Array, ""]  # and since the last good one.


def init_state(
  config: Config, model: compose.Model, tx: optax.GradientTransformation, mesh: Mesh, key: Array
) -> TrainState:
  """A fresh state, born in its shards: no device ever holds more than its part."""
  build = functools.partial(_build, config, model, tx)
  shardings = sharding.shardings_of(jax.eval_shape(build, key), mesh, fsdp=config.fsdp)
  return jax.jit(lambda k: sharding.unbox(build(k)), out_shardings=shardings)(key)


def abstract_state(config: Config, model: compose.Model, tx, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state, for restoring it."""
  boxed = jax.eval_shape(functools.partial(_build, config, model, tx), jax.random.key(0))
  shardings = sharding.shardings_of(boxed, mesh, fsdp=config.fsdp)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, sharding.unbox(boxed), shardings)


def _build(config: Config, model: compose.Model, tx, key: Array) -> TrainState:
  params = model.init(key)
  even = lambda n: jnp.full((max(n, 1),), 1 / max(n, 1), jnp.float32)
  usage_E, group_G = even(config.experts.count), even(len(config.data.domains))
  # Every counter is an array of its own: a donated state may hold no buffer twice.
  zero = lambda: jnp.zeros((), jnp.int32)
  return TrainState(zero(), params, tx.init(params), usage_E, group_G, zero(), zero())
