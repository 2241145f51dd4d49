"""Every key that the library reads, with its unit or meaning.

Data, evaluation, checkpoints and studies are in `data_schema`. No defaults: `configs/base.py` holds
every key with its value, and variants change values only.
"""

import dataclasses
from typing import Literal

from iclm.config.data_schema import Checkpoint, Data, Evaluation, Study


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

  @property
  def devices(self) -> int:
    return self.shares * self.model

  def __str__(self) -> str:
    return f"{self.data}x{self.expert}x{self.model}"


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
  # Random Fourier features; for joint_mi the number of message classes, at most 64 and the width
  features: int  # of a message.
  classes: int  # At most so many labels are conditioned on in a batch: the most frequent ones.


@dataclasses.dataclass(frozen=True)
class Loss:
  """Weights of the terms; the answer's cross-entropy, or that by domain, has weight 1."""

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
