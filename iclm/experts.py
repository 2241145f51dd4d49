"""Experts as pure functions: `init` makes one, `apply` runs rows of a batch through their experts.

An expert changes the upper layers of the shared base, and has a message head: what it has to say is
a random message z of width Z, read off its own final state, and `out` turns z into a contribution
to the residual stream. Of kind `lora` it changes them by adapters, of kind `full` by matrices of
its own, kept as what they add to the base's. Domain experts are stacked on a leading axis E by
`jax.vmap` over keys; the always-on invariant expert is one more of the same make.

Rows are served *gathered* (each row brings its expert's parameters, picked by index) or, adapters,
*block* (all experts' parameters and a weight per expert and position); see `iclm.nn.lora`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from iclm import axes
from iclm.config import Config
from iclm.nn import block, gathered, lora

# Noise of a fresh message: sigma = exp(-2), well below the unit scale of its mean.
LOG_SIGMA_INIT = -2.0


class Expert(NamedTuple):
  """The pure functions of one kind of expert.

  init(key) -> params of one expert, boxed with logical axis names.
  rows(stacks, index_N) -> params of each row, gathered: its expert out of stacks that are numbered
    one behind the other; -1 is the base, unchanged and silent.
  apply(params, run, key) -> state_BTD: layers of the base, adapted. `run` takes the adapters of the
    layers and returns the final states.
  encode(params, state_BTD, weights_BTE) -> mu_BTZ, log_sigma_BTZ of a message per position.
  decode(params, z_BTZ, weights_BTE) -> contribution_BTD.

  `params` are gathered (leading axis: rows) where `weights_BTE` is None, else block (leading
  axis: experts).
  """

  init: Callable[[Array], Any]
  rows: Callable[[Sequence[Any], Int[Array, "N"]], Any]
  apply: Callable[..., Float[Array, "B T D"]]
  encode: Callable[..., tuple[Float[Array, "B T Z"], ...]]
  decode: Callable[..., Float[Array, "B T D"]]


def make(config: Config, n_layers: int) -> Expert:
  """The expert of a config, which changes `n_layers` layers.

  Source: Gendron et al. 2024, section 3 (experts as adapters on one base); the message and its
  `out` matrix are ours. `out` starts at zero under the residual combine, so that a fresh model is
  the base bitwise; z reads the state, not the adapter's delta, so that its gradient is not zero.
  """
  m, kind, width = config.model, config.bottleneck.kind, config.bottleneck.width
  init_adapter, pick, layers = (_full if config.experts.kind == "full" else _lora)(config, n_layers)

  def init(key: Array) -> Any:
    message = {} if kind == "none" else {"message": init_message(key)}
    return {"adapter": init_adapter(key)} | message

  def init_message(key):
    # Folding in a number below this one is a key of some projection's adapter.
    apart = jax.random.fold_in(key, len(block.PROJECTIONS))
    k_mu, k_sigma, k_out = jax.random.split(apart, 3)
    normal = lambda k, i, o, scale=1.0: _box(jax.random.normal(k, (i, o)) * scale * i**-0.5)
    loud = 0.0 if config.combine == "residual" else 1.0
    return {
      "mu": normal(k_mu, m.d_model, width),
      "log_sigma": normal(k_sigma, m.d_model, width, 0.1),
      "log_sigma_bias": _box(jnp.full((1, width), LOG_SIGMA_INIT, jnp.float32)),
      "out": normal(k_out, width, m.d_model, loud),
    }

  def rows(stacks, index_N):
    of = lambda part, pick: jax.tree.map(
      lambda *each: pick(each, index_N), *(stack[part] for stack in stacks)
    )
    message = {} if kind == "none" else {"message": of("message", gathered.pick)}
    return {"adapter": of("adapter", pick)} | message

  def apply(params, run, key):
    return run(layers(params["adapter"], key))

  def encode(params, state_BTD, weights_BTE):
    p = params["message"]
    x_BTD = block.rms_normalise(state_BTD, m.norm_eps)
    mu_BTZ = _mixed(x_BTD, p["mu"], weights_BTE)
    ones = jnp.ones((*x_BTD.shape[:2], 1))
    log_sigma_BTZ = _mixed(x_BTD, p["log_sigma"], weights_BTE)
    log_sigma_BTZ += _mixed(ones, p["log_sigma_bias"], weights_BTE)
    return mu_BTZ, log_sigma_BTZ

  def decode(params, z_BTZ, weights_BTE):
    return _mixed(z_BTZ, params["message"]["out"], weights_BTE)

  return Expert(init, rows, apply, encode, decode)


def stack(init: Callable[[Array], Any], key: Array, count: int, alike: bool) -> Any:
  """`count` experts with independent keys, or `alike`, stacked on a leading axis named `expert`."""
  keys = jax.random.split(key, count)
  boxed = jax.vmap(init)(jnp.broadcast_to(keys[:1], keys.shape) if alike else keys)
  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
  name = {nn.PARTITION_NAME: axes.EXPERT}
  return jax.tree.map(lambda box: box.add_axis(0, name), boxed, is_leaf=is_box)


def _lora(config: Config, n_layers: int):
  """Adapters: their init, how rows pick a leaf out of stacks, and what the layers are given."""
  e, sizes = config.experts, block.sizes(config.model)

  def init(key):
    keys = dict(zip(block.PROJECTIONS, jax.random.split(key, len(sizes)), strict=True))
    adapter = {}
    for name in e.projections:
      d_in, d_out = sizes[name]
      one = lambda k, d_in=d_in, d_out=d_out: lora.init(k, d_in, d_out, e.rank)
      a_LDR, b_LRF = jax.vmap(one)(jax.random.split(keys[name], n_layers))
      adapter[name] = {"a": _box(a_LDR), "b": _box(b_LRF)}
    return adapter

  def layers(adapter, key):
    found: dict[str, Any] = {}
    for name, pair in adapter.items():
      a, b = (jnp.moveaxis(pair[x], 1, 0) for x in ("a", "b"))
      found[name] = (a, b * (e.alpha / e.rank))
    if key is not None and e.dropout > 0:
      n_layers = jax.tree.leaves(adapter)[0].shape[1]
      found["key"] = jax.random.split(key, n_layers)
    return found

  return init, gathered.pick, layers


def _full(config: Config, n_layers: int):
  """Matrices of its own, as `_lora`. They start at zero: a fresh expert is the base.

  Norms keep the base's gains: what another gain would do, the matrices behind it can. Weight decay
  pulls an expert to the base.
  """
  sizes = block.sizes(config.model)

  def init(key):
    del key
    zeros = lambda name: jnp.zeros((n_layers, *sizes[name]))
    box = lambda name: nn.LogicallyPartitioned(zeros(name), (None, *block.NAMES[name]))
    return {name: {"delta": box(name)} for name in config.experts.projections}

  def layers(adapter, key):
    del key
    found = {}
    for name, own in adapter.items():
      stacks, index_N = own["delta"]
      of_layer = tuple(jnp.moveaxis(x, 1, 0) for x in stacks)
      index_LN = jnp.broadcast_to(index_N, (len(of_layer[0]), *index_N.shape))
      found[name] = gathered.Gathered(of_layer, index_LN)
    return found

  return init, gathered.Gathered, layers


def _mixed(x_BTD: Array, w: Array, weights_BTE: Array | None) -> Array:
  if weights_BTE is None:
    return jnp.einsum("btd,bdz->btz", x_BTD, w)
  return jnp.einsum("btez,bte->btz", jnp.einsum("btd,edz->btez", x_BTD, w), weights_BTE)


def _box(value: Array) -> nn.LogicallyPartitioned:
  return nn.LogicallyPartitioned(value, (None,) * value.ndim)
