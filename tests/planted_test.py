"""A model whose every parameter is set by hand, examined end to end: all numbers follow from it.

A state is its token's embedding, since no layer adds anything, and the base knows no answer. Of a
prompt like "p017:" the first character is its route, and at the colon the expert that serves it
says its one answer: experts 0 and 1 say x, in one code; expert 2 says y, in the opposite code;
expert 3, which nothing uses, is silent. In domain a the answer is x; its inputs go to 0 and 1 by
halves. In domain b it is y, and a quarter of the inputs is misrouted, to 0 instead of 2.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from iclm import compose, sharding
from iclm.axes import DOMAIN, INVARIANT
from iclm.data import tokenizer
from iclm.data.records import Example
from iclm.evals import interchange, interventions
from iclm.evals.subject import Subject

# Directions of the state: of the colon, of an answer's token, of saying x or y, of each route.
COLON, ANSWER, X, Y, ROUTE = 0, 1, 2, 3, 4
ROUTES = "pqrs"  # Of the experts 0 to 3.
K = 2.0  # Of the head, from each direction to its one token.
V = 259  # Three special tokens, and a token for each byte.

# The head reads a state of 16 numbers, normalised to a mean square of 1. Where the expert speaks,
# (1, 1) becomes sqrt(8) (1, 1), and its token's logit is K sqrt(8) above all others, which are 0.
LOUD = K * math.sqrt(8)
log_sum = lambda *logits: math.log(sum(map(math.exp, logits)) + V - len(logits))
RIGHT = log_sum(LOUD) - LOUD  # Nats of the answer's first token, where the expert says it;
WRONG = log_sum(LOUD)  # where it says the other one,
SILENT = math.log(V)  # where it says nothing,
AGAINST = log_sum(-LOUD) + LOUD  # and where it says the opposite of the right one.
# Behind it comes the end, K * 4 above all others. Experts say nothing there, so that their mean
# message is half of that at the colon, and stands in at both places: (1, 1/2) becomes
# sqrt(16 / 1.25) (1, 1/2). The end then stands beside a token that is half as loud.
END = log_sum(4 * K) - 4 * K
HALF = K * math.sqrt(16 / 1.25) / 2
HALF_RIGHT, HALF_WRONG = log_sum(HALF) - HALF, log_sum(HALF)
HALF_END = log_sum(2 * HALF, HALF) - 2 * HALF

DOMAINS = "a" * 40 + "b" * 40
SERVED = np.array([0] * 20 + [1] * 20 + [2] * 30 + [0] * 10)
EXAMPLES = [
  Example(f"{ROUTES[e]}{i:03d}:", "xy"["ab".index(d)], (), d, "gh"[i % 2], str(i))
  for i, (e, d) in enumerate(zip(SERVED, DOMAINS, strict=True))
]


@pytest.fixture(scope="module")
def model():
  tok = tokenizer.train([""], V, tokenizer.WORDS)
  shape = {"data__seq_len": 16, "data__question": "none", "data__questions_per_row": 1}
  c = tiny(experts__count=4, router__reads="embed", router__kind="hard", **shape)
  built = compose.build(c, tok.vocab_size)
  shapes = jax.eval_shape(lambda key: sharding.unbox(built.init(key)), jax.random.key(0))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  base, router, message = params["base"], params["router"], params[DOMAIN]["message"]
  token = lambda text: tok.encode(text, behind=True)[0]
  base["norm"]["gain"][:] = 1
  for text, direction in ((":", COLON), ("x", ANSWER), ("y", ANSWER)):
    base["embedding"][token(text), direction] = 1
  for direction, of in ((ANSWER, tok.eos_id), (X, token("x")), (Y, token("y"))):
    base["head"][direction, of] = K
  for e, text in enumerate(ROUTES):
    base["embedding"][token(text), ROUTE + e] = 1
    router["projection_DP"][ROUTE + e, e] = router["prototypes_EP"][e, e] = 1
  # Normalised, the colon's 1 is 4: the message is 1 or -1, and what is said of it 1.
  for e, code, direction in ((0, 1, X), (1, 1, X), (2, -1, Y)):
    message["mu"][e, COLON, 0], message["out"][e, 0, direction] = code / 4, code
  params = jax.tree.map(jnp.asarray, params)
  return Subject(c, built, params, tok, sharding.make_mesh(c.mesh))


@pytest.fixture(scope="module")
def measured(model):
  return interventions.measure(model, EXAMPLES, EXAMPLES, seed=0)


@pytest.fixture(scope="module")
def found(measured):
  return interventions.report(measured, EXAMPLES, 4, seed=0, question="none")


def close(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-3)  # float32, and the norms' epsilon.


def test_the_model_is_what_it_is_said_to_be(measured):
  np.testing.assert_array_equal(measured.without.index_N, SERVED)
  says_x = np.isin(SERVED, (0, 1))
  right_N = says_x == (np.array(list(DOMAINS)) == "a")
  np.testing.assert_array_equal(measured.without.correct_N, right_N)
  close(measured.without.nll_N, np.where(right_N, RIGHT, WRONG) + END)


def test_identical_experts_force_alike_and_a_misrouted_share_is_regretted(measured, found):
  # To x: nothing for a, while the 3/4 of b that were right lose LOUD. To y: the reverse, and the
  # other 1/4 of b gains it. To the silent one: all that spoke fall silent.
  gap = SILENT - RIGHT
  close(found["force_nats"], [[0, 0.75 * LOUD]] * 2 + [[LOUD, -0.25 * LOUD], [gap, gap - LOUD / 4]])
  close(found["force"], [[0, -0.75]] * 2 + [[-1, 0.25], [-1, -0.75]])
  np.testing.assert_array_equal(measured.forced[0].nll_N, measured.forced[1].nll_N)
  assert found["swap"][0][1] == found["swap_nats"][0][1] == 0
  # The best of all routes saves LOUD for 10 of 80 inputs.
  close(found["regret_nats"], LOUD / 8)
  low, high = found["ci95"]["regret_nats"]
  assert low < LOUD / 8 < high
  # Swapped to 2, the inputs of 0 lose LOUD for the 20 of a and gain it for the 10 of b.
  close(found["swap_nats"][0][2], LOUD / 3)
  close(found["swap"][0][2], -1 / 3)
  assert found["swap_nats"][3] == [None] * 4 and "no input reaches expert 3" in found["notes"]


def test_a_knock_out_costs_what_the_expert_said(found):
  # By zero: whoever was right falls silent, and the misrouted quarter of b is spared a wrong word.
  right, wrong = SILENT - RIGHT, SILENT - WRONG
  expected = [[right / 2, wrong / 4], [right / 2, 0], [0, right * 0.75], [0, 0]]
  close(found["knockout_zero_nats"], expected)
  close(found["knockout_zero"], [[-0.5, 0], [-0.5, 0], [0, -0.75], [0, 0]])
  # By the mean: half as loud at the colon, and half as loud where the end is due.
  right, wrong = HALF_RIGHT + HALF_END - RIGHT - END, HALF_WRONG + HALF_END - WRONG - END
  expected = [[right / 2, wrong / 4], [right / 2, 0], [0, right * 0.75], [0, 0]]
  close(found["knockout_nats"], expected)
  close(found["knockout"], np.zeros((4, 2)))
  # By another message of the same expert, all of which are one: nothing.
  close(found["knockout_resampled_nats"], np.zeros((4, 2)))
  # Over all 80 inputs, beside how often an expert serves.
  cost = [20 * right + 10 * wrong, 20 * right, 30 * right, 0]
  close([row["nats"] for row in found["importance"]], np.array(cost) / 80)
  assert [row["routed"] for row in found["importance"]] == [3 / 8, 1 / 4, 3 / 8, 0]
  assert found["importance"][2]["ci95"][0] > 0 and found["importance"][3]["ci95"] is None


def test_an_expert_without_reference_examples_is_named(model):
  measured = interventions.measure(model, EXAMPLES, EXAMPLES[:20], seed=0)
  assert measured.unheard == {1, 2}
  found = interventions.report(measured, EXAMPLES, 4, seed=0, question="none")
  json.dumps(found, allow_nan=False)
  assert found["knockout"][1] == found["knockout"][2] == [None, None]
  close(found["knockout_zero_nats"][1], [(SILENT - RIGHT) / 2, 0])
  assert any("no reference example reaches expert 1, 2" in note for note in found["notes"])


def test_a_code_of_ones_own_is_not_taken_for_a_content(model, measured):
  # All messages of a code are one, so that they carry nothing: within a route, none costs anything.
  # From another route the receiver hears the opposite where the codes differ: the 20 of a that 0
  # serves hear 2, and the 30 of b that 2 serves hear 0 or 1. Of the others some hear their own.
  found, notes = interchange.interchange(model, EXAMPLES, measured.without, seed=0)
  row = found[DOMAIN]["same_group"]
  # Of one route and two domains are the inputs of expert 0: 20 of a and 10 of b.
  assert row["same_route"]["n"] == 30 and row["same_route"]["nats"] == 0
  assert row["same_route"]["ci95"] is None and any("all inputs change alike" in n for n in notes)
  assert row["other_route"]["n"] == row["n"] == 80
  against, low = AGAINST - RIGHT, row["other_route"]
  assert 50 / 80 * against - 1e-3 <= low["nats"] <= against + 1e-3 and low["ci95"][0] > 0
  assert low["accuracy"] <= -50 / 80 and low["accuracy_ci95"][1] < 0
  # Whatever the route, codes weigh in as often as they are drawn.
  assert 0 < row["nats"] <= low["nats"] + 1e-9
  close(found[INVARIANT]["any"]["nats"], 0)


def test_interchange_needs_no_second_domain(model, measured):
  alike = [dataclasses.replace(e, domain="a") for e in EXAMPLES]
  found, _ = interchange.interchange(model, alike, measured.without, seed=0)
  assert found[DOMAIN]["any"]["n"] == 80 and found[DOMAIN]["same_group"]["n"] == 0
