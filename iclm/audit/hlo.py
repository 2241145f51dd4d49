"""Compiled HLO as text -> instructions, and sums over all that runs, loops with their trips.

XLA's own `cost_analysis` counts the body of a loop once; `total` counts it as often as it runs.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}
# Attributes that name the computation which an instruction runs, by its opcode.
RUNS = {"fusion": "calls", "call": "to_apply", "async-start": "calls"}


class Shape(NamedTuple):
  """One array; a tuple is a sequence of these. `space`: 0 is the device's main memory."""

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def nbytes(self) -> float:
    size = 1.0
    for d in self.dims:
      size *= d
    bits = re.search(r"\d+", self.dtype)
    one = BYTES[self.dtype] if self.dtype in BYTES else int(bits[0]) / 8 if bits else 0
    return size * one


class Instruction(NamedTuple):
  """`name = shapes opcode(operands), rest`; an operand's shapes are those of where it is named."""

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  rest: str  # Attributes; of a constant its value, of a parameter its number.
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """The name of a computation, or a word, behind `name=`."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
    return found[1] if found else None


class Computation(NamedTuple):
  name: str
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    return next(i for i in self.instructions.values() if i.is_root)

  @property
  def parameters(self) -> list[Instruction]:
    """In the order in which it is called with them."""
    given = [i for i in self.instructions.values() if i.opcode == "parameter"]
    return sorted(given, key=lambda p: int(p.rest))

  def inputs(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
    return [self.instructions[name].shapes for name in instruction.operands]


class Program(NamedTuple):
  computations: dict[str, Computation]
  entry: str
  n_partitions: int


def parse(text: str) -> Program:
  """Returns the program that `compiled.as_text()` tells.

  Raises:
    ValueError: there is no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry, current = None, None
  for line in text.splitlines():
    if current is None:
      header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
      if header:
        current = Computation(header[2], {})
        computations[header[2]] = current
        entry = header[2] if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif instruction := _instruction(line):
      current.instructions[instruction.name] = instruction
  if entry is None:
    raise ValueError("the text has no ENTRY computation: it is no compiled HLO")
  n = re.search(r"\bnum_partitions=(\d+)", text.split("\n", 1)[0])
  return Program(computations, entry, int(n[1]) if n else 1)


def total(
  program: Program,
  cost: Callable[[Computation, Instruction], dict[str, float]],
  *,
  into_fusions: bool,
) -> Counter:
  """Sums `cost` over every instruction as often as it runs.

  Args:
    cost: name -> amount for one run of an instruction, without what it calls.
    into_fusions: count what stands in a fusion; else a fusion is one instruction.

  Raises:
    ValueError: a loop whose trips the program does not tell has a cost.
  """
  known: dict[str, Counter] = {}

  def of(name: str) -> Counter:
    if name in known:
      return known[name]
    computation, found = program.computations[name], Counter()
    for i in computation.instructions.values():
      found.update(cost(computation, i))
      if i.opcode == "while":
        body = of(i.attribute("body") or "")
        if any(body.values()):
          n = trips(program, computation, i)
          found.update({key: n * value for key, value in body.items()})
      elif i.opcode == "conditional":
        found.update(max(map(of, _branches(i)), key=lambda c: sum(c.values())))
      elif i.opcode in RUNS and (into_fusions or i.opcode != "fusion"):
        found.update(of(i.attribute(RUNS[i.opcode]) or ""))
    known[name] = found
    return found

  return of(program.entry)


def trips(program: Program, computation: Computation, loop: Instruction) -> int:
  """How often a `while` runs: as the compiler notes it, or by the constants of its condition.

  A condition is read as `counter < limit`. A counter whose start is not a constant is taken to
  start at 0, and one to which the body adds no constant, to go by 1, as those of `lax.scan` do.

  Raises:
    ValueError: neither is there.
  """
  noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
  if noted:
    return int(noted[1])
  condition = program.computations[loop.attribute("condition") or ""]
  root = condition.root
  test = root
  if root.opcode == "fusion":
    test = program.computations[root.attribute("calls") or ""].root
  constants = [_constant(computation, loop, condition, name) for name in root.operands]
  found = [n for n in constants if n is not None]
  if test.attribute("direction") != "LT" or not found:
    raise ValueError(f"the trips of {loop.name} are not told")
  steps = [_step(program, loop, condition, name) for name in root.operands]
  return -(-(max(found) - (min(found) if len(found) == 2 else 0)) // max(steps))


def _step(program: Program, loop: Instruction, condition: Computation, name: str) -> int:
  """What the body adds to an operand of the condition: a gather in parts may go by 2."""
  body, index = program.computations[loop.attribute("body") or ""], condition.instructions[name]
  if index.opcode != "get-tuple-element" or body.root.opcode != "tuple":
    return 1
  grown = body.instructions[body.root.operands[int(index.attribute("index") or 0)]]
  added = [body.instructions[name] for name in grown.operands] if grown.opcode == "add" else []
  constants = [int(x.rest) for x in added if x.opcode == "constant" and x.rest.isdigit()]
  return constants[0] if len(constants) == 1 else 1


def _constant(
  computation: Computation, loop: Instruction, condition: Computation, name: str
) -> int | None:
  """The value of an operand of a loop's condition: a constant there, or one that goes in."""
  value = condition.instructions[name]
  if value.opcode == "get-tuple-element":
    start = computation.instructions[loop.operands[0]]
    if start.opcode != "tuple":
      return None
    value = computation.instructions[start.operands[int(value.attribute("index") or 0)]]
  return int(value.rest) if value.opcode == "constant" and value.rest.isdigit() else None


def _branches(instruction: Instruction) -> list[str]:
  found = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
  if found:
    return [name.strip().lstrip("%") for name in found[1].split(",")]
  return [instruction.attribute(f"{which}_computation") or "" for which in ("true", "false")]


def _instruction(line: str) -> Instruction | None:
  head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if not head:
    return None
  shape, rest = _split(line[head.end() :], "(" == line[head.end()])
  opcode, _, rest = rest.strip().partition("(")
  inside, rest = _split("(" + rest, True)
  is_value = opcode in ("constant", "parameter")
  operands = () if is_value else tuple(re.findall(r"%([\w.\-]+)", inside))
  rest = inside[1:-1] if is_value else rest
  return Instruction(head[2], shapes_of(shape), opcode, operands, rest, bool(head[1]))


def _split(text: str, bracketed: bool) -> tuple[str, str]:
  """A first word, or all up to the bracket that closes the first one, and the rest."""
  if not bracketed:
    word, _, rest = text.partition(" ")
    return word, rest
  depth = 0
  for at, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return text[: at + 1], text[at + 1 :]
  return text, ""


def shapes_of(text: str) -> tuple[Shape, ...]:
  """`f32[2,3]{1,0}` or a tuple of such, flat."""
  return tuple(_shapes(text))


def _shapes(text: str) -> Iterator[Shape]:
  for dtype, dims, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", text):
    space = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
    yield Shape(dtype, sizes, int(space[1]) if space else 0)
