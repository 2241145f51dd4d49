"""What an examination refuses, leaves out and says so."""

import pytest
from interventions_test import EXAMPLES, params, subject, tok  # noqa: F401, fixtures.

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
