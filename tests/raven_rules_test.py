"""Tests of RAVEN's rules and solver: by hand, and each against the other."""

import collections
import functools
import itertools
import random

import pytest
from scipy import stats

from iclm.data import raven
from iclm.data.raven import problems, rules, solver
from iclm.data.raven.rules import LAYOUTS, TABLES
from iclm.data.raven.world import Entity

CENTRE = TABLES["center_single"][0]
OUTSIDE, INSIDE = TABLES["in_center_out_center"]
FOUR = LAYOUTS["distribute_four"]
CEILING = {"center_single": 0.998, "in_center_out_center": 0.996, "distribute_four": 0.99}


def named(found, kind: str, on: str = "level") -> list[rules.Rule]:
  return [rule for rule in found if rule.kind == kind and rule.on == on]


def sets(*rows: str) -> tuple[frozenset[int], ...]:
  return tuple(frozenset(map(int, row)) for row in rows)


def test_shares_are_the_published_ones():
  def shares(found):
    total = collections.Counter()
    for rule in found:
      total[rule.kind, rule.on] += rule.share
    return dict(total)

  level = [(kind, "level") for kind in rules.KINDS]
  quarters = pytest.approx(dict.fromkeys(level, 1 / 4))
  assert shares(CENTRE["size"]) == shares(CENTRE["colour"]) == quarters
  assert shares(CENTRE["type"]) == pytest.approx(dict.fromkeys(level[:3], 1 / 3))
  assert shares(CENTRE["angle"]) == shares(OUTSIDE["colour"]) == {level[0]: 1}
  assert shares(OUTSIDE["size"]) == pytest.approx({level[0]: 0.4, level[1]: 0.2, level[2]: 0.4})
  expected = {(kind, on): 1 / 6 for kind in rules.KINDS for on in ("slots", "number")}
  expected |= {("progression", on): 1 / 12 for on in ("slots", "number")}
  del expected["constant", "number"]
  assert shares(FOUR) == pytest.approx(expected)
  assert INSIDE == CENTRE
  assert [rule.step for rule in CENTRE["type"]] == [0, -2, -1, 1, 2, 0]
  assert [rule.step for rule in named(OUTSIDE["size"], "progression")] == [-1, 1]


@pytest.mark.parametrize("table", [CENTRE, OUTSIDE, {"layout": FOUR}])
def test_rows_are_distributions(table):
  for rule in itertools.chain(*table.values()):
    for rows in (rule.rows, rule.second, *(rule.following([row]) for row in rule.rows)):
      assert sum(rows.values()) == pytest.approx(1)


def test_probabilities_of_rows_by_hand():
  size, colour, type_ = CENTRE["size"], CENTRE["colour"], CENTRE["type"]
  plus, minus = named(size, "arithmetic")
  # On level + 1. Plus: a in 0..4, b in 0..4-a. Minus: a in 1..5, b in 0..a-1.
  assert plus.rows[0, 0, 1] == pytest.approx(1 / 25)
  assert plus.rows[4, 0, 5] == pytest.approx(1 / 5)
  assert minus.rows[5, 1, 3] == pytest.approx(1 / 25)
  assert minus.rows[1, 0, 0] == pytest.approx(1 / 5)
  plus, minus = named(colour, "arithmetic")
  # On the level. Plus: a in 0..9, b in 0..9-a. Minus: a in 0..9, b in 0..a.
  assert [plus.rows[9, 0, 9], minus.rows[0, 0, 0]] == pytest.approx([1 / 10] * 2)
  assert plus.rows[2, 3, 5] == pytest.approx(1 / 80)
  assert minus.rows[5, 3, 2] == pytest.approx(1 / 60)
  # Under a row that adds 0: a in 0..8, b in 1..9-a.
  assert plus.following([(4, 0, 4)])[8, 1, 9] == pytest.approx(1 / 9)
  assert all(b > 0 for _, b, _ in plus.following([(4, 0, 4)]))
  assert (9, 0, 9) in plus.following([(4, 1, 5)])
  assert (9, 0, 9) in plus.following([(4, 0, 4), (4, 1, 5)])
  # The only start of two steps up among 1..5.
  assert {r.step: r.rows for r in named(type_, "progression")}[2] == {(1, 3, 5): pytest.approx(1)}
  (three,) = named(size, "distribute_three")
  assert three.rows[4, 0, 2] == pytest.approx(1 / 120)
  assert three.following([(4, 0, 2)]) == {(0, 2, 4): 1 / 2, (2, 4, 0): 1 / 2}
  assert three.following([(4, 0, 2), (2, 4, 0)]) == {(0, 2, 4): 1}


def test_probabilities_of_layouts_by_hand():
  plus, minus = named(FOUR, "arithmetic", "number")
  assert plus.rows[1, 1, 2] == pytest.approx(1 / 9)
  assert [plus.rows[3, 1, 4], minus.rows[2, 1, 1]] == pytest.approx([1 / 3] * 2)
  union, difference = named(FOUR, "arithmetic", "slots")
  # Of three sizes and four sets of size one, 1 in 12; the second is any other, so 1 in 11.
  assert union.rows[sets("0", "1", "01")] == pytest.approx(1 / 12 * 1 / 11)
  assert sets("01", "0", "01") not in union.rows
  # Pairs weigh 1 / 12, triples 1 / 8; five pairs and two triples do not contain {0, 1}: 8 / 12.
  assert difference.rows[sets("01", "12", "0")] == pytest.approx(1 / 12 * 1 / 8)
  assert all(len(third) > 0 for _, _, third in difference.rows)
  up, down = named(FOUR, "progression", "slots")
  assert up.rows[sets("3", "0", "1")] == down.rows[sets("0", "3", "2")] == pytest.approx(1 / 8)
  assert up.rows[sets("01", "12", "23")] == pytest.approx(1 / 12)
  up, down = named(FOUR, "progression", "number")
  assert up.rows == {(1, 2, 3): 1 / 2, (2, 3, 4): 1 / 2}
  assert down.rows == {(4, 3, 2): 1 / 2, (3, 2, 1): 1 / 2}
  (three,) = named(FOUR, "distribute_three", "slots")
  assert three.rows[sets("0", "1", "2")] == pytest.approx(1 / 3 / 24)
  assert all(len(set(map(len, row))) == 1 for row in three.rows)
  (constant,) = named(FOUR, "constant", "slots")
  assert constant.rows[sets("0123", "0123", "0123")] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
  ("attribute", "shown", "kind", "ninth"),
  [
    ("size", "333 111 55", "constant", 5),
    ("size", "135 024 13", "progression", 5),
    ("size", "135 135 02", "progression", 4),  # Also a sum, but a rarer one.
    ("size", "012 234 34", "progression", 5),
    ("size", "001 034 12", "arithmetic", 4),  # 1 + 1 = 2, 1 + 4 = 5, 2 + 3 = 5.
    ("size", "503 412 31", "arithmetic", None),  # 6 - 1 = 5 is level 4, not 3.
    ("size", "504 403 31", "arithmetic", 1),  # 6 - 1 = 5, 5 - 1 = 4, 4 - 2 = 2.
    ("colour", "358 044 90", "arithmetic", 9),
    ("colour", "853 440 96", "arithmetic", 3),
    ("colour", "808 404 90", "arithmetic", None),  # Not 0 twice: nothing fits.
    ("type", "142 421 21", "distribute_three", 4),
    ("type", "142 214 42", "distribute_three", 1),
    ("type", "543 321 54", "progression", 3),
    ("angle", "000 777 33", "constant", 3),
  ],
)
def test_the_solver_on_cases_by_hand(attribute, shown, kind, ninth):
  i = ("size", "colour", "type", "angle").index(attribute)
  panels = []
  for level in map(int, shown.replace(" ", "")):
    levels = [1, 1, 1, 1]
    levels[i] = level
    panels.append(((Entity(*levels, None),),))
  solution = raven.solve("center_single", panels)
  assert (attribute in solution.masks[0].attributes) == (ninth is not None)
  if ninth is not None:
    assert solution.panel[0][0][i] == ninth
    assert solution.kinds[0][attribute] == kind
  others = [c for a, c in enumerate(solution.panel[0][0]) if a != i]
  assert others == [1, 1, 1, None]


def four(*panels: str) -> list:
  """Panels of entities such as 2a, in slot 2 with colour 0; all else is alike."""
  return [
    (tuple(Entity(1, "abcdef".index(e[1]), 1, 1, int(e[0])) for e in p.split()),) for p in panels
  ]


@pytest.mark.parametrize(
  ("shown", "ninth", "slots", "paired", "colour"),
  [
    # The same entities at the same places.
    ("1a 2b|2b 1a|1a 2b|0c|0c|0c|3a 1a 0d|0d 1a 3a", "0d 1a 3a", True, True, True),
    # They move on by one slot, the last one to the first.
    ("0a 1b|1a 2b|2a 3b|3c|0c|1c|2d 3a|3d 0a", "0d 1a", True, True, True),
    # Three sets of slots take turns; who stands where is new in every panel.
    ("0a 1b|0b 2a|1a 3b|0c 2d|1c 3d|0d 1c|3e 1a|0a 1e", "0a 2e", True, False, True),
    # Slots of either panel; entities are new.
    ("0a|1b 2c|0a 1b 2d|3a 0b|1b|0a 1c 3d|2a|3b", "2a 3a", True, False, False),
    # Slots of the first but not the second.
    ("0a 1b|1b 2c|0a|0a 1b 2c|1b 3c|0e 2d|0a 1b 3e|2d 3a", "0a 1a", True, False, False),
    # One more each; slots and entities are new.
    ("0a|1b 2c|0a 1c 2b|1a|0a 3b|1c 2b 3a|0b 3a|1a 2b 3c", "0a 1b 2a 3a", False, False, False),
    # As before, but colours go up and are the same for all.
    ("0a|1b 2b|0c 1c 2c|1b|0c 3c|1d 2d 3d|0a 3a|1b 2b 3b", "0c 1c 2c 3c", False, False, True),
  ],
)
def test_the_solver_on_four_slots_by_hand(shown, ninth, slots, paired, colour):
  solution = raven.solve("distribute_four", four(*shown.split("|")))
  found = ("size", *["colour"] * colour, "type", "angle")
  assert solution.masks == (rules.Mask(found, slots, paired),)
  (expected,) = four(ninth)
  assert solver.compare(expected, solution.panel, solution.masks).right


@functools.cache
def drawn(configuration: str, n: int = 1500) -> list[problems.Problem]:
  return [problems.draw(random.Random(f"{configuration}/{i}"), configuration) for i in range(n)]


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_the_solver_finds_what_was_drawn(configuration):
  right = masks = alike = 0
  for problem in drawn(configuration):
    *shown, ninth = problems.panels(problem)
    expected = tuple(part.mask for part in problem)
    solution = raven.solve(configuration, shown)
    right += solver.compare(ninth, solution.panel, expected).right
    masks += solution.masks == expected
    alike += solver.compare(ninth, solution.panel, solution.masks).right
  n = len(drawn(configuration))
  assert min(right, masks, alike) / n >= CEILING[configuration]


@pytest.mark.parametrize("configuration", raven.CONFIGURATIONS)
def test_rules_and_values_are_drawn_by_their_probabilities(configuration):
  p_values = {}
  for i, table in enumerate(TABLES[configuration]):
    parts = [problem[i] for problem in drawn(configuration)]
    for name, found in (table | {"layout": LAYOUTS[configuration]}).items():
      if len(found) > 1:
        own = [part.layout if name == "layout" else part.rules[name] for part in parts]
        counts = [sum(rule is other for other in own) for rule in found]
        shares = [rule.share * len(own) for rule in found]
        p_values[i, name] = stats.chisquare(counts, shares).pvalue
    uniform = sum(part.uniform for part in parts)
    p_values[i, "uniform"] = stats.binomtest(uniform, len(parts), 1 / 4).pvalue
  assert min(p_values.values()) > 0.001 / len(p_values), p_values


def test_every_row_of_four_slots_obeys_the_rule_of_its_layout():
  by_hand = {
    ("constant", "slots"): lambda a, b, c, _: a == b == c,
    ("progression", "slots"): lambda a, b, c, d: (
      b == {(s + d) % 4 for s in a} and c == {(s + d) % 4 for s in b} and len(a) <= 2
    ),
    ("arithmetic", "slots"): lambda a, b, c, _: c in (a | b, a - b) and c,
    ("distribute_three", "slots"): lambda a, b, c, _: a != b != c != a and len(a) == len(c) < 4,
    ("progression", "number"): lambda a, b, c, d: len(c) - len(b) == len(b) - len(a) == d,
    ("arithmetic", "number"): lambda a, b, c, _: len(c) - len(a) in (len(b), -len(b)),
    ("distribute_three", "number"): lambda a, b, c, _: len({len(a), len(b), len(c)}) == 3,
  }
  seen = set()
  for (part,) in drawn("distribute_four"):
    seen.add((part.layout.kind, part.layout.on))
    slots = [set(traits["layout"]) for traits in part.traits]
    for row in zip(*[iter(slots)] * 3, strict=True):
      assert by_hand[part.layout.kind, part.layout.on](*row, part.layout.step)
    assert all(len(slots[i]) == len(traits["layout"]) for i, traits in enumerate(part.traits))
  assert seen == set(by_hand)


def test_entities_of_four_slots_are_alike_kept_or_new():
  for (part,), i in itertools.product(drawn("distribute_four")[:400], (0, 3, 6)):
    row = [problems.component(traits) for traits in part.traits[i : i + 3]]
    for a, attribute in enumerate(("size", "colour", "type", "angle")):
      if part.uniform or part.rules[attribute].kind != "constant":
        assert all(len({e[a] for e in component}) == 1 for component in row)
      elif part.layout.on == "slots" and part.layout.kind != "arithmetic":
        assert len({tuple(sorted(e[a] for e in component)) for component in row}) == 1
      else:
        assert attribute not in part.mask.attributes
