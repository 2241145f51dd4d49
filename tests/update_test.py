"""The partial update: one expert alone, beside all of a plain base and a dense LoRA."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
import rich.console
from small_run import fit, small_config

from configs import base
from experiments import baselines, shifts, study, update
from iclm import compose, config, sharding, train, workdir
from iclm.config import InputError
from iclm.data import acre, acre_shift, assemble, mechanisms
from iclm.evals.subject import Subject

FORMS = ("symbolic", "text")
ACRE = {
  "data.domains": ("acre_symbolic", "acre_text"),
  "data.question": "last_line",
  "data.questions_per_row": 4,
  "data.seq_len": 160,
  "data.tokenizer.split": "sentences",
  "data.tokenizer.vocab_size": 600,
  "experts.count": 2,
  "evaluation.best": "",
  "study.plain_base": False,
  "study.shift.surface": "acre_text",
  "study.shift.rehearsed": 0,
  "study.shift.operation": "light",
  "study.shift.becomes": "inverted",
  "study.shift.curve": (),
}
CHANGES = {
  "study.plain_base": True,
  "study.shift.surface": "digits",
  "study.shift.operation": "reverse",
  "study.shift.becomes": "rotate",
  "study.shift.steps": 4,
  "study.shift.examples": 8,
  "study.shift.rehearsed": 3,
  "study.shift.curve": (4,),
  "router.kind": "oracle",
  "experts.count": 5,
  "router.fit": False,
  "loss.balance": 0.0,
  "loss.zloss": 0.0,
}


@pytest.fixture(autouse=True, scope="module")
def few_tests():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(update, "N_TEST", 40)
    yield


@pytest.fixture(scope="module")
def studied(data, tmp_path_factory):
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
  for name in ("others", "elsewhere"):  # The same, where the oracle routes.
    assert (ours[name]["logits_changed"], ours[name]["max_change_nats"]) == (0, 0.0)
    assert plain[name]["logits_changed"] > 0 and plain[name]["max_change_nats"] > 0.0
  assert ours["same_surface"]["logits_changed"] > 0
  kept = assemble.read(str(folder / "update" / update.KEPT), None)
  assert len(kept) == 3
  assert all(e.domain == "digits" and not e.group.endswith("/reverse") for e in kept)
  assert ours["moved"] == ["domain/2"] and plain["moved"] == ["base"]
  n = sum(x.size for x in jax.tree.leaves(result.run.params["domain"]))
  assert ours["parameters_moved"] == n // 5
  assert set(found["forced"]) == {"test"} and found["plain_base"]["sets"]
  moved = workdir.load_run(folder / "update" / "iclm")
  assert moved.config.trains.only_experts == (2,) and isinstance(result, train.Result)


def test_the_certificate_goes_by_routes_and_not_by_surfaces(studied):
  _, result = studied
  c, ours = result.run.config, Subject(*result.run.parts)
  every = [e for of in c.evaluation.sets.values() for e in assemble.examples(of, c.data)]
  sets = update._sets(c, ours, 2)
  assert sets["others"] == sets["elsewhere"] == [e for e in every if e.domain != "digits"]
  # A router that errs on every other input: the retrained expert serves some of each surface.
  index_N = np.where(np.arange(len(every)) % 2, 2, 0)
  wrong = types.SimpleNamespace(score=lambda _: types.SimpleNamespace(index_N=index_N))
  sets = update._sets(c, wrong, 2)
  assert sets["elsewhere"] == every[::2] and sets["others"] != sets["elsewhere"]
  assert all("reverse" not in e.group for e in sets["same_surface"])


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
  for x, y in zip(fresh.logits(examples), Subject(*base.parts).logits(examples), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  "changes",
  [
    {"perturb.drop": 0.5, "perturb.swap": 0.5, "router.kind": "gumbel"},
    {"topology.kind": "around", "combine": "none", "model.layers": 4, "topology.lower": 1},
    {"router.kind": "gumbel", "router.reads": "base", "router.cached": True}
    | {"combine": "logits", "trains.base": False},
  ],
)
def test_the_baselines_of_any_config_read_back(data, changes):
  c = config.from_config_dict(small_config(data, **CHANGES | changes))
  for made in (baselines.plain(c), baselines.dense_lora(c)):
    assert config.from_config_dict(config.to_dict(made)) == made


def test_a_retraining_begins_where_the_run_ended_and_reads_back(data):
  changes = {"study.shift.rehearsed": 3, "bottleneck.ramp": 5, "router.kind": "gumbel"}
  c = config.from_config_dict(small_config(data, **CHANGES | changes))
  made = update._retraining(c, update._trains(update.OURS, 0), 1e-3, data, 8, "x")
  assert made.bottleneck.ramp == 0 and made.router.tau_start == c.router.tau_end < 1
  # The order of sources decides how they are mixed.
  read = config.from_config_dict(config.to_dict(made))
  assert list(read.data.train) == list(made.data.train) == ["shifted", "stays"]


def test_a_study_goes_on_where_its_folder_was_moved_to(studied, tmp_path):
  folder, result = studied
  moved = pathlib.Path(shutil.copytree(folder, tmp_path / "moved"))
  found = json.loads((moved / "results.json").read_text())
  study.report(result.run.config, moved, result)
  again = json.loads((moved / "results.json").read_text())
  # What was trained is read, not trained anew, and is what it was.
  assert again["update"] == found["update"]


def test_costs_and_recovery_are_told(studied):
  folder, result = studied
  found = json.loads((folder / "results.json").read_text())["update"]
  models, budget = found["models"], found["budget"]
  # Two moments in float32 of what moves, and of nothing else; of the base's matrices Muon has one.
  for name, m in models.items():
    least = 4 if name == update.FULL else 8
    assert least * m["parameters_moved"] <= m["optimizer_bytes"] <= 8 * m["parameters_moved"]
  assert all(m["step_s"] > 0 and m["n"] == 8 for m in models.values())
  head = sum(x[0].size for x in jax.tree.leaves(result.run.params["domain"]["message"]))
  # d_model 16, messages 4: mu, log_sigma and out, and a bias.
  assert budget["parameters_moved"]["message_head"] == head == 3 * 16 * 4 + 4
  lora = 12 * (32 + 24 + 24 + 32)
  ours, limit = lora / 6 + head, 1.1 / 6 * lora + head
  for key, size in (("parameters_moved", 1), ("optimizer_bytes", 8)):
    assert budget[key] == pytest.approx(
      {"ours": ours * size, "lora": lora * size, "message_head": head * size, "limit": limit * size}
    )
  assert set(found["recovery"]) == {"plain base", "dense LoRA"}
  assert all(r["n"] == update.N_TEST for r in found["recovery"].values())
  assert set(found["curve"]["4"]) == set(models)
  assert workdir.load_run(folder / "update" / "curve" / "4" / "dense_lora").step == 4


def test_the_tables_hold_all_of_it(studied, capsys):
  folder, result = studied
  found = json.loads((folder / "results.json").read_text())["update"]
  study.show_update(rich.console.Console(width=200), result.run.config, found)
  shown = capsys.readouterr().out
  for word in ("largest change", "optimizer bytes", "dense LoRA", "1.1/(E+1)", "by number"):
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
    ("study.shift.rehearsed", -1, "rehearsed = -1"),
    ("study.shift.rehearsed", 999, r"999: the training data holds \d+ examples of digits that are"),
    ("study.shift.lora_lr", -1.0, "lora_lr = -1.0"),
    ("study.shift.lr", 0.0, r"shift\.lr = 0.0"),
    ("study.shift.becomes", "reverse", "shifts nothing"),
    ("study.shift.becomes", "rotat", r"shift\.becomes = .rotat.*did you mean .rotate.\?$"),
    ("study.shift.curve", (0,), r"curve = \(0,\)"),
    ("experts.rank", 4, "rank 6 .* = 24 is wider"),
    ("study.shift.surface", "acre_txt", "acre_text"),
    ("study.shift.surface", "acre_text", "'light' becomes 'inverted'"),
    (
      "data.train.m",
      base.source(tfds="mechanisms/defalt"),
      r"^the task of config\.data\.train\.m\.tfds = 'defalt' .* 'default'",
    ),
  ],
)
def test_a_shift_that_cannot_be_is_told_before_training(data, key, value, told):
  c = config.from_config_dict(small_config(data, **CHANGES | {key: value}))
  with pytest.raises(InputError, match=told):
    update.check(c)
  shift = dataclasses.replace(c.study.shift, surface="")
  update.check(dataclasses.replace(c, study=dataclasses.replace(c.study, shift=shift)))


def test_a_study_that_would_show_nothing_is_told(data):
  c = config.from_config_dict(small_config(data, **CHANGES))
  unseen = dataclasses.replace(c.evaluation, sets={}, best="")
  with pytest.raises(InputError, match=r"name config\.evaluation\.sets"):
    update.check(dataclasses.replace(c, evaluation=unseen))
  given = CHANGES | {"study.shift.surface": "", "trains.base": False}
  with pytest.raises(InputError, match="plain_base = True trains the base alike"):
    update.check(config.from_config_dict(small_config(data, **given)))


def test_an_example_whose_operation_is_not_told_is_none_that_stays(data):
  c = config.from_config_dict(small_config(data, **CHANGES))
  told = mechanisms.example(mechanisms.TASKS["default"], "iid_train", 0, 0)
  of = lambda group: shifts.stays(c, dataclasses.replace(told, domain="digits", group=group))
  assert of("position/swap") and not of("position/reverse") and not of("all") and not of("p/")


def test_acres_light_is_inverted_in_one_form():
  plain = [e for i in range(3) for e in acre.examples("text", "iid_train", 0, i, 4)]
  shifted = acre_shift.inverted("text", "train", 0, 12)
  other = {"on": "off", "off": "on", "undetermined": "undetermined"}
  assert [e.answer for e in shifted] == [other[e.answer] for e in plain]
  assert [(e.prompt, e.group, e.domain) for e in shifted] == [
    (e.prompt, e.group, e.domain) for e in plain
  ]
  tests = acre_shift.inverted("symbolic", "test", 0, 8)
  assert len({e.prompt.rpartition("\n")[0] for e in tests}) == 8  # One of each problem.
  assert {e.domain for e in tests} == {"acre_symbolic"} and {e.answer for e in tests} <= {*"012"}


def test_an_update_of_acre_leaves_the_other_form_bitwise(tmp_path):
  c = small_config(tmp_path / "none.jsonl", **CHANGES | ACRE)
  c.data.train = {form: base.source(acre=form, split="iid", ramp=4) for form in FORMS}
  for form in FORMS:
    lines = (
      json.dumps(dataclasses.asdict(e)) + "\n" for e in acre.examples(form, "iid_val", 0, 0, 4)
    )
    (tmp_path / f"{form}.jsonl").write_text("".join(lines))
  c.evaluation.sets = {f: base.source(jsonl=str(tmp_path / f"{f}.jsonl")) for f in FORMS}
  c, folder = config.from_config_dict(c), tmp_path / "run"
  update.check(c)
  study.report(c, folder, train.fit(c, folder, "test"))
  found = json.loads((folder / "results.json").read_text())["update"]
  ours = found["models"]["iclm"]
  assert ours["moved"] == ["domain/1"] and ours["others"]["n"] == 4
  assert ours["others"]["logits_changed"] == 0 and ours["shifted"]["logits_changed"] > 0


def test_a_shift_is_of_the_task_that_was_trained(data):
  c = small_config(data, **CHANGES)
  c.data.train = {"mechanisms": base.source(tfds="mechanisms/hard", split="iid_train")}
  found = shifts.examples(config.from_config_dict(c), "test", 20)
  lengths = {len(e.answer.split(",")) for e in found}
  assert lengths <= set(mechanisms.TASKS["hard"].lengths) and len(lengths) > 1


def test_a_run_without_evaluation_sets_has_no_tables(capsys):
  study._show(None, train.Result(None, {}, 0.0, False), None, {})
  assert capsys.readouterr().out == ""
