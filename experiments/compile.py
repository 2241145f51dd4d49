"""What a config's train step would take on a slice of a TPU, told on a machine without one.

  python -m experiments.compile --config=configs/llama2_7b.py --topology=v5e:4x4

Compiles the whole step for the slice, with libtpu (pip install -e '.[tpu]'), and prints for each
device: bytes by class beside the chip's memory, operations, bytes sent to other devices, and the
least time that a step can take. The time is a bound and no measurement: the longest of all
operations at the chip's peak, all bytes at the bandwidth of its memory, and all that is sent at
that of its links, as if each of them were reached and the other two cost nothing.

Exits with 3 where the step does not fit, and names the first of a few changes that makes it fit.
Other commands should be run with JAX_PLATFORMS=cpu on a CPU machine where libtpu is installed,
since JAX looks for TPUs first there; this one does so by itself.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import rich.table
from absl import flags
from ml_collections import config_flags

from experiments import cli
from iclm import axes, config, outputs, provenance, sharding
from iclm.audit import chips, pod
from iclm.config import Config, InputError
from iclm.nn import attention

TOLERANCE = 0.02  # Between the operations of the formula and those counted.


def main(flag: flags.FlagValues) -> int:
  jax.config.update("jax_platforms", "cpu")  # Nothing runs, here or on the slice.
  jax.config.update("jax_enable_compilation_cache", False)  # Without a TPU it cannot be read.
  if flag.out:
    outputs.check_can_be_written(config.path(flag.out))
  c = config.from_config_dict(flag.config)
  attention.check_kernel(c.model, "tpu")
  chip, devices = chips.slice_of(flag.topology)
  check_mesh(c, flag.topology, len(devices))
  found = pod.abstract_step(c, sharding.make_mesh(c.mesh, devices))
  begun = time.monotonic()
  trace = pod.traced(found)
  told = pod.report(found, trace, pod.compiled(trace), chip)
  told |= {"topology": flag.topology, "compile_s": time.monotonic() - begun}
  show(told, chip)
  if not told["fits"]:
    told["would_fit"] = search(c, chip, devices, flag.search_s)
    sentence = f"the step does not fit {flag.topology}: {told['compiler']}"
    print(f"{sentence}\n{_advice(told['would_fit'], flag.search_s)}")
  if flag.out:
    told |= {"config": config.to_dict(c), "provenance": provenance.of(c)}
    outputs.write_json(config.path(flag.out), told)
  return 0 if told["fits"] else 3


def check_mesh(c: Config, topology: str, n_devices: int) -> None:
  """Raises InputError where the config's mesh is not all of the slice."""
  sizes = {name: getattr(c.mesh, name) for name in axes.MESH}
  others = sizes[axes.EXPERT] * sizes[axes.MODEL]
  if math.prod(sizes.values()) == n_devices:
    return
  data, n_shares = n_devices // others, n_devices // sizes[axes.MODEL]
  nearest = f"config.mesh.data = {data}"
  if n_devices % others:
    nearest, n_shares = f"config.mesh = {{'data': {n_devices}, 'expert': 1, 'model': 1}}", n_devices
  if c.batch_size % (n_shares * c.accumulate):
    nearest += f" with config.batch_size = {n_shares * c.accumulate}"
  raise InputError(
    f"config.mesh = {sizes} is {math.prod(sizes.values())} devices, but {topology} has "
    f"{n_devices}; {nearest} fits it"
  )


def changes(c: Config) -> Iterator[tuple[dict[str, Any], Config]]:
  """What may make a step fit, each by itself and then all that went before together.

  In this order: recompute layers, split the batch into micro-batches, split the base over the
  data axis, split the layers over twice as many devices. Changes that the config cannot take are
  left out; of all together, where it cannot take them, those that it can by themselves.
  """
  every: dict[str, Any] = {}
  taken: dict[str, Any] = {}
  per_device = c.batch_size // c.mesh.shares
  more = {"none": ("light", "full"), "light": ("full",), "full": ()}[c.model.remat]
  single: list[dict[str, Any]] = [{"model.remat": kind} for kind in more]
  single += [{"accumulate": n} for n in (2 * c.accumulate, 4 * c.accumulate) if n <= per_device]
  single += [] if c.fsdp else [{"fsdp": True}]
  if c.mesh.data % 2 == 0:
    single += [{"mesh.data": c.mesh.data // 2, "mesh.model": 2 * c.mesh.model}]
  for change in single:
    every |= change
    found = list(_changed(c, change))
    taken |= change if found else {}
    yield from found
  if len(single) > 1:
    yield from list(_changed(c, every)) or _changed(c, taken)


def _changed(c: Config, change: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Config]]:
  tree = config.to_dict(c)
  for key, value in change.items():
    *parts, last = key.split(".")
    inner = tree
    for part in parts:
      inner = inner[part]
    inner[last] = value
  try:
    yield change, config.from_config_dict(tree)
  except InputError:
    return


def search(c: Config, chip: chips.Chip, devices: list[Any], seconds: float) -> Any:
  """The first of `changes` with which the step fits, or None; no compilation starts too late."""
  begun = time.monotonic()
  for change, changed in changes(c):
    if time.monotonic() - begun > seconds:
      return None
    found = pod.abstract_step(changed, sharding.make_mesh(changed.mesh, devices))
    if sum(pod.argument_bytes(found).values()) > chip.hbm_bytes:
      continue
    if not isinstance(pod.compiled(pod.traced(found)), pod.TooLarge):
      return change
  return None


def _advice(change: dict[str, Any] | None, seconds: float) -> str:
  if change is None:
    return f"none of the changes tried within {seconds:.0f} s makes it fit; take a larger slice"
  return "it fits with " + " ".join(f"--config.{key}={value}" for key, value in change.items())


def show(told: dict[str, Any], chip: chips.Chip) -> None:
  table = rich.table.Table("on each device", "", title_justify="left")
  size = lambda n: "-" if n is None else f"{n / 2**30:.2f} GiB"
  for name, value in told["bytes"].items():
    table.add_row(f"bytes: {name}", size(value))
  table.add_row("bytes: the chip's memory", size(chip.hbm_bytes))
  counted = told["flops"]
  for name, value in counted.items():
    table.add_row(f"operations, by {name}", f"{value / 1e12:.4g} T")
  if "roofline_s" in told:
    table.add_row("bytes to and from memory", size(told["memory_traffic_bytes"]))
    for kind, value in told["collective_bytes"].items():
      table.add_row(f"bytes sent: {kind}", size(value))
    for name, value in told["roofline_s"].items():
      table.add_row(f"least time: {name}", f"{1e3 * value:.1f} ms")
  cli.console().print(table)
  for by in ("jaxpr", "hlo"):
    off = counted["formula"] / counted.get(by, counted["formula"]) - 1
    if abs(off) > TOLERANCE:
      print(f"the formula differs by {off:+.1%} from the count by {by}: it leaves the optimizer's "
            "products, the router and the dependence out")  # fmt: skip
  if "unread" in told:
    print("it fits; what it sends and its least time are not known, since this release of JAX "
          f"cannot read the program of this chip: {told['unread']}")  # fmt: skip
  elif told["fits"]:
    print("it fits; the least time of a step is a bound by the chip's peak figures, not measured")


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "A file of configs/.", short_name="c")
  flags.DEFINE_string("topology", None, "A slice: v5e:4x4, v5p:2x2x4, v6e:4x4, ...")
  flags.DEFINE_string("out", None, "Where to write all figures as JSON.")
  flags.DEFINE_float("search_s", 900, "Seconds to look for a change that makes the step fit.")
  flags.mark_flags_as_required(["config", "topology"])
  cli.run(main)
