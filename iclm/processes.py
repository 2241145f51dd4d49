"""What the processes of a run say to each other; one process alone says nothing.

Every process of a run calls each of these functions, in the same order.
"""

import functools
import itertools
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def is_first() -> bool:
  """Whether this is the process that writes and prints for all of them."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns once every process is here; all must give the same name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def meet(mesh: Mesh) -> None:
  """Opens every connection that a program over the mesh needs, while all processes are here.

  Those between CPUs give up where a first meeting takes longer than 30 s, and one process may
  compile or prepare data for longer than that; once they have met, they wait.
  """
  if jax.process_count() == 1:
    return
  barrier("meet")
  of_first(0)
  bool(anyone(False))
  names = mesh.axis_names
  place = NamedSharding(mesh, PartitionSpec(*names))
  ones = jax.make_array_from_callback(
    mesh.devices.shape, place, lambda index: np.ones(mesh.devices.shape, np.float32)[index]
  )
  for n in range(1, len(names) + 1):
    for dims in itertools.combinations(range(len(names)), n):
      kept = (name for i, name in enumerate(names) if i not in dims)
      total = jax.jit(
        functools.partial(jnp.sum, axis=dims),
        out_shardings=NamedSharding(mesh, PartitionSpec(*kept)),
      )
      total(ones).block_until_ready()


def of_first(value: int) -> int:
  """What process 0 gives, in every process."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def fetch(tree: Any) -> Any:
  """Arrays as numpy, whole, in every process, wherever their shards lie."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_fetch, tree)


def _fetch(x: Any) -> Any:
  if not isinstance(x, jax.Array) or x.is_fully_replicated or x.is_fully_addressable:
    return jax.device_get(x)
  return multihost_utils.process_allgather(x, tiled=True)


def anyone(flag: bool) -> jax.Array:
  """Whether any process says so; dispatched and not waited for."""
  everywhere = Mesh(np.asarray(jax.devices()), ("device",))
  mine = np.full(jax.local_device_count(), flag)
  place = NamedSharding(everywhere, PartitionSpec("device"))
  return _any(jax.make_array_from_process_local_data(place, mine))


@jax.jit
def _any(flag_N: jax.Array) -> jax.Array:
  return jnp.any(flag_N)


class StopSignals:
  """Turns SIGTERM and the first Ctrl-C into a flag, for as long as the loop runs."""

  def __init__(self):
    self._flag, self._old = threading.Event(), {}
    self._said: jax.Array | None = None

  def told(self) -> bool:
    """Whether to stop at this step; of several processes, all stop at the step after one is told.

    What they agree on is read a step late, so that the device never waits for the host.
    """
    if jax.process_count() == 1:
      return self._flag.is_set()
    said, self._said = self._said, anyone(self._flag.is_set())
    return said is not None and bool(said)

  def ever(self) -> bool:
    """Whether any process was told by now; they wait for each other to agree."""
    told = self._flag.is_set()
    return told if jax.process_count() == 1 else bool(anyone(told))

  def __enter__(self) -> "StopSignals":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._raise_flag)
    return self

  def _raise_flag(self, number: int, _) -> None:
    self._flag.set()
    signal.signal(number, self._old[number])  # The second one ends it at once.

  def __exit__(self, *_) -> None:
    for number, old in self._old.items():
      signal.signal(number, old)
