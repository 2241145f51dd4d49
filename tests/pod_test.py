"""Steps for slices that are not there: what each device would hold, compute and send."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from conftest import tiny
from ml_collections import config_dict

from configs import bench as sizes
from configs import llama2_7b
from experiments import compile as command
from iclm import config, sharding
from iclm.audit import chips, formula, pod
from iclm.config import InputError

ROOT = pathlib.Path(__file__).parents[1]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU: the extra [tpu]"
)


TERMS = "beta", "dependence", "balance", "zloss"
PLAIN = {"experts.kind": "none", "trains.base": True} | {f"loss.{name}": 0.0 for name in TERMS}


@pytest.mark.parametrize(
  "change",
  [
    {},
    {"model.remat": "light"},
    {"model.remat": "full"},
    {"trains.base": True, "model.remat": "full"},
    {"trains.base": True, "trains.lower": False, "model.trunk_layers": 2},
    {"compute": "all"},
    {"router.kind": "soft"},
    {"compute": "all", "router.kind": "soft", "experts.count": 8},
    {"compute": "all", "router.gradient": "all", "experts.count": 8},
    {"trains.domain": False, "experts.invariant": False, "loss.dependence": 0.0},
    PLAIN | {"combine": "concat"},
    PLAIN | {"compute": "all", "experts.count": 8},
    {"experts.kind": "full", "trains.base": True, "model.remat": "full"},
    {"experts.kind": "full", "model.remat": "light"},
    {"model.trunk_layers": 2, "loss.aux": 0.1},
    {"combine": "logits", "router.cached": True},
    {"combine": "logits", "router.reads": "base", "router.detach": False, "trains.base": True},
    {"combine": "logits", "router.reads": "base", "router.detach": True, "trains.base": True},
    {"combine": "logits", "loss.aux": 0.1},
    {"combine": "concat", "loss.aux": 0.1},
    {"trains.domain": False, "trains.invariant": False},
    {"trains.domain": False, "trains.invariant": False, "trains.base": True},
    {"trains.domain": False, "trains.invariant": False, "experts.kind": "full"},
    {"trains.domain": False, "trains.invariant": False, "router.kind": "soft"},
    {"bottleneck.kind": "none", "loss.beta": 0.0, "loss.dependence": 0.0},
  ],
)
def test_the_formula_of_a_step_is_what_its_jaxpr_counts(change):
  c = sizes.get_config("S")
  c.update_from_flattened_dict(change)
  c = config.from_config_dict(c)
  found = pod.abstract_step(c, sharding.make_mesh(c.mesh))
  counted = pod.flops_per_device(found, pod.traced(found))
  assert counted["formula"] == pytest.approx(counted["jaxpr"], rel=0.02)


def test_what_stands_still_is_no_trained_weight():
  def bytes_of(**changes):
    c = sizes.get_config("S")
    c.update_from_flattened_dict(changes)
    c = config.from_config_dict(c)
    found = pod.argument_bytes(pod.abstract_step(c, sharding.make_mesh(c.mesh)))
    return found["weights, trained"], found["weights, frozen"]

  whole = {"trains.base": True, "model.trunk_layers": 2}
  (every, none), (upper, lower) = bytes_of(**whole), bytes_of(**whole, **{"trains.lower": False})
  # Two of four layers and the embedding; a norm is 256 numbers.
  layer = 4 * 256**2 + 3 * 256 * 688 + 2 * 256
  assert none == 0 and lower == 4 * (2 * layer + 512 * 256) and upper + lower == every
  (four, _), (one, still) = bytes_of(), bytes_of(**{"trains.only_experts": (0,)})
  # Of four experts one moves.
  c = config.from_config_dict(sizes.get_config("S"))
  domain = pod.abstract_step(c, sharding.make_mesh(c.mesh)).state.params["domain"]
  size = sum(4 * x.size for x in jax.tree.leaves(domain))
  assert four - one == size * (c.experts.count - 1) // c.experts.count and still >= four - one


def test_seven_billion_parameters_by_hand():
  c = config.from_config_dict(llama2_7b.get_config())
  layer = 4 * 4096**2 + 3 * 4096 * 11008
  attention = 4 * 4096 * 2048
  down = 4096 * 11008
  # Sixteen layers of trunk and sixteen of base forward; in two streams forward, again all but the
  # last product, and back to the states; seven adapters of rank 16, eight times. At 64 positions
  # the head forward and back, and three products of the message in two streams, thrice; and of
  # the last layer all but keys and values, which all positions have: the router reads the trunk.
  stream = 2 * layer + attention + (2 * layer - 2 * down + attention) + 2 * layer + 2 * attention
  adapters = 8 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
  base, kv_base = 2 * layer + attention, 2 * 2 * 4096**2
  stream, kv = stream + adapters, 6 * 2 * 4096**2 + 8 * 16 * 2 * 2 * 4096
  per_token = 31 * base + kv_base + 2 * (15 * stream + kv)
  few = base - kv_base + 2 * (stream - kv)
  said = 4 * 4096 * 32_000 + 2 * 18 * 4096 * 64 + few
  assert formula.train_step(c) == 16 * (2048 * per_token + 64 * said)


def asked(**flags):
  given = {"config": sizes.get_config("S"), "topology": "v5e:2x2", "out": "", "search_s": 1.0}
  given["config"].mesh.data = 4
  return command.main(types.SimpleNamespace(**(given | flags)))


@needs_libtpu
def test_topologies_that_libtpu_does_not_know_are_told_with_the_nearest():
  for name, told in (
    ("v5e:3x3", "v5e:3x3'; did you mean 'v5e:2x4'"),
    ("v5p:3x3x3", "did you mean 'v5p:2x4x4'"),
  ):
    with pytest.raises(InputError, match=told):
      asked(topology=name)


def test_topologies_that_cannot_be_had_are_told_with_the_nearest():
  for name, told in (
    ("v5e:4x4x4", "v5e:4x4x4'; did you mean 'v5e:8x8'"),
    ("v5p:4x4", "v5p:4x4'; did you mean 'v5p:2x2x4'"),
    ("v6e:32x32", "v6e:32x32'; did you mean 'v6e:16x16'"),
    ("v5e:0x0", "v5e:0x0'; did you mean 'v5e:2x2'"),
    ("v5e:ax4", "there is no topology 'v5e:ax4'"),
    ("v5e4x4", "did you mean 'v5e:4x4'"),
    ("v9:4x4", "v9:4x4"),
    # As Cloud TPU calls them: of v5p by its cores, two to a chip.
    ("v5litepod-16", "did you mean 'v5e:4x4'"),
    ("v6e-8", "did you mean 'v6e:2x4'"),
    ("v5p-32", "did you mean 'v5p:2x2x4'"),
    ("v5e", "there is no topology"),
  ):
    with pytest.raises(InputError, match=told):
      asked(topology=name)


def test_bad_input_is_told_before_anything_is_compiled(monkeypatch, tmp_path):
  monkeypatch.setattr(pod, "compiled", None)
  with pytest.raises(InputError, match=r"cannot write .*: name a file"):
    asked(out=str(tmp_path))
  c = sizes.get_config("S")
  for change, told in (
    ({"mesh.data": 3}, "config.batch_size = 8 does not divide .*; 9 does"),
    ({"mesh.expert": 8}, "config.experts.count = 4 does not divide .*; 8 does"),
  ):
    other = config_dict.ConfigDict(c.to_dict())
    other.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=told):
      asked(config=other)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"'\.\[tpu\]'"):
    asked()


def test_a_mesh_must_be_all_of_its_slice():
  c = tiny(mesh__data=4, experts__count=4, mesh__expert=2)
  command.check_mesh(c, "v5e:2x4", 8)
  with pytest.raises(
    InputError, match=r"8 devices, but v5e:4x4 has 16; .*\.data = 8 with .*\.batch_size = \d+ fits"
  ):
    command.check_mesh(c, "v5e:4x4", 16)
  with pytest.raises(InputError, match="'data': 9, 'expert': 1"):
    command.check_mesh(c, "v5e:3x3", 9)


def test_the_search_names_the_first_change_that_fits(monkeypatch):
  single = [
    {"model.remat": "light"}, {"model.remat": "full"}, {"accumulate": 2}, {"accumulate": 4},
    {"fsdp": True},
  ]  # fmt: skip
  mesh = {"mesh.data": 1, "mesh.model": 2}
  together = {"model.remat": "full", "accumulate": 4, "fsdp": True}
  named = lambda c: [change for change, _ in command.changes(c)]
  c = tiny(mesh__data=2, accumulate=1, batch_size=8, model__kv_heads=2)
  assert named(c) == [*single, mesh, together | mesh]
  c = tiny(mesh__data=2, accumulate=1, batch_size=8)  # One head of keys is not for two devices.
  assert named(c) == [*single, together]
  fits = lambda s: None if s.config.accumulate == 4 else pod.TooLarge("no", None)
  monkeypatch.setattr(pod, "compiled", fits)
  monkeypatch.setattr(pod, "traced", lambda s: s)
  monkeypatch.setattr(pod, "abstract_step", lambda c, mesh: types.SimpleNamespace(config=c))
  monkeypatch.setattr(pod, "argument_bytes", lambda s: {"weights": 1})
  monkeypatch.setattr(sharding, "make_mesh", lambda sizes, devices: None)
  chip = chips.CHIPS["v5e"]
  assert command.search(c, chip, [], 60.0) == {"accumulate": 4}
  monkeypatch.setattr(pod, "argument_bytes", lambda s: {"weights": 2 * chip.hbm_bytes})
  assert command.search(c, chip, [], 60.0) is None
  assert command.search(c, chip, [], -1.0) is None


def test_bytes_that_the_compiler_names_are_read(monkeypatch):
  words = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(36.19G) exceeds available HBM (15.75G).": 36.19 * 2**30,
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded "
    "hbm capacity by 4.75G.": 20.5 * 2**30,
    "RESOURCE_EXHAUSTED: no room": None,
  }
  for told, nbytes in words.items():
    assert pod.too_large(told) == pod.TooLarge(told, nbytes)


def test_a_program_that_cannot_be_read_leaves_its_bytes(capsys):
  class Unread:
    memory_analysis = staticmethod(
      lambda: jax.jit(lambda x: x).lower(1.0).compile().memory_analysis()
    )

    @staticmethod
    def as_text():
      raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction\nmore")

  c, chip = tiny(), chips.CHIPS["v6e"]
  found = pod.abstract_step(c, sharding.make_mesh(c.mesh))
  told = pod.report(found, pod.traced(found), Unread, chip)
  assert told["unread"] == "INTERNAL: async-update instruction" and told["fits"]
  assert set(told["flops"]) == {"formula", "jaxpr"} and told["bytes"]["weights, trained"] > 0
  command.show(told, chip)
  assert "cannot read the program of this chip: INTERNAL" in " ".join(
    capsys.readouterr().out.split()
  )


@needs_libtpu
def test_a_small_step_is_compiled_for_a_slice(tmp_path):
  out, argv = tmp_path / "out.json", [
    "--config=configs/bench.py:S", "--topology=v5e:2x2", "--config.mesh.data=4",
    "--config.model.layers=2", "--config.model.d_model=128", "--config.model.d_ff=256",
    "--config.data.seq_len=64", "--config.loss.dependence=0.0",
  ]  # fmt: skip
  line = [sys.executable, "-m", "experiments.compile", *argv, f"--out={out}"]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  told = json.loads(out.read_text())
  assert told["fits"] and told["devices"] == 4 and "not measured" in done.stdout
  counted = told["flops"]
  assert counted["hlo"] == pytest.approx(counted["jaxpr"], rel=0.02)
  assert counted["formula"] == pytest.approx(counted["jaxpr"], rel=0.02)
  assert told["collective_bytes"]["all-reduce"] > 0  # The adapters' gradients.
  assert told["bytes"]["total"] < 2**30 < told["hbm_bytes"]
  # Two moments of all that is trained, in float32.
  trained, moments = told["bytes"]["weights, trained"], told["bytes"]["optimizer"]
  assert moments == pytest.approx(2 * trained, rel=0.01)
  assert max(told["roofline_s"].values()) == told["roofline_s"]["step"] > 0
