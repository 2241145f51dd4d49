"""Tests of the ACRE generator: logic by brute force, wording and distribution by the real files."""

import collections
import functools
import gzip
import itertools
import json
import math
import pathlib
import random

import pytest
from scipy import stats

from iclm.config import InputError
from iclm.data import acre
from iclm.data import acre_world as world
from iclm.data.acre_world import View

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data" / "acre"
REAL = {"iid_train": "IID/train", "iid_val": "IID/val", "comp_published": "Comp/val"}
REAL["sys_published"] = "Sys/val"


def real(form: str, name: str):
  """Yields (prompt, answer) of a real file, read without the package's own reader."""
  path = DATA / form / f"{name}.jsonl.gz"
  if not path.exists():
    pytest.skip(f"no {path.name} of {form} ACRE here")
  with gzip.open(path, "rt") as file:
    for record in map(json.loads, file):
      yield "\n".join(m["content"] for m in record["input"]), str(record["ideal"])


def entailed(views, query) -> int:
  """The light's state by trying every set of activating objects that explains the views."""
  objects = sorted({i for view in views for i in view.objects} | set(query))
  states = set()
  for active in itertools.product((False, True), repeat=len(objects)):
    activates = dict(zip(objects, active, strict=True))
    if all(any(activates[i] for i in view.objects) == view.lit for view in views):
      states.add(any(activates[i] for i in query))
  return {(False,): 0, (False, True): 1, (True,): 2}[tuple(sorted(states))]


def test_solver_on_a_case_by_hand():
  # 2 and 4 are inert, being in unlit views. Then {1} lights alone; {3, 4} leaves 3 to have lit it;
  # {5, 6, 2} leaves 5 or 6, as does {5, 6, 7, 4} with 7 to spare; 8 was never shown.
  views = [
    *(View((1, 2), True), View((2,), False), View((1,), True), View((4,), False)),
    *(View((3, 4), True), View((5, 6, 2), True), View((5, 6, 7, 4), True)),
  ]
  known = world.solve(views)
  expected = {
    (1,): (2, "direct"),
    (2,): (0, "screen_off"),
    (3,): (2, "indirect"),
    (4,): (0, "screen_off"),
    (5,): (1, "potential"),
    (8,): (1, "potential"),
    (2, 3): (2, "indirect"),
    (2, 1): (2, "direct"),
    (4, 6): (1, "potential"),
    (2, 5, 6): (2, "indirect"),  # One of the two must activate it, whichever.
    (5, 7): (1, "potential"),  # 6 may have been the one.
  }
  got = {q: (world.state(known, q), world.query_type(known, q)) for q in expected}
  assert got == expected
  inert = world.solve([View((1, 2), False)])  # Seen unlit only: nothing screens it off.
  assert (world.state(inert, (2,)), world.query_type(inert, (2,))) == (0, "direct")


@pytest.mark.parametrize("split", acre.SPLITS)
def test_answers_of_every_split_follow_from_the_views(split):
  for index, n_questions in itertools.product(range(25), (4, 12)):
    for lesson in (0.0, 0.5, 1.0):
      for e in acre.examples("symbolic", split, 3, index, n_questions, lesson):
        _, views, query = world.parse(e.prompt)
        assert int(e.answer) == entailed(views, query)
        assert e.group == acre.label(e.prompt)[1]


@pytest.mark.parametrize("form", world.WORDINGS)
@pytest.mark.parametrize("name", ["IID/val", "Comp/val", "Sys/val"])
def test_real_files_are_solved_and_reworded_byte_by_byte(form, name):
  for prompt, answer in real(form, name):
    read_form, views, query = world.parse(prompt)
    assert read_form == form
    assert world.verbalise(form, views, [query]) == [prompt]
    assert world.WORDINGS[form].answers[world.state(world.solve(views), query)] == answer


def test_query_types_of_iid_train_have_the_published_shares():
  # SPEC 1.4, in percent of 24,000 queries.
  expected = {
    ("direct", "0"): 12.69,
    ("direct", "2"): 24.42,
    ("indirect", "2"): 11.79,
    ("screen_off", "0"): 24.58,
    ("potential", "1"): 26.52,
  }
  prompts = real("symbolic", "IID/train")
  counts = collections.Counter((acre.label(prompt)[1], answer) for prompt, answer in prompts)
  shares = {key: round(100 * n / counts.total(), 2) for key, n in counts.items()}
  assert shares == pytest.approx(expected, abs=0.011)


def profile(records) -> dict[str, collections.Counter]:
  """Counts one category a problem and statistic, so that observations are independent."""
  counts = collections.defaultdict(collections.Counter)
  for quadruple in zip(*[iter(records)] * 4, strict=True):
    queries = [world.parse(prompt)[2] for prompt, _ in quadruple]
    views = world.parse(quadruple[0][0])[1]
    known = world.solve(views)
    evidence = views[3:]
    for name, category in {
      "objects": len({i for view in views for i in view.objects}),
      "types": sorted(world.query_type(known, q) for q in queries),
      "answers": sorted(answer for _, answer in quadruple),
      "lit": sorted(len(view.objects) for view in evidence if view.lit),
      "unlit": sorted(len(view.objects) for view in evidence if not view.lit),
      "lengths": sorted(map(len, queries)),
      "repeats": len({frozenset(q) for q in queries}),
      "light": next(view.objects for view in views if view.lit and len(view.objects) == 1),
    }.items():
      counts[name][str(category)] += 1
  return counts


def generated(split: str, n: int):
  for index in range(n):
    for e in acre.examples("symbolic", split, 0, index, 4):
      yield e.prompt, e.answer


@functools.cache
def simulated(split: str) -> dict[str, collections.Counter]:
  return profile(generated(split, 3000))


def p_value(a: collections.Counter, b: collections.Counter) -> float:
  """That two samples are of one distribution; categories seen less than 20 times are one."""
  common = {key for key in a | b if a[key] + b[key] >= 20}
  rows = [[c[key] for key in common] + [c.total() - sum(c[k] for k in common)] for c in (a, b)]
  columns = [column for column in zip(*rows, strict=True) if sum(column)]
  return stats.chi2_contingency(columns).pvalue if len(columns) > 1 else 1.0


def test_problems_are_distributed_as_in_the_real_files():
  p_values = {}
  for split, name in REAL.items():
    ours, theirs = simulated(split), profile(real("symbolic", name))
    p_values |= {(split, key): p_value(ours[key], theirs[key]) for key in theirs}
  # Holm's method: all pass iff the smallest does, at 0.001 over the number of comparisons.
  assert min(p_values.values()) > 0.001 / len(p_values), p_values


def test_the_comparison_tells_the_splits_apart():
  iid, comp, sys = map(simulated, ("iid_val", "comp_published", "sys_published"))
  assert p_value(iid["lit"], sys["lit"]) < 1e-9
  assert p_value(iid["types"], comp["types"]) < 1e-3


def test_true_comp_shares_attributes_but_no_triple():
  assert len(acre.COMP_TRAIN) == len(acre.COMP_TEST) == 24
  assert set(acre.COMP_TRAIN).isdisjoint(acre.COMP_TEST)
  # By SPEC 1.5: the gray rubber cube trains, the red one tests; spheres are rubber or metal.
  assert 0 in acre.COMP_TRAIN
  assert 2 in acre.COMP_TEST
  assert {i % 2 for i in acre.COMP_TRAIN if i >= 32} == {0}
  for attribute in (lambda i: i // 16, lambda i: i % 16 // 2, lambda i: i % 2):
    assert set(map(attribute, acre.COMP_TRAIN)) == set(map(attribute, acre.COMP_TEST))
  for split, pool in (("comp_train", acre.COMP_TRAIN), ("comp_test", acre.COMP_TEST)):
    for prompt, _ in generated(split, 50):
      _, views, query = world.parse(prompt)
      assert {i for view in views for i in view.objects} | set(query) <= set(pool)


@pytest.mark.parametrize(("split", "n_lit"), [("sys_train", 1), ("sys_test", 2)])
def test_true_sys_differs_in_lit_evidence(split, n_lit):
  for prompt, _ in generated(split, 100):
    _, views, _ = world.parse(prompt)
    assert sum(view.lit for view in views[3:]) == n_lit


def test_splits_share_no_context():
  contexts = [
    {prompt.rpartition("\n")[0] for prompt, _ in generated(split, 500)}
    for split in ("iid_train", "iid_val", "iid_test", "sys_published")
  ]
  assert len(set.union(*contexts)) == sum(map(len, contexts)) == 2000


def test_a_problem_depends_on_its_index_alone():
  problems = acre.Problems("text", "iid", seed=1, n_questions=16, ramp=0)
  order = random.Random(0).sample(range(40), 40)
  shuffled = {i: problems[i] for i in order}
  again = acre.Problems("text", "iid", seed=1, n_questions=16, ramp=0)
  assert [again[i] for i in range(40)] == [shuffled[i] for i in range(40)]
  assert len({tuple(e.prompt for e in p) for p in shuffled.values()}) == 40
  assert acre.Problems("text", "iid", 2, 16, 0)[0] != problems[0]
  last = problems[len(problems) - 1]
  assert len(last) == 16
  with pytest.raises(IndexError):
    problems[len(problems)]


def test_questions_of_a_problem_cover_its_objects_and_every_answer():
  for i in range(50):
    found = acre.Problems("symbolic", "iid", 0, 16, 0)[i]
    _, views, _ = world.parse(found[0].prompt)
    queries = [world.parse(e.prompt)[2] for e in found]
    singles = {q[0] for q in queries if len(q) == 1}
    assert singles == {o for view in views for o in view.objects}
    assert len(set(queries)) >= 14  # Sets do not repeat until they run out.
    statuses = {e.answer for e in found[: len(singles)]}
    assert {e.answer for e in found[: len(statuses)]} == statuses  # Answers take turns.
    assert [e.id for e in found] == [f"iid_train/{i}/{q}" for q in range(16)]
    assert {e.domain for e in found} == {"acre_symbolic"}
    assert {e.choices for e in found} == {("0", "1", "2")}


def test_four_questions_are_the_published_ones():
  for i in range(50):
    queries = [world.parse(e.prompt)[2] for e in acre.examples("text", "iid_val", 0, i, 4)]
    _, views, _ = world.parse(acre.examples("text", "iid_val", 0, i, 4)[0].prompt)
    assert [len(q) for q in queries[:2]] == [1, 1]
    unlit = [view.objects for view in views if not view.lit]
    assert any(all(q[: len(base)] == base for q in queries[2:]) for base in unlit)


def test_the_curriculum_goes_from_single_objects_to_all_views():
  problems = acre.Problems("symbolic", "iid", seed=0, n_questions=8, ramp=300)
  views = [world.parse(problems[i][0].prompt)[1] for i in range(330)]
  simple = [len(v) == 3 and all(len(view.objects) == 1 for view in v) for v in views]
  assert all(simple[:100])
  # Then real with probability index / 200 - 1 / 2.
  assert sum(simple[100:200]) > 60 > 40 > sum(simple[200:])
  for i, v in enumerate(views[100:300], 100):
    assert simple[i] or len(v) >= 1 + int(5 * (1.5 * i / 300 - 0.5))
  assert {len(v) for v in views[300:]} == {6}
  # An object in no view is asked about, too.
  asked = {world.parse(e.prompt)[2] for e in problems[0]}
  assert {(i,) for view in views[0] for i in view.objects} < asked


def test_foreign_prompts_are_nobodys():
  good = acre.examples("symbolic", "iid_val", 0, 0, 4)[0].prompt
  assert acre.label(good)[0] == "acre_symbolic"
  head = world.WORDINGS["symbolic"].head
  for prompt in ("", "[3] -> ", head, f"{head}[3] -> ", f"{head}[48] -> 2\n[3] -> ", good + "2"):
    # No views: nothing is known.
    expected = ("acre_symbolic", "potential") if prompt == f"{head}[3] -> " else None
    assert acre.label(prompt) == expected


@pytest.mark.parametrize(
  ("change", "hint"),
  [
    ({"form": "texts"}, "'text'"),
    ({"split": "iid_train"}, "'iid'"),
    ({"n_questions": 0}, "at least 1"),
    ({"ramp": -1}, "at least 0"),
  ],
)
def test_arguments_out_of_range_are_told(change, hint):
  good = {"form": "text", "split": "iid", "seed": 0, "n_questions": 4, "ramp": 0}
  with pytest.raises(InputError, match=hint):
    acre.Problems(**(good | change))


def test_kinds_are_equally_likely():
  n = 2000
  kinds = collections.Counter(
    sum(view.lit for view in acre.draw_views(random.Random(i), acre.SPLITS["iid_val"]))
    for i in range(n)
  )
  # The demonstration has two, kind A one more, kind B two more.
  assert set(kinds) == {3, 4}
  assert abs(kinds[3] - n / 2) < 4 * math.sqrt(n / 4)
