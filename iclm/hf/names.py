"""Which tensor of `transformers` each of our parameters is, layer by layer."""

import dataclasses
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from iclm import config, sharding
from iclm.config import InputError
from iclm.nn import block, transformer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Ours -> theirs. Their matrices are (out, in), ours (in, out).
_ONCE = {"embedding": EMBEDDING, "head": HEAD, "norm/gain": "model.norm.weight"}
_LAYER = {
  "attention_norm/gain": "input_layernorm.weight",
  "mlp_norm/gain": "post_attention_layernorm.weight",
  "q": "self_attn.q_proj.weight",
  "k": "self_attn.k_proj.weight",
  "v": "self_attn.v_proj.weight",
  "o": "self_attn.o_proj.weight",
  "q_bias": "self_attn.q_proj.bias",
  "k_bias": "self_attn.k_proj.bias",
  "v_bias": "self_attn.v_proj.bias",
  "q_norm/gain": "self_attn.q_norm.weight",
  "k_norm/gain": "self_attn.k_norm.weight",
  "gate": "mlp.gate_proj.weight",
  "up": "mlp.up_proj.weight",
  "down": "mlp.down_proj.weight",
}
# Projection -> its module in a layer, which an adapter of PEFT names.
MODULES = {name: _LAYER[name].removesuffix(".weight") for name in block.PROJECTIONS}
# Buffers that old releases of transformers saved.
_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One leaf of our base, and the tensors that it is made of; itself a leaf to JAX."""

  tensors: tuple[str, ...]  # One per layer where it is stacked, else one.
  shape: tuple[int, ...]  # Ours, with the layers first where it is stacked.
  first: int  # Number of its first layer.
  stacked: bool
  transposed: bool

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """Of each of its tensors, as the file has it."""
    one = self.shape[1:] if self.stacked else self.shape
    return one[::-1] if self.transposed else one


def abstract(model: config.Model, vocab_size: int) -> Any:
  """Boxed shapes of the base's parameters."""
  decoder = transformer.Decoder(model, vocab_size, 0.0)
  return jax.eval_shape(lambda key: transformer.init(decoder, key), jax.random.key(0))


def parameters(model: config.Model, boxed: Any) -> Any:
  """A Parameter for every leaf of the base."""
  first = dict(zip(transformer.LAYERS, (0, model.trunk_layers, model.layers - 1), strict=True))

  def one(path, leaf) -> Parameter:
    part, _, inner = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")
    if part not in first:
      name = f"{part}/{inner}" if inner else part
      return Parameter((_ONCE[name],), leaf.shape, 0, False, name == "head")
    names = (f"model.layers.{first[part] + i}.{_LAYER[inner]}" for i in range(leaf.shape[0]))
    is_matrix = inner in block.PROJECTIONS
    return Parameter(tuple(names), leaf.shape, first[part], True, is_matrix)

  return jax.tree.map_with_path(one, sharding.unbox(boxed))


def module(projection: str, layer: int) -> str:
  return f"model.layers.{layer}.{MODULES[projection]}"


def ignored(model: config.Model, found: set[str]) -> set[str]:
  """Tensors that may be there and say nothing new."""
  return {name for name in found if _BUFFER.fullmatch(name) or (model.tied and name == HEAD)}


def shardings(boxed: Any, mesh: Mesh, fsdp: bool) -> Any:
  """Where `iclm.sharding` puts each parameter.

  Raises:
    InputError: a size does not divide over the mesh.
  """
  try:
    return sharding.shardings_of(boxed, mesh, fsdp=fsdp)
  except ValueError as error:
    sizes = dict(mesh.shape)
    raise InputError(
      f"the base does not fit the mesh {sizes}: {error}; change config.mesh"
    ) from None


def of_layer(whole: NamedSharding) -> NamedSharding:
  """Where one layer of a stacked parameter lies."""
  return NamedSharding(whole.mesh, jax.sharding.PartitionSpec(*whole.spec[1:]))
