"""Floating-point operations of a function, counted by walking its jaxpr, loops with their trips.

XLA's own `cost_analysis` counts the body of a loop once, so that a model of 16 scanned layers reads
as one of a single layer.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def of(function: Callable, *args: Any) -> float:
  """Returns the operations of all matrix products of a call, a multiply and an add counting two.

  What is not a matrix product is left out: norms, softmax, activations, the optimizer. Nothing is
  computed; arguments may be `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: a loop whose trips the shapes do not tell.
  """
  return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> float:
  """See `of`."""
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _product(equation)
  if name.startswith("dot_product_attention"):
    return _attention(equation)
  inner = [of_jaxpr(j) for j in map(_open, _jaxprs(params))]
  if name == "cond":
    return max(inner)
  if name == "while" and sum(inner) > 0:
    raise ValueError("a while loop has matrix products, and its trips are not known")
  return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner)


def _product(equation: Any) -> float:
  (contract, _), (batch, _) = equation.params["dimension_numbers"]
  left, right = (v.aval.shape for v in equation.invars)
  shared = math.prod(left[i] for i in contract)
  rows = math.prod(left[i] for i in batch)
  # Each side's size holds the contracted and the batch axes once.
  free = math.prod(left) / (shared * rows) * math.prod(right) / (shared * rows)
  return 2 * rows * shared * free


def _attention(equation: Any) -> float:
  """Of the fused kernel of cuDNN: two products of queries and keys, four in the backward pass.

  A causal kernel skips half of the pairs. What its backward pass computes again is left out.
  """
  q, k = (v.aval.shape for v in equation.invars[:2])
  n_batch, n_queries, n_heads, width = q
  n_products = 4 if "bwd" in equation.primitive.name else 2
  is_causal = "CAUSAL" in str(equation.params["mask_type"])
  return n_products * 2 * n_batch * n_heads * n_queries * k[1] * width * (0.5 if is_causal else 1.0)


def _jaxprs(params: dict[str, Any]) -> list[Any]:
  """The jaxprs that an equation calls, which its parameters hold, alone or in a sequence."""
  found = []
  for value in params.values():
    every = value if isinstance(value, (tuple, list)) else (value,)
    found += [v for v in every if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
  return found


def _open(jaxpr: Any) -> Any:
  return jaxpr if hasattr(jaxpr, "eqns") else jaxpr.jaxpr
