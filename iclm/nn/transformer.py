"""Decoder of the Llama family: embedding, layers in stacks that a scan runs, norm and head.

The last layer stands apart: only a head reads its states, so that where few positions are asked for
it takes keys and values of all, and computes what else it has for those few.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from iclm import axes
from iclm.config import Model
from iclm.nn import lora
from iclm.nn.block import Block, Last, RMSNorm, Shared, pick, shared

LAYERS = ("trunk_layers", "upper_layers", "last_layer")  # Stacks of them, from below.


def _fused_attention(primitive, *_, **__) -> bool:
  return primitive.name.startswith("dot_product_attention_fwd")  # Of cuDNN.


# What is kept of a layer for its backward pass, beside what goes into it. Of light: products, their
# adapters' added, since adding them again is a pass over memory; and attention where one kernel
# does it, whose result is as small. Apart it is T x T, and computed again.
REMAT = {
  "light": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(lora.PRODUCT), _fused_attention
  ),
  "full": None,
}


def equal_qk(layers: dict[str, Any], model: Model) -> dict[str, Any]:
  """Fresh layers whose keys are the queries of their group's first head.

  A head then attends to tokens that resemble its own from the start. Measured once each: on ACRE's
  simplest problems the plateau ended some 50 steps earlier of 300; the base of the quickstart came
  to 0.63 instead of 0.94. Source: after Trockman and Kolter 2023
  (arXiv 2305.09828), who find it in trained models; deviation: equal, without a scale and noise.
  """
  q = layers["q"].value
  grouped = q.reshape(*q.shape[:-1], model.kv_heads, -1, model.head_size)
  first = grouped[..., 0, :].reshape(layers["k"].value.shape)
  return layers | {"k": layers["k"].replace_boxed(first)}


class Decoder(nn.Module):
  """The base model, in the pieces that composition needs: embed, trunk, upper, norm, unembed."""

  model: Model
  vocab_size: int
  dropout: float

  def setup(self):
    m = self.model
    std = m.d_model**-0.5 if m.tied else 1.0  # As a head, its logits start at about unit scale.
    table = nn.with_logical_partitioning(nn.initializers.normal(std), (axes.VOCAB, axes.EMBED))
    self.embedding: Any = self.param("embedding", table, (self.vocab_size, m.d_model), jnp.float32)

    def stack(kind: Any, length: int):
      if length == 0:
        return None
      if m.remat != "none":
        kind = nn.remat(kind, prevent_cse=False, policy=REMAT[m.remat])
      every: Any = (0, nn.broadcast, nn.broadcast)  # Adapters per layer; the rest is shared.
      return nn.scan(
        kind,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=every,
        length=length,
        metadata_params={nn.PARTITION_NAME: None},
      )(m, self.dropout)

    self.trunk_layers = stack(Block, m.trunk_layers)
    self.upper_layers = stack(Block, max(m.layers - m.trunk_layers - 1, 0))
    self.last_layer = stack(Last, min(m.layers - m.trunk_layers, 1))
    self.norm = RMSNorm(m.norm_eps, axes.EMBED)
    if not m.tied:
      init = nn.with_logical_partitioning(
        nn.initializers.normal(m.d_model**-0.5), (axes.EMBED, axes.VOCAB)
      )
      self.head: Any = self.param("head", init, (m.d_model, self.vocab_size), jnp.float32)

  def embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return self.embedding[tokens_BT].astype(jnp.dtype(self.model.dtype))

  def trunk(self, x_BTD: Float[Array, "B T D"], shared: Shared, past: Any = None) -> Any:
    """The lowest layers, which carry no adapters; returns as `upper` does."""
    return _through(self.trunk_layers, self.model.trunk_layers, x_BTD, {}, shared, past)

  def upper(
    self,
    x_BTD: Float[Array, "B T D"],
    layers: Any,
    shared: Shared,
    at_BC: Int[Array, "B C"] | None = None,
    past: Any = None,
  ) -> Any:
    """The remaining layers.

    Args:
      layers: adapters with a leading layer axis, or an empty dict; or what `split` makes of them.
      at_BC: positions that are asked for, None for all T of them.
      past: of a cache: each layer's k_BHCK and v_BHCK of the tokens before, () when there are none.

    Returns:
      The states x_BCD; given a past, also the tokens' own (k_LBHTK, v_LBHTK).
    """
    if self.last_layer is None:
      x_BCD = pick(x_BTD, at_BC)
      return x_BCD if past is None else (x_BCD, ())
    n = self.model.layers - self.model.trunk_layers - 1
    below, last = layers if isinstance(layers, tuple) else split(layers, n)
    if past is None:
      x_BTD = _through(self.upper_layers, n, x_BTD, below, shared, None)
      return self.last_layer(x_BTD, last, shared, at_BC)[1][0][0]
    x_BTD, own = _through(self.upper_layers, n, x_BTD, below, shared, past[:n])
    last, shared = last | {"layer": jnp.zeros(1, jnp.int32)}, shared._replace(past=past[n:])
    _, (x_1BCD, last_own) = self.last_layer(x_BTD, last, shared, at_BC)
    both = filter(None, (own, last_own))
    return x_1BCD[0], jax.tree.map(lambda *x: jnp.concatenate(x), *both)

  def unembed(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Final norm and head; float32 logits."""
    x_BTD = self.norm(x_BTD)
    w_DV = self.embedding.T if self.model.tied else self.head
    return jnp.einsum(
      "btd,dv->btv", x_BTD, w_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32
    )

  def __call__(self, tokens_BT, position_BT, mask_BTT):
    """The plain base: every piece once, as initialisation needs it."""
    s = shared(self.model, position_BT, mask_BTT, None)
    return self.unembed(self.upper(self.trunk(self.embed(tokens_BT), s), {}, s))


def split(layers: dict[str, Any], n: int) -> tuple[dict[str, Any], dict[str, Any]]:
  """What the first `n` layers are given, and the last one.

  Split: the gradients of slices would be padded and added, whole stacks of experts' matrices.
  """
  leaves, kind = jax.tree.flatten(layers)
  halves = [jnp.split(x, [n]) for x in leaves]
  below, last = (kind.unflatten([half[i] for half in halves]) for i in (0, 1))
  return below, last


def init(decoder: Decoder, key: Array) -> Any:
  """Fresh parameters of a base, boxed with logical axis names."""
  tokens_BT, mask_BTT = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool)
  params = decoder.init(key, tokens_BT, tokens_BT, mask_BTT)["params"]
  if decoder.model.qk_init == "equal":
    for name in params.keys() & set(LAYERS):
      params[name] = equal_qk(dict(params[name]), decoder.model)
  return params


def _through(stack, n: int, x_BTD, layers: dict[str, Any], shared: Shared, past: Any) -> Any:
  if past is None:
    return x_BTD if stack is None else stack(x_BTD, layers, shared, None)[0]
  if stack is None:
    return x_BTD, ()
  numbered = layers | {"layer": jnp.arange(n)}
  return stack(x_BTD, numbered, shared._replace(past=past), None)
