"""What a train step would take on a slice of a TPU, compiled for it on a machine without one."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iclm import axes, compose, optim, sharding, step
from iclm.audit import collectives, flops, formula, hlo, work
from iclm.audit.chips import Chip
from iclm.config import Config
from iclm.data.pipeline import Batch

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(NamedTuple):
  """The compiler's own words for why a step does not fit, and the bytes that they name, if any."""

  told: str
  nbytes: float | None


class Step(NamedTuple):
  """A train step with everything that it is called with; no array of it exists."""

  config: Config
  mesh: Mesh
  model: compose.Model
  tx: Any
  state: step.TrainState
  batch: Batch
  key: Any


def abstract_step(c: Config, mesh: Mesh) -> Step:
  """The train step of a config over a mesh, in shapes, types and shardings."""
  vocab = c.model.vocab_size or c.data.tokenizer.vocab_size
  model, tx = compose.build(c, vocab, mesh), optim.from_config(c)
  state = step.abstract_state(c, model, tx, mesh)
  rows, tokens = c.batch_size, c.data.seq_len
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.rows(mesh))
  ints = of(jnp.int32, rows, tokens)
  masks = of(jnp.float32, rows, tokens), of(jnp.bool_, rows, tokens)
  read_BD = of(jnp.float32, rows, c.model.d_model) if c.keeps_prompts else None
  batch = Batch(ints, ints, ints, ints, *masks, of(jnp.int32, rows), read_BD)
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
  return Step(c, mesh, model, tx, state, batch, key)


def traced(s: Step) -> Any:
  """The step as JAX sees it, which `compiled` and `report` take."""
  return step.make_train_step(s.config, s.model, s.tx, s.mesh).trace(s.state, s.batch, s.key)


def compiled(trace: Any) -> Any:
  """The compiled step, or `TooLarge` where the compiler finds no room for it on the device."""
  lowered = trace.lower()
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return too_large(str(error))


def too_large(message: str) -> TooLarge:
  """The first paragraph of the compiler's message, and the bytes that it says are needed."""
  told = " ".join(message.split("\n\n")[0].split())
  used = re.search(r"(?:Used |\()([\d.]+)([KMGT]?)(?:\)| of)", told)
  return TooLarge(told, float(used[1]) * UNITS[used[2]] if used else None)


def argument_bytes(s: Step) -> dict[str, int]:
  """Bytes on each device of what goes into a step, by class, without the padding of its layout.

  Of the domain experts, where only some train, each device counts its share of those.
  """
  every = _on_device(s.state.params)
  trained = sum(_trained_bytes(s.config, name, part) for name, part in s.state.params.items())
  rest = s.state._replace(params=None, opt_state=None)
  return {
    "weights, trained": trained,
    "weights, frozen": every - trained,
    "optimizer": _on_device(s.state.opt_state),
    "batch": _on_device(s.batch),
    "other state": _on_device(rest),
  }


def _trained_bytes(c: Config, name: str, part: Any) -> int:
  """Of a group of parameters, as `optim.from_config` moves them."""
  if not getattr(c.trains, name):
    return 0
  if name == "base" and not c.trains.lower:
    part = {key: inner for key, inner in part.items() if key not in optim.LOWER}
  if name == axes.DOMAIN and c.trains.only_experts:
    return _on_device(part) * len(set(c.trains.only_experts)) // c.experts.count
  return _on_device(part)


def flops_per_device(s: Step, trace: Any) -> dict[str, float]:
  """Operations of a step over the number of devices, by formula and as its jaxpr counts them."""
  n = s.mesh.devices.size
  counted = flops.of_jaxpr(trace.jaxpr.jaxpr)
  return {"formula": formula.train_step(s.config) / n, "jaxpr": counted / n}


def report(s: Step, trace: Any, found: Any, chip: Chip) -> dict[str, Any]:
  """JSON-able: bytes by class, FLOPs, what is sent, and the bound on the time of a step.

  Where JAX cannot read the compiled program, "unread" says so, and the last two are left out:
  jaxlib 0.10.2 does not know an operation that its libtpu uses on a v6e.

  Args:
    trace: of `traced`.
    found: what `compiled` made of it.
  """
  bytes_of: dict[str, Any] = argument_bytes(s)
  told: dict[str, Any] = {"fits": not isinstance(found, TooLarge)}
  told |= {"devices": s.mesh.devices.size, "hbm_bytes": chip.hbm_bytes}
  told |= {"flops": flops_per_device(s, trace)}
  if isinstance(found, TooLarge):
    return told | {"bytes": bytes_of | {"total": found.nbytes}, "compiler": found.told}
  m = found.memory_analysis()
  bytes_of["padding"] = m.argument_size_in_bytes - sum(bytes_of.values())
  bytes_of["activations and temporaries"] = (
    m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  )
  bytes_of["program"] = m.generated_code_size_in_bytes
  told["bytes"] = bytes_of | {"total": sum(bytes_of.values())}
  try:
    program = hlo.parse(found.as_text())
  except jax.errors.JaxRuntimeError as error:
    return told | {"unread": str(error).splitlines()[0]}
  told["flops"]["hlo"] = work.flops(program)
  sent, moved = collectives.bytes_by_kind(program), work.memory_bytes(program)
  seconds = {
    "compute": told["flops"]["hlo"] / chip.flops,
    "memory": moved / chip.hbm,
    "collectives": sum(sent.values()) / chip.ici,
  }
  return told | {
    "memory_traffic_bytes": moved,
    "collective_bytes": sent,
    "roofline_s": seconds | {"step": max(seconds.values())},
  }


def _on_device(tree: Any) -> int:
  return sum(_shard_bytes(x) for x in jax.tree.leaves(tree))


def _shard_bytes(x: Any) -> int:
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
