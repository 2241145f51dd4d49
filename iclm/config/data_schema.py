"""The keys of what a run reads, is evaluated on, keeps, and does at its end; see `schema`."""

import dataclasses
from collections.abc import Mapping
from typing import Literal


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
