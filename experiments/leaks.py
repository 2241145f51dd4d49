"""Does RAVEN give its answers away? A small model that reads the eight answers alone.

python -m experiments.leaks --workdir=runs/leaks --out=OUT.json
  [--configuration=center_single] [--task=balanced] [--steps=600] [--examples=10000] [--seed=0]

The model names the right answer, and its likeliest one of the eight counts as its choice: a letter
would be harder to learn from the same examples, so that less would be found.

A set is tight where the upper end of the interval around that model's accuracy stays near chance.
The published sets are the control: there the same model has to be right far more often.
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

import rich.table
from absl import flags

from configs import base, presets
from experiments import baselines, cli
from iclm import config, outputs, provenance
from iclm.data import raven
from iclm.data.raven import world
from iclm.evals import statistics

TASKS = ("published", "balanced")
FORM = "symbolic"
ASKS = "\nThe answer is "
CHANCE, SLACK = 1 / len(raven.LETTERS), 0.02
LEVEL = 0.90  # Of the interval's two ends together: the upper one is exceeded in 5 % of draws.
# Tokens of a row in training and, where the eight answers stand behind their sheet, in evaluation.
SEQ_LEN = {
  "center_single": (56, 112),
  "in_center_out_center": (96, 200),
  "distribute_four": (208, 400),
}


def main(flag: flags.FlagValues) -> int:
  out, folder = config.path(flag.out), config.path(flag.workdir)
  outputs.check_can_be_written(out)
  sets = []
  for configuration in flag.configuration:
    for task in flag.task:
      where = folder / f"{configuration}_{task}"
      found = _measure(flag, configuration, task, where)
      sets.append({"configuration": configuration, "task": task} | found)
  arguments = {name: getattr(flag, name) for name in ("steps", "examples", "tests", "seed")}
  limit = {"chance": CHANCE, "slack": SLACK, "level": LEVEL}
  outputs.write_json(out, {"sets": sets, **limit, **arguments})
  _show(sets)
  return 0


def _measure(
  flag: flags.FlagValues, configuration: world.Configuration, task: str, folder: pathlib.Path
) -> dict[str, Any]:
  """Trains on answers alone, and says how often the right one is then told from them."""
  sizes = {"iid_train": flag.examples, "iid_test": flag.tests}
  outputs.make_folder(folder)
  paths = []
  for split, n in sizes.items():
    paths.append(folder / f"{split}_{flag.seed}_{n}.jsonl")
    outputs.write_jsonl(paths[-1], records(configuration, task, split, flag.seed, n))
  c = _config(flag.steps, flag.seed, *paths, SEQ_LEN[configuration])
  result = baselines.fit(c, folder, f"{configuration} {task}")
  (found,) = result.sets.values()
  n_right = round(found["accuracy"] * found["n"])
  estimate = statistics.wilson_interval(n_right, found["n"], level=LEVEL)
  assert estimate.high is not None
  return {
    "n": found["n"],
    "accuracy": estimate.value,
    "low": estimate.low,
    "high": estimate.high,
    "tight": estimate.high <= CHANCE + SLACK,
    "train_s": result.train_s,
    "provenance": provenance.of(c),
  }


def records(
  configuration: world.Configuration, task: Any, split: str, seed: int, n: int
) -> Iterable[dict[str, Any]]:
  """Yields problems without their context: the eight answers, and which of them is right."""
  for i in range(n):
    e = raven.example(configuration, FORM, task, split, seed, i)
    _, *choices = re.split(r"\n[A-H]\. ", e.prompt.removesuffix(ASKS))
    sheet = "".join(f"{letter}. {text}\n" for letter, text in zip(e.choices, choices, strict=True))
    yield {
      "prompt": sheet + "Right: ",
      "answer": choices[e.choices.index(e.answer)],
      "choices": choices,
      "domain": e.domain,
      "group": e.group,
      "id": e.id,
    }


def _config(
  steps: int, seed: int, train: pathlib.Path, test: pathlib.Path, lengths: tuple[int, int]
) -> config.Config:
  """A plain small decoder, whose heads compare tokens from the start."""
  c = base.get_config()
  c.update(seed=seed, steps=steps, batch_size=32)
  c.model = presets.tiny()
  c.model.update(layers=2, trunk_layers=1, attention="prefix", rope_theta=1e6, qk_init="equal")
  c.experts.kind = "none"
  c.loss.update(baselines.NO_TERMS)
  warmup = min(100, steps // 10)
  c.optimizer.update(kind="muon", lr=3e-3, b1=0.95, schedule="wsd", warmup=warmup, decay=0.3)
  c.data.train = {"sheets": base.source(jsonl=str(train))}
  c.data.domains = ()
  c.data.update(seq_len=lengths[0], question="last_line", questions_per_row=8)
  c.data.tokenizer.update(split="symbols", vocab_size=1_024)
  c.evaluation.update(every=0, batch_size=32, seq_len=lengths[1], best="")
  c.evaluation.sets = {"sheets": base.source(jsonl=str(test))}
  c.checkpoint.update(every=500, keep=1, best=0)
  return config.from_config_dict(c)


def _show(sets: list[dict[str, Any]]) -> None:
  below = f"surely below {CHANCE + SLACK:.3f}"
  table = rich.table.Table("answers alone", "n", "right", "90 % interval", below)
  for s in sets:
    interval = f"{s['low']:.3f} to {s['high']:.3f}"
    name = f"{s['configuration']} {s['task']}"
    table.add_row(name, str(s["n"]), f"{s['accuracy']:.3f}", interval, str(s["tight"]))
  cli.console().print(table)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The folder of the runs, one for each set.")
  flags.DEFINE_string("out", None, "Where the JSON goes.")
  known = list(raven.CONFIGURATIONS)
  flags.DEFINE_multi_enum("configuration", known, known, "Whose answers; all if none is named.")
  flags.DEFINE_multi_enum("task", list(TASKS), TASKS, "Which answers; both if none is named.")
  flags.DEFINE_integer("steps", 600, "Of each training.", lower_bound=10)
  flags.DEFINE_integer("examples", 10_000, "Problems to train on, of each set.", lower_bound=100)
  flags.DEFINE_integer("tests", 4_000, "Problems to be tested on, of each set.", lower_bound=2)
  flags.DEFINE_integer("seed", 0, "Of problems and training.", lower_bound=0, upper_bound=2**31 - 1)
  flags.mark_flags_as_required(["workdir", "out"])
  cli.run(main)
