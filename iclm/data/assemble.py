"""From a config's sources to examples, to the tokenizer, to the rows that a run trains on."""

import hashlib
import itertools
import pathlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain

from iclm import config
from iclm.config import InputError
from iclm.data import acre, chat, overlap, pipeline, raven, records, rows, tokenizer
from iclm.data.records import Example
from iclm.data.tokenizer import Tokenizer

SPLITS = {
  "words": tokenizer.WORDS,
  "numbers": tokenizer.NUMBERS,
  "sentences": tokenizer.SENTENCES,
  "symbols": tokenizer.SYMBOLS,
  "phrases": tokenizer.PHRASES,
}
PREFETCH = 4  # Batches prepared ahead.
MAX_ROWS = 100_000  # Rows of training data that are compared with the evaluation sets.


def examples(source: config.Source, data: config.Data) -> Sequence[Example]:
  """The examples of a finite source, at most `limit` of them.

  Raises:
    InputError: the source is missing, malformed, or the endless generator.
  """
  if source.acre:
    raise InputError("the endless generator has no end to evaluate on; name a tfds split or jsonl")
  if source.jsonl:
    found = read(source.jsonl, template(data))
  else:
    from iclm.data import builders  # With TFDS, which a run on jsonl need not wait for.

    found = builders.load(source.tfds, source.split, str(config.path(data.dir)))
  return found[: source.limit or len(found)]


def template(data: config.Data) -> chat.Template | None:
  """The chat template that a config names, if any; of a run, the one that it keeps is its own.

  Raises:
    InputError: see `chat.load`.
  """
  return chat.load(data.chat_template, data.chat_date) if data.chat_template else None


def read(path: str, template: chat.Template | None) -> list[Example]:
  """The records of a jsonl file; those of ACRE and RAVEN get domain and group from the solvers.

  Args:
    template: see `records.load`.
  """
  # Published records come without a group: a solver tells it, and the form is their domain.
  label = lambda prompt: acre.label(prompt) or raven.label(prompt)
  return records.load(config.path(path), template=template, label=label)


def named(name: str, template: chat.Template | None, data: config.Data) -> Sequence[Example]:
  """The examples of a jsonl file, or of a split of a generated data set, as BUILDER/CONFIG:SPLIT.

  Args:
    template: see `records.load`.

  Raises:
    InputError: there is no such file or split, or the file is malformed.
  """
  generated = re.fullmatch(r"(\w+/\w+):(\w+)", name)
  if generated is None or pathlib.Path(name).exists():
    return read(name, template)
  from iclm.data import builders

  folder = str(config.path(data.dir))
  return builders.load(generated[1], generated[2], folder)


def _source(source: config.Source, c: config.Config) -> pipeline.Source:
  """A finite source as rows of questions on one context, or the endless one."""
  if not source.acre:
    return rows.group_rows(examples(source, c.data), c.data.questions_per_row, c.data.asks)
  return acre.Problems(
    form=source.acre,
    split=source.split,
    seed=c.seed,
    n_questions=c.data.questions_per_row,
    ramp=source.ramp,
  )


def sources(c: config.Config) -> dict[str, pipeline.Source]:
  """A config's training sources by their names, as rows."""
  return {name: _source(s, c) for name, s in c.data.train.items()}


def finite(c: config.Config, found: Mapping[str, pipeline.Source]) -> dict[str, pipeline.Source]:
  """Those of a config's `sources` that end."""
  return {name: rows for name, rows in found.items() if not c.data.train[name].acre}


def digests(c: config.Config, found: Mapping[str, pipeline.Source]) -> dict[str, str]:
  """SHA-256 of each of a config's sources that ends, of which a run notices a change.

  Args:
    found: of `sources`.
  """
  every = lambda rows: itertools.chain.from_iterable(rows[i] for i in range(len(rows)))
  return {name: overlap.digest(every(rows)) for name, rows in finite(c, found).items()}


def training_rows(c: config.Config) -> grain.MapDataset:
  """The endless mixture of a config's training sources, a pure function of (seed, index)."""
  return mixed(c, sources(c))


def mixed(c: config.Config, found: Mapping[str, pipeline.Source]) -> grain.MapDataset:
  """`training_rows` of sources that are there already."""
  given = [c.data.train[name] for name in found]
  return pipeline.mixture(
    list(found.values()), [s.weight for s in given], c.seed, [not s.acre for s in given]
  )


def sample(c: config.Config, training: grain.MapDataset, n: int) -> list[Example]:
  """Examples of random rows of a run.

  Not of its first rows, because a curriculum holds back what later ones are about.
  """
  rng, n_rows = random.Random(c.seed), c.steps * c.batch_size
  indices = (rng.randrange(n_rows) for _ in itertools.count())
  return list(itertools.islice(_flat(training, indices), n))


def make_tokenizer(c: config.Config, training: grain.MapDataset) -> Tokenizer:
  """The tokenizer of a file, or a small one trained on examples of the run."""
  t = c.data.tokenizer
  if t.path:
    return tokenizer.load(config.path(t.path))
  found = sample(c, training, t.texts)
  return tokenizer.train(_texts(found), t.vocab_size, SPLITS[t.split], t.apart)


def _flat(training: Any, indices: Iterable[int]) -> Iterator[Example]:
  """The examples of some rows, in their order."""
  return itertools.chain.from_iterable(training[i] for i in indices)


def _texts(examples: Iterable[Example]) -> Iterator[str]:
  for example in examples:
    yield example.prompt
    yield example.answer
    yield from example.choices


def provenance(
  training: grain.MapDataset, n_rows: int, sets: Mapping[str, Sequence[Example]]
) -> dict[str, Any]:
  """Hashes of the data, and what each evaluation set shares with the rows that were trained on.

  Args:
    n_rows: how many rows were trained on; of more than `MAX_ROWS` the first are looked at.
  """
  n, total = min(n_rows, MAX_ROWS), hashlib.sha256()
  shared = overlap.measure(overlap.feed(_flat(training, range(n)), total), sets)
  return {
    "rows": n,
    "train_sha256": total.hexdigest(),
    "sets_sha256": {name: overlap.digest(found) for name, found in sets.items()},
    "overlap": {name: found._asdict() for name, found in shared.items()},
  }


def loader(
  c: config.Config,
  training: grain.MapDataset,
  tok: Tokenizer,
  share: int,
  n_shares: int,
) -> pipeline.Loader:
  """One process's view of the global batches of a run; see `sharding.share`."""
  return pipeline.Loader(
    rows=training,
    tokenizer=tok,
    domains=c.data.domains,
    named=c.loss.group_dro > 0 or c.router.kind == "oracle",
    batch_size=c.batch_size,
    seq_len=c.data.seq_len,
    question=c.data.asks,
    loss=c.data.loss,
    too_long=c.data.too_long,
    counted=c.data.counted,
    share=share,
    n_shares=n_shares,
    prefetch=PREFETCH,
  )
