"""The benchmark's cases: what they count is the formula, and what they time is what they say."""

import dataclasses
import functools
import json
import types

import jax
import pytest

from configs import bench as sizes
from experiments import bench, cases
from iclm import compose, config, optim, sharding, step
from iclm.audit import chips, flops, formula
from iclm.config import InputError
from iclm.nn import block


@pytest.fixture(scope="module")
def small() -> config.Config:
  c = sizes.get_config("S")
  c.model.update(layers=2, d_model=32, heads=2, kv_heads=2, head_size=16, d_ff=48)
  c.data.update(seq_len=16)
  c.data.tokenizer.vocab_size = 32
  c.experts.rank = 2
  return config.from_config_dict(c)


@pytest.fixture
def untimed(monkeypatch):
  """Cases that are neither compiled nor run: operations are counted before that."""
  memory = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(
    argument_size_in_bytes=1, temp_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0
  ))  # fmt: skip

  def compile_again(case):
    case.run = memory
    case.compile_s.append(0.5)

  def time_in_turns(found, warmup, repeats):
    for i, case in enumerate(found):
      case.step_s += [i + 1.0] * repeats

  monkeypatch.setattr(cases.Case, "compile_again", compile_again)
  monkeypatch.setattr(cases, "time_in_turns", time_in_turns)


@pytest.mark.slow
def test_figures_stand_beside_their_cases(small, untimed):
  found, figures = bench.train(small, [2, 6], 2)
  by_name = {case.name: case for case in found}
  assert list(by_name) == [
    "routed/2", "routed/6", "all/2", "all/6", "routed/2/half_trunk", "plain_lora_2B_and_forward_B",
    "routed/2/combine_logits", "routed/2/combine_logits/kept_prompts",
  ]  # fmt: skip
  assert all(len(case.step_s) == 2 for case in found)
  assert 1 <= figures["growth_6_over_2"]["flops"] <= 1.02
  floor = figures["over_all_k"]["6"]
  # The fourth case took 4 s and the second one 2 s.
  assert floor["time"] == 2.0 and floor["flop_floor"] == 3.0 and floor["of_floor"] == 2.0 / 3.0
  over = figures["over_plain_lora"]
  assert {n: of["time"] for n, of in over.items()} == {"2": 1 / 6, "6": 2 / 6}
  assert figures["over_plain_lora_half_trunk"]["time"] == 5 / 6
  assert figures["kept_prompts"]["time"] == 8 / 7 and figures["kept_prompts"]["flops"] < 1
  assert json.dumps({case.name: case.told() for case in found})


def test_the_share_of_the_peak_is_of_what_the_model_needs(small, untimed, monkeypatch):
  monkeypatch.setattr(chips, "peak_flops", lambda kind: 1e6)
  found, figures = bench.mfu(small, [2, 6], 2)
  names = ["routed/2", "routed/6", "routed/2/half_trunk", "plain_lora_2B_and_forward_B"]
  assert [case.name for case in found] == list(figures["mfu"]) == names
  assert figures["growth_6_over_2"]["time"] == 2
  assert figures["over_plain_lora"]["6"]["time"] == 2 / 4
  # What is computed again does not count, nor half of the pairs of tokens. Attention in a base of
  # two layers and, forward and back, in one layer of two streams (in the other 4 tokens see all):
  # 8 times two products of 16 tokens.
  attention = 8 * 16 * (2 + 2 * 3) * (2 * 2 * 32 * 16)
  needed = formula.train_step(small) - attention / 2
  assert figures["mfu"]["routed/2"] == pytest.approx(needed / 1e6)
  full = cases.vary(small, model={"remat": "full"})
  assert found[0].mfu(full, 1e6) == figures["mfu"]["routed/2"]


def test_peaks_go_by_the_name_of_a_device():
  assert chips.peak_flops("NVIDIA H100 80GB HBM3") == chips.peak_flops("NVIDIA H200") == 989.4e12
  # As the topologies of libtpu call the chips of v5e, v5p and v6e.
  found = [chips.peak_flops(kind) for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite")]
  assert found == [197e12, 459e12, 918e12]
  assert chips.peak_flops("TPU v5e") == 197e12 and chips.peak_flops("cpu") is None
  assert chips.peak_flops("NVIDIA H100 PCIe") is None  # Not that of the other parts.


def test_block_adapters_grow_with_their_number_and_gathered_ones_do_not(small, untimed):
  found, figures = bench.block(small, [2, 8], 2)
  assert [case.name for case in found] == ["gathered/2", "gathered/8", "block/2", "block/8"]
  by_name = {case.name: case.flops for case in found}
  assert by_name["gathered/8"] / by_name["gathered/2"] <= 1.02
  assert figures["growth"]["8_over_2"]["flops"] == by_name["block/8"] / by_name["block/2"] > 1.1
  assert figures["over_gathered"]["8"]["flops"] > figures["over_gathered"]["2"]["flops"]


def counted(**parts) -> float:
  """FLOPs of a train step at size S; nothing is compiled."""
  c = cases.vary(config.from_config_dict(sizes.get_config("S")), **parts)
  model, tx = compose.build(c, c.data.tokenizer.vocab_size), optim.from_config(c)
  state = step.abstract_state(c, model, tx, sharding.make_mesh(c.mesh))
  advance = functools.partial(step.train_step, config=c, model=model, tx=tx)
  return flops.of(advance, state, cases.random_batch(c, c.batch_size), jax.random.key(1))


WEIGHTS, ATTENTION = 4 * 256**2 + 3 * 256 * 688, 2 * 256 * 256  # Of a layer at size S, per token.
# Of the last layer, which 4 of 256 tokens go through: what makes keys and values is for all.
LAST_WEIGHTS, LAST_ATTENTION = 2 * 256**2 + (WEIGHTS - 2 * 256**2) / 64, ATTENTION / 64


def test_the_number_of_experts_is_free():
  two = counted(experts={"count": 2})
  assert counted(experts={"count": 32}) == pytest.approx(two, rel=0.001)
  # A layer of the frozen base, which the router reads to its end, and one of a stream: forward, and
  # back to the states (of attention, to both sides).
  base, stream = 2 * (WEIGHTS + ATTENTION), 4 * WEIGHTS + 6 * ATTENTION
  last = 4 * LAST_WEIGHTS + 6 * LAST_ATTENTION
  of = lambda n: 4 * base + n * (3 * stream + last)
  assert of(33) / of(2) > 12.8  # 2 + 4 * 33 of 2 + 4 * 2 would be 13.4; few positions spare both.
  for n in (2, 32):
    every = counted(experts={"count": n}, compute="all")
    assert every / two == pytest.approx(of(n + 1) / of(2), rel=0.02)
  # Half of the layers once, forward.
  half = counted(experts={"count": 2}, model={"trunk_layers": 2})
  assert half / two == pytest.approx((4 * base + 2 * (stream + last)) / of(2), rel=0.02)
  # A router that reads the frozen base costs that where nothing else does; kept, nothing.
  reading = counted(experts={"count": 2}, combine="logits")
  kept = counted(experts={"count": 2}, combine="logits", router={"cached": True})
  assert kept / reading == pytest.approx(1 - 4 * base / of(2), rel=0.02)


def test_light_computes_attention_again_and_nothing_else():
  light = counted(model={"remat": "light"}) - counted()
  # Scores and mixture of 256 tokens, in both streams of 8 rows and in three layers; of 4 in one.
  assert light == 8 * 2 * (3 * 256 + 4) * (2 * 2 * 256 * 256)


def test_a_plain_lora_step_is_the_formula(small):
  # At width 32 attention and head weigh much: all of it, by hand, per token of one row. The head
  # is there for the 4 tokens of an answer.
  case = cases.plain("plain", small)
  d, f, t, v, r, layers = 32, 48, 16, 32, 2, 2
  weights, head = 4 * d * d + 3 * d * f, d * v * 4 / 16
  attention, adapters = 2 * d * t, 4 * 2 * d * r
  # Forward; backward with respect to states, of attention with respect to both sides, of adapters
  # with respect to states and weights. In the last layer all tokens have keys and values, 4 of 16
  # the rest.
  layer = 2 * weights + 3 * attention + 3 * adapters
  kv = 2 * (2 * d * d) + 3 * (2 * 2 * d * r)
  stream = 2 * (layer + kv + (layer - kv) / 4 + 2 * head)
  expected = 8 * t * (2 * stream + 2 * (layers * (weights + attention) + head))
  assert case.flops == pytest.approx(expected, rel=0.02)


def test_full_experts_compute_what_dense_layers_do():
  full = {"kind": "full", "projections": block.PROJECTIONS}
  found = counted(experts=full | {"count": 2})
  assert counted(experts=full | {"count": 32}) == pytest.approx(found, rel=0.001)
  # Per token, layer and stream: a gradient of every weight in place of adapters of rank 8 at four
  # projections, forward and both ways back.
  weights, adapters = 3 * WEIGHTS + LAST_WEIGHTS, (3 * 4 + 2 + 2 / 64) * 8 * (256 + 256)
  more = 8 * 256 * 2 * (2 * weights - 6 * adapters)
  assert found - counted(experts={"count": 2}) == pytest.approx(more, rel=0.01)


def test_bytes_grow_by_the_adapters(small):
  found, figures = bench.memory(small, [2, 64], 1)
  assert found[0].step_s == [] and len(found) == 2
  of_two = sum(x.nbytes for x in jax.tree.leaves(found[0].state.params["domain"]))
  assert figures["own_bytes"] == 4 * 62 * of_two // 2
  assert 0.98 < figures["growth_over_own"] < 1.02


def test_every_turn_has_all_cases_in_an_order_of_its_own():
  ran = []

  class Case:
    peak_bytes = 1

    def __init__(self, name):
      self.name, self.step_s = name, []

    def once(self):
      ran.append(self.name)
      return 0.0

  found = [Case(i) for i in range(4)]
  cases.time_in_turns(found, 0, 9)  # type: ignore[arg-type]
  turns = [tuple(ran[i : i + 4]) for i in range(0, len(ran), 4)]
  assert len(turns) == 9 and {frozenset(turn) for turn in turns} == {frozenset(range(4))}
  assert len(set(turns)) > 5 and [len(case.step_s) for case in found] == [9] * 4


def test_what_cannot_be_measured_is_said(small, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  with pytest.raises(InputError, match=r"count = 3 does not divide over config\.mesh\.expert = 4"):
    bench.devices(small, [2, 3], 1)
  for given in (["2"], ["0", "2"], ["2", "2"], ["two", "4"]):
    with pytest.raises(InputError, match="--experts="):
      bench._counts(given)
  assert bench._counts(["32", "2", "2"]) == [2, 32]


def test_a_size_for_a_gpu_is_refused_without_one(tmp_path):
  out = str(tmp_path / "out.json")
  given = {"suite": "mfu", "size": "1b", "experts": ["2", "4"], "repeats": 7, "out": out}
  with pytest.raises(InputError, match="kernel = 'cudnn' needs a GPU, and this is a cpu"):
    bench.main(types.SimpleNamespace(**given))


def test_compilations_are_timed(small):
  case = cases.ours("one", dataclasses.replace(small, batch_size=2))
  first = case.run.runtime_executable()
  case.compile_again()
  assert case.run.runtime_executable() is not first  # It was not found in a cache.
  assert len(case.compile_s) == 2 and case.told()["step_s"] is None


def test_answers_are_timed_apart_from_their_prompts(small):
  c = cases.vary(small, data={"seq_len": 40}, batch_size=2)
  found, figures = bench.decode(c, [2, 6], 2)
  assert [case.name for case in found] == [
    f"{name}/{part}"
    for name in (
      "routed/2",
      "routed/6",
      "routed/2/combine_logits",
      "routed/2/half_trunk",
      "plain_base_2B",
    )
    for part in ("prompt", "answer")
  ]
  assert figures["tokens_6_over_2"]["flops"] == pytest.approx(1, rel=0.01)
  # By FLOPs the base and two streams stand against two: 2 / 3, and the adapters.
  assert 0.5 < figures["over_plain_2B"]["2"]["flops"] < 0.67
  # A layer of the trunk once and one above it thrice are two twice.
  assert 0.75 < figures["over_plain_2B_half_trunk"]["flops"] < 1
  _, said_BM = found[1].run(found[1].state, *found[1].args)
  assert said_BM.shape == (2, cases.N_SAID)
