"""Comparisons with the best baseline: chosen on validation, paired by seed, corrected."""

import pytest

from iclm.config import InputError
from iclm.evals import comparison

SEEDS = range(3)


def table(**systems):
  """System -> three accuracies on val, and three on each of the sets a and b."""
  by_seed = lambda row: dict(zip(SEEDS, row, strict=True))
  return {
    name: dict(zip(("val", "a", "b"), map(by_seed, rows), strict=True))
    for name, rows in systems.items()
  }


TABLE = table(
  weak=((0.5, 0.5, 0.5), (0.9, 0.9, 0.9), (0.9, 0.9, 0.9)),
  strong=((0.8, 0.9, 1.0), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
  ours=((0.9, 0.9, 0.9), (0.2, 0.4, 0.6), (0.6, 0.5, 0.4)),
)


def test_the_baseline_is_chosen_on_validation_and_not_by_what_it_is_tested_on():
  assert comparison.compare(TABLE, ("weak", "strong"), "val", level=0.95)["baseline"] == "strong"


def test_differences_are_paired_and_corrected():
  ours = comparison.compare(TABLE, ("weak", "strong"), "val", level=0.95)["systems"]["ours"]
  # a: differences .1, .2, .3: mean .2, s = .1, half-width 4.3027 * .1 / sqrt 3 = .2484;
  # t = .2 / (.1 / sqrt 3) = 3.464, two-sided p at two degrees of freedom .0742.
  assert ours["a"]["difference"] == pytest.approx(0.2)
  assert ours["a"]["difference_ci"] == pytest.approx([-0.0484, 0.4484], abs=1e-4)
  assert ours["a"]["p"] == pytest.approx(0.0742, abs=1e-4)
  # b: differences .1, 0, -.1: no effect, p = 1. Holm over two columns: twice the smaller p.
  assert ours["b"]["p"] == pytest.approx(1.0)
  assert [ours[s]["p_holm"] for s in "ab"] == pytest.approx([0.1484, 1.0], abs=1e-4)
  assert "p_holm" not in ours["val"]  # What chose is no result.
  # Where no seed differs the test was made all the same, and counts.
  tie = TABLE | {"ours": TABLE["ours"] | {"b": TABLE["strong"]["b"]}}
  ours = comparison.compare(tie, ("weak", "strong"), "val", level=0.95)["systems"]["ours"]
  assert [ours[s]["p_holm"] for s in "ab"] == pytest.approx([0.1484, 1.0], abs=1e-4)


def test_only_common_seeds_are_paired_and_what_is_undefined_says_why():
  less = TABLE | {"ours": {s: {0: x[0], 7: 0.5} for s, x in TABLE["ours"].items()}}
  row = comparison.compare(less, ("strong",), "val", level=0.95)["systems"]["ours"]["a"]
  assert (row["n_pairs"], row["p"], row["difference_ci"]) == (1, None, None)
  assert row["difference"] == pytest.approx(0.1) and "at least 2 values" in row["difference_note"]
  assert row["p_holm"] is None


def test_the_baseline_is_chosen_on_seeds_that_all_of_them_have():
  # On seed 0, which both have, strong is .8 and weak .85; over all of its own strong is .9.
  less = TABLE | {"weak": {s: {0: 0.85} for s in TABLE["weak"]}}
  found = comparison.compare(less, ("weak", "strong"), "val", level=0.95)
  assert (found["baseline"], found["chosen_with_seeds"]) == ("weak", [0])
  none = less | {"weak": {s: {9: 0.85} for s in TABLE["weak"]}}
  with pytest.raises(InputError, match="weak, strong share no seed on 'val'"):
    comparison.compare(none, ("weak", "strong"), "val", level=0.95)


def test_a_baseline_that_is_not_there_is_named():
  with pytest.raises(InputError, match=r"no finished run of 'stron'.*'strong'"):
    comparison.best_of(TABLE, ("stron",), "val")
  with pytest.raises(InputError, match=r"has no set 'vall'.*'val'"):
    comparison.best_of(TABLE, ("strong",), "vall")


def test_the_mean_out_of_distribution_is_of_each_seed_and_of_all_its_sets():
  table = {
    "a": {"x": {0: 0.2, 1: 0.4, 2: 0.9}, "y": {0: 0.6, 1: 0.8}},
    "b": {"x": {0: 0.5}},
  }
  found = comparison.with_mean(table, ("x", "y"))
  assert found["a"][comparison.OOD_MEAN] == pytest.approx({0: 0.4, 1: 0.6})  # Seed 2 lacks y.
  assert comparison.OOD_MEAN not in found["b"] and found["a"]["x"] == table["a"]["x"]
  assert comparison.OOD_MEAN not in comparison.with_mean(table, ())["a"]


def test_differences_that_are_equal_up_to_rounding_tell_no_spread():
  # .7 - .6 and .9 - .8 are a tenth each, and not bitwise the same.
  told = table(
    base=((0.5, 0.5, 0.5), (0.6, 0.7, 0.8), (0.1, 0.2, 0.4)),
    ours=((0.4, 0.4, 0.4), (0.7, 0.8, 0.9), (0.9, 0.9, 0.9)),
  )
  ours = comparison.compare(told, ("base",), "val", level=0.95)["systems"]["ours"]
  assert ours["a"]["difference"] == pytest.approx(0.1) and ours["a"]["p"] is None
  assert "all 3 values are equal" in ours["a"]["difference_note"] and ours["a"]["note"] is None
  # b: three equal values have no interval, and differences that differ do.
  assert ours["b"]["ci"] is None and "all 3 values are equal" in ours["b"]["note"]
  assert ours["b"]["difference_ci"] is not None and ours["b"]["difference_note"] is None
