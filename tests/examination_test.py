"""What an examination refuses, leaves out and says so."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from interventions_model_test import params, subject, tok  # noqa: F401, fixtures.
from interventions_test import EXAMPLES

from iclm.config import InputError
from iclm.evals import examination


def test_routes_of_tokens_are_refused_in_one_sentence(tok, params):  # noqa: F811
  by_token = subject(tok, params, router__level="token")
  for ask in (
    lambda: examination.intervene(by_token, EXAMPLES, EXAMPLES, 0, []),
    lambda: examination.independence_of(by_token, EXAMPLES, 0),
  ):
    with pytest.raises(InputError, match="'token' has no one route of an input"):
      ask()


def test_examples_that_share_a_context_are_left_out_and_counted(tok, params):  # noqa: F811
  # Three questions on each of eight contexts, or 24 prompts whose first lines happen to agree.
  lines = [(f"a {'b ' * (i // 3)}:", f"{e.prompt}", e) for i, e in enumerate(EXAMPLES[:24])]
  shared = [dataclasses.replace(e, prompt=f"{head}\n{tail}") for head, tail, e in lines]
  shape = {"data__seq_len": 48, "experts__count": 9}
  of = lambda question: examination.independence_of(
    subject(tok, nine(params), data__question=question, **shape), shared, 0
  )
  found = of("last_line")
  json.dumps(found, allow_nan=False)
  assert {row["n"] for row in found["independence"] if row["note"] is None} <= {0, 8}
  assert found["independence_notes"] == [
    "16 of 24 examples share a context with an earlier one, and are left out",
    "of 9 domain experts only the first 8 are compared with each other",
  ]
  assert len({row["pair"] for row in found["independence"]}) == 2 + 8 * 7 // 2
  assert len(of("none")["independence_notes"]) == 1


def test_without_a_bottleneck_there_is_the_worst_domain_alone(tok, params):  # noqa: F811
  silent = subject(tok, params, bottleneck__kind="none", loss__beta=0.0, loss__dependence=0.0)
  found = examination.independence_of(silent, EXAMPLES, 0)
  json.dumps(found, allow_nan=False)
  assert found["independence"] == [] and "no messages" in found["independence_notes"][0]
  assert found["worst_domain"]["n"] > 0


def nine(params):  # noqa: F811
  """The same model with nine domain experts."""
  three = lambda x: jnp.concatenate([x] * 3)
  prototypes = {"prototypes_EP": three(params["router"]["prototypes_EP"])}
  router = params["router"] | prototypes
  return params | {"domain": jax.tree.map(three, params["domain"]), "router": router}
