"""What Cloud TPU calls its slices, how many hosts each has, and what runs on them.

Source: the accelerator types and TPU software versions of the Cloud TPU documentation. Of v4 and
v5p, which count two cores to a chip, the slices whose size is a power of two.
"""

from typing import NamedTuple

from iclm.config import InputError, nearest


class Slice(NamedTuple):
  """An accelerator type.

  Attributes:
    hosts: virtual machines, each of which runs one process.
    chips: devices of all of them together, as JAX counts them.
    runtime: the software version to create it with.
  """

  hosts: int
  chips: int
  runtime: str


def of(name: str) -> Slice:
  """The slice of a name.

  Raises:
    InputError: there is none.
  """
  known = _known()
  if name not in known:
    raise InputError(f"--type={name} is no accelerator type; {nearest(name, known)}")
  return known[name]


def _known() -> dict[str, Slice]:
  found = {}
  for family, runtime in (("v5litepod", "v2-alpha-tpuv5-lite"), ("v6e", "v2-alpha-tpuv6e")):
    for chips in (1, 4, 8, 16, 32, 64, 128, 256):
      # Up to eight chips are one host; larger slices have four to a host.
      found[f"{family}-{chips}"] = Slice(max(chips // 4, 1) if chips > 8 else 1, chips, runtime)
  for family, runtime, most in (("v4", "tpu-ubuntu2204-base", 12), ("v5p", "v2-alpha-tpuv5", 13)):
    for cores in (2**i for i in range(3, most + 1)):
      found[f"{family}-{cores}"] = Slice(cores // 8, cores // 2, runtime)
  return found
