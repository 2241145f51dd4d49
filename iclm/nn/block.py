"""One layer of the Llama family: RMSNorm, RoPE, grouped-query attention, SwiGLU.

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
from iclm.nn import attention, gathered, lora, rope

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
NAMES = {  # Logical axes of their input and output.
  **dict.fromkeys(("q", "k", "v"), (axes.EMBED, axes.HEADS)),
  "o": (axes.HEADS, axes.EMBED),
  **dict.fromkeys(("gate", "up"), (axes.EMBED, axes.MLP)),
  "down": (axes.MLP, axes.EMBED),
}
BIASED = ("q", "k", "v")  # Where the config has biases: Qwen 2.


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

  def at(self, at_BC: Int[Array, "B C"] | None) -> "Shared":
    """The same, of queries at these positions alone."""
    if at_BC is None:
      return self
    mask_BTC, t = self.mask_BTC, self.cos_BTK.shape[1]
    mask = (
      jnp.arange(t)[None, None] <= at_BC[..., None] if mask_BTC is None else pick(mask_BTC, at_BC)
    )
    of = lambda x: pick(x, at_BC)
    return Shared(mask, of(self.cos_BTK), of(self.sin_BTK), of(self.weights_BTE), self.past)


def pick(x: Array | None, at_BC: Int[Array, "B C"] | None) -> Any:
  """Of rows of positions the C that are asked for; all of them where `at_BC` is None."""
  return x if x is None or at_BC is None else jnp.take_along_axis(x, at_BC[..., None], axis=1)


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
  into b, or `Gathered` matrices; and under "key" the dropout key, if any. An empty dict leaves the
  base alone. Under a cache "layer" is its number: the layer then also returns its own k_BHTK and
  v_BHTK, and its tokens attend to those in `shared.past` too, if there are any. Given `at_BC` it
  answers at these positions alone, each of which sees what it would among all.
  """

  model: Model
  dropout: float

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    layer: dict[str, Any],
    shared: Shared,
    at_BC: Int[Array, "B C"] | None,
  ):
    m, here = self.model, shared.at(at_BC)
    norm_BTD = RMSNorm(m.norm_eps, axes.EMBED, name="attention_norm")(x_BTD)
    mixed_BCD, own = self._attention(norm_BTD, layer, shared, at_BC)
    x_BCD = pick(x_BTD, at_BC) + mixed_BCD
    norm_BCD = RMSNorm(m.norm_eps, axes.EMBED, name="mlp_norm")(x_BCD)
    gate_BCF = self._project("gate", norm_BCD, layer, here)
    up_BCF = self._project("up", norm_BCD, layer, here)
    hidden_BCF = nn.silu(gate_BCF) * up_BCF
    return x_BCD + self._project("down", hidden_BCF, layer, here), own

  def _attention(self, x_BTD, layer, shared, at_BC):
    """Of queries at `at_BC` to the keys of all positions."""
    m, here = self.model, shared.at(at_BC)
    heads = lambda x, n: x.reshape(*x.shape[:2], n, m.head_size)
    q = self._project("q", pick(x_BTD, at_BC), layer, here)
    k = self._project("k", x_BTD, layer, shared)
    v = self._project("v", x_BTD, layer, shared)
    q_BCHK = self._turned("q", heads(q, m.heads), here)
    k_BTHK = self._turned("k", heads(k, m.kv_heads), shared)
    v_BTHK = heads(v, m.kv_heads)
    # Heads first: as products over slots have it, so that a long past is not transposed.
    own = (k_BTHK.swapaxes(1, 2), v_BTHK.swapaxes(1, 2)) if "layer" in layer else None
    if shared.past:
      held = shared.past, own, here.mask_BTC
      mixed_BCHK = attention.attend_held(layer["layer"], q_BCHK, *held)
    else:
      is_causal = here.mask_BTC is None
      mask = None if is_causal else here.mask_BTC[:, None]
      # Few queries are no work for a kernel that is made for as many as keys.
      by: Any = attention.implementation(m) if at_BC is None else "xla"
      mixed_BCHK = jax.nn.dot_product_attention(
        q_BCHK, k_BTHK, v_BTHK, mask=mask, is_causal=is_causal, implementation=by
      )
    flat = mixed_BCHK.reshape(*mixed_BCHK.shape[:2], m.heads * m.head_size)
    return self._project("o", flat, layer, here), own

  def _project(self, name, x_BTD, layer, shared):
    return checkpoint_name(self._product(name, x_BTD, layer, shared), lora.PRODUCT)

  def _product(self, name, x_BTD, layer, shared):
    d_in, d_out = sizes(self.model)[name]
    w_DF = _weight(self, name, (d_in, d_out), NAMES[name], d_in**-0.5)
    own = layer.get(name)
    if isinstance(own, gathered.Gathered):
      y_BTF = gathered.product(x_BTD, w_DF, own)
    else:
      # Two-dimensional: the backward pass of a batched product is 1.6 times slower on CPU.
      y_NF = x_BTD.reshape(-1, d_in) @ w_DF.astype(x_BTD.dtype)
      y_BTF = y_NF.reshape(*x_BTD.shape[:-1], d_out)
    if self.model.qkv_bias and name in BIASED:
      y_BTF = y_BTF + self._bias(name, d_out).astype(y_BTF.dtype)
    if own is None or isinstance(own, gathered.Gathered):
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


class Last(Block):
  """The last layer, as a loop of one: what goes in goes on, and what comes out is beside it."""

  def __call__(self, x_BTD, layer, shared, at_BC):
    return x_BTD, super().__call__(x_BTD, layer, shared, at_BC)


def _rotate(x_BTHK: Array, shared: Shared) -> Array:
  """RoPE: rotates the pairs (i, i + K/2) by the angle of the position."""
  x = x_BTHK.astype(jnp.float32)
  left, right = jnp.split(x, 2, axis=-1)
  turned = jnp.concatenate([-right, left], axis=-1)
  cos, sin = shared.cos_BTK[:, :, None], shared.sin_BTK[:, :, None]
  return (x * cos + turned * sin).astype(x_BTHK.dtype)
