"""Planted truth: what is known to be in a model is what the interventions report."""

import dataclasses
import json

import numpy as np
import pytest

from iclm.data.records import Example
from iclm.evals import accuracy, interventions

WORDS = "a b c d e f g h : x y z u v"


def example(i, domain, group="g", answer="x y"):
  shown = " ".join(WORDS.split()[j] for j in np.random.default_rng(i).permutation(8)[:4])
  return Example(f"{domain} {shown} :", answer, (), domain, group, str(i))


def scores(nll_N, index_N):
  nll_N, index_N = np.asarray(nll_N, float), np.asarray(index_N)
  right_N, n = nll_N < 1, len(nll_N)
  return accuracy.Scores(
    right_N, right_N, nll_N, np.zeros((2, n), bool), np.zeros((2, n)), index_N, np.ones(n), 0
  )


# Two domains of 20 inputs. Expert d costs 0.1 nats in domain d and 2.1 elsewhere; the router is
# wrong about the first 2 inputs of each domain; expert 2 is as good as 0 and never chosen.
DOMAIN_N = np.repeat([0, 1], 20)
ROUTE_N = np.where(np.arange(40) % 20 < 2, 1 - DOMAIN_N, DOMAIN_N)
EXAMPLES = [example(i, "ab"[d]) for i, d in enumerate(DOMAIN_N)]


def cost(route_N):
  return np.where(np.where(route_N == 2, 0, route_N) == DOMAIN_N, 0.1, 2.1)


def planted():
  forced = [scores(cost(np.full(40, e)), np.full(40, e)) for e in range(3)]
  # Without its message, expert 1 costs 3 nats more; expert 0 says nothing that is used.
  knocked = scores(cost(ROUTE_N) + 3 * (ROUTE_N == 1), ROUTE_N)
  return interventions.Measured(scores(cost(ROUTE_N), ROUTE_N), forced, {"mean": knocked})


def test_a_router_wrong_in_a_known_share_and_experts_that_own_a_domain():
  found = interventions.report(planted(), EXAMPLES, 3, seed=0, question="none")
  assert found["domains"] == ["a", "b"]
  # Forced to its owner, a domain gains on the 2 of 20 that were misrouted: -2 * 0.1 nats, +0.1 of
  # accuracy; forced to the other, the 18 others lose: 2 * 0.9 nats, -0.9. Expert 2 is expert 0.
  np.testing.assert_allclose(found["force_nats"], [[-0.2, 1.8], [1.8, -0.2], [-0.2, 1.8]])
  np.testing.assert_allclose(found["force"], [[0.1, -0.9], [-0.9, 0.1], [0.1, -0.9]])
  # The best of all routes would save 2 nats for a tenth of the inputs.
  assert found["regret_nats"] == pytest.approx(0.2)
  low, high = found["ci95"]["regret_nats"]
  assert 0 <= low < 0.2 < high < 0.45
  # Expert 1 serves 2 of 20 inputs of a and 18 of b, 3 nats each; half of all inputs.
  np.testing.assert_allclose(found["knockout_nats"], [[0, 0], [0.3, 2.7], [0, 0]], atol=1e-12)
  assert [row["routed"] for row in found["importance"]] == [0.5, 0.5, 0.0]
  np.testing.assert_allclose([row["nats"] for row in found["importance"]], [0, 1.5, 0], atol=1e-12)
  # The inputs of 0: 18 of a, 2 of b. Expert 1 costs the former 2 nats and saves the latter 2.
  np.testing.assert_allclose(found["swap_nats"][0], [0, 1.6, 0], atol=1e-12)
  assert found["swap_nats"][2] == [None] * 3
  # What it costs when another expert serves is 0.9 of all or nothing, so that it has an interval.
  np.testing.assert_allclose(found["swap"][0], [0, -0.8, 0], atol=1e-12)
  low, high = found["ci95"]["swap"][0][1]
  assert -1 <= low < -0.8 < high < -0.4 and found["ci95"]["swap"][0][0] is None
  low, high = found["importance"][1]["ci95"]
  assert 1 < low < 1.5 < high < 2 and found["importance"][1]["accuracy"] == pytest.approx(-0.45)
  assert found["notes"][0] == "no input reaches expert 2"
  [alike] = found["notes"][1:]
  assert "all inputs change alike" in alike and "knockout of expert 0 in 'a'" in alike


def strict(found):
  json.dumps(found, allow_nan=False)
  return found


def test_what_is_not_finite_is_none_and_named():
  broken = planted()
  broken.forced[2].nll_N[3] = np.nan
  found = strict(interventions.report(broken, EXAMPLES, 3, seed=0, question="none"))
  assert found["force_nats"][2] == [None, pytest.approx(1.8)]
  assert found["ci95"]["force_nats"][2][0] is None and found["regret_nats"] is None
  [note] = [n for n in found["notes"] if n.startswith("1 of 20 values are not finite")]
  assert "force_nats of expert 2 in 'a'" in note
  [note] = [n for n in found["notes"] if n.startswith("1 of 40 values are not finite")]
  assert note.endswith("regret_nats")


def test_a_knock_out_without_reference_examples_is_unknown_and_not_zero():
  whole = planted()
  measured = whole._replace(
    knocked=dict.fromkeys(("mean", "zero", "resampled"), whole.knocked["mean"])
  )
  found = strict(
    interventions.report(
      measured._replace(unheard=frozenset({1})), EXAMPLES, 3, seed=0, question="none"
    )
  )
  for kind in ("knockout", "knockout_nats", "knockout_resampled"):
    assert found[kind][1] == found["ci95"][kind][1] == [None, None] and found[kind][0] == [0, 0]
  np.testing.assert_allclose(found["knockout_zero_nats"][1], [0.3, 2.7])
  assert found["importance"][1]["nats"] is None and found["importance"][0]["nats"] == 0
  [note] = [n for n in found["notes"] if "reference" in n]
  assert note.startswith("no reference example reaches expert 1")
  # Expert 0 is still a's, and costs nobody anything.
  assert found["dominance"]["own_nats"] == found["dominance"]["other_nats"] == 0
  assert "knock-out of expert 1, of 'b', is unknown" in found["dominance"]["note"]


def test_questions_on_one_context_are_one_draw():
  # The 20 questions of a domain are on 4 contexts, which are too few for an interval.
  shared = [
    dataclasses.replace(e, prompt=f"{e.domain}{i // 5}\n{i}") for i, e in enumerate(EXAMPLES)
  ]
  found = interventions.report(planted(), shared, 3, seed=0, question="last_line")
  assert "domain 'a' has 20 examples on 4 contexts; intervals need 20" in found["notes"]
  assert found["ci95"]["force"] == [[None, None]] * 3 and found["force"][0][0] == 0.1
  assert found["ci95"]["regret_nats"] is None
  assert "8 contexts, and intervals need 20: " in " / ".join(found["notes"])
  # Where the whole prompt is context, a common first line is none.
  alone = interventions.report(planted(), shared, 3, seed=0, question="none")
  assert alone["ci95"]["force"][0][0] is not None


def test_dominance_is_of_the_matched_expert_over_the_others():
  found = interventions.report(planted(), EXAMPLES, 3, seed=0, question="none")["dominance"]
  # Expert 0 is a's and costs nothing anywhere; expert 1 is b's, costs it 2.7 nats and a 0.3.
  assert found["matching"] == {"a": 0, "b": 1} and found["note"] is None
  assert found["own_nats"] == pytest.approx(2.7 / 2)
  assert found["other_nats"] == pytest.approx(0.3 / 2)
  assert found["ratio"] == pytest.approx(9)


def test_dominance_does_not_let_a_gain_and_a_loss_cancel():
  # Without expert 0 its 2 of 20 inputs in b gain 7.5 nats; without 1 its 2 in a lose as much.
  measured = planted()
  effect = np.where(ROUTE_N == DOMAIN_N, 1.0, np.where(ROUTE_N == 0, -7.5, 7.5))
  knocked = {"mean": scores(cost(ROUTE_N) + effect, ROUTE_N)}
  found = interventions.report(
    measured._replace(knocked=knocked), EXAMPLES, 3, seed=0, question="none"
  )
  np.testing.assert_allclose(found["knockout_nats"][:2], [[0.9, -0.75], [0.75, 0.9]])
  assert found["dominance"]["other_nats"] == pytest.approx(0.75)
  assert found["dominance"]["ratio"] == pytest.approx(0.9 / 0.75)
  knocked = {"mean": scores(cost(ROUTE_N) - effect, ROUTE_N)}
  found = interventions.report(
    measured._replace(knocked=knocked), EXAMPLES, 3, seed=0, question="none"
  )
  assert found["dominance"]["own_nats"] == pytest.approx(0.9)
  assert found["dominance"]["note"] == "without its own expert 'a', 'b' is better off"


def test_dominance_that_is_undefined_is_none_and_says_why():
  of = lambda measured, examples: interventions.report(
    measured, examples, 3, seed=0, question="none"
  )["dominance"]
  silent = of(planted()._replace(knocked={}), EXAMPLES)
  assert silent["own_nats"] is silent["other_nats"] is silent["ratio"] is None
  assert "no message" in silent["note"] and silent["matching"] == {"a": 0, "b": 1}
  pure = scores(cost(DOMAIN_N), DOMAIN_N)
  knocked = scores(cost(DOMAIN_N) + 3, DOMAIN_N)
  found = of(interventions.Measured(pure, planted().forced, {"mean": knocked}), EXAMPLES)
  assert (found["own_nats"], found["other_nats"], found["ratio"]) == (pytest.approx(3), 0, None)
  assert "nothing" in found["note"]
  alone = [example(i, "a") for i in range(40)]
  found = of(planted(), alone)
  assert found["other_nats"] is found["ratio"] is None and "one domain" in found["note"]


def test_too_few_examples_are_told_and_get_no_interval():
  few = [EXAMPLES[0], *EXAMPLES[20:]]
  keep = [0, *range(20, 40)]
  cut = lambda s: s._replace(
    correct_N=s.correct_N[keep], nll_N=s.nll_N[keep], index_N=s.index_N[keep]
  )
  measured = planted()
  measured = interventions.Measured(cut(measured.without), [cut(s) for s in measured.forced], {})
  found = interventions.report(measured, few, 3, seed=0, question="none")
  assert "domain 'a' has 1 examples on 1 contexts; intervals need 20" in found["notes"]
  assert "a model without a bottleneck has no message to knock out" in found["notes"]
  assert found["ci95"]["force"][0][0] is None and found["ci95"]["force"][0][1] is not None
