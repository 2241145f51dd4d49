"""The batch of a step is a pure function of (seed, step, row), on any number of hosts."""

import collections
import dataclasses
import itertools
from collections.abc import Generator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import grain
import numpy as np
from jaxtyping import Bool, Float, Int

from iclm.config import InputError, nearest
from iclm.data import prompt_cache
from iclm.data import rows as rows_lib
from iclm.data.records import Example
from iclm.data.rows import Loss, Question, Row, TooLong
from iclm.data.tokenizer import Tokenizer


class Batch(NamedTuple):
  """Rows of several questions on one context each; `rows` draws one.

  Arrays of numpy as they are read, of JAX once they are on their devices.

  Attributes:
    tokens_BT: ids in [0, V).
    targets_BT: the token that position t predicts; meaningless where `loss_mask_BT` is 0.
    segment_BT: 0 padding, 1 the shared context, 2, 3, ... its questions with their answers.
    position_BT: 0.. in the context; every question continues behind it.
    loss_mask_BT: 1 where the target counts.
    prompt_mask_BT: where the router may look; empty in rows of padding only.
    domain_B: index in the domain names, -1 when unknown; for evaluation only.
    read_BD: the mean of a frozen base's states over each prompt, where it was kept; see
      `data.prompt_cache`.
  """

  tokens_BT: Int[Any, "B T"]
  targets_BT: Int[Any, "B T"]
  segment_BT: Int[Any, "B T"]
  position_BT: Int[Any, "B T"]
  loss_mask_BT: Float[Any, "B T"]
  prompt_mask_BT: Bool[Any, "B T"]
  domain_B: Int[Any, "B"]
  read_BD: Float[Any, "B D"] | None = None


@runtime_checkable
class Source(Protocol):
  """Rows by index: a list from `rows.group_rows`, or a generator of 2**40 of them."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Any: ...


def mixture(
  sources: Sequence[Source], weights: Sequence[float], seed: int, shuffle: Sequence[bool]
) -> grain.MapDataset:
  """Mixes sources into one endless sequence of rows, each a function of (seed, index).

  Args:
    sources: what to mix, one or more; each is repeated without end.
    weights: the share of each, > 0, to a hundredth of the smallest; kept by every stretch of the
      sequence, not by chance.
    seed: any integer >= 0.
    shuffle: whether to shuffle a source, in another order every epoch. An endless source is not.

  Returns:
    The rows, indexed from 0.

  Raises:
    InputError: an empty source, or shuffling one of more than 2**32 rows.
  """
  parts = []
  for i, (source, mixed) in enumerate(zip(sources, shuffle, strict=True)):
    if not len(source):
      raise InputError(f"source {i} holds no rows; remove it.")
    part = grain.MapDataset.source(cast(Sequence, source))
    if mixed:
      if len(source) > 2**32:
        raise InputError(f"source {i} of {len(source)} rows cannot be shuffled; the most is 2**32.")
      # Grain adds the epoch to the seed: hashed seeds keep sources from taking turns at an order.
      hashed = np.random.SeedSequence((seed, i)).generate_state(1)
      part = part.shuffle(seed=int(hashed[0]))
    parts.append(part.repeat())
  return grain.MapDataset.mix(parts, weights=list(weights))


@dataclasses.dataclass(frozen=True)
class Loader:
  """Reads one process's rows of the global batch of any step.

  Attributes:
    rows: endless, see `mixture`; row r of step s is `rows[s * batch_size + r]`.
    tokenizer: see `rows.pack_all`, as `seq_len`, `question`, `loss` and `too_long`.
    counted: the most targets of a row that may count, 0 for any number.
    domains: the names that `Batch.domain_B` counts in.
    named: whether an example of a domain without a name is an error.
    batch_size: rows of the global batch, over all processes.
    share: which part of the global batch to read, in [0, n_shares).
    n_shares: must divide `batch_size`.
    prefetch: batches that `iterate` prepares ahead, >= 1.
  """

  rows: Source
  tokenizer: Tokenizer
  domains: tuple[str, ...]
  named: bool
  batch_size: int
  seq_len: int
  question: Question
  loss: Loss
  too_long: TooLong
  counted: int
  share: int
  n_shares: int
  prefetch: int

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.n_shares:
      raise InputError(
        f"batch_size = {self.batch_size} must be a positive multiple of the number of processes, "
        f"{self.n_shares}."
      )

  def batch(self, step: int) -> Batch:
    """Returns this process's rows of the batch of a step, equal on every call.

    Raises:
      InputError: see `lay_out`.
    """
    groups = self._groups(step)
    packed, domain_B = self.lay_out(groups)
    return _stack(packed, domain_B)._replace(read_BD=prompt_cache.stack(groups))

  def lay_out(self, groups: Sequence[Sequence[Example]]) -> tuple[list[Row], list[int]]:
    """Rows of groups with one context each, and their domains.

    Raises:
      InputError: see `rows.pack_all`; or a row has more targets that count than `counted`, or a
        domain without a name where that is an error.
    """
    packed = rows_lib.pack_all(
      groups,
      self.tokenizer,
      seq_len=self.seq_len,
      question=self.question,
      loss=self.loss,
      too_long=self.too_long,
    )
    for row, group in zip(packed, groups, strict=True):
      n = int((row.loss_mask_T > 0).sum())
      if 0 < self.counted < n:
        name = ", ".join(example.id for example in group)
        raise InputError(
          f"{name}: the row counts {n} targets and config.data.counted = {self.counted}; "
          f"set it to {n} or more, or to 0 for any number"
        )
    domain_B = [domain_index(group[0], self.domains) for group in groups]
    for group, index in zip(groups, domain_B, strict=True):
      if self.named and index < 0:
        raise InputError(
          f"{group[0].id}: its domain {group[0].domain!r} is none of config.data.domains, by which "
          "config.loss.group_dro weighs and config.router.kind = 'oracle' routes: "
          f"{nearest(group[0].domain, self.domains)}"
        )
    return packed, domain_B

  def ids(self, step: int) -> list[str]:
    """Returns the ids of all examples of a step, to name a batch that went wrong."""
    start = step * self.batch_size
    indices = range(start, start + self.batch_size)
    return [example.id for index in indices for example in self.rows[index]]

  def iterate(self, start_step: int) -> Generator[Batch, None, None]:
    """Yields the batches from a step on, without end, prepared by a background thread.

    An error is raised at the step that it belongs to. Closing the generator ends the thread.
    """
    steps = itertools.count(start_step)
    thread = futures.ThreadPoolExecutor(1, "batches")
    try:
      ahead = collections.deque(
        thread.submit(self.batch, next(steps)) for _ in range(self.prefetch)
      )
      while True:
        batch = ahead.popleft().result()
        ahead.append(thread.submit(self.batch, next(steps)))
        yield batch
    finally:
      thread.shutdown(cancel_futures=True)

  def _groups(self, step: int) -> list[list[Example]]:
    n = self.batch_size // self.n_shares
    start = step * self.batch_size + self.share * n
    return [self.rows[index] for index in range(start, start + n)]


def fill(rows: Sequence[Row], domain: Sequence[int], size: int, tokenizer: Tokenizer) -> Batch:
  """A batch of `size` rows: these, at least one, with their domains, and padding behind them."""
  n_free = size - len(rows)
  empty = _empty_row(tokenizer, len(rows[0].tokens_T))
  return _stack([*rows, *[empty] * n_free], [*domain, *[-1] * n_free])


def _empty_row(tokenizer: Tokenizer, seq_len: int) -> Row:
  pad_T = np.full(seq_len, tokenizer.pad_id, np.int32)
  zero_T = np.zeros(seq_len, np.int32)
  return Row(pad_T, pad_T, zero_T, zero_T, zero_T.astype(np.float32), zero_T.astype(np.bool_), 0)


def domain_index(example: Example, domains: tuple[str, ...]) -> int:
  """Place of an example's domain among the names, -1 where it is none of them."""
  return domains.index(example.domain) if example.domain in domains else -1


def _stack(rows: Sequence[Row], domain: Sequence[int]) -> Batch:
  *columns, _ = zip(*rows, strict=True)
  return Batch(*map(np.stack, columns), domain_B=np.asarray(domain, np.int32))
