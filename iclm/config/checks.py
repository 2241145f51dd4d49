"""Values that contradict each other; each check is one sentence."""

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping

from iclm.config import expert_checks
from iclm.config.data_schema import Source
from iclm.config.errors import multiple, nearest, require
from iclm.config.schema import Config

POSITIVE = (
  *("steps", "batch_size", "accumulate", "log_every", "nonfinite_limit"),
  *("mesh.data", "mesh.expert", "mesh.model"),
  *("model.layers", "model.d_model", "model.heads", "model.kv_heads", "model.head_size"),
  *("model.d_ff", "model.position_gap", "model.rope_theta", "model.norm_eps"),
  *("router.scale", "router.tau_start", "router.tau_end", "router.tau_steps", "router.width"),
  *("optimizer.lr", "optimizer.clip", "optimizer.eps", "dependence.classes", "experts.alpha"),
  *("data.seq_len", "data.questions_per_row", "data.tokenizer.texts"),
  *("evaluation.batch_size", "checkpoint.keep"),
)
AT_LEAST_0 = (
  *("seed", "model.trunk_layers", "model.window", "model.context", "model.vocab_size"),
  *("router.revive_below", "router.collapse_below", "bottleneck.ramp", "perturb.ramp"),
  *("optimizer.end", "optimizer.weight_decay", "optimizer.router_lr"),
  *("evaluation.every", "evaluation.seq_len", "evaluation.draws"),
  *("checkpoint.every", "checkpoint.best"),
)
SHARES = "experts.dropout", "router.usage_decay", "optimizer.b1", "optimizer.b2"


def check(c: Config) -> None:
  """Raises InputError on the first contradiction."""
  m = c.model
  _check_ranges(c)
  _check_schedule(c)
  require(
    m.heads % m.kv_heads == 0,
    f"config.model.heads = {m.heads} is no multiple of config.model.kv_heads = {m.kv_heads}",
  )
  require(m.head_size % 2 == 0, f"config.model.head_size = {m.head_size} must be even for RoPE")
  require(
    m.trunk_layers <= m.layers,
    f"config.model.trunk_layers = {m.trunk_layers} is more than config.model.layers = {m.layers}",
  )
  require(
    m.kernel == "xla" or m.dtype == "bfloat16",
    "config.model.kernel = 'cudnn' needs config.model.dtype = 'bfloat16'",
  )
  _check_positions(c)
  for key, size in (("kv_heads", m.kv_heads), ("d_ff", m.d_ff)):
    require(
      size % c.mesh.model == 0,
      f"config.model.{key} = {size} does not divide over config.mesh.model = {c.mesh.model}",
    )
  require(
    not c.fsdp or m.d_model % c.mesh.data == 0,
    f"config.model.d_model = {m.d_model} does not divide over config.mesh.data = {c.mesh.data}, "
    "as config.fsdp = True splits it",
  )
  of_rows = c.accumulate * c.mesh.shares
  require(
    c.batch_size % of_rows == 0,
    f"config.batch_size = {c.batch_size} does not divide into config.accumulate = {c.accumulate} "
    f"micro-batches over {c.mesh.shares} devices (mesh.data x mesh.expert); "
    f"{multiple(c.batch_size, of_rows)} does",
  )
  expert_checks.check(c)
  _check_data(c)


def _check_ranges(c: Config) -> None:
  numbers = dict(_numbers(dataclasses.asdict(c)))
  for key, value in numbers.items():
    require(math.isfinite(value), f"config.{key} = {value} is no finite number")
  for key in POSITIVE:
    require(numbers[key] > 0, f"config.{key} = {numbers[key]} must be positive")
  for key in (*AT_LEAST_0, *(f"loss.{name}" for name in vars(c.loss))):
    require(numbers[key] >= 0, f"config.{key} = {numbers[key]} must not be negative")
  for key in SHARES:
    require(0 <= numbers[key] < 1, f"config.{key} = {numbers[key]} is not in [0, 1)")
  require(c.seed < 2**31, f"config.seed = {c.seed} is not in [0, 2**31)")


def _numbers(part: Mapping, start: str = "") -> Iterator[tuple[str, float]]:
  """Dotted keys of a config, or of a part of it, and their numbers."""
  for key, value in part.items():
    if isinstance(value, Mapping):
      yield from _numbers(value, f"{start}{key}.")
    elif isinstance(value, int | float):
      yield f"{start}{key}", value


def _check_schedule(c: Config) -> None:
  o, after = c.optimizer, c.steps - c.optimizer.warmup
  require(
    0 <= o.warmup < c.steps,
    f"config.optimizer.warmup = {o.warmup} must lie in [0, config.steps = {c.steps})",
  )
  require(
    o.schedule != "wsd" or 1 <= round(o.decay * c.steps) <= after,
    f"config.optimizer.decay = {o.decay} of config.steps = {c.steps} must be between 1 step and "
    f"the {after} that follow config.optimizer.warmup",
  )


def _check_positions(c: Config) -> None:
  m, s = c.model, c.model.rope_scaling
  require(s.factor >= 1, f"config.model.rope_scaling.factor = {s.factor} is less than 1")
  require(
    0 < s.low_freq_factor < s.high_freq_factor and s.original_length > 0,
    f"config.model.rope_scaling needs 0 < low_freq_factor = {s.low_freq_factor} < "
    f"high_freq_factor = {s.high_freq_factor}, and original_length = {s.original_length} > 0",
  )
  require(
    m.context == 0 or max(c.data.seq_len, c.evaluation.seq_len) <= m.context,
    f"config.data.seq_len = {c.data.seq_len}, or config.evaluation.seq_len = "
    f"{c.evaluation.seq_len}, is longer than config.model.context = {m.context}",
  )


def _check_source(where: str, s: Source) -> None:
  given = [k for k in ("tfds", "jsonl", "acre") if getattr(s, k)]
  require(
    len(given) == 1,
    f"{where} must give exactly one of tfds, jsonl and acre, not {given or 0}",
  )
  for key in ("limit", "ramp"):
    value = getattr(s, key)
    require(value >= 0, f"{where}.{key} = {value} must not be negative")
  reads = {"limit": not s.acre, "ramp": bool(s.acre), "split": not s.jsonl}
  for key in (key for key, is_read in reads.items() if not is_read):
    require(
      not getattr(s, key),
      f"{where}.{key} = {getattr(s, key)!r} says nothing of {given[0]} data; leave it out",
    )


def _check_data(c: Config) -> None:
  require(len(c.data.train) > 0, "config.data.train names no source")
  require(
    len(set(c.data.domains)) == len(c.data.domains),
    f"config.data.domains = {c.data.domains} names one twice",
  )
  for group, sources in (("data.train", c.data.train), ("evaluation.sets", c.evaluation.sets)):
    for name, s in sources.items():
      _check_source(f"config.{group}.{name}", s)
  for name, s in c.data.train.items():
    require(
      s.weight > 0,
      f"config.data.train.{name}.weight = {s.weight} must be positive; remove the source instead",
    )
  require(
    0 <= c.data.counted <= c.data.seq_len and (c.data.counted == 0 or c.data.loss == "answer"),
    f"config.data.counted = {c.data.counted} must lie in 0..config.data.seq_len = "
    f"{c.data.seq_len}, and be 0 where config.data.loss = 'all'",
  )
  require(
    c.model.attention == "causal" or c.data.loss == "answer",
    f"config.model.attention = {c.model.attention!r} shows a prompt to each of its tokens, so that "
    "config.data.loss = 'all' would ask for what is seen; 'answer' does not",
  )
  require(
    c.data.asks == "last_line" or c.data.questions_per_row == 1,
    f"config.data.questions_per_row = {c.data.questions_per_row} needs config.data.question = "
    "'last_line', and no config.data.chat_template, whose prompts are whole",
  )
  require(
    _is_date(c.data.chat_date),
    f"config.data.chat_date = {c.data.chat_date!r} is no day; write it as 2026-01-31",
  )
  require(
    not c.evaluation.best or c.evaluation.best in c.evaluation.sets,
    f"config.evaluation.best = {c.evaluation.best!r} is no evaluation set: "
    + nearest(c.evaluation.best, c.evaluation.sets),
  )


def _is_date(text: str) -> bool:
  try:
    return datetime.date.fromisoformat(text).isoformat() == text
  except ValueError:
    return False
