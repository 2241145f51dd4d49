"""Experts as pure functions: `init` makes one, `apply` runs rows of a batch through their experts.

An expert of kind `lora` is a set of adapters on the upper layers of the shared base, and a message
head: what it has to say is a random message z of width Z, read off its own final state, and `out`
turns z into a contribution to the residual stream. Domain experts are stacked on a leading axis E
by `jax.vmap` over keys; the always-on invariant expert is one more of the same make.

Rows are served *gathered* (each row brings its expert's parameters, picked by index) or *block*
(all experts' parameters and a weight per expert and position); see `iclm.nn.lora`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from iclm import axes
from iclm.config import Config
from iclm.nn import lora, transformer

# Noise of a fresh message: sigma = exp(-2), well below the unit scale of its mean.
LOG_SIGMA_INIT = -2.0


class Expert(NamedTuple):
  """The pure functions of one kind of expert.

  init(key) -> params of one expert, boxed with logical axis names.
  apply(params, run, key) -> state_BTD: layers of the base, adapted. `run` takes the adapters of the
    layers and returns the final states.
  encode(params, state_BTD, weights_BTE) -> mu_BTZ, log_sigma_BTZ of a message per position.
  decode(params, z_BTZ, weights_BTE) -> contribution_BTD.

  `params` are gathered (leading axis: rows) where `weights_BTE` is None, else block (leading
  axis: experts).
  """

  init: Callable[[Array], Any]
  apply: Callable[..., Float[Array, "B T D"]]
  encode: Callable[..., tuple[Float[Array, "B T Z"], ...]]
  decode: Callable[..., Float[Array, "B T D"]]


def make(config: Config, n_layers: int) -> Expert:
  """The expert of a config, with adapters on `n_layers` layers.

  Source: Gendron et al. 2024, section 3 (experts as adapters on one base); the message and its
  `out` matrix are ours. `out` starts at zero under the residual combine, so that a fresh model is
  the base bitwise; z reads the state, not the adapter's delta, so that its gradient is not zero.
  """
  e, m, kind, width = config.experts, config.model, config.bottleneck.kind, config.bottleneck.width
  sizes = _sizes(config)

  def init(key: Array) -> Any:
    keys = dict(zip(transformer.PROJECTIONS, jax.random.split(key, len(sizes)), strict=True))
    adapter = {}
    for name in e.projections:
      d_in, d_out = sizes[name]
      one = lambda k, d_in=d_in, d_out=d_out: lora.init(k, d_in, d_out, e.rank)
      a_LDR, b_LRF = jax.vmap(one)(jax.random.split(keys[name], n_layers))
      adapter[name] = {"a": _box(a_LDR), "b": _box(b_LRF)}
    return {"adapter": adapter} | ({} if kind == "none" else {"message": init_message(key)})

  def init_message(key):
    k_mu, k_sigma, k_out = jax.random.split(jax.random.fold_in(key, 1), 3)
    normal = lambda k, i, o, scale=1.0: _box(jax.random.normal(k, (i, o)) * scale * i**-0.5)
    loud = 0.0 if config.combine == "residual" else 1.0
    return {
      "mu": normal(k_mu, m.d_model, width),
      "log_sigma": normal(k_sigma, m.d_model, width, 0.1),
      "log_sigma_bias": _box(jnp.full((1, width), LOG_SIGMA_INIT, jnp.float32)),
      "out": normal(k_out, width, m.d_model, loud),
    }

  def apply(params, run, key):
    layers: dict[str, Any] = {}
    for name, pair in params["adapter"].items():
      a, b = (jnp.moveaxis(pair[x], 1, 0) for x in ("a", "b"))
      layers[name] = (a, b * (e.alpha / e.rank))
    if key is not None and e.dropout > 0:
      n_layers = jax.tree.leaves(params["adapter"])[0].shape[1]
      layers["key"] = jax.random.split(key, n_layers)
    return run(layers)

  def encode(params, state_BTD, weights_BTE):
    p = params["message"]
    x_BTD = transformer.rms_normalise(state_BTD, m.norm_eps)
    mu_BTZ = _mixed(x_BTD, p["mu"], weights_BTE)
    ones = jnp.ones((*x_BTD.shape[:2], 1))
    log_sigma_BTZ = _mixed(x_BTD, p["log_sigma"], weights_BTE)
    log_sigma_BTZ += _mixed(ones, p["log_sigma_bias"], weights_BTE)
    return mu_BTZ, log_sigma_BTZ

  def decode(params, z_BTZ, weights_BTE):
    return _mixed(z_BTZ, params["message"]["out"], weights_BTE)

  return Expert(init, apply, encode, decode)


def stack(init: Callable[[Array], Any], key: Array, count: int, alike: bool) -> Any:
  """`count` experts with independent keys, or `alike`, stacked on a leading axis named `expert`."""
  keys = jax.random.split(key, count)
  boxed = jax.vmap(init)(jnp.broadcast_to(keys[:1], keys.shape) if alike else keys)
  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
  name = {nn.PARTITION_NAME: axes.EXPERT}
  return jax.tree.map(lambda box: box.add_axis(0, name), boxed, is_leaf=is_box)


def gather(stacked: Any, index_B: Int[Array, "B"]) -> Any:
  """Each row's expert. Its gradient scatters into the stack: exactly zero where no row picked."""
  return jax.tree.map(lambda x: x[index_B], stacked)


def repeat(params: Any, n_rows: int) -> Any:
  """One expert for every row."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (n_rows, *x.shape)), params)


def _mixed(x_BTD: Array, w: Array, weights_BTE: Array | None) -> Array:
  if weights_BTE is None:
    return jnp.einsum("btd,bdz->btz", x_BTD, w)
  return jnp.einsum("btez,bte->btz", jnp.einsum("btd,edz->btez", x_BTD, w), weights_BTE)


def _box(value: Array) -> nn.LogicallyPartitioned:
  return nn.LogicallyPartitioned(value, (None,) * value.ndim)


def _sizes(config: Config) -> dict[str, tuple[int, int]]:
  """Input and output width of every projection of a layer."""
  m = config.model
  q, kv = m.heads * m.head_size, m.kv_heads * m.head_size
  sizes = {"q": (m.d_model, q), "k": (m.d_model, kv), "v": (m.d_model, kv), "o": (q, m.d_model)}
  return sizes | dict.fromkeys(("gate", "up"), (m.d_model, m.d_ff)) | {"down": (m.d_ff, m.d_model)}
