"""What a step costs, as ratios between cases that are measured in turns, in one run.

  python -m experiments.bench --suite=train --size=S --experts=2,32 --out=bench.json

Suites, each with the figures that it writes under "figures":

  train    growth_32_over_2 (step time of the last over the first number of experts, with FLOPs),
           over_all_k (tokens/s over `compute="all"`, beside the floor that FLOPs set),
           over_plain_lora (step time over a plain LoRA step on 2B rows plus a frozen forward on B,
           by number of experts), and of the first number with half of the layers as trunk, and
           kept_prompts (step time with what the router reads kept, over reading it again)
  loss     loss_share: bottleneck and dependence, of a whole step
  block    growth and over_gathered: step time of block adapters, which every expert's input goes
           through (router.gradient="all"), over the first number of experts, and over gathered ones
  experts  full_over_dense: tokens/s of experts with matrices of their own over those of a dense
           model with all layers trained, on 2B rows, and a frozen forward on B
  mfu      of routed, half_trunk and plain: the share of the device's peak that their operations
           reach, with growth and over_plain_lora as in train; for sizes and devices where every
           expert on every input is not to be had
  memory   peak_bytes: growth from the first to the last number of experts, and adapters' own bytes
  compile  growth of the time that compilation takes
  decode   tokens/s of 32 tokens behind a prompt that fills the rest of a row: over a plain decode
           of the base at 2B rows, also without the base's own row (combine="logits") and with half
           of the layers as trunk, and of the last over the first number of experts
  loop     the wait for a batch, and the stall of a checkpoint, over a step on real data
  devices  flops_per_device: of eight devices, over those of one; on a CPU they are there with
           XLA_FLAGS=--xla_force_host_platform_device_count=8

Every case is written with its times, FLOPs and bytes. Medians, with interquartile ranges.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.table
from absl import flags

from configs import bench as sizes
from experiments import cases, cli, loops
from experiments.cases import Case
from iclm import axes, config, outputs, provenance
from iclm.audit import chips, hlo, work
from iclm.config import Config, InputError
from iclm.nn import attention
from iclm.nn.block import PROJECTIONS

WARMUP = 2  # Steps of each case before any is timed.
MESHES = ((1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2))


def main(flag: flags.FlagValues) -> int:
  if flag.repeats < 7:
    raise InputError(f"--repeats={flag.repeats} is too few for a median with a range; at least 7")
  counts = _counts(flag.experts)
  outputs.check_can_be_written(config.path(flag.out))
  c = config.from_config_dict(sizes.get_config(flag.size))
  attention.check_kernel(c.model, jax.default_backend())
  # What is read from a cache was not compiled.
  jax.config.update("jax_enable_compilation_cache", False)
  found, figures = SUITES[flag.suite](c, counts, flag.repeats)
  report = {
    "suite": flag.suite,
    "size": flag.size,
    "experts": counts,
    "repeats": flag.repeats,
    "figures": figures,
    "cases": {case.name: case.told() for case in found},
    "provenance": provenance.of(c),
  }
  outputs.write_json(config.path(flag.out), report)
  _show(found, figures)
  return 0


def _counts(given: Sequence[str]) -> list[int]:
  try:
    counts = sorted({int(n) for n in given})
  except ValueError:
    raise InputError(f"--experts={','.join(given)} must be numbers, such as 2,32") from None
  if len(counts) < 2 or counts[0] < 1:
    raise InputError(f"--experts={','.join(given)} must name two numbers or more, each at least 1")
  return counts


def train(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  of = lambda n, **parts: cases.vary(c, experts={"count": n}, **parts)
  half, first = {"trunk_layers": c.model.layers // 2}, counts[0]
  routed = {n: cases.ours(f"routed/{n}", of(n)) for n in counts}
  every = {n: cases.ours(f"all/{n}", of(n, compute="all")) for n in counts}
  trunk = cases.ours(f"routed/{first}/half_trunk", of(first, model=half))
  plain = cases.plain("plain_lora_2B_and_forward_B", of(first))
  # Where nothing but the router reads the base's own states, they can be kept.
  reading = cases.ours(f"routed/{first}/combine_logits", of(first, combine="logits"))
  kept = of(first, combine="logits", router={"cached": True})
  kept = cases.ours(f"routed/{first}/combine_logits/kept_prompts", kept)
  found = [*routed.values(), *every.values(), trunk, plain, reading, kept]
  cases.time_in_turns(found, WARMUP, repeats)
  floor = lambda n: (2 + 4 * (n + 1)) / (2 + 8)
  figures: dict[str, Any] = {
    f"growth_{n}_over_{first}": cases.ratio(routed[n], routed[first]) for n in counts[1:]
  }
  figures["over_all_k"] = {
    str(n): cases.ratio(every[n], routed[n]) | {"flop_floor": floor(n)} for n in counts
  }
  for of_floor in figures["over_all_k"].values():
    of_floor["of_floor"] = of_floor["time"] / of_floor["flop_floor"]
  figures["over_plain_lora"] = {str(n): cases.ratio(routed[n], plain) for n in counts}
  figures["over_plain_lora_half_trunk"] = cases.ratio(trunk, plain)
  figures["kept_prompts"] = cases.ratio(kept, reading)
  return found, figures


def block(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  of = lambda n, gradient: cases.vary(c, experts={"count": n}, router={"gradient": gradient})
  gathered = {n: cases.ours(f"gathered/{n}", of(n, "chosen")) for n in counts}
  through = {n: cases.ours(f"block/{n}", of(n, "all")) for n in counts}
  found = [*gathered.values(), *through.values()]
  cases.time_in_turns(found, WARMUP, repeats)
  first = counts[0]
  return found, {
    "growth": {f"{n}_over_{first}": cases.ratio(through[n], through[first]) for n in counts[1:]},
    "over_gathered": {str(n): cases.ratio(through[n], gathered[n]) for n in counts},
  }


def full_experts(
  c: Config, counts: Sequence[int], repeats: int
) -> tuple[list[Case], dict[str, Any]]:
  c = cases.vary(c, experts={"kind": "full", "projections": PROJECTIONS})
  full = {n: cases.ours(f"full/{n}", cases.vary(c, experts={"count": n})) for n in counts}
  dense = cases.plain("dense_2B_and_forward_B", c)
  found = [*full.values(), dense]
  cases.time_in_turns(found, WARMUP, repeats)
  first, last = counts[0], counts[-1]
  return found, {
    # Tokens/s are the inverse of the time.
    "full_over_dense": {str(n): cases.ratio(dense, case) for n, case in full.items()},
    f"growth_{last}_over_{first}": cases.ratio(full[last], full[first]),
  }


def loss(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  whole = cases.vary(c, experts={"count": counts[0]})
  without = cases.vary(whole, bottleneck={"kind": "none"}, loss={"beta": 0.0, "dependence": 0.0})
  found = [cases.ours("every_loss", whole), cases.ours("no_bottleneck_no_dependence", without)]
  cases.time_in_turns(found, WARMUP, repeats)
  ratio = cases.ratio(*found)
  return found, {"loss_share": {key: 1 - 1 / value for key, value in ratio.items()}}


def mfu(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  of = lambda n, **parts: cases.vary(c, experts={"count": n}, **parts)
  first = counts[0]
  half = of(first, model={"trunk_layers": c.model.layers // 2})
  configs = {f"routed/{n}": of(n) for n in counts} | {f"routed/{first}/half_trunk": half}
  ours = {name: cases.ours(name, changed) for name, changed in configs.items()}
  plain = cases.plain("plain_lora_2B_and_forward_B", of(first))
  found = [*ours.values(), plain]
  cases.time_in_turns(found, WARMUP, repeats)
  # The same passes through the layers, without messages.
  configs[plain.name] = of(first, bottleneck={"kind": "none"}, loss={"beta": 0.0})
  peak = chips.peak_flops(jax.devices()[0].device_kind)
  return found, {
    **{f"growth_{n}_over_{first}": cases.ratio(ours[f"routed/{n}"], found[0]) for n in counts[1:]},
    "over_plain_lora": {str(n): cases.ratio(ours[f"routed/{n}"], plain) for n in counts},
    "over_plain_lora_half_trunk": cases.ratio(ours[f"routed/{first}/half_trunk"], plain),
    "peak_flops": peak,
    "mfu": {case.name: case.mfu(configs[case.name], peak) for case in found} if peak else None,
  }


def memory(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  del repeats
  found = [cases.ours(f"routed/{n}", cases.vary(c, experts={"count": n})) for n in counts]
  first, last = found[0], found[-1]
  grown = last.peak_bytes - first.peak_bytes
  # An adapter's own: parameters, two moments, and a gradient.
  size = lambda case: sum(x.nbytes for x in jax.tree.leaves(case.state.params[axes.DOMAIN]))
  own = 4 * (size(last) - size(first))
  figures = {"peak_bytes": {case.name: case.peak_bytes for case in found}}
  return found, figures | {"growth_bytes": grown, "own_bytes": own, "growth_over_own": grown / own}


def compilation(
  c: Config, counts: Sequence[int], repeats: int
) -> tuple[list[Case], dict[str, Any]]:
  found = [cases.ours(f"routed/{n}", cases.vary(c, experts={"count": n})) for n in counts]
  for _ in range(repeats - 1):
    for case in found:
      case.compile_again()
  first, last = (case.summary(case.compile_s)["median"] for case in (found[0], found[-1]))
  return found, {f"compile_growth_{counts[-1]}_over_{counts[0]}": last / first}


def decode(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  ours = {
    n: cases.decode(f"routed/{n}", cases.vary(c, experts={"count": n}), c.batch_size)
    for n in counts
  }
  base = cases.vary(c, experts={"kind": "none"}, loss={"beta": 0.0, "dependence": 0.0})
  plain = cases.decode("plain_base_2B", base, 2 * c.batch_size)
  one = cases.vary(c, experts={"count": counts[0]})
  variants = {
    "combine_logits": cases.vary(one, combine="logits"),  # No row of the base beside the streams'.
    "half_trunk": cases.vary(one, model={"trunk_layers": c.model.layers // 2}),
  }
  others = {
    name: cases.decode(f"routed/{counts[0]}/{name}", changed, c.batch_size)
    for name, changed in variants.items()
  }
  found = [case for pair in (*ours.values(), *others.values(), plain) for case in pair]
  cases.time_in_turns(found, WARMUP, repeats)
  first, last = counts[0], counts[-1]
  both = lambda pair: sum(case.summary(case.step_s)["median"] for case in pair)
  # Tokens/s are the inverse of the time, so that the baseline's stands above ours.
  return found, {
    "over_plain_2B": {str(n): cases.ratio(plain[1], pair[1]) for n, pair in ours.items()},
    **{f"over_plain_2B_{name}": cases.ratio(plain[1], pair[1]) for name, pair in others.items()},
    "over_plain_2B_with_prompt": {str(n): both(plain) / both(pair) for n, pair in ours.items()},
    f"tokens_{last}_over_{first}": cases.ratio(ours[first][1], ours[last][1]),
    "prompt_and_answer_s": {str(n): both(pair) for n, pair in (ours | others).items()},
  }


def devices(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  """What the compiled program of a device computes; a sum that each device does itself counts."""
  del repeats
  if jax.device_count() < 8:
    raise InputError(
      f"--suite=devices needs 8 devices, and there are {jax.device_count()}; on a CPU they are "
      "there with XLA_FLAGS=--xla_force_host_platform_device_count=8"
    )
  of = lambda shape: cases.vary(
    c, experts={"count": counts[-1]}, mesh=dict(zip(axes.MESH, shape, strict=True))
  )
  # All are checked before the first is compiled.
  varied = {shape: config.from_config_dict(config.to_dict(of(shape))) for shape in MESHES}
  counted, found = {}, []
  for shape, changed in varied.items():
    name = ",".join(map(str, shape))
    found.append(cases.ours(name, changed))
    counted[name] = work.flops(hlo.parse(found[-1].run.as_text()))
  one = found[0].flops
  return found, {"flops_per_device": {name: n / one for name, n in counted.items()}}


def loop(c: Config, counts: Sequence[int], repeats: int) -> tuple[list[Case], dict[str, Any]]:
  # Answers of the tasks are of any length.
  return loops.measure(cases.vary(c, experts={"count": counts[0]}, data={"counted": 0}), repeats)


SUITES: dict[str, Callable[..., tuple[list[Case], dict[str, Any]]]] = {
  "train": train,
  "loss": loss,
  "block": block,
  "experts": full_experts,
  "mfu": mfu,
  "memory": memory,
  "compile": compilation,
  "decode": decode,
  "devices": devices,
  "loop": loop,
}


def _show(found: Sequence[Case], figures: dict[str, Any]) -> None:
  columns = "case", "step, ms", "quartiles", "GFLOP", "MB", "compiled in, s"
  table = rich.table.Table(*columns)
  for case in found:
    told = case.told()
    s = told["step_s"]
    time = "-" if s is None else f"{1e3 * s['median']:.1f}"
    quartiles = "-" if s is None else f"{1e3 * s['q1']:.1f} to {1e3 * s['q3']:.1f}"
    size = f"{case.flops / 1e9:.1f}", f"{case.peak_bytes / 1e6:.1f}"
    table.add_row(case.name, time, quartiles, *size, f"{told['compile_s']['median']:.1f}")
  if found:
    cli.console().print(table)
  cli.console().print_json(json.dumps(figures))


if __name__ == "__main__":
  flags.DEFINE_enum("suite", None, list(SUITES), "What to measure.")
  flags.DEFINE_enum("size", "S", list(sizes.SIZES), "Shape of the base and of the batch.")
  flags.DEFINE_list("experts", ["2", "32"], "Numbers of experts, the smallest the baseline.")
  flags.DEFINE_integer("repeats", 9, "Timed steps of each case, in turns.")
  flags.DEFINE_string("out", None, "Where to write the report.")
  flags.mark_flags_as_required(["suite", "out"])
  cli.run(main)
