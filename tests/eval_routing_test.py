"""Routers whose quality is known: right, wrong in a known share, collapsed, split, blind."""

import json
import math

import numpy as np
import pytest

from iclm.config import InputError
from iclm.evals import routing

DOMAINS = ("acre", "raven")
# Two domains of ten inputs, each sent to its own expert but for two inputs: wrong in one of five.
DOMAIN_N = np.repeat([0, 1], 10)
WRONG_N = np.where(np.arange(20) % 5 == 0, 1 - DOMAIN_N, DOMAIN_N)
CONFIDENCE_N = np.full(20, 0.9)


def report(domain_N, route_N, confidence_N=CONFIDENCE_N, **changes):
  settings = {"domains": DOMAINS, "n_experts": 2, "n_bins": 10}
  settings |= {"paraphrase_N": route_N, "seeds_SN": route_N[None]}
  result = routing.report(domain_N, route_N, confidence_N, **settings | changes)
  assert "NaN" not in json.dumps(result)
  return result


def test_a_router_that_names_its_domains_otherwise_is_perfect():
  result = report(DOMAIN_N, 1 - DOMAIN_N)
  assert result["purity"] == result["matched_accuracy"] == result["balance"] == 1.0
  assert result["matching"] == {"acre": 1, "raven": 0}
  assert math.isclose(result["nmi"], 1.0) and result["ari_of_seeds"]["mean"] == 1.0
  assert math.isclose(result["entropy_nats"], math.log(2))
  assert result["stability"] == 1.0 and result["chance_stability"] == 0.5
  # Always right, and sure to 0.9.
  assert math.isclose(result["ece"], 0.1)
  assert result["notes"] == []


def test_a_router_wrong_in_a_known_share():
  # The table is (8, 2; 2, 8): the information is ln 2 - H(1/5), and both entropies are ln 2.
  result = report(DOMAIN_N, WRONG_N)
  noise_nats = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
  assert math.isclose(result["nmi"], 1 - noise_nats / math.log(2))
  assert result["purity"] == result["matched_accuracy"] == 0.8
  assert result["purity_of_one_expert"] == 0.5
  assert math.isclose(result["ece"], 0.9 - 0.8)


def test_calibration_by_hand():
  # Four sure of 1, of which two are right; four sure of 0.6, of which one is; two of 0.25, both
  # right: 0.4 * |1/2 - 1| + 0.4 * |1/4 - 0.6| + 0.2 * |1 - 0.25| = 0.2 + 0.14 + 0.15.
  confidence_N = np.array([1.0] * 4 + [0.6] * 4 + [0.25] * 2)
  right_N = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1, 1], bool)
  assert math.isclose(routing.ece(confidence_N, right_N, 10), 0.49)
  # In one bin, over- and underconfidence cancel: |5 - 6.9| / 10.
  assert math.isclose(routing.ece(confidence_N, right_N, 1), 0.19)


def test_a_collapsed_router_is_pure_and_stable_by_name_only():
  result = report(DOMAIN_N, np.zeros(20, int))
  assert result["nmi"] == 0.0 and result["purity"] == result["purity_of_one_expert"] == 0.5
  assert result["balance"] == 0.5 and result["entropy_nats"] == 0.0
  assert result["stability"] == result["chance_stability"] == 1.0
  assert result["matching"] == {"acre": 0, "raven": None}
  assert result["ari_of_seeds"] == {"mean": None, "min": None, "pairs": [[0, 1, None]]}
  notes = " / ".join(result["notes"])
  assert "no input reaches expert 1" in notes and "serves every input" in notes
  assert "ari is undefined" in notes and "0-1" in notes


def test_a_domain_shared_by_two_experts_is_pure_but_not_matched():
  # Experts 0 and 1 halve the first domain, 2 has the second, 3 none. Table (5, 5, 0; 0, 0, 10):
  # information ln 2, entropies ln 2 and 1.5 ln 2, hence 2 / 2.5.
  route_N = np.repeat([0, 1, 2, 2], 5)
  result = report(DOMAIN_N, route_N, n_experts=4)
  assert result["purity"] == 1.0 and result["matched_accuracy"] == 0.75
  assert math.isclose(result["nmi"], 0.8)
  assert result["usage"] == [0.25, 0.25, 0.5, 0.0]
  # exp(1.5 ln 2) = 2.828 effective experts, of four.
  assert math.isclose(result["balance"], 2**1.5 / 4, rel_tol=1e-6)
  assert result["notes"] == ["no input reaches expert 3"]


def test_matching_is_the_best_for_all_not_for_each():
  # Table (6, 5; 5, 0): greedy gives the first domain expert 0 and gets 6; the best gets 5 + 5.
  domain_N, route_N = np.repeat([0, 0, 1], [6, 5, 5]), np.repeat([0, 1, 0], [6, 5, 5])
  assert routing.match(domain_N, route_N, n_domains=2, n_experts=2).tolist() == [1, 0]
  # With one expert, it goes to the larger domain and the other is left without.
  assert routing.match(domain_N, 0 * route_N, n_domains=2, n_experts=1).tolist() == [0, -1]


def test_ari_by_hand():
  # Sizes (2, 2) against (3, 1): the table is (2, 0; 1, 1). Pairs together in both: 1; in a: 2; in
  # b: 3; of 6. Chance 2 * 3 / 6 = 1, so (1 - 1) / (2.5 - 1) = 0.
  assert routing.ari(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 2])) == 0.0
  # (3, 3) against (3, 2, 1), the second part split: 4; 6 and 4; of 15. Chance 1.6:
  # (4 - 1.6) / (5 - 1.6).
  a_N, b_N = np.array([0, 0, 0, 1, 1, 1]), np.array([2, 2, 2, 0, 0, 1])
  assert math.isclose(routing.ari(a_N, b_N), 2.4 / 3.4)
  assert math.isclose(routing.ari(b_N, a_N), 2.4 / 3.4)


def test_seeds_that_found_nothing_agree_by_chance_only():
  rng = np.random.default_rng(0)
  found = routing.seed_agreement(rng.integers(0, 4, (8, 500)))
  assert len(found["pairs"]) == 28 and abs(found["mean"]) < 0.005 and found["min"] < 0
  # Three seeds, of which the third disagrees; experts have other numbers.
  a_N = np.repeat([0, 1, 2], 20)
  found = routing.seed_agreement(np.stack([a_N, (a_N + 1) % 3, np.arange(60) % 3]))
  assert found["pairs"][0] == [0, 1, 1.0] and found["min"] < 0.0
  assert math.isclose(found["mean"], np.mean([pair[2] for pair in found["pairs"]]))


def test_stability_is_the_share_that_stays():
  # Five of twenty change; both spread evenly, so chance keeps half.
  other_N = np.where(np.isin(np.arange(20), [0, 1, 2, 10, 11]), 1 - DOMAIN_N, DOMAIN_N)
  result = report(DOMAIN_N, DOMAIN_N, paraphrase_N=other_N)
  # Frequencies (10, 10) against (9, 11): 0.5 * 0.45 + 0.5 * 0.55.
  assert result["stability"] == 0.75 and result["chance_stability"] == 0.5
  # Of the ten that have a paraphrase, three change; frequencies (10, 0) against (7, 3).
  result = report(DOMAIN_N, DOMAIN_N, paraphrase_N=np.where(np.arange(20) < 10, other_N, -1))
  assert result["stability"] == result["chance_stability"] == 0.7
  assert result["notes"] == ["stability is that of 10 of 20 inputs: the rest has no paraphrase"]


def test_what_is_missing_is_named():
  only_N = np.zeros(20, int)
  result = report(only_N, WRONG_N, paraphrase_N=None, seeds_SN=None)
  assert result["nmi"] is result["stability"] is result["ari_of_seeds"] is None
  notes = " / ".join(result["notes"])
  assert "no input is of domain raven" in notes and "nmi is undefined" in notes
  assert "no paraphrases" in notes and "one seed identifies nothing" in notes
  assert "one seed identifies" in report(DOMAIN_N, WRONG_N, seeds_SN=WRONG_N[None][:0])["notes"][0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((DOMAIN_N[:0], WRONG_N[:0], CONFIDENCE_N[:0]), "no input"),
    ((DOMAIN_N + 1, WRONG_N), "domain_N holds 2; valid are 0 to 1"),
    ((DOMAIN_N, WRONG_N - 1), "route_N holds -1"),
    ((DOMAIN_N, WRONG_N, CONFIDENCE_N + 0.2), "confidence_N holds 1.1"),
    ((DOMAIN_N, WRONG_N, CONFIDENCE_N * np.nan), "confidence_N holds nan"),
  ],
)
def test_bad_input_is_refused(arguments, message):
  with pytest.raises(InputError, match=message):
    report(*arguments)


def test_what_lies_on_a_plane_keeps_its_distances_on_the_map():
  rng = np.random.default_rng(0)
  flat_N2 = rng.normal(size=(20, 2)) * (3, 1)
  plane_25 = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
  xy_N2, share_2 = routing.flatten(flat_N2 @ plane_25 + 7.0)
  apart = lambda x_N2: np.linalg.norm(x_N2[:, None] - x_N2[None], axis=-1)
  np.testing.assert_allclose(apart(xy_N2), apart(flat_N2), atol=1e-9)
  np.testing.assert_allclose(share_2.sum(), 1.0)
  assert share_2[0] > share_2[1]
  np.testing.assert_allclose(xy_N2.mean(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (2, 2)])
def test_a_map_has_two_axes_however_little_varies(shape):
  xy_N2, share_2 = routing.flatten(np.full(shape, 0.1, np.float32))
  assert xy_N2.shape == (shape[0], 2) and not xy_N2.any() and not share_2.any()
