"""Experts are independent draws, and a gathered one is felt by its own rows only."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny

from iclm import experts, sharding


def stacked(count=3):
  expert = experts.make(tiny(), n_layers=2)
  return jax.jit(lambda k: sharding.unbox(experts.stack(expert.init, k, count, False)))(
    jax.random.key(0)
  )


def test_stacked_experts_differ_and_start_silent():
  params = stacked()
  a_ELDR = params["adapter"]["q"]["a"]
  assert len(np.unique(a_ELDR.reshape(3, -1), axis=0)) == 3
  assert not params["adapter"]["q"]["b"].any()  # B starts at zero, and so does W.
  assert not params["message"]["out"].any()


def test_rows_have_their_expert_or_nothing():
  expert = experts.make(tiny(), n_layers=2)
  params = jax.tree.map(lambda x: x + 1, stacked())
  rows = expert.rows([params], jnp.array([2, -1]))
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y[2]), jax.tree.map(lambda x: x[0], rows), params
  )
  assert not any(x[1].any() for x in jax.tree.leaves(rows))
