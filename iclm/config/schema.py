"""Every key that the library reads, with its unit or meaning.

No defaults: `configs/base.py` holds every key with its value, and variants change values only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; the product is the number of devices used."""

  data: int
  expert: int
  model: int

  @property
  def shares(self) -> int:
    """Parts that the rows of a batch are split into."""
    return self.data * self.expert


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """What slows the rotations of positions, for inputs longer than those first trained on."""

  kind: Literal["none", "linear", "llama3"]
  factor: float  # How much longer; the three below are of llama3 alone.
  low_freq_factor: float  # Pairs that turn less often than this in original_length go 1 / factor,
  high_freq_factor: float  # and those that turn more often than this keep their speed.
  original_length: int  # Tokens.


@dataclasses.dataclass(frozen=True)
class Model:
  """The base language model: a decoder of the Llama family."""

  layers: int
  # The lowest ones carry no adapters and run once for router and streams; what they have done, no
  # update of an expert reaches.
  trunk_layers: int
  d_model: int
  heads: int
  kv_heads: int
  head_size: int
  d_ff: int
  rope_theta: float
  rope_scaling: RopeScaling
  position_gap: int  # Training draws each step between positions from 1..this; 1: consecutive.
  norm_eps: float
  tied: bool  # The head is the transposed embedding.
  qkv_bias: bool  # As Qwen 2 has them.
  qk_norm: bool  # Queries and keys are normalised per head, as in Qwen 3.
  window: int  # A token sees so many positions back, itself among them; 0: all.
  context: int  # Longest input that the base is made for, in tokens; 0: not stated.
  vocab_size: int  # Rows of the embedding, at least the tokenizer's ids; 0: just these.
  qk_init: Literal["independent", "equal"]  # equal: a fresh head attends to tokens like its own.
  attention: Literal["causal", "prefix"]  # prefix: bidirectional over the shared context.
  kernel: Literal["xla", "cudnn"]  # cudnn needs a GPU and bfloat16.
  dtype: Literal["float32", "bfloat16"]  # Of the matmuls; softmax, norms, losses stay float32.
  # What the backward pass computes again: nothing; all of a layer but its products with weights and
  # cuDNN's attention; or all of it.
  remat: Literal["none", "light", "full"]


@dataclasses.dataclass(frozen=True)
class Experts:
  """The domain experts, and the invariant one that is always on."""

  # full: matrices of their own. none: the plain base, without router, experts, bottleneck.
  kind: Literal["lora", "full", "none"]
  count: int
  invariant: bool
  rank: int  # Of lora, as the two below.
  alpha: float  # The adapters' product is scaled by alpha / rank.
  dropout: float
  # Which matrices of a layer an expert changes.
  projections: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...]


LEARNED = "gumbel", "vq", "kmeans", "soft", "hard"  # Kinds of routers that have prototypes,
GIVEN = "random", "uniform", "oracle"  # and those that do not look at the embedding.


@dataclasses.dataclass(frozen=True)
class Router:
  """Which domain expert an input goes to; it reads the prompt only."""

  kind: Literal["gumbel", "vq", "kmeans", "soft", "hard", "random", "uniform", "oracle"]
  level: Literal["input", "token"]  # token: a baseline, exempt from the isolation promises.
  reads: Literal["embed", "trunk", "base"]  # Token embeddings, trunk states, final base states.
  cached: bool  # A frozen base reads each training prompt once, before the first step.
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
class Topology:
  """How the streams lie: side by side, or the invariant expert as a core inside the domain's."""

  kind: Literal["parallel", "around"]
  lower: int  # Of around: the layers below the core that carry the domain expert's adapters,
  upper: int  # and those above it; the core has the layers between.


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """What an expert passes on."""

  kind: Literal["gaussian", "none"]
  width: int
  ramp: int  # Steps over which the price of the rate, loss.beta, rises from 0.


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
  group_dro: float  # Step size of the domains' weights in the answer term; 0 weighs all alike.


@dataclasses.dataclass(frozen=True)
class Perturb:
  """Random interventions in training; probabilities per input."""

  drop: float  # One stream, drawn evenly, is silent.
  patch: float  # One stream, drawn evenly, speaks with the message of another input.
  swap: float  # Some expert serves the input, whatever its route.
  ramp: int  # Steps over which the probabilities rise from 0.


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """One optimizer for each group of parameters; see `optim.make`."""

  # muon: of the matrices of the base's layers; of the base's other parts, NAdam without decay.
  kind: Literal["adamw", "muon"]
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
  lower: bool  # Of the base: its embedding and its trunk too, and not only what lies above them.
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
  """Which tokenizer it is, or how one is trained; see `data.tokenizer.train`."""

  path: str  # A tokenizer.json; empty: train one on the training data.
  vocab_size: int
  split: Literal["words", "numbers", "sentences", "symbols", "phrases"]
  apart: tuple[str, ...]  # Strings that stand alone, whatever the split says.
  texts: int  # Examples that it is trained on.


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run is trained on, and how that becomes rows; see `data.rows`."""

  dir: str  # Where TFDS keeps what it prepared.
  train: Mapping[str, Source]
  domains: tuple[str, ...]  # Names, in the order of the oracle router's experts.
  seq_len: int
  question: Literal["none", "last_line"]
  questions_per_row: int
  loss: Literal["answer", "all"]
  # Most targets of a row that count: a step has heads, and the last layer, for so many; 0: all T.
  counted: int
  too_long: Literal["error", "truncate_left"]
  # A folder of transformers whose template writes the messages of records; empty: their contents,
  # joined by one newline.
  chat_template: str
  chat_date: str  # YYYY-MM-DD, the day that a template is told which asks for it.
  tokenizer: Tokenizer

  @property
  def asks(self) -> Literal["none", "last_line"]:
    """Where the question of a prompt begins; what a chat template writes is whole."""
    return "none" if self.chat_template else self.question


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What is evaluated, when, and in which rows."""

  every: int  # Steps, 0 only at the end.
  batch_size: int  # Rows at a time, over all devices; see `Config.evaluation_rows`.
  seq_len: int  # Of its rows, which other sets may need longer than training; 0: as there.
  draws: int  # Of the messages, for the accuracy of the sampled channel (experiments.evaluate).
  sets: Mapping[str, Source]
  best: str  # The set whose accuracy ranks the checkpoints.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What is saved, and what a run starts from."""

  every: int  # Steps, 0 only at the end.
  keep: int
  best: int  # Kept besides the newest.
  init_from: str  # A run's folder, or one of transformers for the base; empty: fresh.


@dataclasses.dataclass(frozen=True)
class Shift:
  """The partial update at the end: a surface's operation comes to mean another one."""

  surface: str  # Of mechanisms, or acre_symbolic or acre_text; empty: no update.
  operation: str  # Of ACRE: light.
  becomes: str  # Of ACRE: inverted, the light asked for is on where it would be off.
  examples: int
  rehearsed: int  # Examples of what else the surface asks for, half of each batch; 0 for none.
  curve: tuple[int, ...]  # Other numbers of examples that each model is also retrained with.
  steps: int
  lr: float  # Of the expert's retraining,
  base_lr: float  # of the plain base's fine-tuning,
  lora_lr: float  # and of a dense LoRA on the frozen plain base; 0 leaves that one out.


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
  accumulate: int  # Micro-batches per step; what is between rows (dependence, balance) is of one.
  log_every: int
  nonfinite_limit: int  # Skipped steps in a row after which the run stops.
  topology: Topology
  combine: Literal["residual", "logits", "concat", "probas", "none"]  # none: of around.
  compute: Literal["routed", "all"]  # all: every expert on every input, as the paper does.
  mesh: Mesh
  fsdp: bool  # Base weights and their moments are also split over the data axis.
  model: Model
  experts: Experts
  router: Router
  bottleneck: Bottleneck
  dependence: Dependence
  loss: Loss
  perturb: Perturb
  optimizer: Optimizer
  trains: Trains
  data: Data
  evaluation: Evaluation
  checkpoint: Checkpoint
  study: Study

  @property
  def keeps_prompts(self) -> bool:
    """Whether each training prompt is read by the base once; see `router.cached`."""
    return self.experts.kind != "none" and self.router.cached

  @property
  def evaluation_len(self) -> int:
    """Tokens of a row wherever the model is asked, prompt and answer together."""
    return self.evaluation.seq_len or self.data.seq_len

  @property
  def evaluation_rows(self) -> int:
    """Rows of an evaluation's batches: as asked, rounded up to what the devices share evenly."""
    n_shares = self.mesh.shares
    return -(-self.evaluation.batch_size // n_shares) * n_shares
