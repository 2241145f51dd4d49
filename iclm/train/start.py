"""What a run starts with: its tokenizer, and its state, fresh or of another run."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iclm import compose, config, hf, processes, progress, routing, sharding, step, workdir
from iclm.config import Config, InputError
from iclm.data import assemble, pipeline
from iclm.data.tokenizer import Tokenizer

# Prompts that the router's prototypes are fitted on, and how.
FIT_PROMPTS, FIT_ITERATIONS, FIT_RESTARTS = 1024, 30, 8
TRIED = 1_000  # Rows that are tried together,
TOLD = 100 * TRIED  # and how many take long enough to be told of.
_FIT = 100  # Folded into the key of a model, which is split into fewer for its parts.


def new_tokenizer(c: Config, training) -> Tokenizer:
  """That of what the run starts from, or one made now."""
  source = config.path(c.checkpoint.init_from)
  if not c.checkpoint.init_from or (hf.is_folder(source) and c.data.tokenizer.path):
    return assemble.make_tokenizer(c, training)
  if hf.is_folder(source):
    return hf.load_tokenizer(source)
  found = workdir.kept_tokenizer(source, workdir.template_of(source))
  if found is None:
    raise InputError(
      f"config.checkpoint.init_from = {str(source)!r} is no run: it has no tokenizer"
    )
  return found


def check_source(c: Config) -> None:
  """Raises InputError where a run cannot start from what it is to start from."""
  source = config.path(c.checkpoint.init_from)
  if c.checkpoint.init_from and hf.is_folder(source):
    hf.check_base(source, c.model)
  elif c.checkpoint.init_from:
    workdir.config_of(source)


def check_rows(loader: pipeline.Loader, sources: Mapping[str, pipeline.Source]) -> None:
  """Raises InputError where a row fits no batch, which a run might come to after days.

  Args:
    sources: that end.
  """
  for name, rows in sources.items():
    starts = range(0, len(rows), TRIED)
    watched = progress.watch(starts, len(starts), f"thousands of rows of {name} tried")
    for i in watched if len(rows) > TOLD else starts:
      loader.lay_out([rows[j] for j in range(i, min(i + TRIED, len(rows)))])


def fresh(c: Config, model: compose.Model, tx, mesh, key, loader: pipeline.Loader):
  """A new state: random, on a pretrained base, or of another run; prototypes fitted if asked."""
  state = step.init_state(c, model, tx, mesh, key)
  source = config.path(c.checkpoint.init_from)
  if c.checkpoint.init_from and hf.is_folder(source):
    # The random base goes first: there need not be room for two.
    rest = {name: part for name, part in state.params.items() if name != "base"}
    state = state._replace(params=rest)
    base = hf.load_base(source, c.model, mesh, fsdp=c.fsdp)
    state = state._replace(params=rest | {"base": base})
  elif c.checkpoint.init_from:
    theirs = workdir.load_run(source, c.mesh, fsdp=c.fsdp)
    state = state._replace(params=_take(state.params, theirs.params, c.checkpoint.init_from))
    if "router" in theirs.params and theirs.config.router.kind in config.LEARNED:
      return state
  if c.experts.kind != "none" and c.router.fit and c.router.kind in config.LEARNED:
    state = _fit_prototypes(c, model, mesh, state, jax.random.fold_in(key, _FIT), loader)
  return state


def _take(mine: Any, theirs: Any, where: str) -> Any:
  """The other run's parameters, part by part; parts that it lacks stay as they are."""
  both = mine.keys() & theirs.keys()
  for name in sorted(both):
    if jax.tree.structure(mine[name]) != jax.tree.structure(theirs[name]):
      raise InputError(f"config.checkpoint.init_from = {where!r}: its {name} has other parts")
    leaves = jax.tree.leaves_with_path(mine[name]), jax.tree.leaves(theirs[name])
    for (path, a), b in zip(*leaves, strict=True):
      if a.shape != b.shape:
        raise InputError(
          f"config.checkpoint.init_from = {where!r}: {name}{jax.tree_util.keystr(path)} has shape "
          f"{b.shape} there and {a.shape} here"
        )
  return mine | {name: theirs[name] for name in both}


def _fit_prototypes(c: Config, model, mesh, state: step.TrainState, key, loader: pipeline.Loader):
  """Prototypes start at the k-means of the first prompts, as the fresh router reads them."""

  @jax.jit
  def read(params, batch):
    prompt = model.apply(params, batch).prompt_BP
    return prompt, batch.segment_BT > 0 if prompt.ndim == 3 else batch.prompt_mask_BT.any(axis=1)

  found, i = [], 0
  while sum(map(len, found)) < FIT_PROMPTS:
    batch = sharding.put_batch(loader.batch(i), mesh)
    prompt, mask = processes.fetch(read(state.params, batch))
    found.append(prompt[mask])
    i += 1
  emb_NP = jnp.asarray(np.concatenate(found)[:FIT_PROMPTS])
  fitted_EP = routing.fit_kmeans(key, emb_NP, c.experts.count, FIT_ITERATIONS, FIT_RESTARTS)
  old_EP = state.params["router"]["prototypes_EP"]
  router = state.params["router"] | {"prototypes_EP": sharding.place(fitted_EP, old_EP.sharding)}
  return state._replace(params=state.params | {"router": router})
