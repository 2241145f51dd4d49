"""A run of a few thousand parameters, which the tests of whole runs share."""

import json
import pathlib

import pytest

from configs import base, presets
from iclm import config, train
from iclm.data import mechanisms

STEPS, EVERY = 24, 4


def small_config(data: pathlib.Path, **changes):
  """A model of a few thousand parameters on a jsonl of the mechanisms task."""
  c = base.get_config()
  c.steps, c.batch_size, c.log_every = STEPS, 4, 2
  c.model = presets.tiny()
  c.model.update(d_model=16, heads=2, kv_heads=1, head_size=8, d_ff=24, layers=2, trunk_layers=1)
  c.experts.update(count=2, rank=2, dropout=0.1)
  c.bottleneck.width = 4
  c.router.update(width=4, tau_steps=10)
  c.optimizer.update(kind="muon", warmup=3)  # Its state is the harder one to keep.
  c.dependence.update(given="none", features=8)
  c.data.train = {"mechanisms": base.source(jsonl=str(data))}
  c.data.domains = mechanisms.TASKS["default"].surfaces
  c.data.update(seq_len=40, question="none", questions_per_row=1)
  c.data.tokenizer.update(split="words", vocab_size=400, texts=500)
  c.evaluation.update(every=12, batch_size=8, best="test")
  c.evaluation.sets = {"test": base.source(jsonl=str(data), limit=16)}
  c.checkpoint.update(every=EVERY, keep=3, best=1)
  c.update_from_flattened_dict(changes)
  return c


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "train.jsonl"
  lines = []
  for i in range(60):
    e = mechanisms.example(mechanisms.TASKS["default"], "iid_train", 0, i)
    told = {"prompt": e.prompt, "answer": e.answer, "domain": e.domain, "group": e.group}
    lines.append(json.dumps(told))
  path.write_text("\n".join(lines) + "\n")
  return path


def fit(folder, data, **changes):
  return train.fit(config.from_config_dict(small_config(data, **changes)), folder, "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
  """The uninterrupted run."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  result = fit(folder, data)
  return folder, result


def metrics_of(folder):
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if not k.startswith("wall/")} for line in lines]


def n_lines(folder):
  path = folder / "metrics.jsonl"
  return len(path.read_text().splitlines()) if path.exists() else 0
