"""Evaluate a trained run on any jsonl or jsonl.gz, or on a split of a generated data set.

python -m experiments.evaluate --workdir=runs/quickstart --data=FILE [--data=...] --out=OUT.json
  [--data=mechanisms/default:iid_test]
  [--interventions [--seed_workdir=runs/other_seed ...]] [--independence] [--examine=2000]
"""

import pathlib
import random
from typing import Any

import jax
import numpy as np
import rich.table
from absl import flags

from experiments import cli, seeds
from iclm import config, outputs, progress, provenance, workdir
from iclm.config import InputError
from iclm.data import assemble
from iclm.data.records import Example
from iclm.evals import accuracy, determined, examination
from iclm.evals.subject import Subject

N_REFERENCE = 512  # Training examples whose messages stand in for those knocked out.


def main(flag: flags.FlagValues) -> int:
  out, folder = config.path(flag.out), config.path(flag.workdir)
  outputs.check_can_be_written(out)
  for name in flag.data:
    if config.path(name).resolve() == out.resolve():
      raise InputError(f"--out={flag.out} is a file of --data, which it would replace")
  sizes = cli.mesh_of(folder, flag.mesh)
  template = workdir.template_of(folder)
  data = workdir.config_of(folder).data
  examples = {name: list(assemble.named(name, template, data)) for name in flag.data}
  run = workdir.load_run(folder, sizes, cli.step_of(flag.step))
  if flag.interventions or flag.independence:
    examination.check(run.config)  # Now, not after minutes of scoring.
  if flag.seed_workdir and not flag.interventions:
    raise InputError("--seed_workdir compares routes, which --interventions examines; give both")
  others = seeds.load(run, flag.workdir, flag.seed_workdir, cli.step_of(flag.step))
  others = [Subject(*other.parts) for other in others]
  for path, found in examples.items():
    _check(path, found, run)
  subject = Subject(*run.parts)
  sets, n_draws = [], run.config.evaluation.draws if flag.draws is None else flag.draws
  for path, found in progress.watch(examples.items(), len(examples), "sets scored"):
    scores = subject.score(found)
    summary = accuracy.summarise(found, scores, run.config)
    draws = [subject.score(found, key=jax.random.key(i)).correct_N.mean() for i in range(n_draws)]
    if draws:
      std = float(np.std(draws, ddof=1)) if len(draws) > 1 else None
      summary["sampled"] = {"draws": len(draws), "accuracy": float(np.mean(draws)), "std": std}
    sets.append({"path": path, **summary, **determined.report(subject, found, scores.correct_N)})
    if summary["n_truncated"]:
      print(f"{path}: {summary['n_truncated']} rows lost tokens from the left of their context")
  examined = _examine(flag, subject, others, examples)
  # Of the run, whatever the mesh that it was read onto.
  about = provenance.of(workdir.config_of(folder))
  outputs.write_json(out, {"step": run.step, "sets": sets, "provenance": about} | examined)
  _show(sets)
  return 0


def _check(path: str, examples: list[Example], run: workdir.Run) -> None:
  """Raises InputError for what would else be told after minutes of scoring."""
  try:
    accuracy.check(examples, run.tokenizer, run.config)
    determined.check(examples)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None


def _examine(
  flag: flags.FlagValues, subject: Subject, others: list[Subject], sets: dict[str, list[Example]]
) -> dict[str, Any]:
  """What the asked-for examinations say of a sample of all sets together, and its parts."""
  c, found = subject.config, {}
  if not (flag.interventions or flag.independence):
    return found
  picked = {path: _sample(of, flag.examine, c.seed) for path, of in sets.items()}
  examples = [e for of in picked.values() for e in of]
  found["examined"] = [
    {"path": path, "n": len(of), "of": len(sets[path]), "share": len(of) / len(examples)}
    for path, of in picked.items()
  ]
  if len(sets) > 1:
    shares = ", ".join(f"{s['share']:.0%} {s['path']}" for s in found["examined"])
    print(f"examined together, as one population: {shares}")
  if flag.interventions:
    reference = assemble.sample(c, assemble.training_rows(c), N_REFERENCE)
    found |= examination.intervene(subject, examples, reference, c.seed, others)
  if flag.independence:
    found |= examination.independence_of(subject, examples, c.seed)
  return found


def _sample(examples: list[Example], n: int, seed: int) -> list[Example]:
  """At most n of them at random, in their order: a file may be sorted."""
  return [
    examples[i]
    for i in sorted(random.Random(seed).sample(range(len(examples)), min(n, len(examples))))
  ]


def _show(sets: list[dict]) -> None:
  path = rich.table.Column("set", overflow="fold")
  head = "n", "accuracy", "exact match", "determined (ceiling)", "nats per answer", "groups"
  table = rich.table.Table(path, *head)
  for s in sets:
    groups = ", ".join(f"{k} {v['accuracy']:.3f}" for k, v in s["by_group"].items())
    d = s.get("determined")
    own = f"{d['accuracy']:.4f} ({d['ceiling']:.4f})" if d else "-"
    numbers = f"{s['accuracy']:.4f}", f"{s['exact_match']:.4f}", own, f"{s['nll_nats']:.4f}"
    table.add_row("/".join(pathlib.Path(s["path"]).parts[-3:]), str(s["n"]), *numbers, groups)
  cli.console().print(table)


if __name__ == "__main__":
  cli.define_run()
  flags.DEFINE_multi_string(
    "data", None, "A jsonl, a jsonl.gz or BUILDER/CONFIG:SPLIT; several times."
  )
  flags.DEFINE_multi_string("seed_workdir", [], "The same run of another seed; several times.")
  flags.DEFINE_string("out", None, "Where the JSON goes.")
  told = "Draws of the messages for the sampled accuracy; default: config.evaluation.draws."
  flags.DEFINE_integer("draws", None, told, lower_bound=0)
  flags.DEFINE_bool("interventions", False, "Force, knock out, swap, interchange; and the routes.")
  flags.DEFINE_bool("independence", False, "How dependent the streams are, beside chance.")
  flags.DEFINE_integer(
    "examine",
    2_000,
    "At most so many examples of each set, at random, to examine so.",
    lower_bound=1,
  )
  flags.mark_flags_as_required(["workdir", "data", "out"])
  cli.run(main)
