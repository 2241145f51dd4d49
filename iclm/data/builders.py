"""TFDS builders of the generated data sets, written and read without TensorFlow.

A data set is one draw of its generator, so that a published number names its data by builder,
config, split and version. Whatever changes an example or a size raises the version.
"""

import abc
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from iclm.config import InputError, check_known
from iclm.data import acre, mechanisms, raven, records
from iclm.data.records import Example

SEED = 0  # Of every stored data set.
_CHUNK = 1024  # Examples read at once, which is faster than one by one.


@dataclasses.dataclass(eq=False, kw_only=True)
class SizedConfig(tfds.core.BuilderConfig):
  """A config with the number of examples, or of problems, of each split."""

  sizes: dict[str, int]


class ExampleBuilder(tfds.core.GeneratorBasedBuilder):
  """Stores `examples` of each split in their order, as array_record files."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: list[SizedConfig]
  # Nothing is downloaded. Looking for the file of URLs takes a package that TFDS does not declare.
  url_infos = None

  @property
  def config(self) -> SizedConfig:
    """The config that was asked for."""
    assert isinstance(self.builder_config, SizedConfig)
    return self.builder_config

  @abc.abstractmethod
  def examples(self, split: str, n: int) -> Iterable[Example]:
    """Yields the examples of a split of size n."""

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    names = {name: text() for name in records.FIELDS}
    # Neighbours share a context, so the order is kept.
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(names | {"choices": tfds.features.Sequence(text())}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    return {split: self._generate_examples(split) for split in self.config.sizes}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    found = self.examples(split, self.config.sizes[split])
    return enumerate(example.record for example in found)


class Acre(ExampleBuilder):
  """ACRE in the published number of problems, four questions each; see `iclm.data.acre`."""

  BUILDER_CONFIGS = [  # noqa: RUF012, the name is TFDS's.
    SizedConfig(
      name=form,
      description=f"{form} prompts",
      sizes={split: 6_000 if split.endswith("train") else 2_000 for split in acre.SPLITS},
    )
    for form in ("symbolic", "text")
  ]

  def examples(self, split: str, n: int) -> Iterable[Example]:
    form: Any = self.config.name
    for i in range(n):
      yield from acre.examples(form, split, SEED, i, n_questions=4)


# The more that is to be learnt, the more there is to learn it from.
_MECHANISMS_TRAIN = {
  "default": 20_000,
  "plain": 60_000,
  "easy": 40_000,
  "full": 60_000,
  "hard": 120_000,
}


class Mechanisms(ExampleBuilder):
  """Surfaces times operations, some pairs held out; see `iclm.data.mechanisms`."""

  BUILDER_CONFIGS = [  # noqa: RUF012, the name is TFDS's.
    SizedConfig(
      name=name,
      description=f"{len(task.surfaces)} surfaces, {len(task.operations)} operations",
      sizes=dict.fromkeys(mechanisms.splits(task), 2_000) | {"iid_train": _MECHANISMS_TRAIN[name]},
    )
    for name, task in mechanisms.TASKS.items()
  ]

  def examples(self, split: str, n: int) -> Iterable[Example]:
    task = mechanisms.TASKS[self.config.name]
    return (mechanisms.example(task, split, SEED, i) for i in range(n))


class Raven(ExampleBuilder):
  """RAVEN in three configurations, two forms and three tasks; see `iclm.data.raven`."""

  BUILDER_CONFIGS = [  # noqa: RUF012, the name is TFDS's.
    SizedConfig(
      name=name,
      description=f"{form} prompts of {configuration}, {task} answers",
      sizes={split: 10_000 if split == "iid_train" else 2_000 for split in raven.SPLITS},
    )
    for name, (configuration, form, task) in raven.CONFIGS.items()
  ]

  def examples(self, split: str, n: int) -> Iterable[Example]:
    which = raven.CONFIGS[self.config.name]
    return (raven.example(*which, split, SEED, i) for i in range(n))


BUILDERS = {"acre": Acre, "mechanisms": Mechanisms, "raven": Raven}


class Stored(Sequence[Example]):
  """The examples of a TFDS data source, read when asked for; a slice is a list."""

  def __init__(self, source: Any):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index) -> Any:
    if isinstance(index, slice):
      found = range(len(self))[index]
      chunks = (found[i : i + _CHUNK] for i in range(0, len(found), _CHUNK))
      return [_example(row) for chunk in chunks for row in self._source.__getitems__(list(chunk))]
    return _example(self._source[range(len(self))[index]])

  def __iter__(self) -> Iterator[Example]:
    for start in range(0, len(self), _CHUNK):
      yield from self[start : start + _CHUNK]


def _example(row: dict[str, Any]) -> Example:
  texts = {name: value.decode() for name, value in row.items() if name != "choices"}
  return Example(choices=tuple(choice.decode() for choice in row["choices"]), **texts)


def load(builder: str, split: str, data_dir: str) -> Stored:
  """Opens a split, after preparing all splits of its data set where that was not done yet.

  Preparing writes to a folder of its own and renames it at the end: a process that is killed
  halfway leaves no data set, and of several that prepare at once the first one's stays.

  Args:
    builder: builder and config, such as "acre/symbolic", "mechanisms/default" or
      "raven/center_single_text_open".
    split: one of the config's own.
    data_dir: the folder of all TFDS data sets; made if need be.

  Returns:
    The examples; those on one context are neighbours.

  Raises:
    InputError: builder, config or split is not known, or the folder cannot be written or read.
  """
  configs = {
    f"{name}/{config.name}": (kind, config)
    for name, kind in BUILDERS.items()
    for config in kind.BUILDER_CONFIGS
  }
  check_known("data set", builder, configs)
  kind, config = configs[builder]
  check_known(f"split of {builder}", split, config.sizes)
  try:
    prepared: Any = _prepared(kind, config, data_dir)
    return Stored(prepared.as_data_source(split=split))
  except OSError as error:
    why = error.strerror or error
    raise InputError(
      f"data_dir {data_dir}: {builder} cannot be kept there ({why}); name a folder that can be"
      " written."
    ) from None


def _prepared(kind: type[ExampleBuilder], config: SizedConfig, data_dir: str) -> ExampleBuilder:
  def opened() -> ExampleBuilder:
    return kind(data_dir=data_dir, config=config.name)

  builder = opened()
  if _is_prepared(builder):
    return builder
  pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
  # TFDS prints to both; what goes wrong is raised.
  with (
    open(os.devnull, "w") as nowhere,
    contextlib.redirect_stdout(nowhere),
    contextlib.redirect_stderr(nowhere),
  ):
    try:
      builder.download_and_prepare(file_format="array_record")
    except OSError:
      if not _is_prepared(builder):  # Else another process was faster.
        raise
  return opened()


def _is_prepared(builder: ExampleBuilder) -> bool:
  folder = pathlib.Path(builder.data_dir)
  if not folder.exists():
    return False
  if not (folder / "dataset_info.json").is_file():
    raise InputError(f"{folder} has no dataset_info.json; remove it, and it is prepared anew.")
  return True
