"""What compiled programs send and compute is what stands on paper, loops with their trips."""

import pytest
from conftest import on_eight_devices

from iclm.audit import collectives, hlo, work

PROGRAMS = """
import functools, json
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from iclm.audit import collectives, hlo, work

mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

def mapped(inside, out):
  return jax.shard_map(inside, mesh=mesh, in_specs=P("a", "b"), out_specs=out, check_vma=False)

def again(once, n):
  return lambda x: jax.lax.scan(lambda y, _: (once(y), None), x, None, length=n)[0]

def twice_and_sum(x):
  # Two loops, one in the other: 3 * 5 sums.
  return again(again(lambda y: jax.lax.psum(y, "a") * 0.25, 5), 3)(x)

swap = [(i, (i + 1) % 4) for i in range(4)]
cases = {
  "psums": mapped(again(lambda x: jax.lax.psum(x, "a") * 0.25, 5), P("a", "b")),
  "nested": mapped(twice_and_sum, P("a", "b")),
  "gather": mapped(lambda x: jax.lax.all_gather(x, ("a", "b"), tiled=True), P()),
  "scatter": mapped(lambda x: jax.lax.psum_scatter(x, "b", tiled=True), P(("a", "b"))),
  "transpose": mapped(lambda x: jax.lax.all_to_all(x, "a", 1, 0, tiled=True), P("a", "b")),
  "shift": mapped(again(lambda x: jax.lax.ppermute(x, "a", swap), 7), P("a", "b")),
  "product": mapped(again(lambda x: x @ x.T @ x, 6), P("a", "b")),
  "branch": mapped(lambda x: jax.lax.cond(
    x[0, 0] > 0, lambda y: jax.lax.psum(y, "a"), lambda y: y, x), P("a", "b")),
}
found = {}
for name, f in cases.items():
  program = hlo.parse(jax.jit(f).lower(jnp.ones((32, 16))).compile().as_text())
  sent = {k: v for k, v in collectives.bytes_by_kind(program).items() if v}
  gathers = [[*dims, n] for (_, dims), n in collectives.gathered(program).items()]
  found[name] = [sent, work.flops(program), gathers]
print(json.dumps(found))
"""

PART = 8 * 8 * 4  # Bytes of a device's part: (32, 16) over (4, 2), float32.


def test_what_is_sent_on_eight_devices_by_hand():
  found = on_eight_devices(PROGRAMS)
  sent = {name: f[0] for name, f in found.items()}
  # Five sums over the four devices of axis a: 2 * 3/4 of the part each.
  assert sent["psums"] == {"all-reduce": 5 * 1.5 * PART}
  assert sent["nested"] == {"all-reduce": 15 * 1.5 * PART}
  # Each device sends its part to the seven others.
  assert sent["gather"] == {"all-gather": 7 * PART} and found["gather"][2] == [[64, 8, 1]]
  assert sent["scatter"] == {"reduce-scatter": PART / 2}
  assert sent["transpose"] == {"all-to-all": 0.75 * PART}
  assert sent["shift"] == {"collective-permute": 7 * PART}
  # The dearest branch.
  assert sent["branch"] == {"all-reduce": 1.5 * PART}
  # Six times two products of 8 x 8 matrices.
  assert sent["product"] == {} and found["product"][1] == 6 * 2 * 2 * 8**3


@pytest.mark.parametrize(
  ("groups", "n"),
  [
    ("replica_groups={{0,2},{1,3}}, x", 2),
    ("replica_groups=[2,4]<=[8], x", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", 2),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, x", 2),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=8], device_ids=([8,2]T(1,0)) {'axis_1'}, x", 8),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, x", 8),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)4}, x", 4),
    ("replica_groups={}, x", 16),
  ],
)
def test_groups_are_read_in_each_of_their_spellings(groups, n):
  assert collectives.group_size(groups, 16) == n


# As libtpu writes it: no trips noted, a gather woven through a chain of fusions, tuples with
# comments, a space of fast memory S(1), and products as convolutions.
TPU = """HloModule jit_f, is_scheduled=true, num_partitions=4

%start (p.0: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %p.0 = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[4,8]{1,0} all-gather(%p.0), channel_id=3, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.1 = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[1,8], p.2: bf16[4,8]) -> bf16[4,8] {
  %p.1 = bf16[1,8]{1,0} parameter(0)
  %p.2 = bf16[4,8]{1,0} parameter(1)
  %all-gather.2 = bf16[4,8]{1,0} all-gather(%p.1), channel_id=3, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.2 = bf16[4,8]{1,0} custom-call(%p.1, %p.2, %all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%sliced (p.3: f32[16,4,8], p.4: s32[]) -> f32[4,8] {
  %p.4 = s32[]{:T(128)} parameter(1)
  %p.3 = f32[16,4,8]{2,1,0} parameter(0)
  %constant.1 = s32[] constant(0)
  %dynamic-slice.1 = f32[1,4,8]{2,1,0} dynamic-slice(%p.3, %p.4, %constant.1, %constant.1), dynamic_slice_sizes={1,4,8}
  ROOT %bitcast.1 = f32[4,8]{1,0} bitcast(%dynamic-slice.1)
}

%body (w.0: (s32[], bf16[1,8], f32[16,4,8], s32[])) -> (s32[], bf16[1,8], f32[16,4,8], s32[]) {
  %w.0 = (s32[]{:T(128)}, bf16[1,8]{1,0}, f32[16,4,8]{2,1,0}, /*index=3*/s32[]) parameter(0)
  %g.0 = s32[] get-tuple-element(%w.0), index=0
  %g.1 = bf16[1,8]{1,0} get-tuple-element(%w.0), index=1
  %g.2 = f32[16,4,8]{2,1,0} get-tuple-element(%w.0), index=2
  %g.3 = s32[] get-tuple-element(%w.0), index=3
  %f.0 = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) fusion(%g.1), kind=kCustom, calls=%start
  %f.1 = bf16[1,8]{1,0} get-tuple-element(%f.0), index=0
  %f.2 = bf16[4,8]{1,0} get-tuple-element(%f.0), index=1
  %f.3 = bf16[4,8]{1,0} fusion(%f.1, %f.2), kind=kCustom, calls=%done
  %f.4 = f32[4,8]{1,0} fusion(%g.2, %g.0), kind=kLoop, calls=%sliced
  %convolution.1 = f32[4,4]{1,0:T(8,128)S(1)} convolution(%f.4, %f.3), dim_labels=bf_oi->bf
  %by = s32[] constant(STEP)
  %next = s32[] add(%g.0, %by)
  ROOT %tuple.1 = (s32[], bf16[1,8]{1,0}, f32[16,4,8]{2,1,0}, /*index=3*/s32[]) tuple(%next, %g.1, %g.2, %g.3)
}

%condition (w.1: (s32[], bf16[1,8], f32[16,4,8], s32[])) -> pred[] {
  %w.1 = (s32[], bf16[1,8]{1,0}, f32[16,4,8]{2,1,0}, /*index=3*/s32[]) parameter(0)
  %c.0 = s32[] get-tuple-element(%w.1), index=0
  %c.1 = s32[] LIMIT
  ROOT %lt.1 = pred[] compare(%c.0, %c.1), direction=LT
}

ENTRY %main (a.0: bf16[1,8], a.1: f32[16,4,8]) -> (s32[], bf16[1,8], f32[16,4,8], s32[]) {
  %a.0 = bf16[1,8]{1,0} parameter(0)
  %a.1 = f32[16,4,8]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %many = s32[] constant(16)
  %tuple.2 = (s32[], bf16[1,8]{1,0}, f32[16,4,8]{2,1,0}, /*index=3*/s32[]) tuple(%zero, %a.0, %a.1, %many)
  ROOT %while.1 = (s32[], bf16[1,8]{1,0}, f32[16,4,8]{2,1,0}, /*index=3*/s32[]) while(%tuple.2), condition=%condition, body=%body
}
"""  # noqa: E501


@pytest.mark.parametrize("limit", ["constant(16)", "get-tuple-element(%w.1), index=3"])
@pytest.mark.parametrize(("step", "n"), [(1, 16), (3, 6)])
def test_a_program_of_libtpu_by_hand(limit, step, n):
  program = hlo.parse(TPU.replace("LIMIT", limit).replace("STEP", str(step)))
  assert program.n_partitions == 4
  # One gather per trip, wherever its chain names it: 8 values of 2 bytes to three others.
  assert collectives.bytes_by_kind(program)["all-gather"] == n * 3 * 16
  assert collectives.gathered(program) == {("bf16", (4, 8)): n}
  # (4, 8) by (8, 4), 16 times.
  assert work.flops(program) == n * 2 * 4 * 8 * 4
  # Per trip: a slice of 32 values read and written, both operands of the product read (its result
  # lies in fast memory), the index of the slice, and what leaves the chain is the collective's;
  # the counter, a constant to add to it, and their sum.
  assert work.memory_bytes(program) == n * (2 * 32 * 4 + 32 * 4 + 32 * 2 + 4 + 3 * 4)


def test_padding_of_a_convolution_is_no_work():
  # One input value, a kernel of three, padding of one on both sides: one of three taps meets it.
  line = (
    "%c = f32[1,1,1]{2,1,0} convolution(%x, %k), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf"
  )
  text = "\n".join((
    "HloModule m", "ENTRY %main (x: f32[1,1,1], k: f32[3,1,1]) -> f32[1,1,1] {",
    "  %x = f32[1,1,1] parameter(0)", "  %k = f32[3,1,1] parameter(1)", f"  ROOT {line}", "}",
  ))  # fmt: skip
  assert work.flops(hlo.parse(text)) == 2
  dilated = text.replace("f32[1,1,1]{2", "f32[5,1,1]{2").replace(
    "size=3 pad=1_1", "size=3 pad=3_3 lhs_dilate=2"
  )
  # Five outputs, at each the three taps that may meet the single value: one each for outputs 1..3.
  assert work.flops(hlo.parse(dilated)) == 2 * 3


def test_a_loop_without_trips_is_an_error_where_it_costs_something():
  endless = TPU.replace("LIMIT", "get-tuple-element(%w.1), index=0").replace(
    "constant(0)", "tuple()"
  )
  with pytest.raises(ValueError, match=r"trips of while\.1"):
    work.flops(hlo.parse(endless))
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.parse("HloModule nothing")
