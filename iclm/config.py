"""ConfigDict in, frozen dataclasses out: a stray, missing or contradictory key raises.

The dataclasses below are the complete list of what the library reads. They carry no defaults:
`configs/base.py` holds every key with its value, and variants change values only.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints


class InputError(ValueError):
  """Bad input, told in one sentence: what, where, and the nearest valid thing.

  The commands in `experiments/` print the sentence and exit with code 2; anything else that is
  raised is a bug and traces back.
  """


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; the product is the number of devices used."""

  data: int
  expert: int
  model: int


@dataclasses.dataclass(frozen=True)
class Model:
  """The base language model: a decoder of the Llama family."""

  layers: int
  trunk_layers: int  # The lowest ones carry no adapters and run once for router and streams.
  d_model: int
  heads: int
  kv_heads: int
  head_size: int
  d_ff: int
  rope_theta: float
  norm_eps: float
  tied: bool  # The head is the transposed embedding.
  qk_init: Literal["independent", "equal"]  # equal: a fresh head attends to tokens like its own.
  attention: Literal["causal", "prefix"]  # prefix: bidirectional over the shared context.
  kernel: Literal["xla", "cudnn"]  # cudnn needs a GPU and bfloat16.
  dtype: Literal["float32", "bfloat16"]  # Of the matmuls; softmax, norms, losses stay float32.
  remat: bool  # Recompute each layer in the backward pass.


@dataclasses.dataclass(frozen=True)
class Experts:
  """The domain experts, and the invariant one that is always on."""

  kind: Literal["lora", "none"]  # none: the plain base, without router, experts, bottleneck.
  count: int
  invariant: bool
  rank: int
  alpha: float  # The adapters' product is scaled by alpha / rank.
  dropout: float
  projections: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...]


@dataclasses.dataclass(frozen=True)
class Router:
  """Which domain expert an input goes to; it reads the prompt only."""

  kind: Literal["gumbel", "vq", "kmeans", "soft", "hard", "random", "uniform", "oracle"]
  level: Literal["input", "token"]  # token: a baseline, exempt from the isolation promises.
  reads: Literal["embed", "trunk", "base"]  # Token embeddings, trunk states, final base states.
  detach: bool  # The router's gradient stops before the base.
  width: int  # Of the projection in which the prototypes live.
  scale: float  # Nats per unit of mean squared distance to a prototype.
  fit: bool  # Prototypes start at the k-means of the first prompts' embeddings.
  straight_through: bool
  gradient: Literal["chosen", "all"]
  tau_start: float
  tau_end: float
  tau_steps: int
  usage_decay: float  # Per step, of the running share of inputs per expert.
  revive_below: float  # In units of the balanced share 1/E; 0 never revives.
  collapse_below: float  # Effective number of experts over E; 0 never warns.
  collapse_stops: bool


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """What an expert passes on."""

  kind: Literal["gaussian", "none"]
  width: int


@dataclasses.dataclass(frozen=True)
class Dependence:
  """The statistic of the invariant and the domain message that is penalised."""

  kind: Literal["hsic", "joint_mi", "none"]
  given: Literal["none", "label", "domain"]
  features: int  # Random Fourier features; for joint_mi the number of message classes (<= 64).
  classes: int  # At most so many labels are conditioned on in a batch: the most frequent ones.


@dataclasses.dataclass(frozen=True)
class Loss:
  """Weights of the terms; the answer's cross-entropy has weight 1."""

  beta: float  # Rate of the messages, per nat.
  dependence: float
  balance: float  # Switch's load balance, 1 when even.
  zloss: float  # Squared logsumexp of the router's logits.
  codebook: float  # Of the vq kind: pulls codes to prompts,
  commitment: float  # and prompts to codes.
  aux: float  # Cross-entropy of each stream alone.


@dataclasses.dataclass(frozen=True)
class Optimizer:
  lr: float
  schedule: Literal["constant", "cosine", "wsd"]
  warmup: int  # Steps.
  decay: float  # Share of the steps over which wsd decays.
  end: float  # Final learning rate over the peak.
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip: float  # Norm per group; the domain experts are clipped one by one.
  router_lr: float  # Over lr.


@dataclasses.dataclass(frozen=True)
class Trains:
  """Which parameters move; what does not is bitwise still."""

  base: bool
  invariant: bool
  router: bool
  domain: bool
  combine: bool  # The head of the concat combine.
  only_experts: tuple[int, ...]  # Empty: all of them.


@dataclasses.dataclass(frozen=True)
class Source:
  """Where examples come from; exactly one of tfds, jsonl and acre is not empty."""

  tfds: str  # Builder and config, e.g. acre/symbolic.
  jsonl: str  # Path, plain or gzip.
  acre: Literal["", "symbolic", "text"]  # Form of the endless ACRE generator.
  split: str
  weight: float  # Of the mixture; ignored by evaluation sets.
  limit: int  # At most so many examples, 0 for all.
  ramp: int  # Problems over which the endless generator goes from simple worlds to all six views.


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  path: str  # A tokenizer.json; empty: train one on the training data.
  vocab_size: int
  split: Literal["words", "numbers"]
  texts: int  # Examples that it is trained on.


@dataclasses.dataclass(frozen=True)
class Data:
  dir: str  # Where TFDS keeps what it prepared.
  train: Mapping[str, Source]
  domains: tuple[str, ...]  # Names, in the order of the oracle router's experts.
  seq_len: int
  question: Literal["none", "last_line"]
  questions_per_row: int
  loss: Literal["answer", "all"]
  too_long: Literal["error", "truncate_left"]
  tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Evaluation:
  every: int  # Steps, 0 only at the end.
  batch_size: int
  draws: int  # Of the messages, for the accuracy of the sampled channel.
  sets: Mapping[str, Source]
  best: str  # The set whose accuracy ranks the checkpoints.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  every: int  # Steps, 0 only at the end.
  keep: int
  best: int  # Kept besides the newest.
  init_from: str  # A run's folder whose parameters this run starts from; empty: fresh.


@dataclasses.dataclass(frozen=True)
class Shift:
  """The partial update at the end: a surface's operation comes to mean another one."""

  surface: str  # Empty: no update.
  operation: str
  becomes: str
  examples: int
  steps: int
  lr: float  # Of the expert's retraining,
  base_lr: float  # and of the plain base's fine-tuning.


@dataclasses.dataclass(frozen=True)
class Study:
  """What `experiments.train` does after the run itself."""

  plain_base: bool  # Train the plain base alike.
  shift: Shift


@dataclasses.dataclass(frozen=True)
class Config:
  """One run. Every key stands in `configs/base.py`."""

  seed: int
  steps: int
  batch_size: int  # Rows per step, over all devices.
  accumulate: int  # Micro-batches per step.
  log_every: int
  nonfinite_limit: int  # Skipped steps in a row after which the run stops.
  combine: Literal["residual", "logits", "concat", "probas"]
  compute: Literal["routed", "all"]  # all: every expert on every input, as the paper does.
  mesh: Mesh
  fsdp: bool  # Base weights and their moments are also split over the data axis.
  model: Model
  experts: Experts
  router: Router
  bottleneck: Bottleneck
  dependence: Dependence
  loss: Loss
  optimizer: Optimizer
  trains: Trains
  data: Data
  evaluation: Evaluation
  checkpoint: Checkpoint
  study: Study


def nearest(name: str, valid: Iterable[str]) -> str:
  """Returns `; did you mean X?`, or the list of valid names where none is near."""
  valid = sorted(map(str, valid))
  close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
  return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid) or 'none'}"


def from_config_dict(tree: Any) -> Config:
  """Every key of the tree is read, every field is given, and no two contradict each other.

  Args:
    tree: an ml_collections ConfigDict or any nested mapping, e.g. parsed from a run's config.json.

  Raises:
    InputError: a key is stray, missing, of another type or outside its choices, or two values
      contradict each other; the message names the key, the value, and the nearest valid one.
  """
  config = _build(Config, tree, "config")
  _check(config)
  return config


def to_dict(config: Any) -> dict[str, Any]:
  """The inverse of `from_config_dict`: plain dicts, lists, numbers and strings, for JSON."""
  return dataclasses.asdict(config, dict_factory=_plain)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
  return {k: list(v) if isinstance(v, tuple) else v for k, v in items}


def _build(kind: Any, value: Any, where: str) -> Any:
  """Converts one value to the annotated type, or says what is wrong with it and where."""
  origin = get_origin(kind)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, where)
  if origin is Literal:
    if value not in get_args(kind):
      raise InputError(f"{where} = {value!r} is no choice: {nearest(value, get_args(kind))}")
    return value
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
      raise InputError(f"{where} = {value!r} must be a tuple")
    return tuple(_build(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
  if isinstance(origin, type) and issubclass(origin, Mapping):
    if not hasattr(value, "items"):
      raise InputError(f"{where} = {value!r} must be a mapping of names")
    inner = get_args(kind)[1]
    return {str(k): _build(inner, value[k], f"{where}.{k}") for k in sorted(value.keys())}
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise InputError(
      f"{where} = {value!r} must be of type {kind.__name__}, not {type(value).__name__}"
    )
  return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
  if not hasattr(value, "keys"):
    raise InputError(f"{where} = {value!r} must hold the keys of {kind.__name__}")
  fields = get_type_hints(kind)
  for key in value.keys():
    if key not in fields:
      raise InputError(f"{where}.{key} is not a key that anything reads: {nearest(key, fields)}")
  for key in fields:
    if key not in value:
      raise InputError(f"{where}.{key} is missing; configs/base.py holds every key")
  return kind(**{k: _build(t, value[k], f"{where}.{k}") for k, t in fields.items()})


def _require(holds: bool, sentence: str) -> None:
  if not holds:
    raise InputError(sentence)


def _check(c: Config) -> None:
  """Raises on values that contradict each other; each check is one sentence."""
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
  for key, size in (("kv_heads", m.kv_heads), ("d_ff", m.d_ff)):
    _require(
      size % c.mesh.model == 0,
      f"config.model.{key} = {size} does not divide over config.mesh.model = {c.mesh.model}",
    )
  _require(
    c.batch_size % (c.accumulate * c.mesh.data * c.mesh.expert) == 0,
    f"config.batch_size = {c.batch_size} does not divide into config.accumulate = {c.accumulate} "
    f"micro-batches over {c.mesh.data * c.mesh.expert} devices (mesh.data x mesh.expert)",
  )
  if c.experts.kind != "none":
    _check_experts(c)
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
    "optimizer.lr": c.optimizer.lr,
    "optimizer.clip": c.optimizer.clip,
    "data.seq_len": c.data.seq_len,
    "data.questions_per_row": c.data.questions_per_row,
    "evaluation.batch_size": c.evaluation.batch_size,
    "checkpoint.keep": c.checkpoint.keep,
    "router.tau_start": c.router.tau_start,
    "router.tau_end": c.router.tau_end,
    "router.width": c.router.width,
  }
  for key, value in positive.items():
    _require(value > 0, f"config.{key} = {value} must be positive")
  _require(
    0 <= c.experts.dropout < 1, f"config.experts.dropout = {c.experts.dropout} is not in [0, 1)"
  )
  _require(c.model.trunk_layers >= 0, f"config.model.trunk_layers = {c.model.trunk_layers} < 0")


def _check_experts(c: Config) -> None:
  e, m = c.experts, c.model
  _require(e.count > 0, f"config.experts.count = {e.count}; the plain base is experts.kind='none'")
  _require(
    e.count % c.mesh.expert == 0,
    f"config.experts.count = {e.count} does not divide over config.mesh.expert = {c.mesh.expert}",
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
  _require(
    c.loss.beta == 0 or c.bottleneck.kind != "none",
    f"config.loss.beta = {c.loss.beta} weighs a rate, but config.bottleneck.kind = 'none' has none",
  )
  _require(
    c.loss.dependence == 0 or (c.dependence.kind != "none" and e.invariant),
    f"config.loss.dependence = {c.loss.dependence} needs config.dependence.kind other than 'none' "
    "and config.experts.invariant = True",
  )
  _require(
    c.dependence.kind != "joint_mi" or c.dependence.features <= 64,
    f"config.dependence.features = {c.dependence.features} is more than joint_mi's 64 classes",
  )
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


def _check_data(c: Config) -> None:
  _require(len(c.data.train) > 0, "config.data.train names no source")
  for group, sources in (("data.train", c.data.train), ("evaluation.sets", c.evaluation.sets)):
    for name, s in sources.items():
      given = [k for k in ("tfds", "jsonl", "acre") if getattr(s, k)]
      _require(
        len(given) == 1,
        f"config.{group}.{name} must give exactly one of tfds, jsonl and acre, not {given or 0}",
      )
  _require(
    c.data.question == "last_line" or c.data.questions_per_row == 1,
    f"config.data.questions_per_row = {c.data.questions_per_row} needs "
    "config.data.question = 'last_line'",
  )
  _require(
    not c.evaluation.best or c.evaluation.best in c.evaluation.sets,
    f"config.evaluation.best = {c.evaluation.best!r} is no evaluation set: "
    + nearest(c.evaluation.best, c.evaluation.sets),
  )
