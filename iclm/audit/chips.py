"""What a chip can do, by its maker, and the slices of TPUs that a program is compiled for."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from jax.experimental import topologies

from iclm.config import InputError, nearest


class Chip(NamedTuple):
  """Peak figures of one chip, which is one device of JAX.

  flops: of bfloat16 products, per second. hbm, ici: bytes per second, of the main memory, and of
  all links to other chips together, one way. most: chips of the largest slice, in each direction;
  libtpu compiles for more, which cannot be had. slices: some of those that can.
  """

  hbm_bytes: int
  flops: float
  hbm: float
  ici: float
  most: tuple[int, ...]
  slices: tuple[str, ...]


# Dense bfloat16 products per second of a device, by the start of the kind that JAX tells; the first
# that fits. Source: NVIDIA's datasheets, of the SXM parts, without sparsity; others have less.
GPUS = {"NVIDIA A100": 312e12, "NVIDIA H100": 989.4e12, "NVIDIA H200": 989.4e12}
SLOWER = ("PCIe", "NVL")
TPUS = {
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
}

_PLANE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# Source: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e, "System architecture". The bandwidth
# between chips is told there in both directions together; half of it is one way.
CHIPS = {
  "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, (16, 16), _PLANE),
  "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, (16, 20, 28), _CUBE),
  "v6e": Chip(32 * 2**30, 918e12, 1640e9, 400e9, (16, 16), _PLANE),
}


def peak_flops(kind: str) -> float | None:
  """Products in bfloat16 per second of a device, of the kind that JAX tells; None: not known."""
  if kind.startswith(("NVIDIA H100", "NVIDIA H200")) and any(name in kind for name in SLOWER):
    return None
  peaks = GPUS | {name: CHIPS[family].flops for name, family in TPUS.items()}
  return next((peak for name, peak in peaks.items() if kind.startswith(name)), None)


def slice_of(name: str) -> tuple[Chip, list[Any]]:
  """The chip and the devices of a slice such as v5e:4x4; no TPU is needed, libtpu is.

  Raises:
    InputError: there is no such slice, or libtpu is not installed.
  """
  family, _, shape = name.partition(":")
  if sold := re.fullmatch(r"(v5litepod|v5e|v5p|v6e)-(\d+)", name):  # As Cloud TPU calls it.
    family = sold[1].replace("litepod", "e")
    chips = int(sold[2]) // (2 if family == "v5p" else 1)  # Of which it counts two cores.
    raise InputError(f"there is no topology {name!r}; {_nearest(family, str(chips))}")
  known = [f"{f}:{shape}" for f, chip in CHIPS.items() for shape in chip.slices]
  if family not in CHIPS or not shape:
    raise InputError(f"there is no topology {name!r}; {nearest(name, known)}")
  if not _can_be_had(CHIPS[family], shape):
    raise InputError(f"there is no topology {name!r}; {_nearest(family, shape)}")
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f"compiling for {name} needs libtpu, which is not installed: pip install -e '.[tpu]'"
    )
  # Else libtpu asks the machine's network for the TPU that it runs on, complains, and lets no
  # second process compile beside it.
  quiet = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  }
  for key, value in quiet.items():
    os.environ.setdefault(key, value)
  try:
    devices = topologies.get_topology_desc(name, "tpu").devices
  except Exception as error:
    if "INVALID_ARGUMENT" not in str(error):
      raise
    raise InputError(f"there is no topology {name!r}; {_nearest(family, shape)}") from None
  return CHIPS[family], list(devices)


def _can_be_had(chip: Chip, shape: str) -> bool:
  sizes = shape.split("x")
  fits = lambda size, most: size.isdecimal() and 1 <= int(size) <= most
  return len(sizes) == len(chip.most) and all(map(fits, sizes, chip.most))


def _nearest(family: str, shape: str) -> str:
  """The slice of a family with about as many chips."""
  chips = lambda s: math.prod(map(int, re.findall(r"\d+", s)))
  near = min(CHIPS[family].slices, key=lambda s: abs(chips(s) - chips(shape)))
  return f"did you mean '{family}:{near}'?"
