"""Experts from and to adapters of PEFT, held against its answers without torch."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from hf_families import ADAPTED, EXPECTED, GOLDEN, PEFT, expected
from hf_test import load
from safetensors.numpy import load_file, save_file

from iclm import compose, hf, sharding
from iclm.config import InputError
from iclm.data.pipeline import Batch
from iclm.hf import adapters

TOLERANCE = 1e-5
EVERY = ("q", "k", "v", "o", "gate", "up", "down")


@functools.cache
def start(**changes):
  """Three experts on the golden base, whose every adapter says something."""
  model, base = load(GOLDEN / ADAPTED)
  plain = {"bottleneck__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0}
  given = plain | {"experts__rank": 4, "experts__projections": EVERY} | changes
  c = dataclasses.replace(tiny(**given), model=model)
  made = compose.build(c, model.vocab_size)
  params = sharding.unbox(made.init(jax.random.key(0))) | {"base": base}
  rng = np.random.default_rng(1)
  drawn = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, jnp.float32)
  for group in ("domain", "invariant"):
    params[group] = params[group] | {"adapter": jax.tree.map(drawn, params[group]["adapter"])}
  return c, made, params


def rows(tokens_BT) -> Batch:
  """Texts without a question."""
  b, t = tokens_BT.shape
  position = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t))
  ones, zeros = np.ones((b, t), np.int32), np.zeros((b, t), np.float32)
  every = tokens_BT, tokens_BT, ones, position, zeros, ones > 0, np.zeros(b, np.int32)
  return Batch(*map(jnp.asarray, every))


def stream(made, params, tokens_BT, expert) -> np.ndarray:
  """What an expert's stream says alone."""
  domain = 0 if expert == "invariant" else expert
  do = compose.Intervention(route_B=jnp.full(len(tokens_BT), domain))
  output = made.apply(params, rows(tokens_BT), None, do, alone=True)
  return output.alone_SBTV[int(expert != "invariant")]


def test_an_adapter_of_peft_answers_as_it_does_there():
  c, made, params = start()
  want = expected(GOLDEN / PEFT)
  for expert in (2, "invariant"):
    read = hf.load_adapter(GOLDEN / PEFT, c, hf.adapter_of(c, params, expert), None)
    changed = hf.into(params, expert, read.layers)
    got = stream(made, changed, want["tokens_BT"], expert)
    np.testing.assert_allclose(got, want["logits_BTV"], rtol=TOLERANCE, atol=TOLERANCE)
    assert read.base_sha256 is None
  # Nobody else has moved, and what fills the rank up can be trained.
  changed = hf.into(
    params, 2, hf.load_adapter(GOLDEN / PEFT, c, hf.adapter_of(c, params, 2), None).layers
  )
  for e in (0, 1):
    jax.tree.map(
      lambda a, b, e=e: np.testing.assert_array_equal(a[e], b[e]),
      *(p["domain"] for p in (params, changed)),
    )
  a, b = (changed["domain"]["adapter"]["q"][side][2] for side in "ab")
  np.testing.assert_array_equal(a[:, :, 3], params["domain"]["adapter"]["q"]["a"][2][:, :, 3])
  assert a[:, :, 3].any() and not b[:, 3].any()


@pytest.mark.parametrize("expert", [1, "invariant"])
def test_what_goes_out_comes_in_again(expert, tmp_path):
  c, _, params = start()
  digest = hf.base_sha256(params["base"], c.model)
  adapter = hf.exportable(c, params, expert)
  hf.save_adapter(adapter, c, tmp_path / "out", base_sha256=digest, base_name="base")
  into = 0 if expert == 1 else "invariant"
  read = hf.load_adapter(tmp_path / "out", c, hf.adapter_of(c, params, into), digest)
  assert (read.base_sha256, read.base_name) == (digest, "base")
  jax.tree.map(np.testing.assert_array_equal, read.layers, jax.tree.map(np.asarray, adapter.layers))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_merged_expert_is_its_stream(kind, tmp_path):
  c, made, params = start(experts__kind=kind)
  hf.save_base(
    params["base"], c.model, tmp_path / "merged", dtype="float32", max_bytes=8_000, tokenizer=None,
    adapter=hf.exportable(c, params, 1),
  )  # fmt: skip
  _, merged = load(tmp_path / "merged")
  tokens_BT = expected(GOLDEN / PEFT)["tokens_BT"]
  plain = compose.build(
    dataclasses.replace(c, experts=dataclasses.replace(c.experts, kind="none")), 32
  )
  got = plain.apply({"base": merged}, rows(tokens_BT)).logits_BTV
  np.testing.assert_allclose(got, stream(made, params, tokens_BT, 1), rtol=0, atol=2e-4)
  # The trunk is the base's own.
  np.testing.assert_array_equal(merged["trunk_layers"]["q"], params["base"]["trunk_layers"]["q"])


def test_whole_matrices_are_no_adapter(tmp_path):
  c, _, params = start(experts__kind="full")
  adapter = hf.exportable(c, params, 1)
  with pytest.raises(InputError, match="only merged into its base"):
    hf.save_adapter(adapter, c, tmp_path / "out", base_sha256="", base_name="base")
  with pytest.raises(InputError, match="no adapter can take its place"):
    hf.load_adapter(GOLDEN / PEFT, c, adapter, None)


def test_the_hash_is_of_the_tensors_and_not_of_their_layout():
  c, _, params = start()
  digest = hf.base_sha256(params["base"], c.model)
  base = dict(params["base"])
  base["upper_layers"] = base.pop("trunk_layers")
  assert hf.base_sha256(base, dataclasses.replace(c.model, trunk_layers=0)) == digest
  norm = {"gain": params["base"]["norm"]["gain"].at[0].add(1e-6)}
  assert hf.base_sha256(params["base"] | {"norm": norm}, c.model) != digest


def edited(tmp_path: pathlib.Path, told=None, tensors=None) -> pathlib.Path:
  """The golden adapter with another config, or other tensors."""
  folder = tmp_path / "edited"
  shutil.copytree(GOLDEN / PEFT, folder, dirs_exist_ok=True)
  if told:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
  if tensors:
    held = load_file(folder / adapters.WEIGHTS)
    save_file(tensors(held), folder / adapters.WEIGHTS, metadata={adapters.BASE: "5" * 64})
  return folder


EVERY_PROJ = [f"{name}_proj" for name in EVERY]
Q_A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
  ("told", "tensors", "sentence"),
  [
    ({"peft_type": "IA3"}, None, r"peft_type = 'IA3' is not supported; only 'LORA' is"),
    ({"use_dora": True}, None, r"use_dora = True is not supported; an expert cannot"),
    ({"bias": "all"}, None, r"bias = 'all' is not supported; only 'none' is"),
    ({"modules_to_save": ["lm_head"]}, None, r"modules_to_save = \['lm_head'\] is not supported"),
    ({"alpha_pattern": [2]}, None, r"alpha_pattern = \[2\] must map names of modules to numbers"),
    ({"alpha_pattern": {"q_proj": 0}}, None, r"q_proj = 0 must be a positive finite number"),
    ({"rank_pattern": {"q_(": 2}}, None, r"rank_pattern has 'q_\(', no expression"),
    ({"rank_pattern": {"q_proj": 2}}, None, r"has shape \[3, 16\] .* \[2, 16\]"),
    ({"init_lora_weights": "pissa"}, None, r"init_lora_weights = 'pissa' is not supported; only"),
    ({"fan_in_fan_out": True}, None, r"fan_in_fan_out = True"),
    ({"r": 9}, None, r"rank 9 of .*_proj is more than config\.experts\.rank = 4; a run"),
    ({"r": 0}, None, r"r = 0 must be a positive whole number"),
    ({"r": 3.0}, None, r"r = 3\.0 must be a positive whole number"),
    ({"lora_alpha": True}, None, r"lora_alpha = True must be a positive finite number"),
    ({"lora_alpha": float("inf")}, None, r"lora_alpha = inf must be a positive finite number"),
    ({"lora_alpha": float("nan")}, None, r"lora_alpha = nan must be a positive finite number"),
    ({"use_rslora": 1}, None, r"use_rslora = 1 must be true or false"),
    ({"inference_mode": None}, None, r"inference_mode = None must be true or false"),
    ({"target_modules": EVERY_PROJ[1:]}, None, r"the tensors adapt .*q_proj, which target_modules"),
    ({"exclude_modules": ["q_proj"]}, None, r"the tensors adapt .*q_proj, which target_modules"),
    ({"layers_to_transform": 0}, None, r"no tensor adapts .*layers\.0\..*, which target"),
    ({"layers_to_transform": None}, None, r"no tensor adapts .*layers\.0\..*, which target"),
    ({"layers_to_transform": [1, 7]}, None, r"no tensor adapts layer 7, which layers_to_transform"),
    ({"target_modules": [*EVERY_PROJ, "lm_head"]}, None, r"no tensor adapts lm_head, which target"),
    ({"target_modules": [3]}, None, r"target_modules = \[3\] must be a list of names, or a text"),
    ({"layers_to_transform": ["1"]}, None, r"layers_to_transform = \['1'\] must be a list of"),
    (None, lambda t: {k: t[k] for k in t if "q_p" not in k}, r"no tensor adapts .*q_proj, which"),
    ({"peft_type": None}, None, r"peft_type = None is not supported; only 'LORA' is"),
    (None, lambda t: {}, r"holds no tensor: there is no adapter in it"),
    (None, lambda t: {k: t[k] for k in t if k != Q_A}, r"tensor .*lora_A\.weight is missing"),
    (None, lambda t: t | {Q_A: t[Q_A][:, :-1].copy()}, r"has shape \[3, 15\] .* \[3, 16\]"),
    (None, lambda t: t | {Q_A: t[Q_A].astype(np.float64)}, r"dtype F64, where"),
    (None, lambda t: t | {Q_A: t[Q_A] * np.float32("nan")}, r"lora_A\.weight is not finite"),
    ({"lora_alpha": 1e40}, None, r"is not finite, or too large at a scale of"),
    (None, lambda t: t | {Q_A.replace("q_p", "x_p"): t[Q_A]}, r"x_proj.* has no place .*did you"),
    (None, lambda t: t | {Q_A.replace("s.1", "s.0"): t[Q_A]}, r"of layer 0, .*trunk_layers = 1"),
    (None, lambda t: t, r"is for another base: its SHA-256 is 5555"),
  ],
)  # fmt: skip
def test_what_cannot_be_represented_is_refused_by_name(told, tensors, sentence, tmp_path):
  c, _, params = start()
  with pytest.raises(InputError, match=sentence):
    hash_ = "4" * 64 if sentence.startswith("is for another") else None
    hf.load_adapter(edited(tmp_path, told, tensors), c, hf.adapter_of(c, params, 0), hash_)


def test_ranks_and_alphas_may_differ_by_module(tmp_path):
  c, _, params = start()
  old = hf.adapter_of(c, params, 0)
  golden = json.loads((GOLDEN / PEFT / adapters.CONFIG).read_text())
  # The first expression that matches the end of a name counts: q twice as strong, v as it was.
  alpha = {"self_attn.q_proj": 2 * golden["lora_alpha"], "[qv]_proj": golden["lora_alpha"]}
  plain = hf.load_adapter(GOLDEN / PEFT, c, old, None).layers
  found = hf.load_adapter(edited(tmp_path, {"alpha_pattern": alpha}), c, old, None).layers
  for name, factor in (("q", 2), ("v", 1), ("up", 1)):
    np.testing.assert_array_equal(found[name]["a"], plain[name]["a"])
    np.testing.assert_allclose(found[name]["b"], factor * plain[name]["b"], rtol=1e-6)
  # One column less in q, whose product is then divided by the root of 2 and not by that of 3.
  first = lambda key, x: x[:2] if "lora_A" in key else x[:, :2].copy()
  less = lambda t: t | {key: first(key, x) for key, x in t.items() if "q_proj" in key}
  told = {"rank_pattern": {"q_proj": 2}}
  cut = hf.load_adapter(edited(tmp_path / "cut", told, less), c, old, None).layers["q"]
  np.testing.assert_allclose(cut["b"][:, :2], 1.5**0.5 * plain["q"]["b"][:, :2], rtol=1e-6)
  assert not cut["b"][:, 2:].any()


@pytest.mark.parametrize(
  "told",
  [
    {"target_modules": [f"model.layers.1.self_attn.{x}_proj" for x in "qkvo"] + ["gate_proj"]
     + ["mlp.up_proj", "mlp.down_proj"]},
    {"target_modules": "all-linear", "layers_to_transform": None},
    {"target_modules": None, "layers_to_transform": 1},
    {"exclude_modules": ["lm_head", "layers.0.mlp.up_proj"]},
  ],
)  # fmt: skip
def test_a_config_that_names_its_modules_otherwise(told, tmp_path):
  c, _, params = start()
  old = hf.adapter_of(c, params, 0)
  got, want = (hf.load_adapter(f, c, old, None) for f in (edited(tmp_path, told), GOLDEN / PEFT))
  jax.tree.map(np.testing.assert_array_equal, got.layers, want.layers)


def test_a_projection_may_be_left_out_of_those_that_are_named(tmp_path):
  c, _, params = start()
  old = hf.adapter_of(c, params, 0)
  without = lambda tensors: {key: x for key, x in tensors.items() if "k_proj" not in key}
  folder = edited(tmp_path, {"exclude_modules": ["k_proj"]}, without)
  found, golden = (hf.load_adapter(f, c, old, None).layers for f in (folder, GOLDEN / PEFT))
  np.testing.assert_array_equal(found["q"]["b"], golden["q"]["b"])
  assert golden["k"]["b"].any() and not found["k"]["b"].any()


def test_projections_without_a_place_and_broken_files(tmp_path):
  c, _, params = start(experts__projections=("q", "v"))
  with pytest.raises(InputError, match=r"adapts \w+, and config\.experts\.projections = "):
    hf.load_adapter(GOLDEN / PEFT, c, hf.adapter_of(c, params, 0), None)
  folder = edited(tmp_path)
  weights = folder / adapters.WEIGHTS
  weights.write_bytes(weights.read_bytes()[:-9])
  old = hf.adapter_of(c, params, 0)
  with pytest.raises(InputError, match="is no whole safetensors file"):
    hf.load_adapter(folder, c, old, None)
  weights.unlink()
  with pytest.raises(InputError, match=r"is missing$"):
    hf.load_adapter(folder, c, old, None)
  (folder / adapters.CONFIG).write_text("[")
  with pytest.raises(InputError, match="cannot be read as JSON"):
    hf.load_adapter(folder, c, old, None)
  with pytest.raises(InputError, match="holds no adapter_config"):
    hf.load_adapter(tmp_path / "none", c, old, None)


@pytest.mark.parametrize(
  ("changes", "expert", "sentence"),
  [
    ({"bottleneck__kind": "gaussian"}, 0, r"bottleneck\.kind = 'gaussian': an adapter cannot"),
    ({"combine": "concat"}, 0, r"config\.combine = 'concat' has a head of its own"),
    ({}, 3, r"there is no expert 3; experts are 0\.\.2, and invariant"),
    ({"experts__invariant": False}, "invariant", r"no expert invariant; experts are 0\.\.2"),
  ],
)  # fmt: skip
def test_what_an_adapter_cannot_express_is_refused_by_name(changes, expert, sentence):
  c, _, _ = start()
  flat = {"bottleneck__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0} | changes
  c = tiny(**flat)
  params = sharding.unbox(compose.build(c, 32).init(jax.random.key(0)))
  with pytest.raises(InputError, match=sentence):
    hf.exportable(c, params, expert)


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
  c, _, params = start()
  out = tmp_path / "out"
  save = lambda: hf.save_adapter(hf.exportable(c, params, 0), c, out, base_sha256="", base_name="")

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(adapters, "save_file", full)
  with pytest.raises(InputError, match=f"cannot write {out}: No space left on device"):
    save()
  assert not list(tmp_path.iterdir())
  monkeypatch.undo()
  save()
  assert {path.name for path in out.iterdir()} == {adapters.CONFIG, adapters.WEIGHTS}
  with pytest.raises(InputError, match="exists already"):
    save()
  assert EXPECTED not in {path.name for path in out.iterdir()}
