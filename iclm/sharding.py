"""Where every array lives: one table of rules, one mesh, one function from names to shardings."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from iclm import axes, config
from iclm.config import InputError

# Rows of a batch are split over the data and the expert axis; the streams' rows go with them.
BATCH_AXES = (axes.DATA, axes.EXPERT)


def rules(fsdp: bool) -> dict[str, str | tuple[str, ...] | None]:
  """Logical axis -> mesh axis; None is replicated. `fsdp` also splits the model width over data."""
  return {
    axes.BATCH: BATCH_AXES,
    axes.EMBED: axes.DATA if fsdp else None,
    axes.MLP: axes.MODEL,
    axes.HEADS: axes.MODEL,
    axes.VOCAB: None,  # Vocabularies of tokenizers rarely divide.
    axes.EXPERT: axes.EXPERT,
  }


def make_mesh(sizes: config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
  """The (data, expert, model) mesh over the first devices.

  Args:
    devices: of a machine that a program is only compiled for; None are those that there are.

  Raises:
    InputError: the mesh does not fit the devices that there are.
  """
  shape = tuple(getattr(sizes, name) for name in axes.MESH)
  n, devices = math.prod(shape), jax.devices() if devices is None else devices
  if n > len(devices):
    raise InputError(
      f"config.mesh = {dict(zip(axes.MESH, shape, strict=True))} needs {n} devices, but there are "
      f"{len(devices)} ({devices[0].platform}); the product of its sizes must fit them"
    )
  grid = np.asarray(devices[:n]).reshape(shape)
  return Mesh(grid, axes.MESH, axis_types=(AxisType.Auto,) * len(axes.MESH))


def shardings_of(boxed: Any, mesh: Mesh, *, fsdp: bool) -> Any:
  """A NamedSharding for every leaf of a tree of boxed shapes.

  Args:
    boxed: result of `jax.eval_shape`; boxes carry the logical names, bare leaves are replicated.

  Raises:
    KeyError: a logical name has no rule. (flax would replicate it in silence.)
    ValueError: a dimension does not divide over its mesh axis.
  """
  table = rules(fsdp)

  def one(leaf: Any) -> Any:
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    if not hasattr(leaf.value, "shape"):  # Masked by the optimizer: an empty box.
      return leaf.value
    spec = [None if name is None else table[name] for name in leaf.names]
    for size, axis in zip(leaf.value.shape, spec, strict=True):
      if axis is not None and size % mesh.shape[axis]:
        raise ValueError(f"{leaf.names} of shape {leaf.value.shape} does not divide over {axis}")
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def unbox(tree: Any) -> Any:
  """Plain arrays; the names have done their work."""
  return nn.meta.unbox(tree)


def rows(mesh: Mesh) -> NamedSharding:
  """Of everything whose first axis is the rows of a batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch as global arrays over the mesh."""
  put = lambda x: jax.make_array_from_process_local_data(rows(mesh), x)
  return jax.tree.map(put, batch)
