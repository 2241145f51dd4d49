"""Decoder of the Llama family: RMSNorm, RoPE, grouped-query attention, SwiGLU, scan over layers.

Modules without policy: adapters, masks and positions are arguments. Weights are float32; matmuls
run in `dtype`, norms and softmax in float32. Source: Touvron et al. 2023 (arXiv 2302.13971). What
sets Mistral and Qwen apart are keys of the config: biases, norms of queries and keys, a window.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from iclm import axes
from iclm.config import Model
from iclm.nn import attention, lora, picked, rope

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
NAMES = {  # Logical axes of their input and output.
  **dict.fromkeys(("q", "k", "v"), (axes.EMBED, axes.HEADS)),
  "o": (axes.HEADS, axes.EMBED),
  **dict.fromkeys(("gate", "up"), (axes.EMBED, axes.MLP)),
  "down": (axes.MLP, axes.EMBED),
}
BIASED = ("q", "k", "v")  # Where the config has biases: Qwen 2.


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


def sizes(model: Model) -> dict[str, tuple[int, int]]:
  """Input and output width of every projection of a layer."""
  d, inner, kv = model.d_model, model.heads * model.head_size, model.kv_heads * model.head_size
  found = {"q": (d, inner), "k": (d, kv), "v": (d, kv), "o": (inner, d)}
  return found | dict.fromkeys(("gate", "up"), (d, model.d_ff)) | {"down": (model.d_ff, d)}


class Shared(NamedTuple):
  """What every layer sees alike."""

  # Keys: a cache's where there is one, then the T tokens' own. None: each sees those before it.
  mask_BTC: Bool[Array, "B T C"] | None
  cos_BTK: Float[Array, "B T K"]
  sin_BTK: Float[Array, "B T K"]
  weights_BTE: Float[Array, "B T E"] | None  # Of block adapters; None when they are gathered.
  past: tuple[Any, ...] = ()  # Of each layer, k_BHCK and v_BHCK that a cache holds.


def shared(
  model: Model,
  position_BT: Int[Array, "B T"],
  mask_BTC: Bool[Array, "B T C"] | None,
  weights_BTE: Float[Array, "B T E"] | None,
) -> Shared:
  """The rotations of RoPE for each position, and what else the layers share."""
  angle = rope.angles(model, position_BT)
  return Shared(mask_BTC, jnp.cos(angle), jnp.sin(angle), weights_BTE)


def _weight(
  module: nn.Module, name: str, shape: tuple[int, ...], names: tuple, scale: float
) -> Any:
  init = nn.with_logical_partitioning(nn.initializers.normal(scale), names)
  return module.param(name, init, shape, jnp.float32)


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


class RMSNorm(nn.Module):
  """x / rms(x) * gain, in float32."""

  eps: float
  axis: str | None  # Logical name of what is normalised.

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    gain_D: Any = self.param("gain", ones, (x.shape[-1],), jnp.float32)
    gain = jnp.broadcast_to(gain_D, x.shape)
    return (rms_normalise(x, self.eps) * gain).astype(x.dtype)


def rms_normalise(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
  """x / rms(x), in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + SwiGLU(norm(x)).

  `layer` holds what experts change: name of the projection -> adapters (a, b), their scale folded
  into b, or `Picked` matrices; and under "key" the dropout key, if any. An empty dict leaves the
  base alone. Under a cache "layer" is its number: the layer then also returns its own k_BHTK and
  v_BHTK, and its tokens attend to those in `shared.past` too, if there are any.
  """

  model: Model
  dropout: float

  @nn.compact
  def __call__(self, x_BTD: Array, layer: dict[str, Any], shared: Shared):
    m = self.model
    norm_BTD = RMSNorm(m.norm_eps, axes.EMBED, name="attention_norm")(x_BTD)
    mixed_BTD, own = self._attention(norm_BTD, layer, shared)
    x_BTD = x_BTD + mixed_BTD
    norm_BTD = RMSNorm(m.norm_eps, axes.EMBED, name="mlp_norm")(x_BTD)
    gate_BTF = self._project("gate", norm_BTD, layer, shared)
    up_BTF = self._project("up", norm_BTD, layer, shared)
    hidden_BTF = nn.silu(gate_BTF) * up_BTF
    return x_BTD + self._project("down", hidden_BTF, layer, shared), own

  def _attention(self, x_BTD, layer, shared):
    m = self.model
    b, t, _ = x_BTD.shape
    q = self._project("q", x_BTD, layer, shared)
    k = self._project("k", x_BTD, layer, shared)
    v = self._project("v", x_BTD, layer, shared)
    q_BTHK = self._turned("q", q.reshape(b, t, m.heads, m.head_size), shared)
    k_BTHK = self._turned("k", k.reshape(b, t, m.kv_heads, m.head_size), shared)
    v_BTHK = v.reshape(b, t, m.kv_heads, m.head_size)
    # Heads first: as products over slots have it, so that a long past is not transposed.
    own = (k_BTHK.swapaxes(1, 2), v_BTHK.swapaxes(1, 2)) if "layer" in layer else None
    if shared.past:
      held = shared.past, own, shared.mask_BTC
      mixed_BTHK = attention.attend_held(layer["layer"], q_BTHK, *held)
    else:
      is_causal = shared.mask_BTC is None
      mask = None if is_causal else shared.mask_BTC[:, None]
      by: Any = attention.implementation(m)
      mixed_BTHK = jax.nn.dot_product_attention(
        q_BTHK, k_BTHK, v_BTHK, mask=mask, is_causal=is_causal, implementation=by
      )
    flat = mixed_BTHK.reshape(b, t, m.heads * m.head_size)
    return self._project("o", flat, layer, shared), own

  def _project(self, name, x_BTD, layer, shared):
    return checkpoint_name(self._product(name, x_BTD, layer, shared), lora.PRODUCT)

  def _product(self, name, x_BTD, layer, shared):
    d_in, d_out = sizes(self.model)[name]
    w_DF = _weight(self, name, (d_in, d_out), NAMES[name], d_in**-0.5)
    own = layer.get(name)
    if isinstance(own, picked.Picked):
      y_BTF = picked.product(x_BTD, w_DF, own)
    else:
      # Two-dimensional: the backward pass of a batched product is 1.6 times slower on CPU.
      y_NF = x_BTD.reshape(-1, d_in) @ w_DF.astype(x_BTD.dtype)
      y_BTF = y_NF.reshape(*x_BTD.shape[:-1], d_out)
    if self.model.qkv_bias and name in BIASED:
      y_BTF = y_BTF + self._bias(name, d_out).astype(y_BTF.dtype)
    if own is None or isinstance(own, picked.Picked):
      return y_BTF
    if self.dropout > 0 and "key" in layer:
      key = jax.random.fold_in(layer["key"], PROJECTIONS.index(name))
      x_BTD = lora.dropout(key, x_BTD, self.dropout)
    a, b = own
    return y_BTF + lora.delta(x_BTD, a, b, shared.weights_BTE)

  def _turned(self, name, x_BTHK, shared) -> Array:
    if self.model.qk_norm:
      x_BTHK = RMSNorm(self.model.norm_eps, None, name=f"{name}_norm")(x_BTHK)
    return _rotate(x_BTHK, shared)

  def _bias(self, name, d_out) -> Array:
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.HEADS,))
    bias_F: Any = self.param(f"{name}_bias", zeros, (d_out,), jnp.float32)
    return bias_F[None, None]


def _rotate(x_BTHK: Array, shared: Shared) -> Array:
  """RoPE: rotates the pairs (i, i + K/2) by the angle of the position."""
  x = x_BTHK.astype(jnp.float32)
  left, right = jnp.split(x, 2, axis=-1)
  turned = jnp.concatenate([-right, left], axis=-1)
  cos, sin = shared.cos_BTK[:, :, None], shared.sin_BTK[:, :, None]
  return (x * cos + turned * sin).astype(x_BTHK.dtype)


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
    block: Any = Block
    if m.remat != "none":
      block = nn.remat(Block, prevent_cse=False, policy=REMAT[m.remat])

    def stack(length: int):
      every: Any = (0, nn.broadcast)  # Adapters per layer; the rest is shared.
      return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=every,
        length=length,
        metadata_params={nn.PARTITION_NAME: None},
      )(m, self.dropout)

    self.trunk_layers = stack(m.trunk_layers) if m.trunk_layers else None
    n_upper = m.layers - m.trunk_layers
    self.upper_layers = stack(n_upper) if n_upper else None
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
    self, x_BTD: Float[Array, "B T D"], layers: dict[str, Any], shared: Shared, past: Any = None
  ) -> Any:
    """The remaining layers.

    Args:
      layers: adapters with a leading layer axis, or an empty dict.
      past: of a cache: each layer's k_BHCK and v_BHCK of the tokens before, () when there are none.

    Returns:
      The states x_BTD; given a past, also the tokens' own (k_LBHTK, v_LBHTK).
    """
    n_upper = self.model.layers - self.model.trunk_layers
    return _through(self.upper_layers, n_upper, x_BTD, layers, shared, past)

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


def init(decoder: Decoder, key: Array) -> Any:
  """Fresh parameters of a base, boxed with logical axis names."""
  tokens_BT, mask_BTT = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool)
  params = decoder.init(key, tokens_BT, tokens_BT, mask_BTT)["params"]
  if decoder.model.qk_init == "equal":
    for name in params.keys() & {"trunk_layers", "upper_layers"}:
      params[name] = equal_qk(dict(params[name]), decoder.model)
  return params


def _through(stack, n: int, x_BTD, layers: dict[str, Any], shared: Shared, past: Any) -> Any:
  if past is None:
    return x_BTD if stack is None else stack(x_BTD, layers, shared)[0]
  if stack is None:
    return x_BTD, ()
  numbered = layers | {"layer": jnp.arange(n)}
  return stack(x_BTD, numbered, shared._replace(past=past))
