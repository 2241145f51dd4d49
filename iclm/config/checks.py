"""Values that contradict each other; each check is one sentence."""

import datetime

from iclm.config.errors import InputError, nearest
from iclm.config.schema import Config


def check(c: Config) -> None:
  """Raises InputError on the first contradiction."""
  m = c.model
  _check_ranges(c)
  _require(
    m.heads % m.kv_heads == 0,
    f"config.model.heads = {m.heads} is no multiple of config.model.kv_heads = {m.kv_heads}",
  )
  _require(m.head_size % 2 == 0, f"config.model.head_size = {m.head_size} must be even for RoPE")
  _require(
    m.trunk_layers <= m.layers,
    f"config.model.trunk_layers = {m.trunk_layers} is more than config.model.layers = {m.layers}",
  )
  _require(
    m.kernel == "xla" or m.dtype == "bfloat16",
    "config.model.kernel = 'cudnn' needs config.model.dtype = 'bfloat16'",
  )
  _check_positions(c)
  for key, size in (("kv_heads", m.kv_heads), ("d_ff", m.d_ff)):
    _require(
      size % c.mesh.model == 0,
      f"config.model.{key} = {size} does not divide over config.mesh.model = {c.mesh.model}",
    )
  _require(
    not c.fsdp or m.d_model % c.mesh.data == 0,
    f"config.model.d_model = {m.d_model} does not divide over config.mesh.data = {c.mesh.data}, "
    "as config.fsdp = True splits it",
  )
  of_rows = c.accumulate * c.mesh.data * c.mesh.expert
  _require(
    c.batch_size % of_rows == 0,
    f"config.batch_size = {c.batch_size} does not divide into config.accumulate = {c.accumulate} "
    f"micro-batches over {c.mesh.data * c.mesh.expert} devices (mesh.data x mesh.expert); "
    f"{_multiple(c.batch_size, of_rows)} does",
  )
  if c.experts.kind != "none":
    _check_experts(c)
  _check_losses(c)
  _check_perturb(c)
  _check_data(c)


def _check_ranges(c: Config) -> None:
  positive = {
    "steps": c.steps,
    "batch_size": c.batch_size,
    "accumulate": c.accumulate,
    "log_every": c.log_every,
    "nonfinite_limit": c.nonfinite_limit,
    "mesh.data": c.mesh.data,
    "mesh.expert": c.mesh.expert,
    "mesh.model": c.mesh.model,
    "model.layers": c.model.layers,
    "model.d_model": c.model.d_model,
    "model.heads": c.model.heads,
    "model.kv_heads": c.model.kv_heads,
    "model.head_size": c.model.head_size,
    "model.d_ff": c.model.d_ff,
    "model.position_gap": c.model.position_gap,
    "optimizer.lr": c.optimizer.lr,
    "optimizer.clip": c.optimizer.clip,
    "data.seq_len": c.data.seq_len,
    "data.questions_per_row": c.data.questions_per_row,
    "data.tokenizer.texts": c.data.tokenizer.texts,
    "evaluation.batch_size": c.evaluation.batch_size,
    "checkpoint.keep": c.checkpoint.keep,
    "router.tau_start": c.router.tau_start,
    "router.tau_end": c.router.tau_end,
    "router.tau_steps": c.router.tau_steps,
    "router.width": c.router.width,
  }
  for key, value in positive.items():
    _require(value > 0, f"config.{key} = {value} must be positive")
  _require(0 <= c.seed < 2**31, f"config.seed = {c.seed} is not in [0, 2**31)")
  _require(
    0 <= c.experts.dropout < 1, f"config.experts.dropout = {c.experts.dropout} is not in [0, 1)"
  )
  _require(c.model.trunk_layers >= 0, f"config.model.trunk_layers = {c.model.trunk_layers} < 0")


def _check_positions(c: Config) -> None:
  m, s = c.model, c.model.rope_scaling
  _require(s.factor >= 1, f"config.model.rope_scaling.factor = {s.factor} is less than 1")
  _require(
    0 < s.low_freq_factor < s.high_freq_factor and s.original_length > 0,
    f"config.model.rope_scaling needs 0 < low_freq_factor = {s.low_freq_factor} < "
    f"high_freq_factor = {s.high_freq_factor}, and original_length = {s.original_length} > 0",
  )
  for key, size in (("window", m.window), ("context", m.context), ("vocab_size", m.vocab_size)):
    _require(size >= 0, f"config.model.{key} = {size} is negative; 0 is none")
  _require(
    m.context == 0 or max(c.data.seq_len, c.evaluation.seq_len) <= m.context,
    f"config.data.seq_len = {c.data.seq_len}, or config.evaluation.seq_len = "
    f"{c.evaluation.seq_len}, is longer than config.model.context = {m.context}",
  )


def _check_experts(c: Config) -> None:
  e, m = c.experts, c.model
  _require(e.count > 0, f"config.experts.count = {e.count}; the plain base is experts.kind='none'")
  _require(
    e.count % c.mesh.expert == 0,
    f"config.experts.count = {e.count} does not divide over config.mesh.expert = {c.mesh.expert}; "
    f"{_multiple(e.count, c.mesh.expert)} does",
  )
  _require(
    0 < e.rank <= m.d_model,
    f"config.experts.rank = {e.rank} is not in 1..config.model.d_model = {m.d_model}",
  )
  _require(len(e.projections) > 0, "config.experts.projections is empty: name at least one, e.g. q")
  _require(
    m.trunk_layers < m.layers,
    f"config.model.trunk_layers = {m.trunk_layers} leaves no layer for the experts' adapters",
  )
  _require(
    c.bottleneck.kind == "none" or c.bottleneck.width > 0,
    f"config.bottleneck.width = {c.bottleneck.width} must be positive",
  )
  _check_topology(c)
  _check_full(c)
  _check_cached(c)
  _require(
    c.router.kind != "kmeans" or c.router.fit,
    "config.router.kind = 'kmeans' needs config.router.fit = True",
  )
  _require(
    c.router.kind != "oracle" or len(c.data.domains) <= e.count,
    f"config.router.kind = 'oracle' has {len(c.data.domains)} domains (config.data.domains) for "
    f"config.experts.count = {e.count}",
  )
  _require(
    c.router.level == "input" or c.compute == "routed",
    "config.router.level = 'token' has no config.compute = 'all'",
  )
  for i in c.trains.only_experts:
    _require(
      0 <= i < e.count,
      f"config.trains.only_experts names expert {i}, but experts are 0..{e.count - 1}",
    )


def _check_losses(c: Config) -> None:
  """A weight needs the term that it weighs; without experts, see `step.check_weights`."""
  w, has_experts = c.loss, c.experts.kind != "none"
  _require(
    w.beta == 0 or not has_experts or c.bottleneck.kind != "none",
    f"config.loss.beta = {w.beta} weighs a rate, but config.bottleneck.kind = 'none' has none",
  )
  _require(
    w.group_dro == 0 or (len(c.data.domains) > 0 and c.accumulate == 1),
    f"config.loss.group_dro = {w.group_dro} weighs the domains of a whole batch; name them in "
    "config.data.domains, and set config.accumulate = 1",
  )
  if w.dependence != 0 and has_experts:
    _check_dependence(c)


def _check_dependence(c: Config) -> None:
  needs = {
    "dependence.kind other than 'none'": c.dependence.kind != "none",
    "experts.invariant = True": c.experts.invariant,
    "bottleneck.kind other than 'none'": c.bottleneck.kind != "none",
    "dependence.features of 1 or more": c.dependence.features > 0,
    "dependence.features of at most 64 classes under dependence.kind = 'joint_mi'": (
      c.dependence.kind != "joint_mi" or c.dependence.features <= 64
    ),
    "dependence.given = 'none' or dependence.kind = 'hsic'": (
      c.dependence.given == "none" or c.dependence.kind == "hsic"
    ),
    # Where all targets count, a row does not tell at which of a question's an answer starts.
    "data.loss = 'answer' or data.question = 'none'": (
      c.data.loss == "answer" or c.data.question == "none"
    ),
  }
  for need, holds in needs.items():
    _require(holds, f"config.loss.dependence = {c.loss.dependence} needs config.{need}")


def _check_perturb(c: Config) -> None:
  p, says = c.perturb, c.experts.kind != "none" and c.bottleneck.kind != "none"
  _require(
    p.drop >= 0 and p.patch >= 0 and p.drop + p.patch <= 1 and 0 <= p.swap <= 1,
    f"config.perturb: drop = {p.drop} + patch = {p.patch}, and swap = {p.swap}, are no "
    "probabilities",
  )
  _require(
    p.drop + p.patch == 0 or says,
    f"config.perturb.drop = {p.drop}, patch = {p.patch} touch messages, which this config has not "
    "(experts.kind, bottleneck.kind)",
  )
  _require(
    p.swap == 0 or (c.experts.kind != "none" and c.router.level == "input"),
    f"config.perturb.swap = {p.swap} needs experts, and config.router.level = 'input'",
  )


def _picks(c: Config) -> dict[str, bool]:
  """What one expert for each input takes; to mix all of them is for adapters side by side."""
  return {
    "router.level = 'input'": c.router.level == "input",
    "router.gradient = 'chosen'": c.router.gradient == "chosen",
    "router.kind that is hard": c.router.kind not in ("soft", "uniform"),
  }


def _check_full(c: Config) -> None:
  if c.experts.kind != "full":
    return
  needs = _picks(c) | {
    "topology.kind = 'parallel'": c.topology.kind == "parallel",
    "experts.dropout = 0": c.experts.dropout == 0,
  }
  for need, holds in needs.items():
    _require(holds, f"config.experts.kind = 'full' needs config.{need}")


def _check_cached(c: Config) -> None:
  """What is read once must be the same at every step, and be read by nothing else."""
  if not c.router.cached:
    return
  needs = {
    "router.reads = 'base'": c.router.reads == "base",
    "router.level = 'input'": c.router.level == "input",
    "router.kind that looks at the prompt": c.router.kind not in ("random", "uniform", "oracle"),
    "combine other than 'residual', which has the base's states anyway": c.combine != "residual",
    "trains.base = False": not c.trains.base,
    "model.position_gap = 1": c.model.position_gap == 1,
    "data.train without the endless generator (acre)": not any(
      s.acre for s in c.data.train.values()
    ),
  }
  for need, holds in needs.items():
    _require(holds, f"config.router.cached = True needs config.{need}")


def _check_topology(c: Config) -> None:
  t, n_upper = c.topology, c.model.layers - c.model.trunk_layers
  around = t.kind == "around"
  _require(
    around == (c.combine == "none"),
    f"config.topology.kind = {t.kind!r} and config.combine = {c.combine!r} contradict each other: "
    "'around' has nothing to combine (combine = 'none'), 'parallel' has",
  )
  if not around:
    return
  _require(
    t.lower >= 0 and t.upper >= 0 and 0 < t.lower + t.upper < n_upper,
    f"config.topology.lower = {t.lower} and upper = {t.upper} must leave some of the {n_upper} "
    "layers above the trunk to the domain experts and some to the core",
  )
  needs = _picks(c) | {
    "experts.invariant = True": c.experts.invariant,
    "bottleneck.kind other than 'none'": c.bottleneck.kind != "none",
    "compute = 'routed'": c.compute == "routed",
    "loss.aux = 0": c.loss.aux == 0,
    "router.reads other than 'base'": c.router.reads != "base",
  }
  for need, holds in needs.items():
    _require(holds, f"config.topology.kind = 'around' needs config.{need}")


def _check_data(c: Config) -> None:
  _require(len(c.data.train) > 0, "config.data.train names no source")
  for group, sources in (("data.train", c.data.train), ("evaluation.sets", c.evaluation.sets)):
    for name, s in sources.items():
      given = [k for k in ("tfds", "jsonl", "acre") if getattr(s, k)]
      _require(
        len(given) == 1,
        f"config.{group}.{name} must give exactly one of tfds, jsonl and acre, not {given or 0}",
      )
      for key in ("limit", "ramp"):
        value = getattr(s, key)
        _require(value >= 0, f"config.{group}.{name}.{key} = {value} must not be negative")
  _require(
    0 <= c.data.counted <= c.data.seq_len and (c.data.counted == 0 or c.data.loss == "answer"),
    f"config.data.counted = {c.data.counted} must lie in 0..config.data.seq_len = "
    f"{c.data.seq_len}, and be 0 where config.data.loss = 'all'",
  )
  _require(
    c.model.attention == "causal" or c.data.loss == "answer",
    f"config.model.attention = {c.model.attention!r} shows a prompt to each of its tokens, so that "
    "config.data.loss = 'all' would ask for what is seen; 'answer' does not",
  )
  _require(
    c.data.question == "last_line" or c.data.questions_per_row == 1,
    f"config.data.questions_per_row = {c.data.questions_per_row} needs "
    "config.data.question = 'last_line'",
  )
  _require(
    _is_date(c.data.chat_date),
    f"config.data.chat_date = {c.data.chat_date!r} is no day; write it as 2026-01-31",
  )
  _require(
    c.evaluation.seq_len >= 0,
    f"config.evaluation.seq_len = {c.evaluation.seq_len} is no length; 0 takes config.data.seq_len",
  )
  _require(
    not c.evaluation.best or c.evaluation.best in c.evaluation.sets,
    f"config.evaluation.best = {c.evaluation.best!r} is no evaluation set: "
    + nearest(c.evaluation.best, c.evaluation.sets),
  )


def _multiple(n: int, of: int) -> int:
  """The multiple that lies nearest, and is not 0."""
  return max(round(n / of), 1) * of


def _is_date(text: str) -> bool:
  try:
    return datetime.date.fromisoformat(text).isoformat() == text
  except ValueError:
    return False


def _require(holds: bool, sentence: str) -> None:
  if not holds:
    raise InputError(sentence)
