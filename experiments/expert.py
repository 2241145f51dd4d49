"""Take an expert out of a run, or put one in; or take all of a run that answering needs.

  python -m experiments.expert --workdir=RUN --export=1 --out=FOLDER           an adapter of peft
  python -m experiments.expert --workdir=RUN --export=1 --merged --out=FOLDER  merged into the base
  python -m experiments.expert --workdir=RUN --export=base --out=FOLDER        the base alone
  python -m experiments.expert --workdir=RUN --export=run --dtype=bfloat16 --out=NEW_RUN
  python -m experiments.expert --workdir=RUN --put=1 --adapter=FOLDER --out=NEW_RUN

An expert is its number, or `invariant`. Bases, and experts merged into them, are folders of
transformers with the run's tokenizer. A new run has the adapter in its expert's place, and all else
bitwise as it was, the expert's moments in the optimizer included. An exported run is a run's folder
with the parameters only: every command that reads a run reads it, none trains in it, and another
run may start from it (checkpoint.init_from).
"""

import dataclasses
import pathlib
import shutil
from typing import Any, Literal

import jax
from absl import flags

from experiments import cli
from iclm import axes, config, hf, outputs, workdir
from iclm.config import InputError

MAX_BYTES = 4 * 2**30  # Of a file of an exported base.
BASE, RUN = "base", "run"
DTYPES = ("float32", "bfloat16", "float16")


def main(flag: flags.FlagValues) -> int:
  if (flag.export is None) == (flag.put is None):
    raise InputError("give --export to take an expert out, or --put to put one in, and not both")
  if (flag.put is None) != (flag.adapter is None):
    raise InputError("--adapter names the folder that --put puts in; give both, or neither")
  if flag.merged and flag.export in (None, BASE, RUN):
    raise InputError("--merged merges the expert that --export names into the base; name one")
  if flag.export == RUN and flag.dtype == "float16":
    raise InputError("--dtype=float16 may not hold all of a run; float32 and bfloat16 do")
  out, name = config.path(flag.out), flag.export or flag.put
  expert = None if name in (BASE, RUN) else _expert(name)
  folder = config.path(flag.workdir)
  run, state = workdir.load_state(folder, cli.mesh_of(folder, flag.mesh), cli.step_of(flag.step))
  # Read on whatever devices, a new run is one for the mesh of the old one.
  own = workdir.config_of(folder).mesh
  run = run._replace(config=dataclasses.replace(run.config, mesh=own))
  if flag.put is not None:
    _put(flag, run, state, expert, out)
  elif name == RUN:
    _export_run(run, folder, out, flag.dtype)
  else:
    _export(flag, run, expert, out)
  print(f"{out}: {name} of {flag.workdir}, step {run.step}")
  return 0


def _export(flag: flags.FlagValues, run: workdir.Run, expert, out: pathlib.Path) -> None:
  c, base = run.config, run.params[BASE]
  adapter = None if expert is None else hf.exportable(c, run.params, expert)
  if adapter is not None and not flag.merged:
    digest, where = hf.base_sha256(base, c.model), base_name(c)
    hf.save_adapter(adapter, c, out, base_sha256=digest, base_name=where)
    if not where:
      print(f"{out} names no base for peft to load it on; --export=base makes a folder of it")
    return
  # Few configs say how long an input may be; then it is as long as the run's own.
  model = dataclasses.replace(c.model, context=c.model.context or c.evaluation_len)
  hf.save_base(
    base,
    model,
    out,
    dtype=flag.dtype,
    max_bytes=MAX_BYTES,
    tokenizer=run.tokenizer,
    adapter=adapter,
  )


def base_name(c: config.Config) -> str:
  """The folder of transformers whose weights the base still has; empty where there is none."""
  source = c.checkpoint.init_from
  return source if source and not c.trains.base and hf.is_folder(source) else ""


def _export_run(run: workdir.Run, source: pathlib.Path, out: pathlib.Path, dtype: str) -> None:
  """Writes what `workdir.load_run` reads; whole, or not at all.

  The results are those of the run before its parameters were rounded.
  """
  c, results = run.config, source / workdir.RESULTS
  told = workdir.meta(c, run.tokenizer) | {"dtype": dtype}
  state = jax.tree.map(lambda x: x.astype(dtype), run.params)
  with outputs.folder(out) as beside:
    if results.exists():
      shutil.copyfile(results, beside / workdir.RESULTS)
    (beside / workdir.PARAMS).mkdir()  # From here on its checkpoints are those of an exported run.
    _write(beside, run, state, told)


def _write(folder: pathlib.Path, run: workdir.Run, state, told: dict[str, Any]) -> None:
  """A run with one checkpoint, of `state`."""
  outputs.write_json(folder / workdir.CONFIG, config.to_dict(run.config))
  workdir.keep_tokenizer(folder, run.tokenizer)
  with workdir.checkpoints(folder, run.config) as saves:
    saves.save(run.step, state, told, None)


def _put(flag: flags.FlagValues, run: workdir.Run, state, expert, out: pathlib.Path) -> None:
  c = run.config
  if expert is None:
    raise InputError(
      f"--put={flag.put}: an adapter goes into an expert; name its number, or 'invariant'"
    )
  if state is None:
    raise InputError(f"{flag.workdir} was exported; put the adapter into the run that it was")
  if out.exists():
    raise InputError(f"--out={out} exists already; name a folder that does not")
  old = hf.adapter_of(c, run.params, expert)
  read = hf.load_adapter(flag.adapter, c, old, hf.base_sha256(run.params[BASE], c.model))
  if read.base_sha256 is None:
    print(f"{flag.adapter} does not say by hash which base it is for; it names {read.base_name!r}")
  if c.bottleneck.kind != "none":
    print(f"expert {expert} keeps its message head: what it says goes through that")
  state = state._replace(params=hf.into(run.params, expert, read.layers))
  with workdir.checkpoints(config.path(flag.workdir), c) as saves:
    told = saves.read_meta(run.step)  # Its data, seconds and starts go on.
  with outputs.folder(out) as beside:
    _write(beside, run, state, told | workdir.meta(c, run.tokenizer))


def _expert(name: str) -> int | Literal["invariant"]:
  if name == axes.INVARIANT:
    return axes.INVARIANT
  try:
    return int(name)
  except ValueError:
    raise InputError(
      f"{name!r} is no expert: name its number, 'invariant', 'base' or 'run'"
    ) from None


if __name__ == "__main__":
  cli.define_run()
  flags.DEFINE_string("export", None, "An expert's number, invariant, base, or run: all of it.")
  flags.DEFINE_bool("merged", False, "Merge the expert into the base.")
  flags.DEFINE_enum("dtype", "float32", DTYPES, "Of exported bases and runs.")
  flags.DEFINE_string("put", None, "Which expert the adapter is to be: a number, or invariant.")
  flags.DEFINE_string("adapter", None, "A folder of peft.")
  flags.DEFINE_string("out", None, "The folder to be made.")
  flags.mark_flags_as_required(["workdir", "out"])
  cli.run(main)
