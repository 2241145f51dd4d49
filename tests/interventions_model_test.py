"""Interventions on a small model: what they do to it, and what they leave."""

import jax
import numpy as np
import pytest
from around_test import AROUND
from conftest import draw, jitted, tiny
from interventions_test import EXAMPLES, WORDS, example

from iclm import compose, sharding
from iclm.axes import STREAMS
from iclm.config import InputError
from iclm.data import tokenizer
from iclm.evals import interchange, interventions, locality
from iclm.evals.subject import Subject, served_by, speaking

SOFT = {"router__kind": "soft", "router__scale": 0.1}  # Every expert has some weight.
SHAPE = {"data__seq_len": 24, "data__question": "none", "data__questions_per_row": 1}


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
