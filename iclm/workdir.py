"""A run's folder: whose run it is, what made it, and how to load it again.

config.json     the run's config; another config may not run here
tokenizer.json  the tokenizer
chat.json       the chat template, where the config names one
metrics.jsonl   one line per logged step
tensorboard/    the same, as events
results.json    the final evaluation, with its provenance
prompts/        what a frozen base says of the training prompts, under `router.cached`
checkpoints/    see `iclm.checkpoints`
params/         in their place, in the folder of a run that was exported: its parameters alone
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iclm import compose, config, inputs, optim, outputs, processes, sharding, step
from iclm.checkpoints import Checkpoints
from iclm.config import Config, InputError
from iclm.data import chat
from iclm.data import tokenizer as tokenizers
from iclm.data.tokenizer import Tokenizer

# Where a run may go on with other values: they change how it runs, not what comes out.
FREE = (("mesh",), ("fsdp",), ("data", "dir"))
CONFIG, TOKENIZER, CHAT, RESULTS = "config.json", "tokenizer.json", "chat.json", "results.json"
CHECKPOINTS, PARAMS = "checkpoints", "params"
At = int | Literal["best"]  # Which checkpoint.
LOCK = ".lock"  # Held by whoever trains here.


class Run(NamedTuple):
  """A trained model, ready to be asked."""

  config: Config
  model: compose.Model
  params: Any
  tokenizer: Tokenizer
  mesh: Mesh
  step: int

  @property
  def parts(self) -> tuple[Config, compose.Model, Any, Tokenizer, Mesh]:
    """All but the step, in the order in which `Subject` and `Generator` take it."""
    return self.config, self.model, self.params, self.tokenizer, self.mesh


def is_exported(workdir: pathlib.Path) -> bool:
  """Whether the folder holds an exported run: its parameters, and nothing to train on with."""
  return (workdir / PARAMS).exists()


@contextlib.contextmanager
def claim(
  workdir: pathlib.Path, c: Config, free: tuple[tuple[str, ...], ...] = ()
) -> Iterator[None]:
  """Makes the folder, or finds that it is this run's own; inside, no other process trains in it.

  Args:
    free: keys besides `FREE` in which the run may differ from what it was when it began.

  Raises:
    InputError: it holds another config's run (the first difference is named) or an exported one,
      another process trains in it, or it cannot be written.
  """
  if is_exported(workdir):
    raise InputError(
      f"{workdir} holds an exported run, whose optimizer is not there to go on with; start "
      f"from it with --config.checkpoint.init_from={workdir} in another --workdir"
    )
  outputs.make_folder(workdir)
  with locked(workdir):
    path, mine = workdir / CONFIG, config.to_dict(c)
    there = {name for name in (CONFIG, TOKENIZER, CHAT) if (workdir / name).exists()}
    if processes.of_first(path.exists()):  # Asked before any process writes it.
      found = config.difference(_told(workdir), mine, (*FREE, *free))
      if found is not None:
        raise InputError(
          f"{workdir} holds another config's run: {found} here; choose another --workdir"
        )
    outputs.write_json(path, mine)
    found = config.difference(_told(workdir), mine, FREE[-1:])
    if found is not None:
      raise InputError(
        f"process {jax.process_index()} was started with another config than process 0: {found} "
        "here; give every process the same flags"
      )
    try:
      yield
    except InputError:
      if processes.is_first():
        _leave(workdir, there)
      raise


def _leave(workdir: pathlib.Path, there: Collection[str]) -> None:
  """Takes away what makes a folder a run's, where its first command came to nothing: with what was
  wrong put right, it is another config's."""
  if (workdir / CHECKPOINTS).exists():
    return
  with contextlib.suppress(OSError):
    for name in {CONFIG, TOKENIZER, CHAT} - set(there):
      (workdir / name).unlink(missing_ok=True)


def is_held(workdir: pathlib.Path) -> bool:
  """Whether some process trains in the folder right now."""
  path = workdir / LOCK
  if not path.exists():
    return False
  with path.open() as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:  # A file system without locks: whoever trains says so.
      return False
  return False


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the folder's lock; the system frees it with the process, however that ends.

  One process of a run holds it for all of them.

  Raises:
    InputError: another process holds it, or the folder cannot be written.
  """
  if not processes.is_first():
    yield
    return
  path = workdir / LOCK
  try:
    file = path.open("w")
  except OSError as error:
    raise InputError(f"cannot write {path}: {error.strerror}") from None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(
        f"another process is training in {workdir}; wait for its end, or choose another --workdir"
      ) from None
    except OSError as error:
      raise InputError(f"cannot lock {path}: {error.strerror}; use a local file system") from None
    yield


def _told(workdir: pathlib.Path) -> Any:
  """What a run's config.json holds."""
  near = sorted(path.parent.name for path in workdir.parent.glob(f"*/{CONFIG}"))
  hint = f"; {config.nearest(workdir.name, near)}" if near else ""
  lacks = f"it holds no {CONFIG}" if workdir.is_dir() else "there is no such folder"
  absent = f"{workdir} is no run's workdir: {lacks}{hint}"
  return inputs.read_json(workdir / CONFIG, absent)


def config_of(workdir: pathlib.Path) -> Config:
  """The config of a run.

  Raises:
    InputError: there is no run, or not with the keys of today.
  """
  return config.from_config_dict(_told(workdir))


def load_run(
  workdir: pathlib.Path,
  sizes: config.Mesh | None = None,
  at: At | None = None,
  fsdp: bool | None = None,
) -> Run:
  """See `load_state`."""
  return load_state(workdir, sizes, at, fsdp)[0]


def load_state(
  workdir: pathlib.Path,
  sizes: config.Mesh | None = None,
  at: At | None = None,
  fsdp: bool | None = None,
) -> tuple[Run, step.TrainState | None]:
  """A checkpoint of a run, with its own config and tokenizer.

  Args:
    sizes: the mesh to load it onto, which becomes that of its config; None takes the run's own.
    at: its step, or "best" for that of the highest accuracy on `evaluation.best`; None takes the
      newest good one.
    fsdp: as `config.fsdp`; None takes the run's own.

  Returns:
    The run, and the state to go on from; None where the run was exported.

  Raises:
    InputError: there is no run, it cannot lie on the mesh, or none of its checkpoints is good, or
      not that one.
  """
  c = _laid_out(workdir, sizes, fsdp)
  mesh = sharding.make_mesh(c.mesh)
  with checkpoints(workdir, c) as saves:
    if (found := saves.newest() if at is None else at) is None:
      raise InputError(f"{workdir} holds no complete checkpoint yet; train it first")
    if found == "best" and (found := saves.best_step()) is None:
      raise InputError(f"no checkpoint of {workdir} has an accuracy to be the best by")
    told = saves.read_meta(found)
    tokenizer = tokenizer_of(told)
    model = compose.build(c, tokenizer.vocab_size, mesh)
    wanted = step.abstract_state(c, model, optim.from_config(c), mesh)
    exported = is_exported(workdir)
    narrow = lambda x: jax.ShapeDtypeStruct(x.shape, told["dtype"], sharding=x.sharding)
    restored = saves.restore(jax.tree.map(narrow, wanted.params) if exported else wanted, found)
    assert restored is not None
    if exported:
      state, params = None, jax.tree.map(lambda x: x.astype(jnp.float32), restored.state)
    else:
      state, params = restored.state, restored.state.params
  compose.check_finite(c, params)
  return Run(c, model, params, tokenizer, mesh, restored.step), state


def _laid_out(workdir: pathlib.Path, sizes: config.Mesh | None, fsdp: bool | None) -> Config:
  """The config of a run as it is read; the rows of its training steps need not divide there."""
  c = config_of(workdir)
  c = dataclasses.replace(c, mesh=sizes or c.mesh, fsdp=c.fsdp if fsdp is None else fsdp)
  try:
    config.check(dataclasses.replace(c, accumulate=1, batch_size=c.mesh.shares))
  except InputError as error:
    why, *_ = str(error).split(";")  # Behind it stands what a config could do, and a run cannot.
    told = f"cannot lie on the mesh {c.mesh}: {why}; 1x1x1 always can"
    raise InputError(f"{workdir} {told}") from None
  return c


def meta(c: Config, tokenizer: Tokenizer) -> dict[str, Any]:
  """What a checkpoint holds beside its state: whatever else shapes an output."""
  told = None if tokenizer.chat is None else tokenizer.chat.to_json()
  return {"config": config.to_dict(c), "tokenizer": tokenizer.to_json(), "chat": told}


def tokenizer_of(meta: dict[str, Any]) -> Tokenizer:
  """The tokenizer of a checkpoint's meta, under its chat template."""
  template = None if meta["chat"] is None else chat.Template.from_json(meta["chat"])
  return Tokenizer.from_json(meta["tokenizer"]).under(template)


def keep_tokenizer(workdir: pathlib.Path, tokenizer: Tokenizer) -> None:
  """Writes what `kept_tokenizer` reads; the tokenizer last, since it makes the two whole."""
  if tokenizer.chat is not None:
    outputs.write_text(workdir / CHAT, tokenizer.chat.to_json())
  outputs.write_text(workdir / TOKENIZER, tokenizer.to_json())


def kept_tokenizer(workdir: pathlib.Path, template: chat.Template | None) -> Tokenizer | None:
  """The tokenizer that a run's folder holds; None before there is one.

  Args:
    template: of the run's config.

  Raises:
    InputError: the run began with another template.
  """
  if not (workdir / TOKENIZER).exists():
    return None
  if template != template_of(workdir):
    raise InputError(
      "config.data.chat_template holds another template than it did when the run in "
      f"{workdir} began; choose another --workdir"
    )
  return tokenizers.load(workdir / TOKENIZER).under(template)


def results_of(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What a complete run came to; None in all processes where process 0 finds nothing whole."""
  found = None
  with contextlib.suppress(OSError, ValueError):
    found = json.loads((workdir / RESULTS).read_text("utf-8"))
  whole = isinstance(found, dict) and found.keys() >= {"sets", "train_s", "provenance"}
  return found if processes.of_first(whole) else None


def template_of(workdir: pathlib.Path) -> chat.Template | None:
  """The chat template that a run's folder holds, where the run has one."""
  path = workdir / CHAT
  return chat.read(path) if path.exists() else None


def checkpoints(workdir: pathlib.Path, c: Config) -> Checkpoints:
  """The checkpoints of a run; use it as a context. The metric is an accuracy."""
  name, keep = PARAMS if is_exported(workdir) else CHECKPOINTS, c.checkpoint
  return Checkpoints(workdir / name, keep=keep.keep, best=keep.best)
