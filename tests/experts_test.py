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


def test_gather_picks_and_its_gradient_goes_back_to_the_picked():
  params = {"w": jnp.arange(6.0).reshape(3, 2)}
  index_B = jnp.array([2, 0, 2])
  np.testing.assert_array_equal(experts.gather(params, index_B)["w"], [[4, 5], [0, 1], [4, 5]])
  loss = lambda p: experts.gather(p, index_B)["w"].sum()
  np.testing.assert_array_equal(jax.grad(loss)(params)["w"], [[1, 1], [0, 0], [2, 2]])


def test_repeat_serves_every_row_alike():
  got = experts.repeat({"w": jnp.array([1.0, 2.0])}, 3)["w"]
  np.testing.assert_array_equal(got, [[1, 2]] * 3)
