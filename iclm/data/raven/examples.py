"""Examples of RAVEN: a problem of an index, worded in a form, open or with answers to choose."""

import random
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from iclm.config import check_known
from iclm.data.raven import answers, problems, rules, solver, world
from iclm.data.raven.world import Configuration, Form
from iclm.data.records import Example

Task = Literal["open", "published", "balanced"]
TASKS: tuple[Task, ...] = get_args(Task)
SPLITS = ("iid_train", "iid_val", "iid_test")
# By name, as the TFDS builder's.
CONFIGS: dict[str, tuple[Configuration, Form, Task]] = {
  f"{configuration}_{form}_{task}": (configuration, form, task)
  for configuration in world.CONFIGURATIONS
  for form in world.FORMS
  for task in TASKS
}


def example(
  configuration: Configuration, form: Form, task: Task, split: str, seed: int, index: int
) -> Example:
  """Returns example `index` of a split, a pure function of the arguments.

  Args:
    configuration: one of `world.CONFIGURATIONS`.
    form: "symbolic" or "text"; both word the same problems.
    task: "open" asks for the panel, "published" and "balanced" for the letter of an answer. The
      first two are on the same problems.
    split: one of `SPLITS`; two splits never draw from the same stream.
    seed: any integer.
    index: >= 0.

  Returns:
    An example of the domain "raven_<configuration>_<form>"; its group is the hardest of the rules
    that govern the problem, in the order of `rules.KINDS`.

  Raises:
    InputError: configuration, form, task or split is not known.
  """
  for what, value, known in (
    ("configuration", configuration, world.CONFIGURATIONS),
    ("form", form, world.FORMS),
    ("task", task, TASKS),
    ("split", split, SPLITS),
  ):
    check_known(f"{what} of RAVEN", value, known)
  rng = random.Random(f"{seed}/raven/{configuration}/{split}/{index}")
  if task == "balanced":
    problem, wrong = answers.draw_balanced(rng, configuration)
  else:
    problem = problems.draw(rng, configuration)
    wrong = answers.draw_published(rng, problem) if task == "published" else []
  *shown, right = problems.panels(problem)
  if wrong:
    choices = rng.sample([right, *wrong], len(world.LETTERS))
    answer = world.LETTERS[choices.index(right)]
  else:
    choices, answer = [], world.verbalise_panel(form, right)
  return Example(
    prompt=world.verbalise(form, shown, choices),
    answer=answer,
    choices=world.LETTERS if wrong else (),
    domain=f"raven_{configuration}_{form}",
    group=_group({"layout": p.layout.kind} | _kinds(p.rules) for p in problem),
    id=f"{configuration}/{split}/{index}",
  )


def label(prompt: str) -> tuple[str, str] | None:
  """Returns domain and group of a prompt, by the solver; None when it is none of RAVEN."""
  read = world.parse(prompt)
  solution = None if read is None else solver.solve(read.configuration, read.panels)
  if read is None or solution is None:
    return None
  return f"raven_{read.configuration}_{read.form}", _group(solution.kinds)


def _kinds(found: Mapping[str, rules.Rule]) -> dict[str, str]:
  return {attribute: rule.kind for attribute, rule in found.items()}


def _group(kinds: Iterable[Mapping[str, str]]) -> str:
  return max((kind for part in kinds for kind in part.values()), key=rules.KINDS.index)
