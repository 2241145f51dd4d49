"""Matrices of each row's own expert, as what they add to the base's.

A row of a batch is a whole input, which one expert serves: it brings that expert's matrix, and a
batched product computes for it what a dense layer would, however the routes fall. No row is padded
to a group and none is dropped; an expert that no row picked cannot be felt. A row's matrix lives as
long as its layer runs, and is picked again in the backward pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Gathered(NamedTuple):
  """Matrices in stacks that are numbered one behind the other, and which of them each row takes."""

  stacks: tuple[Float[Array, "_ D F"], ...]
  index_N: Int[Array, "N"]  # -1: none.


def pick(stacks: Sequence[Float[Array, "_ ..."]], index_N: Int[Array, "N"]) -> Array:
  """Each row's part of the stacks, or zeros. Its gradient is exactly zero where no row picked."""
  found, first = [], 0
  for stack in stacks:
    at_N, n = index_N - first, len(stack)
    # What lies outside of the stack is filled; a negative number would count from its end.
    at_N = jnp.where((at_N >= 0) & (at_N < n), at_N, n)
    found.append(stack.at[at_N].get(mode="fill", fill_value=0))
    first += n
  return sum(found[1:], found[0])


@jax.checkpoint
def product(
  x_NTD: Float[Array, "N T D"], w_DF: Float[Array, "D F"], own: Gathered
) -> Float[Array, "N T F"]:
  """x times the base's matrix and, added to it, each row's own; in the dtype of x."""
  w_NDF = (w_DF[None] + pick(own.stacks, own.index_N)).astype(x_NTD.dtype)
  return jnp.einsum("ntd,ndf->ntf", x_NTD, w_NDF)
