"""Counted operations are those of the formula, loops with their trips."""

import types

import jax
import jax.numpy as jnp
import pytest
from conftest import jitted, make_batch, tiny

from iclm.audit import flops


def test_products_by_hand():
  x, w = jnp.ones((5, 3)), jnp.ones((3, 7))
  assert flops.of(lambda: x @ w) == 2 * 5 * 3 * 7
  # Two batches of (5, 3) x (3, 7).
  assert flops.of(
    lambda: jnp.einsum("bij,bjk->bik", x[None].repeat(2, 0), w[None].repeat(2, 0))
  ) == (2 * 2 * 5 * 3 * 7)


def test_loops_count_with_their_trips():
  w = jnp.ones((4, 4))
  step = lambda x, _: (x @ w, None)
  twelve = lambda x: jax.lax.scan(step, x, None, length=12)[0]
  assert flops.of(twelve, w) == 12 * 2 * 4**3
  # Backward: with respect to x alone, one more product per step.
  assert flops.of(jax.grad(lambda x: twelve(x).sum()), w) == 24 * 2 * 4**3
  assert flops.of(jax.checkpoint(twelve), w) == 12 * 2 * 4**3
  branch = lambda x: jax.lax.cond(x.sum() > 0, lambda y: y @ w, lambda y: y, x)
  assert flops.of(branch, w) == 2 * 4**3
  endless = lambda x: jax.lax.while_loop(lambda y: y.sum() > 0, lambda y: y @ w, x)
  with pytest.raises(ValueError, match="trips are not known"):
    flops.of(endless, w)


def test_a_forward_pass_of_the_base_is_the_formula():
  c = tiny(experts__kind="none", loss__beta=0.0, loss__dependence=0.0)
  m, batch = c.model, make_batch(0, 8, 20)
  model = jitted(c)
  params = jax.eval_shape(model.init, jax.random.key(0))
  vocab = params["base"]["embedding"].shape[0]
  d, inner, kv = m.d_model, m.heads * m.head_size, m.kv_heads * m.head_size
  per_layer = d * (2 * inner + 2 * kv) + 3 * d * m.d_ff
  attention = 2 * inner * 20  # Scores and mixture, over all 20 keys: the mask is no saving.
  expected = 2 * 8 * 20 * (m.layers * (per_layer + attention) + d * vocab)
  assert flops.of(model.apply, params, batch) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name, products", [("fwd_wrapper", 2), ("bwd_wrapper", 4)])
def test_attention_in_one_kernel_by_hand(name, products):
  """cuDNN's cannot be traced without a GPU: an equation as it has them."""
  var = lambda *shape: types.SimpleNamespace(aval=types.SimpleNamespace(shape=shape))
  equation = lambda mask: types.SimpleNamespace(
    primitive=types.SimpleNamespace(name=f"dot_product_attention_{name}"),
    invars=[var(2, 5, 4, 8), var(2, 7, 2, 8), var(2, 7, 2, 8)],
    params={"mask_type": mask},
  )
  # Four heads of queries, 5 tokens on 7: of width 8, in each of two rows.
  whole = products * 2 * (2 * 4 * 5 * 7 * 8)
  assert flops._of_equation(equation("MaskType.NO_MASK")) == whole
  assert flops._of_equation(equation("MaskType.CAUSAL")) == whole / 2
