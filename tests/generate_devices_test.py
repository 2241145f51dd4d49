"""On eight devices the same text comes out as on one, and it is that of the whole sequence."""

import pytest
from conftest import on_eight_devices

pytestmark = pytest.mark.slow

MESHES = """
import dataclasses, json, sys
sys.path.insert(0, "tests")
import jax, numpy as np
import generate_cache_test as c, generate_test as g
from iclm import compose, sharding

def error(made):
  # Of logits: from a cache on the mesh, against the whole sequence on one device.
  prompts, whole, n_B = c.ragged(n_rows=8)
  rows_B, apply = np.arange(8), jax.jit(made.model.apply)
  place = lambda batch: sharding.put_batch(jax.tree.map(np.asarray, batch), made.mesh)
  right_BTV = np.asarray(made.apply(made.params, whole).logits_BTV)
  output = apply(made.placed, place(prompts), cache=compose.empty_cache(8, c.T))
  errors = [np.asarray(output.logits_BTV)[rows_B, n_B - 1] - right_BTV[rows_B, n_B - 1]]
  for i in range(2):
    output = apply(made.placed, place(c.tokens_at(whole, n_B + i, 1)), cache=output.cache)
    errors.append(np.asarray(output.logits_BTV)[:, 0] - right_BTV[rows_B, n_B + i])
  return float(np.abs(errors).max())

found = {}
for sizes in ((1, 1, 1), (8, 1, 1), (2, 2, 2)):
  mesh = dict(zip(("mesh__data", "mesh__expert", "mesh__model"), sizes))
  made = g.Made(batch_size=8, experts__count=4, model__kv_heads=2, router__kind="random", **mesh)
  answers = made(g.PROMPTS)
  drawn = made(g.PROMPTS, temperature=1.0, seed=3)
  made(g.PROMPTS, max_tokens=9, route=2)
  read, say = made.generator.decoding
  found[str(sizes)] = {
    "tokens": [a.tokens for a in answers],
    "drawn": [a.tokens for a in drawn],
    "experts": [a.expert for a in answers],
    "clear": [made.check(p, a) for p, a in zip(g.PROMPTS, answers)],
    "compiled": [read._cache_size(), say._cache_size()],
    "error": error(made),
    "devices": made.mesh.size,
  }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
  return on_eight_devices(MESHES)


def test_eight_devices_say_what_one_says(found):
  one = found["(1, 1, 1)"]
  assert len(set(one["experts"])) > 1
  n_tokens = sum(map(len, one["tokens"]))
  for run in found.values():  # `check` has compared each token with the whole sequence's.
    assert run["experts"] == one["experts"]
    # Where no margin is below 1e-4.
    assert sum(run["clear"]) == n_tokens and run["tokens"] == one["tokens"]
    assert run["drawn"] == one["drawn"]
    assert run["error"] < 1e-4


def test_the_number_of_programs_is_bounded_on_any_mesh(found):
  for sizes, run in found.items():
    # Two buckets of prompts; what `read` gives and what `say` gives may lie differently.
    assert run["compiled"][0] == 2 and run["compiled"][1] <= 4
    assert run["devices"] == (1 if sizes == "(1, 1, 1)" else 8)
