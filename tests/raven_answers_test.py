"""Tests of RAVEN's answer sets: the published ones give themselves away, the balanced ones do not.

Readers of the eight answers alone: none may see the context.
"""

import collections
import functools
import math
import random
from typing import NamedTuple

import numpy as np
import pytest
from acre_test import p_value
from raven_test import real
from scipy import stats

from iclm.data import raven
from iclm.data.raven import answers, problems, rules

N = 3000  # Answer sets that a reader is tested on; half as many train one.
CHANCE = 1 / 8


class AnswerSet(NamedTuple):
  """Eight answers and the right one's place."""

  right: int
  panels: list
  features: list[tuple]  # Of each answer: of each component the values, slots and number.


def features(panel) -> tuple:
  found = []
  for component in panel:
    found += [tuple(sorted(e[i] for e in component)) for i in range(4)]
    found += [tuple(sorted(str(e.slot) for e in component)), len(component)]
  return tuple(found)


def answer_set(right, wrong, rng) -> AnswerSet:
  panels = rng.sample([right, *wrong], 8)
  return AnswerSet(panels.index(right), panels, list(map(features, panels)))


@functools.cache
def answer_sets(task: str, configuration: str, n: int) -> list[AnswerSet]:
  found = []
  for i in range(n):
    rng = random.Random(f"{task}/{configuration}/{i}")
    if task == "balanced":
      problem, wrong = answers.draw_balanced(rng, configuration)
    else:
      problem = problems.draw(rng, configuration)
      wrong = answers.draw_published(rng, problem)
    found.append(answer_set(problems.panels(problem)[8], wrong, rng))
  return found


# Readers rate the eight answers of a set.


def by_mode(found: AnswerSet) -> list[float]:
  """How many attributes have a value that no other value outnumbers."""
  columns = [collections.Counter(column) for column in zip(*found.features, strict=True)]
  tops = [max(column.values()) for column in columns]
  return [
    sum(c[v] == top for c, v, top in zip(columns, one, tops, strict=True)) for one in found.features
  ]


def by_centroid(found: AnswerSet) -> list[float]:
  """How near it is to the mean, in levels of each attribute, slots and number."""
  vectors = []
  for panel in found.panels:
    vectors.append([])
    for c in panel:
      vectors[-1] += [sum(e[i] for e in c) / len(c) / (5, 9, 4, 7)[i] for i in range(4)]
      vectors[-1] += [float(any(e.slot == s for e in c)) for s in range(4)] + [len(c) / 4]
  distance = ((np.array(vectors) - np.mean(vectors, 0)) ** 2).sum(1)
  return list(-np.round(distance, 9))  # So that rounding does not tell equal distances apart.


def by_oddness(found: AnswerSet) -> list[float]:
  """How far from the mean."""
  return [-x for x in by_centroid(found)]


def evidence(found: AnswerSet) -> list[list]:
  """Of each answer its values, and how many answers share each."""
  columns = [collections.Counter(column) for column in zip(*found.features, strict=True)]
  return [
    [*enumerate(one), *((i, "shared", columns[i][v]) for i, v in enumerate(one))]
    for one in found.features
  ]


def trained(sets):
  """Naive Bayes on the evidence."""
  right, wrong = collections.Counter(), collections.Counter()
  for found in sets:
    for i, one in enumerate(evidence(found)):
      (right if i == found.right else wrong).update(one)
  logit = lambda key: math.log((right[key] + 1) / (wrong[key] + 7))
  return lambda found: [sum(map(logit, one)) for one in evidence(found)]


def accuracy(reader, sets) -> tuple[float, float]:
  """The share of right answers, each tie broken at random, and its upper 95 % bound."""
  credit = []
  for found in sets:
    rates = reader(found)
    top = max(rates)
    best = [i for i, rate in enumerate(rates) if rate == top]
    credit.append((found.right in best) / len(best))
  share = float(np.mean(credit))
  return share, share + 1.645 * float(np.std(credit)) / math.sqrt(len(sets))


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_nobody_reads_the_right_answer_off_a_balanced_set(configuration):
  found = answer_sets("balanced", configuration, N + N // 2)
  readers = {"mode": by_mode, "centroid": by_centroid, "odd": by_oddness}
  readers["bayes"] = trained(found[N:])
  got = {name: accuracy(reader, found[:N]) for name, reader in readers.items()}
  assert all(upper < CHANCE + 0.02 for _, upper in got.values()), got


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_published_sets_are_read_without_the_context(configuration):
  found = answer_sets("published", configuration, 1000)
  share, _ = accuracy(by_mode, found)
  # In distribute_four a new number comes with new entities, and other attributes change with it.
  assert share >= (0.8 if configuration == "distribute_four" else 0.999)


def changed(found: AnswerSet) -> tuple:
  """How many answers differ from the right one in each attribute."""
  right = found.panels[found.right][0][0]
  return tuple(sum(p[0][0][i] != right[i] for p in found.panels) for i in range(4))


def test_real_sets_are_published_ones():
  places, changes = collections.Counter(), collections.Counter()
  for prompt, answer in real("symbolic"):
    panels = raven.parse(prompt).answers
    right = raven.LETTERS.index(answer)
    found = AnswerSet(right, panels, list(map(features, panels)))
    assert accuracy(by_mode, [found])[0] == 1
    places[right] += 1
    changes[changed(found)] += 1
  ours = collections.Counter(map(changed, answer_sets("published", "center_single", 2000)))
  p_values = [p_value(ours, changes), stats.chisquare(list(places.values())).pvalue]
  assert min(p_values) > 0.001 / len(p_values), p_values


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS[:2])
def test_a_published_answer_differs_in_one_attribute(configuration):
  for right, panels, _ in answer_sets("published", configuration, 1000):
    assert len(set(panels)) == 8
    for panel in panels[:right] + panels[right + 1 :]:
      pairs = zip(panel, panels[right], strict=True)
      changed = [
        (c, a)
        for c, (one, other) in enumerate(pairs)
        for a, (x, y) in enumerate(zip(one[0], other[0], strict=True))
        if x != y
      ]
      assert len(changed) == 1
      assert changed[0][1] != 3  # The angle never.
      assert len(panel) == 1 or changed != [(0, 1)]  # Nor the outer colour.


def test_a_published_answer_to_four_slots_differs_in_one_way():
  for i in range(300):
    rng = random.Random(i)
    problem = problems.draw(rng, "distribute_four")
    (right,), mask = problems.panels(problem)[8], problem[0].mask
    for (wrong,) in answers.draw_published(rng, problem):
      assert rules.project(wrong, mask) != rules.project(right, mask)
      if len(wrong) == len(right):
        columns = zip(zip(*wrong, strict=True), zip(*right, strict=True), strict=True)
        changed = [a for a, (one, other) in enumerate(columns) if one != other]
        assert len(changed) == 1
        assert changed[0] != 3
        assert mask.slots or changed[0] != 4
      else:  # What a rule or uniformity makes equal stays.
        for a, attribute in enumerate(("size", "colour", "type", "angle")):
          if problem[0].is_single(attribute):
            assert {e[a] for e in wrong} == {e[a] for e in right}


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_a_balanced_set_has_each_value_in_half_of_its_answers(configuration):
  for i in range(300):
    problem, wrong = answers.draw_balanced(random.Random(i), configuration)
    right = problems.panels(problem)[8]
    masks = [part.mask for part in problem]
    panels = [right, *wrong]
    assert len({tuple(map(rules.project, panel, masks)) for panel in panels}) == 8
    if configuration != "distribute_four":
      levels = [[level for component in panel for level in component[0]] for panel in panels]
      counts = [
        sorted(collections.Counter(column).values()) for column in zip(*levels, strict=True)
      ]
      assert counts.count([4, 4]) == 3
      assert counts.count([8]) == len(counts) - 3
