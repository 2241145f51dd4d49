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
  n = math.prod(shape)
  if devices is None:  # Those of one process lie together, so that its rows of a batch do.
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  if n > len(devices):
    raise InputError(
      f"config.mesh = {dict(zip(axes.MESH, shape, strict=True))} needs {n} devices, but there are "
      f"{len(devices)} ({devices[0].platform}); the product of its sizes must fit them"
    )
  if jax.process_count() > 1 and n < len(devices):
    raise InputError(
      f"config.mesh = {dict(zip(axes.MESH, shape, strict=True))} uses {n} of the {len(devices)} "
      f"devices of {jax.process_count()} processes; the product of its sizes must be all of them"
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


def share(mesh: Mesh) -> tuple[int, int]:
  """Which part of a batch's rows this process holds, and of how many parts.

  Processes among which a row is split, over the model axis, hold the same part.

  Raises:
    InputError: a process would hold an uneven part.
  """
  n_parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  parts_of = mesh.devices.reshape(n_parts, -1)
  mine = [
    i for i, row in enumerate(parts_of) if any(d.process_index == jax.process_index() for d in row)
  ]
  if n_parts % len(mine) or mine[0] % len(mine):
    raise InputError(
      f"config.mesh.model = {mesh.shape[axes.MODEL]} and the {jax.local_device_count()} devices of "
      "a process must divide one another, so that every process holds an equal part of a batch"
    )
  return mine[0] // len(mine), n_parts // len(mine)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch, see `share`, as global arrays over the mesh."""
  n_parts = share(mesh)[1]
  put = lambda x: jax.make_array_from_process_local_data(
    rows(mesh), x, (x.shape[0] * n_parts, *x.shape[1:])
  )
  return jax.tree.map(put, batch)


def put_whole(batch: Any, mesh: Mesh) -> Any:
  """A batch of which every process has all rows, as global arrays over the mesh."""
  return jax.tree.map(lambda x: place(x, rows(mesh)), batch)


def place(x: Any, where: NamedSharding) -> jax.Array:
  """A value that every process has, as one global array."""
  x = np.asarray(x)
  return jax.make_array_from_process_local_data(where, x, x.shape)
