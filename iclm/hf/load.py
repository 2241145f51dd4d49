"""Weights of a folder, tensor by tensor, straight to their shards."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from iclm import config
from iclm.config import InputError
from iclm.data import chat, tokenizer
from iclm.data.tokenizer import Tokenizer
from iclm.hf import description, names, objects
from iclm.hf import tensors as files

GENERATION = "generation_config.json"
COMPARED_ROWS = 4096  # Of two heads that are compared at a time.


def load_base(
  folder: str | pathlib.Path, model: config.Model, mesh: Mesh, *, fsdp: bool
) -> dict[str, Any]:
  """The parameters of a base, `params["base"]`, from a folder that `transformers` wrote.

  Every header is checked before the first weight is read. Each process reads what its devices
  hold. Beyond the parameters themselves, host memory holds one tensor of one layer at a time: its
  shards as the file has them and in float32.

  Args:
    model: what `read_model` says of the folder, and how it is to be computed.
    fsdp: as `config.fsdp`.

  Returns:
    float32 arrays, sharded as `iclm.sharding` says; float16 and bfloat16 are cast without loss.

  Raises:
    InputError: `model` is another one than the folder's, a size does not divide over the mesh, a
      tensor is missing, unexpected, of another shape or dtype, or a file is missing or truncated.
  """
  folder = config.path(folder)
  description.check_agreement(model, folder)
  boxed = names.abstract(model, model.vocab_size)
  places = names.shardings(boxed, mesh, fsdp)
  tensors, parameters = _checked(folder, model, boxed)
  with tensors:
    return jax.tree.map(functools.partial(_parameter, tensors), parameters, places)


def check_base(folder: str | pathlib.Path, model: config.Model) -> None:
  """Raises InputError where `load_base` would, the mesh apart.

  The only weights that it reads are those of a head beside a tied embedding.
  """
  folder = config.path(folder)
  description.check_agreement(model, folder)
  tensors, _ = _checked(folder, model, names.abstract(model, model.vocab_size))
  tensors.close()


def _checked(folder: pathlib.Path, model: config.Model, boxed: Any) -> tuple[files.Tensors, Any]:
  """The open files of a folder that holds these parameters and no others; and `names.parameters`.

  Args:
    boxed: of `names.abstract`.
  """
  tensors = files.Tensors(folder)
  try:
    if model.layers > len(tensors.found):  # Before that many names are written out.
      raise InputError(
        f"{folder / description.CONFIG}: num_hidden_layers = {model.layers}, and the folder holds "
        f"{len(tensors.found)} tensors in all"
      )
    parameters = names.parameters(model, boxed)
    expected = {tensor: p.tensor_shape for p in jax.tree.leaves(parameters) for tensor in p.tensors}
    files.check(tensors, expected, names.ignored(model, set(tensors.found)), folder)
    _check_tied(model, tensors)
  except InputError:
    tensors.close()
    raise
  return tensors, parameters


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
  """The folder's tokenizer.json, with the special tokens that the folder names.

  Raises:
    InputError: it is missing, no tokenizer, has no end-of-sequence token or not one that the folder
      names; or a file that names them is malformed.
  """
  folder = config.path(folder)
  return tokenizer.load(folder / chat.TOKENIZER, _specials(folder))


def _specials(folder: pathlib.Path) -> dict[str, Any]:
  """bos, eos and pad as the tokenizer's config names them, else the model's, by id; and the other
  ids at which the model ends an answer."""
  paths = folder / chat.ABOUT, folder / description.CONFIG, folder / GENERATION
  about, model, spoken = (
    objects.read_json(p, "transformers") if p.is_file() else {} for p in paths
  )
  about = chat.named_specials(folder) | about
  told: dict[str, Any] = {}
  for name in ("bos", "eos", "pad"):
    token, ids = about.get(f"{name}_token"), model.get(f"{name}_token_id")
    spelt = token.get("content") if isinstance(token, dict) else token
    i = ids[0] if isinstance(ids, list) and ids else ids
    if token is not None:
      if not isinstance(spelt, str):
        raise InputError(f"{paths[0]}: {name}_token = {token!r} must be a text, or hold one")
      told[name] = spelt
    elif name == "bos" and "bos_token" in about:
      told[name] = None  # The tokenizer has none, whatever the model was once made for.
    elif name != "pad" and i is not None:  # Of padding old files tell ids that there are not.
      if not isinstance(i, int) or isinstance(i, bool):
        raise InputError(f"{paths[1]}: {name}_token_id = {ids!r} must be an id, or a list of ids")
      told[name] = i
  if about.get("add_bos_token") is False:
    told["bos"] = None  # It may have one, which begins no text.
  path, ids = paths[2], spoken.get("eos_token_id")
  if ids is None:
    path, ids = paths[1], model.get("eos_token_id")
  ends = ids if isinstance(ids, list) else [] if ids is None else [ids]
  if not all(isinstance(i, int) and not isinstance(i, bool) for i in ends):
    raise InputError(f"{path}: eos_token_id = {ids!r} must be an id, or a list of ids")
  return told | ({"ends": ends} if ends else {})


def _parameter(tensors: files.Tensors, p: names.Parameter, place: NamedSharding) -> Array:
  if not p.stacked:
    return _tensor(tensors, p.tensors[0], p.transposed, p.shape, place)
  # Filled in place: stacked on the host, all layers would lie there at once.
  zeros, fill = _filling(p.shape, place)
  filled = zeros()
  for i, name in enumerate(p.tensors):
    layer = _tensor(tensors, name, p.transposed, p.shape[1:], names.of_layer(place))
    filled = fill(filled, layer, i).block_until_ready()
  return filled


@functools.cache
def _filling(shape: tuple[int, ...], place: NamedSharding) -> tuple[Any, Any]:
  """A stacked parameter of zeros, and what puts one layer into it in place."""
  fill = lambda filled, layer, i: jax.lax.dynamic_update_index_in_dim(filled, layer, i, 0)
  return (
    jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=place),
    jax.jit(fill, donate_argnums=0, out_shardings=place),
  )


def _tensor(
  tensors: files.Tensors,
  name: str,
  transposed: bool,
  shape: tuple[int, ...],
  place: NamedSharding,
) -> Array:
  """One tensor, each part of it read once, however many devices hold it."""
  read: dict[tuple, np.ndarray] = {}

  def part(index: Any) -> np.ndarray:
    span = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))
    key = tuple((s.start, s.stop) for s in span)
    if key not in read:
      found = tensors.read(name, span[::-1] if transposed else span)
      read[key] = np.ascontiguousarray(found.T if transposed else found, np.float32)
      _check_finite(tensors.found[name].file, name, read[key])
    return read[key]

  return jax.make_array_from_callback(shape, place, part)


def _check_finite(file: pathlib.Path, name: str, value: np.ndarray) -> None:
  # NaN is the least and the greatest; a mask of what is finite would take memory.
  if value.size and not (np.isfinite(value.min()) and np.isfinite(value.max())):
    raise InputError(f"{file}: tensor {name} is not finite")


def _check_tied(model: config.Model, tensors: files.Tensors) -> None:
  """A head that is saved beside a tied embedding must be that embedding, in whatever dtype."""
  if not (model.tied and names.HEAD in tensors.found):
    return
  head, embedding = (tensors.found[name] for name in (names.HEAD, names.EMBEDDING))
  files.check_dtype(names.HEAD, head)
  same = head.shape == embedding.shape
  n_rows = head.shape[0] if same else 0
  for first in range(0, n_rows, COMPARED_ROWS):
    rows = (slice(first, min(first + COMPARED_ROWS, n_rows)),)
    a, b = (np.asarray(tensors.read(x, rows), np.float32) for x in (names.HEAD, names.EMBEDDING))
    same = same and np.array_equal(a, b)
  if not same:
    raise InputError(
      f"{head.file}: {names.HEAD} is not {names.EMBEDDING}, though config.json says "
      "tie_word_embeddings"
    )
