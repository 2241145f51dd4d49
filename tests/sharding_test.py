"""Names become shardings, or an error: nothing is replicated in silence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from iclm import axes, sharding
from iclm.config import Mesh


def boxed(*names, shape=(4, 8)):
  return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def spec(tree, fsdp=False):
  mesh = sharding.make_mesh(Mesh(data=1, expert=1, model=1))
  return sharding.shardings_of({"x": tree}, mesh, fsdp=fsdp)["x"].spec


def test_names_go_where_the_rules_say():
  assert spec(boxed(axes.EXPERT, axes.EMBED)) == PartitionSpec("expert", None)
  assert spec(boxed(axes.EMBED, axes.MLP)) == PartitionSpec(None, "model")
  assert spec(boxed(axes.EMBED, axes.MLP), fsdp=True) == PartitionSpec("data", "model")
  assert spec(jax.ShapeDtypeStruct((3,), jnp.float32)) == PartitionSpec()


def test_unknown_names_raise():
  with pytest.raises(KeyError, match="embd"):
    spec(boxed("embd", None))


def test_what_the_optimizer_masks_has_no_place():
  masked = {"x": nn.LogicallyPartitioned(optax.MaskedNode(), (axes.EMBED,)), "y": boxed(None, None)}
  mesh = sharding.make_mesh(Mesh(data=1, expert=1, model=1))
  placed = sharding.shardings_of(masked, mesh, fsdp=False)
  assert jax.tree.structure(placed) == jax.tree.structure(sharding.unbox(masked))


def test_the_mesh_has_its_axes_in_order_and_batches_arrive_whole():
  mesh = sharding.make_mesh(Mesh(data=1, expert=1, model=1))
  assert mesh.axis_names == axes.MESH
  rows = {"x": np.arange(6).reshape(3, 2)}
  np.testing.assert_array_equal(sharding.put_batch(rows, mesh)["x"], rows["x"])
