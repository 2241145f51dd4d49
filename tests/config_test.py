"""Every config of the repository is complete; every mistake is told in one sentence."""

import importlib
import pathlib

import pytest
from conftest import tiny

from configs import base
from iclm import config
from iclm.config import InputError

CONFIGS = sorted(
  p.stem
  for p in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
  if "def get_config" in p.read_text()
)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_complete_and_survive_a_round_trip(name):
  c = config.from_config_dict(importlib.import_module(f"configs.{name}").get_config())
  assert config.from_config_dict(config.to_dict(c)) == c


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"experts.count": 3, "mesh.expert": 2}, r"3 does not divide over .*expert = 2; 4 does"),
    ({"experts.rank": 999}, "config.experts.rank = 999 is not in 1..config.model.d_model"),
    ({"model.heads": 3, "model.kv_heads": 2}, "3 is no multiple of config.model.kv_heads = 2"),
    ({"model.head_size": 7}, "must be even"),
    ({"model.trunk_layers": 9}, "trunk_layers = 9 is more than"),
    ({"model.d_ff": 90, "mesh.model": 4}, "90 does not divide over config.mesh.model = 4"),
    ({"batch_size": 6, "mesh.data": 4}, "6 does not divide .* over 4 devices .*; 8 does"),
    ({"batch_size": 1, "mesh.data": 4}, "; 4 does"),
    ({"fsdp": True, "mesh.data": 3, "batch_size": 6}, "d_model = 128 does not divide over"),
    ({"batch_size": 0}, "must be positive"),
    ({"router.kind": "gumble"}, "'gumbel'"),
    ({"router.kind": "kmeans", "router.fit": False}, "needs config.router.fit"),
    ({"bottleneck.kind": "none"}, "weighs a rate"),
    ({"experts.invariant": False}, "config.experts.invariant"),
    ({"data.question": "none"}, "needs config.data.question"),
    ({"evaluation.best": "iid"}, "'acre_iid'"),
    (
      {"data.train.acre.tfds": "", "data.train.acre.acre": "text", "data.train.acre.limit": 3},
      r"acre\.limit = 3 says nothing of acre data; leave it out",
    ),
    ({"evaluation.sets.acre_iid.ramp": 3}, r"acre_iid\.ramp = 3 says nothing of (jsonl|tfds) data"),
    ({"trains.only_experts": (7,)}, "names expert 7"),
    ({"trains.only_experts": (1,), "trains.domain": False}, "needs config.trains.domain = True"),
    (
      {f"trains.{name}": False for name in ("base", "domain", "invariant", "router")},
      r"nothing of the model moves: set one of config\.trains\.\{base, domain, invariant, router\}",
    ),
    ({"experts.projections": ("q", "q")}, r"projections = \('q', 'q'\) names one twice"),
    ({"dependence.kind": "joint_mi", "dependence.features": 65}, "64 classes"),
    ({"dependence.kind": "joint_mi"}, "features = 64 of at most bottleneck.width = 32"),
    (
      {"dependence.kind": "joint_mi", "dependence.features": 8},
      "needs config.dependence.given = 'none'",
    ),
    ({"router.kind": "soft", "router.tau_steps": 10**9}, "'soft' answers at tau_end = 0.3, which"),
    ({"dependence.features": 0}, "needs config.dependence.features of 1 or more"),
    ({"bottleneck.kind": "none", "loss.beta": 0.0}, "needs config.bottleneck.kind other"),
    ({"data.loss": "all"}, "needs config.data.loss = 'answer' or data.question = 'none'"),
    (
      {"data.loss": "all", "model.attention": "prefix", "loss.dependence": 0.0},
      "would ask for what is seen",
    ),
    ({"loss.group_dro": 0.1, "accumulate": 2}, "set config.accumulate = 1"),
    ({"router.tau_steps": 0}, "must be positive"),
    ({"loss.dependence": -1.0}, r"loss\.dependence = -1\.0 must not be negative"),
    ({"loss.beta": float("nan")}, r"loss\.beta = nan is no finite number"),
    ({"optimizer.eps": 0.0}, r"optimizer\.eps = 0\.0 must be positive"),
    ({"router.level": "token", "accumulate": 2}, "take of each micro-batch alone; set it to 1"),
    ({"optimizer.b2": 1.0}, r"optimizer\.b2 = 1\.0 is not in \[0, 1\)"),
    ({"data.domains": ("a", "a")}, "names one twice"),
    ({"router.scale": -1.0}, r"router\.scale = -1\.0 must be positive"),
    ({"router.kind": "random"}, r"loss\.balance = 0\.01 weighs nothing"),
    ({"loss.codebook": 1.0}, r"loss\.codebook = 1\.0 weighs nothing under .*'gumbel'"),
    ({"experts.kind": "none"}, r"loss\.beta = 0\.\d+ weighs nothing under .*kind = 'none'"),
    ({"optimizer.warmup": 99_999}, r"warmup = 99999 must lie in \[0, config\.steps = "),
    ({"optimizer.schedule": "wsd", "optimizer.decay": 7.0}, r"decay = 7\.0 of config\.steps"),
    ({"evaluation.every": -1}, r"evaluation\.every = -1 must not be negative"),
    ({"data.train.acre.weight": 0.0}, r"acre\.weight = 0\.0 must be positive; remove"),
    ({"seed": -1}, r"config\.seed = -1 must not be negative"),
    ({"data.tokenizer.texts": -1}, "texts = -1 must be positive"),
    ({"evaluation.sets.acre_iid.limit": -1}, r"acre_iid\.limit = -1 must not be negative"),
  ],
)
def test_contradictions_are_told(change, sentence):
  c = base.get_config()
  c.update_from_flattened_dict(change)
  with pytest.raises(InputError, match=sentence):
    config.from_config_dict(c)


def test_a_path_that_cannot_be_looked_up_is_told(tmp_path):
  assert config.path("~") == pathlib.Path.home() and config.path(tmp_path / "x") == tmp_path / "x"
  for name in ("~nobody-of-that-name/x", "a" * 300):
    with pytest.raises(InputError, match="this path cannot be looked up"):
      config.path(name)


def test_stray_and_missing_keys_are_told_with_the_nearest():
  tree = config.to_dict(config.from_config_dict(base.get_config()))
  tree["router"]["kindd"] = "vq"
  with pytest.raises(InputError, match=r"config\.router\.kindd .*'kind'"):
    config.from_config_dict(tree)
  del tree["router"]["kindd"], tree["router"]["kind"]
  with pytest.raises(InputError, match=r"config\.router\.kind is missing"):
    config.from_config_dict(tree)


def test_no_config_key_goes_unread():
  """A key that nothing reads would be a lie: every name stands in code."""
  root = pathlib.Path(__file__).parents[1]
  code = "".join(
    p.read_text() for d in ("iclm", "experiments") for p in (root / d).rglob("*.py")
    if p.parent.name != "config"
  )  # fmt: skip

  def keys(tree, where=""):
    for key, value in tree.items():
      if where not in ("data.train.", "evaluation.sets."):
        yield key
      if hasattr(value, "items"):
        yield from keys(value, f"{where}{key}.")

  for key in keys(base.get_config()):
    assert f".{key}" in code or f'"{key}"' in code, key


def test_rows_of_evaluation_are_shared_evenly():
  for rows, mesh, expected in ((5, (1, 1), 5), (5, (2, 1), 6), (8, (4, 2), 8), (8, (4, 4), 16)):
    c = tiny(
      batch_size=16,
      mesh__data=mesh[0],
      mesh__expert=mesh[1],
      evaluation__batch_size=rows,
      experts__count=4,
    )
    assert c.evaluation_rows == expected


@pytest.mark.parametrize("name", ["mechanisms", "frozen_base"])
def test_what_was_studied_keeps_its_layers(name):
  """Both configs derive from the quickstart, whose experts were given every layer later."""
  c = importlib.import_module(f"configs.{name}").get_config()
  assert (c.model.layers, c.model.trunk_layers) == (4, 2)
