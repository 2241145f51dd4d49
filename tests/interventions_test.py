"""Planted truth: what is known to be in a model is what the interventions report."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from around_test import AROUND
from conftest import draw, jitted, tiny

from iclm import compose, sharding
from iclm.axes import STREAMS
from iclm.config import InputError
from iclm.data import tokenizer
from iclm.data.records import Example
from iclm.evals import accuracy, interchange, interventions, locality
from iclm.evals.subject import Subject, served_by, speaking

SOFT = {"router__kind": "soft", "router__scale": 0.1}  # Every expert has some weight.
SHAPE = {"data__seq_len": 24, "data__question": "none", "data__questions_per_row": 1}
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


@pytest.fixture(scope="module")
def tok():
  return tokenizer.train([WORDS] * 4, 300, tokenizer.WORDS)


@pytest.fixture(scope="module")
def params(tok):
  c = tiny()
  init = jax.jit(lambda key: sharding.unbox(compose.build(c, tok.vocab_size).init(key)))
  fresh = init(jax.random.key(0))
  noise = lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape)
  return jax.tree.map(noise, fresh)  # A fresh model says nothing: its W is 0.


@pytest.fixture(scope="module")
def model(tok, params):
  return subject(tok, params)


def subject(tok, params, **changes):
  c = tiny(**SHAPE | changes)
  mesh = sharding.make_mesh(c.mesh)
  return Subject(c, compose.build(c, tok.vocab_size, mesh), params, tok, mesh)


def test_a_model_that_speaks_with_its_own_messages_is_itself(model):
  examples = [example(i, "ab"[i % 2], answer="x y z"[: 1 + 2 * (i % 3)]) for i in range(9)]
  said = model.messages(examples)
  # An answer of n words is predicted at n places, and its end at one more.
  assert said.mask_NP.sum(axis=1).tolist() == [2, 3, 4] * 3
  without = model.score(examples)
  np.testing.assert_array_equal(said.index_N, without.index_N)
  own = model.score(examples, speaking(said.z_SNPZ, [True, True]))
  np.testing.assert_array_equal(own.nll_N, without.nll_N)
  other = model.score(examples, speaking(np.roll(said.z_SNPZ, 1, axis=1), [False, True]))
  assert (other.nll_N != without.nll_N).all()


def test_in_around_too_and_another_message_is_where_the_answer_is(tok):
  c = tiny(**AROUND | SHAPE)
  built = compose.build(c, tok.vocab_size)
  params = draw(jitted(c, tok.vocab_size))
  model = Subject(c, built, params, tok, sharding.make_mesh(c.mesh))
  examples = [example(i, "ab"[i % 2]) for i in range(6)]
  said, without = model.messages(examples), model.score(examples)
  own = model.score(examples, speaking(said.z_SNPZ, [True, True]))
  np.testing.assert_array_equal(own.nll_N, without.nll_N)
  other = model.score(examples, speaking(np.roll(said.z_SNPZ, 1, axis=1), [False, True]))
  assert (other.nll_N != without.nll_N).all()


def test_force_serves_every_input_by_one_expert(model):
  measured = interventions.measure(model, EXAMPLES, EXAMPLES[:9], seed=0)
  for e, under in enumerate(measured.forced):
    mine_N = measured.without.index_N == e
    assert (under.index_N == e).all()
    np.testing.assert_array_equal(under.nll_N[mine_N], measured.without.nll_N[mine_N])
  assert measured.knocked.keys() == {"mean", "zero", "resampled"}
  assert all((s.index_N == measured.without.index_N).all() for s in measured.knocked.values())


def test_force_is_one_expert_alone_where_the_router_mixes_them(tok, params, model):
  mixing, e = subject(tok, params, **SOFT), 2
  # Alone, an expert is what it is under a router that never mixes.
  under, alone = (s.score(EXAMPLES, served_by(e)) for s in (mixing, model))
  np.testing.assert_allclose(under.nll_N, alone.nll_N, rtol=1e-5)
  mixed = mixing.score(EXAMPLES)
  assert (np.abs(under.nll_N - mixed.nll_N) > 1e-4).all()
  said, heard = (s.messages(EXAMPLES, served_by(e)) for s in (mixing, model))
  np.testing.assert_allclose(said.z_SNPZ, heard.z_SNPZ, atol=1e-2)
  # Drawn with no noise to speak of, the mixture is itself, and not its heaviest expert.
  quiet = lambda x: {**x, "log_sigma_bias": x["log_sigma_bias"] - 50.0}
  silenced = {s: params[s] | {"message": quiet(params[s]["message"])} for s in STREAMS}
  mixing = subject(tok, params | silenced, **SOFT)
  drawn, mean = (mixing.messages(EXAMPLES, key=k).z_SNPZ for k in (jax.random.key(0), None))
  np.testing.assert_allclose(drawn, mean, atol=1e-2)


def test_interchange_tells_domain_from_group(model):
  examples = [example(i, "ab"[i % 2], "gh"[i // 2 % 2]) for i in range(48)]
  found, _ = interchange.interchange(model, examples, model.score(examples), seed=0)
  for stream in compose.streams(model.config):
    assert [found[stream][k]["n"] for k in ("same_domain", "same_group", "any")] == [48] * 3
  twice = examples[:1] * 2
  alone, notes = interchange.interchange(model, twice, model.score(twice), seed=0)
  row = alone["domain"]["same_domain"]
  assert row["n"] == 0 and row["nats"] is row["ci95"] is row["accuracy"] is None
  assert row["same_route"]["n"] == 0 and row["other_route"]["nats"] is None
  assert any("nats of interchange of domain from same_domain" in note for note in notes)


def test_locality_names_what_moved(model, tok, params):
  before = model
  index_N = before.score(EXAMPLES).index_N
  e = int(index_N[0])
  domain = jax.tree.map(lambda x: x.at[e].add(1.0), params["domain"])
  changed = params | {"domain": domain}
  prints = locality.fingerprints(params)
  assert locality.moved(prints, locality.fingerprints(changed)) == [f"domain/{e}"]
  assert locality.moved(prints, prints) == []
  n_domain = sum(x.size for x in jax.tree.leaves(domain))
  assert locality.size(params, [f"domain/{e}"]) * 3 == n_domain
  theirs = [x for x, i in zip(EXAMPLES, index_N, strict=True) if i != e]
  mine = [x for x, i in zip(EXAMPLES, index_N, strict=True) if i == e]
  assert theirs and mine
  after = subject(tok, changed)
  still = locality.compare(before, after, theirs)
  assert (still["logits_changed"], still["max_change_nats"]) == (0, 0.0)
  # Every one of an answer's two words and its end is predicted anew.
  assert locality.compare(before, after, mine)["logits_changed"] == 3 * len(mine)


def test_a_model_without_messages_is_told(tok, params):
  c = tiny(experts__kind="none", data__seq_len=24, data__question="none", data__questions_per_row=1)
  mesh = sharding.make_mesh(c.mesh)
  plain = Subject(c, compose.build(c, tok.vocab_size, mesh), {"base": params["base"]}, tok, mesh)
  with pytest.raises(InputError, match="no messages"):
    plain.messages(EXAMPLES)
