"""What a compiled step computes, and what it moves between a device and its own memory."""

import math
import re
from typing import Any

from iclm.audit import hlo

# Of these, nothing is moved, or what they call is counted, or they are collectives.
FREE = (
  "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
  "partition-id replica-id iota async custom-call add-dependency opt-barrier all-gather all-reduce "
  "reduce-scatter all-to-all collective-permute"
).split()
SLICES = ("dynamic-slice", "slice", "gather")


def flops(program: hlo.Program) -> float:
  """Operations of all matrix products of one run on one device, loops with their trips.

  A TPU writes products as convolutions: of these, the multiply-adds that meet no padding count.
  """
  return hlo.total(program, lambda c, i: {"flops": _products(c, i)}, into_fusions=True)["flops"]


def memory_bytes(program: hlo.Program) -> float:
  """Bytes that one run reads from and writes to a device's main memory, loops with their trips.

  Each fusion reads its operands and writes its results once; of what it only slices or updates,
  the slice. What the compiler keeps in a faster memory (a space other than 0) does not count.
  """
  cost = lambda c, i: {"bytes": _moved(program, c, i)}
  return hlo.total(program, cost, into_fusions=False)["bytes"]


def _products(computation: hlo.Computation, i: hlo.Instruction) -> float:
  if i.opcode not in ("dot", "convolution"):
    return 0.0
  (left,), (right,) = computation.inputs(i)[:2]
  out = i.shapes[0]
  if i.opcode == "dot":
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
    dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
    return 2 * math.prod(out.dims) * math.prod(left.dims[d] for d in dims)
  labels: Any = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  names_left, names_right, names_out = labels.groups()
  of = lambda shape, names, name: shape.dims[names.index(name)]
  batch_groups = re.search(r"batch_group_count=(\d+)", i.rest)
  pairs = 2.0 * of(right, names_right, "i") * of(out, names_out, "f")
  pairs *= of(left, names_left, "b") / (int(batch_groups[1]) if batch_groups else 1)
  for axis in sorted(name for name in names_out if name.isdigit()):
    n_in, n_kernel = of(left, names_left, axis), of(right, names_right, axis)
    pairs *= _valid(int(axis), i.rest, n_in, n_kernel, of(out, names_out, axis))
  return pairs


def _valid(axis: int, rest: str, n_in: int, n_kernel: int, n_out: int) -> int:
  """Pairs of output and kernel positions along an axis that meet an input, not padding."""
  found = re.search(r"window=\{([^}]*)\}", rest)
  window = dict(part.split("=") for part in found[1].split()) if found else {}
  per_axis = lambda name, empty: window[name].split("x")[axis] if name in window else empty
  stride, low, spread, dilate = (
    int(per_axis(name, empty).split("_")[0])
    for name, empty in (("stride", "1"), ("pad", "0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))
  )
  count = 0
  for first in range(-low, n_kernel * dilate - low, dilate):
    for position in range(first, first + n_out * stride, stride):
      count += position % spread == 0 and 0 <= position // spread < n_in
  return count


def _moved(program: hlo.Program, computation: hlo.Computation, i: hlo.Instruction) -> float:
  kind = i.opcode.removesuffix("-start")
  if kind in FREE or i.opcode.endswith(("-done", "-update")):
    return 0.0
  inputs = computation.inputs(i)
  if i.opcode == "fusion":
    called = program.computations[i.attribute("calls") or ""]
    return _moved_by_fusion(program, called, inputs, i.shapes)
  if i.opcode.endswith("-start"):  # A copy or a slice that runs beside the computation.
    to = i.shapes[0 if kind == "copy" else len(inputs[0])]
    reads = to.nbytes if any(s.space == 0 for s in inputs[0]) else 0.0
    return reads + _size([to])
  if i.opcode in SLICES:
    return 2 * _size(i.shapes)
  if i.opcode == "dynamic-update-slice":
    return 2 * _size(inputs[1])
  return _size(i.shapes) + sum(map(_size, inputs))


def _moved_by_fusion(program: hlo.Program, called: hlo.Computation, inputs, shapes) -> float:
  moved = 0.0
  for parameter, sizes in zip(called.parameters, inputs, strict=True):
    moved += min(_size(sizes), _read(program, called, parameter))
  root = called.root
  results = root.operands if root.opcode == "tuple" else (root.name,)
  for name, shape in zip(results, shapes, strict=False):
    moved += min(_size([shape]), _written(program, called, called.instructions[name], shape))
  return moved


def _read(program: hlo.Program, called: hlo.Computation, value: hlo.Instruction) -> float:
  """Of an operand of a fusion: a slice where only slices are used, nothing where it passes."""
  read = 0.0
  for user in called.instructions.values():
    for at, name in enumerate(user.operands):
      if name != value.name:
        continue
      if user.opcode == "bitcast":
        read += _read(program, called, user)
      elif user.opcode == "fusion":  # One in the other.
        inner = program.computations[user.attribute("calls") or ""]
        read += _read(program, inner, inner.parameters[at])
      elif user.opcode in SLICES:
        read += _size(user.shapes)
      elif user.opcode not in FREE and (user.opcode != "dynamic-update-slice" or at > 0):
        return math.inf
  return read


def _written(program: hlo.Program, called: hlo.Computation, value: hlo.Instruction, shape):
  while value.opcode == "bitcast":
    value = called.instructions[value.operands[0]]
  if value.opcode == "fusion":
    inner = program.computations[value.attribute("calls") or ""]
    return _written(program, inner, inner.root, shape)
  if value.opcode == "dynamic-update-slice":
    return _size(called.instructions[value.operands[1]].shapes)
  return 0.0 if value.opcode in FREE else _size([shape])


def _size(shapes) -> float:
  return sum(s.nbytes for s in shapes if s.space == 0)
