"""The partial update: one expert alone, beside all of a plain base and a dense LoRA."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import rich.console
from train_test import data, fit, small_config  # noqa: F401, fixtures.

from experiments import baselines, study, update
from iclm import compose, config, sharding, train, workdir
from iclm.config import InputError
from iclm.data import mechanisms
from iclm.evals.subject import Subject

CHANGES = {
  "study.plain_base": True,
  "study.shift.surface": "digits",
  "study.shift.operation": "reverse",
  "study.shift.becomes": "rotate",
  "study.shift.steps": 4,
  "study.shift.examples": 8,
  "router.kind": "oracle",
  "experts.count": 5,
  "router.fit": False,
  "loss.balance": 0.0,
  "loss.zloss": 0.0,
}


@pytest.fixture(scope="module")
def studied(data, tmp_path_factory):  # noqa: F811
  folder = tmp_path_factory.mktemp("study") / "run"
  result = fit(folder, data, steps=8, **CHANGES)
  study.report(result.run.config, folder, result)
  return folder, result


def test_a_study_sets_the_plain_base_and_an_update_beside_the_run(studied):
  folder, result = studied
  found = json.loads((folder / "results.json").read_text())
  assert found["update"]["expert"] == 2  # Domains are lower, upper, digits, ...
  models = found["update"]["models"]
  ours, plain = models["iclm"], models["plain base"]
  assert (ours["others"]["logits_changed"], ours["others"]["max_change_nats"]) == (0, 0.0)
  assert plain["others"]["logits_changed"] > 0 and plain["others"]["max_change_nats"] > 0.0
  assert ours["moved"] == ["domain/2"] and plain["moved"] == ["base"]
  n = sum(x.size for x in jax.tree.leaves(result.run.params["domain"]))
  assert ours["parameters_moved"] == n // 5
  assert set(found["forced"]) == {"test"} and found["plain_base"]["sets"]
  moved = workdir.load_run(folder / "update" / "iclm")
  assert moved.config.trains.only_experts == (2,) and isinstance(result, train.Result)


def test_the_dense_lora_is_all_that_moves_on_a_frozen_plain_base(studied):
  folder, _ = studied
  models = json.loads((folder / "results.json").read_text())["update"]["models"]
  lora = models["dense LoRA"]
  assert lora["moved"] == ["domain/0"] and lora["others"]["logits_changed"] > 0
  run, base = (workdir.load_run(folder / p) for p in ("update/dense_lora", "plain_base"))
  jax.tree.map(np.testing.assert_array_equal, run.params["base"], base.params["base"])
  assert set(run.params["domain"]) == {"adapter"}  # No message.
  assert run.config.experts.rank == 6 * 2 and run.config.experts.alpha == 6 * 16.0
  # One upper layer; of q, k, v and o, the widths in and out are 16 + 16 or 16 + 8.
  assert lora["parameters_moved"] == 12 * (32 + 24 + 24 + 32)
  assert lora["others"]["accuracy"][0] == models["plain base"]["others"]["accuracy"][0]


def test_a_fresh_dense_lora_is_its_plain_base(studied):
  folder, result = studied
  c, base = result.run.config, workdir.load_run(folder / "plain_base")
  made = compose.build(baselines.dense_lora(c), base.tokenizer.vocab_size)
  params = sharding.unbox(made.init(jax.random.key(0))) | base.params
  examples = mechanisms.shift(
    mechanisms.TASKS["default"], "digits", "reverse", "rotate", "test", 0, 8
  )
  fresh = Subject(baselines.dense_lora(c), made, params, base.tokenizer, base.mesh)
  for x, y in zip(fresh.logits(examples), Subject(*base[:-1]).logits(examples), strict=True):
    np.testing.assert_array_equal(x, y)


def test_costs_and_recovery_are_told(studied):
  folder, _ = studied
  found = json.loads((folder / "results.json").read_text())["update"]
  ours, lora = found["models"]["iclm"], found["models"]["dense LoRA"]
  # Two moments in float32; the other four experts' are held beside.
  assert ours["optimizer_bytes"] == 8 * ours["parameters_moved"]
  assert ours["optimizer_bytes_held"] == 5 * ours["optimizer_bytes"]
  assert lora["optimizer_bytes"] == lora["optimizer_bytes_held"] == 8 * lora["parameters_moved"]
  assert all(m["step_s"] > 0 and m["n"] == 8 for m in found["models"].values())
  share = ours["parameters_moved"] / lora["parameters_moved"]
  assert found["ratios"] == {
    "parameters_moved": share, "optimizer_bytes": share, "goal": pytest.approx(1.1 / 6)
  }  # fmt: skip
  assert set(found["recovery"]) == {"plain base", "dense LoRA"}
  assert all(r["n"] == update.N_TEST for r in found["recovery"].values())


def test_the_tables_hold_all_of_it(studied, capsys):
  folder, result = studied
  found = json.loads((folder / "results.json").read_text())["update"]
  update.show(rich.console.Console(width=200), result.run.config, found)
  shown = capsys.readouterr().out
  for word in ("largest change", "optimizer bytes", "dense LoRA", "1.1/(E+1)", "n = 500"):
    assert word in shown


def test_a_bound_on_what_is_recovered():
  ours_N, full_N = np.arange(200) % 10 != 0, np.arange(200) % 20 != 0
  found = update._recovery({"iclm": ours_N, "plain base": full_N}, seed=0)["plain base"]
  assert found["difference"] == pytest.approx(-0.05) and found["n"] == 200
  # The normal bound, -0.05 - 1.645 * sqrt(0.05 * 0.95 / 200).
  assert found["low95"] == pytest.approx(-0.0754, abs=0.006)
  same = update._recovery({"iclm": ours_N, "plain base": ours_N}, seed=0)["plain base"]
  assert same["low95"] is None and "equal" in same["note"]


@pytest.mark.parametrize(
  ("key", "value", "told"),
  [
    ("study.shift.lora_lr", -1.0, "lora_lr = -1.0"),
    ("study.shift.lr", 0.0, r"shift\.lr = 0.0"),
    ("study.shift.becomes", "reverse", "shifts nothing"),
    ("experts.rank", 4, "rank 6 .* = 24 is wider"),
  ],
)
def test_a_shift_that_cannot_be_is_told_before_training(data, key, value, told):  # noqa: F811
  c = config.from_config_dict(small_config(data, **CHANGES | {key: value}))
  with pytest.raises(InputError, match=told):
    update.check(c)
  shift = dataclasses.replace(c.study.shift, surface="")
  update.check(dataclasses.replace(c, study=dataclasses.replace(c.study, shift=shift)))
