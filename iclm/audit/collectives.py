"""What a compiled step sends between its devices."""

import math
import re
from collections import Counter

from iclm.audit import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def bytes_by_kind(program: hlo.Program) -> dict[str, float]:
  """Returns kind -> bytes that a device sends in one run, loops with their trips.

  Of a part of s bytes in a group of n devices, by the ring algorithms: all-gather sends (n - 1) s,
  all-reduce 2 (n - 1) / n s, reduce-scatter and all-to-all (n - 1) / n s, collective-permute s.
  """
  cost = lambda computation, i: _cost(program.n_partitions, computation, i)
  found = hlo.total(program, cost, into_fusions=True)
  return {kind: found[kind] for kind in KINDS}


def gathered(program: hlo.Program) -> Counter:
  """Shape of what every all-gather results in -> how often it runs, as (dtype, dims)."""

  def one(computation: hlo.Computation, i: hlo.Instruction) -> dict:
    if kind_of(computation, i) != "all-gather":
      return {}
    # A started one also names its operands.
    shapes = i.shapes[len(i.operands) :] if i.opcode.endswith("-start") else i.shapes
    return {(s.dtype, s.dims): 1 for s in shapes}

  return hlo.total(program, one, into_fusions=True)


def kind_of(computation: hlo.Computation, i: hlo.Instruction) -> str | None:
  """The kind of collective that an instruction starts, if any.

  A TPU's program weaves one that runs beside the computation through a chain of fusions, each of
  which names it again: it counts where the chain starts.
  """
  kind = i.opcode.removesuffix("-start").removeprefix("ragged-")
  if kind not in KINDS:
    return None
  starts = any('"AsyncCollectiveStart"' in x.rest for x in computation.instructions.values())
  if "chain_id=" in i.rest and not starts:
    return None
  # An all-reduce of which a device keeps its part is a reduce-scatter, which a TPU calls so.
  scatters = kind == "all-reduce" and computation.name.startswith("all-reduce-scatter")
  return "reduce-scatter" if scatters else kind


def _cost(n_partitions: int, computation: hlo.Computation, i: hlo.Instruction) -> dict[str, float]:
  kind = kind_of(computation, i)
  if kind is None:
    return {}
  size = sum(shape.nbytes for shapes in computation.inputs(i) for shape in shapes)
  n = group_size(i.rest, n_partitions)
  share = {
    "all-gather": n - 1,
    "all-reduce": 2 * (n - 1) / n,
    "reduce-scatter": (n - 1) / n,
    "all-to-all": (n - 1) / n,
    "collective-permute": 1,
  }
  return {kind: size * share[kind]}


def group_size(rest: str, n_partitions: int) -> int:
  """Devices that a collective joins, in any of the three ways in which HLO writes its groups."""
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
  if listed:
    return len(listed[1].split(","))
  tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
  if tiled:
    return int(tiled[1])
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
  if mesh:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    # An axis, or of an axis the part '(before)size'.
    joined = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part) if part else sizes[name] for name, part in joined)
  return n_partitions
