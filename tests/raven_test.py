"""Tests of RAVEN's wording, examples and scores, and of both against the real files."""

import collections
import functools
import gzip
import json
import pathlib

import pytest
from acre_test import p_value

from iclm.config import InputError
from iclm.data import raven
from iclm.data.raven import solver, world
from iclm.data.raven.world import Entity

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data" / "raven"
REAL = ("symbolic", "text", "symbolic-open", "text-open")
TASKS = [(c, f, t) for c, f, t in raven.CONFIGS.values()]


def real(name: str):
  """Yields (prompt, answer) of a real file, read without the package's own reader."""
  path = DATA / name / "center_single_val.jsonl.gz"
  if not path.exists():
    pytest.skip(f"no {name} RAVEN here")
  with gzip.open(path, "rt") as file:
    for record in map(json.loads, file):
      yield "\n".join(m["content"] for m in record["input"]), record["ideal"]


@functools.cache
def generated(configuration: str, form: str, task: str, n: int = 150, split: str = "iid_val"):
  return [raven.example(configuration, form, task, split, 0, i) for i in range(n)]


ORANGE = Entity(3, 1, 5, 5, None)
PANELS = {
  # The words and letters of the published conversion.
  ("text", ((ORANGE,),)): "On an image, a large orange circle rotated at 90 degrees. ",
  ("symbolic", ((ORANGE,),)): "[(D, B, F, F,)] ",
  ("text", ((Entity(3, 0, 5, 3, None),), (Entity(0, 8, 2, 4, None),))): (
    "On an image, a second figure is displayed inside a first one. Outside: a large red circle"
    " rotated at 0 degrees. Inside: a tiny pink square rotated at 45 degrees. "
  ),
  ("symbolic", ((Entity(3, 0, 5, 3, None),), (Entity(0, 8, 2, 4, None),))): (
    "[(D, A, F, D,)] \n---------------\n[(A, I, C, E,)] \n---------------"
  ),
  ("text", ((Entity(1, 9, 1, 0, 0), Entity(5, 2, 3, 7, 3)),)): (
    "On an image, a small white triangle rotated at -135 degrees in the top left, a giant yellow"
    " pentagon rotated at 180 degrees in the bottom right. "
  ),
  ("symbolic", ((Entity(0, 1, 2, 3, 0), Entity(0, 1, 2, 3, 3)),)): (
    "[(A, B, C, D, TL), (A, B, C, D, BR)] "
  ),
}


@pytest.mark.parametrize(("form", "panel"), PANELS)
def test_panels_are_worded_as_published(form, panel):
  words = PANELS[form, panel]
  assert world.verbalise_panel(form, panel) == words
  assert raven.parse_panel(form, words) == panel
  assert raven.parse_panel(form, f"\n{words.strip()}") == panel  # White space aside.
  other = "text" if form == "symbolic" else "symbolic"
  for wrong in ("", words + "x", words[:-9], words.replace("D", "Z").replace("degrees", "")):
    assert raven.parse_panel(form, wrong) is None
  assert raven.parse_panel(other, words) is None


def test_what_is_no_panel_is_none():
  for text in (
    "[(D, B, A, F,)] ",  # Type 0.
    "[(G, B, B, F,)] ",  # There are six sizes.
    "[(D, B, B, F, TL), (D, B, B, F, TL)] ",  # One slot twice.
    "[(D, B, B, F, TL), (D, B, B, F,)] ",
    "[(D, B, B, F,), (D, B, B, F,)] ",
  ):
    assert raven.parse_panel("symbolic", text) is None
  for text in ("large orange none", "orange large circle", "large orange circles"):
    assert raven.parse_panel("text", f"On an image, a {text} rotated at 90 degrees. ") is None


@pytest.mark.parametrize(("configuration", "form", "task"), TASKS)
def test_prompts_are_read_back(configuration, form, task):
  for e in generated(configuration, form, task):
    read = raven.parse(e.prompt)
    assert (read.form, read.configuration) == (form, configuration)
    assert raven.verbalise(form, read.panels, read.answers) == e.prompt
    assert len(read.panels) == 8
    assert len(read.answers) == (0 if task == "open" else 8)
    assert e.choices == (() if task == "open" else tuple("ABCDEFGH"))
    assert e.domain == f"raven_{configuration}_{form}"
    assert (raven.parse_panel(form, e.answer) is not None) == (task == "open")


def test_foreign_prompts_are_none():
  good = generated("center_single", "text", "open")[0].prompt
  for bad in (
    "",
    good[:-1],
    good + "x",
    good.replace("4. ", ""),
    good.replace("rotated", "turned"),
  ):
    assert raven.parse(bad) is None
    assert raven.label(bad) is None
    assert raven.predict(bad) is None


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_solved_and_reworded_byte_by_byte(name):
  right = 0
  for prompt, answer in real(name):
    read = raven.parse(prompt)
    assert raven.verbalise(read.form, read.panels, read.answers) == prompt
    assert read.form == name.removesuffix("-open")
    if read.answers:
      ninth = read.answers[raven.LETTERS.index(answer)]
    else:
      ninth = raven.parse_panel(read.form, answer)
      assert world.verbalise_panel(read.form, ninth) == answer
    solution = raven.solve(read.configuration, read.panels)
    assert solution.masks[0].attributes == world.ATTRIBUTES
    right += solution.panel == ninth
  assert right == 999  # Of 1,000: one row of the other is as well explained by a likelier rule.


def profile(records) -> dict[str, collections.Counter]:
  """Counts one category a problem and statistic, so that observations are independent."""
  counts = collections.defaultdict(collections.Counter)
  for prompt, answer in records:
    read = raven.parse(prompt)
    solution = raven.solve(read.configuration, read.panels)
    panels = [panel[0][0] for panel in (*read.panels, raven.parse_panel(read.form, answer))]
    for i, name in enumerate(world.ATTRIBUTES):
      counts[name, "rule"][solution.kinds[0][name]] += 1
      for place in (0, 5, 8):
        counts[name, place][panels[place][i]] += 1
      counts[name, "row"][tuple(panel[i] for panel in panels[3:6])] += 1
      counts[name, "column"][panels[0][i], panels[3][i]] += 1
  return counts


def test_problems_are_distributed_as_in_the_real_file():
  theirs = profile(real("symbolic-open"))
  examples = generated("center_single", "symbolic", "open", 4000)
  ours = profile((e.prompt, e.answer) for e in examples)
  p_values = {key: p_value(ours[key], theirs[key]) for key in theirs}
  # Holm's method: all pass iff the smallest does, at 0.001 over the number of comparisons.
  assert min(p_values.values()) > 0.001 / len(p_values), p_values


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_examples_depend_on_their_index_alone(configuration):
  for form, task in (("text", "open"), ("symbolic", "published"), ("text", "balanced")):
    found = generated(configuration, form, task)
    assert raven.example(configuration, form, task, "iid_val", 0, 33) == found[33]
    assert found[33].id == f"{configuration}/iid_val/33"
    assert len({e.prompt for e in found}) == len(found)
    assert raven.example(configuration, form, task, "iid_val", 1, 33) != found[33]
  sets = [
    {e.prompt for e in generated(configuration, "text", "open", split=split)}
    for split in raven.SPLITS
  ]
  assert len(set.union(*sets)) == sum(map(len, sets))


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_forms_and_tasks_are_of_one_problem(configuration):
  for i in range(20):
    text, symbolic, published = (
      generated(configuration, form, task)[i]
      for form, task in (("text", "open"), ("symbolic", "open"), ("symbolic", "published"))
    )
    read = raven.parse(published.prompt)
    panels = raven.parse(symbolic.prompt).panels
    assert raven.parse(text.prompt).panels == read.panels == panels
    right = raven.parse_panel("symbolic", symbolic.answer)
    assert read.answers[raven.LETTERS.index(published.answer)] == right
    assert text.group == symbolic.group == published.group


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_labels_are_those_of_the_generator(configuration):
  found = [e for task in ("open", "balanced") for e in generated(configuration, "text", task)]
  assert {raven.label(e.prompt)[0] for e in found} == {f"raven_{configuration}_text"}
  assert sum(raven.label(e.prompt)[1] == e.group for e in found) >= 0.98 * len(found)


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_the_right_answer_scores_and_so_does_the_solver_s(configuration):
  found = generated(configuration, "text", "open")
  assert all(raven.score(e.prompt, e.answer, e.answer).right for e in found)
  n = sum(raven.score(e.prompt, e.answer, raven.predict(e.prompt)).right for e in found)
  assert n >= 0.98 * len(found)


def symbolic(*panels: str) -> str:
  read = [raven.parse_panel("symbolic", panel) for panel in panels]
  return raven.verbalise("symbolic", read, ())


def test_scores_by_hand():
  # One, two, three entities; colours A, B, C; size and angle by chance: new in each panel.
  rows = [
    *("[(A, A, B, A, TL)] ", "[(B, B, B, C, TR), (A, B, B, D, BL)] "),
    "[(C, C, B, A, TL), (D, C, B, B, BR), (A, C, B, C, TR)] ",
  ]
  prompt = symbolic(*rows, *rows, *rows[:2])
  right = rows[2]
  names = ("colour", "type", "number")
  for answer, wrong in {
    right: "",
    right.strip(): "",
    "[(A, C, B, H, TL), (A, C, B, H, BL), (B, C, B, H, TR)]": "",  # What is by chance differs.
    "[(A, C, B, H, TL), (A, D, B, H, BL), (B, C, B, H, TR)]": "colour",
    "[(A, C, C, H, TL), (A, C, C, H, BL), (B, C, C, H, TR)]": "type",
    "[(A, C, B, H, TL), (A, C, B, H, BL)]": "number",
    "[(A, D, B, H, TL), (A, D, B, H, BL)]": "colour number",
    "[(A, C, B, H,)] ": "colour type number",  # Of another configuration.
    "three figures": "colour type number",
  }.items():
    score = raven.score(prompt, right, answer)
    assert score.parts == {name: name not in wrong.split() for name in names}
    assert score.right == (not wrong)


def test_scores_go_by_entities_and_not_by_their_order():
  row = ["[(A, B, C, D, TL), (C, D, E, F, BR)] "] * 3
  prompt, right = symbolic(*(row * 3)[:8]), row[0]
  assert raven.score(prompt, right, "[(C, D, E, F, BR), (A, B, C, D, TL)]").right
  # All values are there, but not of one entity: size and colour exchanged.
  score = raven.score(prompt, right, "[(C, B, C, D, TL), (A, D, E, F, BR)]")
  assert all(score.parts.values())
  assert not score.right
  score = raven.score(prompt, right, "[(A, B, C, D, TL), (C, D, E, F, BL)]")
  assert {name for name, good in score.parts.items() if not good} == {"slots"}


def test_scores_of_two_components_name_them():
  e = generated("in_center_out_center", "text", "open")[0]
  score = raven.score(e.prompt, e.answer, e.answer.replace("Inside: a ", "Inside: a very "))
  assert set(score.parts) == {
    f"{side}.{name}" for side in ("outside", "inside") for name in world.ATTRIBUTES
  }
  assert not any(score.parts.values())


def test_scores_refuse_what_is_no_open_problem():
  e = generated("center_single", "text", "open")[0]
  choice = generated("center_single", "text", "published")[0]
  for prompt, right, hint in (
    (choice.prompt, choice.answer, "no open prompt"),
    ("9. ", e.answer, "no open prompt"),
    (e.prompt, "[(A, B, C, D,)] ", "no text panel of center_single, such as 'On an image"),
  ):
    with pytest.raises(InputError, match=hint):
      raven.score(prompt, right, e.answer)
  # One more, two more, two more: no rule makes these numbers of entities.
  one, two = "[(A, B, C, D, TL)] ", "[(A, B, C, D, TL), (A, B, C, D, TR)] "
  prompt = symbolic(one, one, two, two, one, two, one, one)
  assert solver.solve("distribute_four", raven.parse(prompt).panels) is None
  with pytest.raises(InputError, match="no rule"):
    raven.score(prompt, one, one)


@pytest.mark.parametrize(
  ("change", "hint"),
  [
    ({"configuration": "centre_single"}, "'center_single'"),
    ({"form": "symbol"}, "'symbolic'"),
    ({"task": "balance"}, "'balanced'"),
    ({"split": "iid"}, "iid_val"),
  ],
)
def test_unknown_names_are_told_with_the_nearest(change, hint):
  good = {"configuration": "center_single", "form": "text", "task": "open", "split": "iid_val"}
  with pytest.raises(InputError, match=hint):
    raven.example(**(good | change), seed=0, index=0)
