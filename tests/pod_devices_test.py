"""Steps on eight virtual devices: what each holds, and what it computes."""

import pytest
from conftest import on_eight_devices

# Gathers of what is shaped like a matrix of the base, of one layer or of all, in whatever order.
GATHERS = """
import json
import jax
from conftest import tiny
from iclm import axes, sharding
from iclm.audit import collectives, hlo, pod

form = lambda dims: tuple(sorted(d for d in dims if d > 1))
found = []
for sizes, fsdp in (((8, 1, 1), 0), ((2, 4, 1), 0), ((2, 2, 2), 0), ((8, 1, 1), 1)):
  mesh = {f"mesh__{name}": size for name, size in zip(axes.MESH, sizes)}
  c = tiny(experts__count=4, model__kv_heads=2, fsdp=bool(fsdp), **mesh)
  s = pod.abstract_step(c, sharding.make_mesh(c.mesh))
  matrices = [x.shape for x in jax.tree.leaves(s.state.params["base"]) if x.ndim > 1]
  matrices += [shape[1:] for shape in matrices if len(shape) == 3]
  program = hlo.parse(pod.compiled(pod.traced(s)).as_text())
  gathers = {form(dims) for _, dims in collectives.gathered(program)}
  found.append(sorted(gathers & set(map(form, matrices))))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_no_weight_of_the_base_is_gathered_unless_it_is_split():
  *whole, split = on_eight_devices(GATHERS)
  assert whole == [[], [], []]
  # The control: under fsdp each layer's (16, 16) and (16, 24) are, when it is their turn.
  assert [16, 16] in split and [16, 24] in split


COUNTED = """
import json
from configs import bench as sizes
from experiments import bench
from iclm import config

bench.MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2))
c = config.from_config_dict(sizes.get_config("S"))
print(json.dumps(bench.devices(c, [2, 4], 1)[1]["flops_per_device"]))
"""


@pytest.mark.slow
def test_eight_devices_share_the_work_of_one():
  found = on_eight_devices(COUNTED)
  assert found["1,1,1"] == pytest.approx(1, rel=0.001)  # As the jaxpr is counted.
  assert 1 / 8 <= found["8,1,1"] < 0.13 and 1 / 8 <= found["2,2,2"] <= 0.14
