"""Random interventions of training: how often, on whom, and what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build, tiny

from iclm import compose
from iclm.config import InputError

N = 4_000
NO_MESSAGES = {"bottleneck__kind": "none", "loss__beta": 0.0, "loss__dependence": 0.0}


def draw(step=100, **perturb):
  c = tiny(**{f"perturb__{k}": v for k, v in perturb.items()})
  return compose.perturb(c, N, jax.random.key(0), jnp.asarray(step))


def test_without_probabilities_nothing_is_done():
  assert draw() == compose.NOTHING


def test_shares_are_as_asked_for_and_never_both_streams():
  # Standard error of a share at n = 4,000: at most 0.008; 4 of them are 0.032.
  do = draw(drop=0.3, patch=0.2, swap=0.4)
  dropped_SB, own_SB = do.speaker_SB == -1, do.speaker_SB == jnp.arange(N)[None]
  np.testing.assert_allclose(dropped_SB.mean(1), [0.15, 0.15], atol=0.03)
  np.testing.assert_allclose((~dropped_SB & ~own_SB).mean(1), [0.1, 0.1], atol=0.03)
  assert (~own_SB).sum(0).max() == 1
  np.testing.assert_allclose((do.route_B >= 0).mean(), 0.4, atol=0.03)
  np.testing.assert_allclose(jnp.bincount(do.route_B + 1, length=4)[1:] / N, 0.4 / 3, atol=0.03)


def test_probabilities_rise_over_the_ramp():
  early, half = draw(step=0, drop=0.8, ramp=100), draw(step=49, drop=0.8, ramp=100)
  assert (early.speaker_SB == -1).mean() < 0.02
  np.testing.assert_allclose((half.speaker_SB == -1).any(0).mean(), 0.4, atol=0.03)


def test_a_speaker_says_what_it_would_say_itself(batch):
  model, params = build(tiny(router__kind="oracle", data__domains=("a", "b", "c")))
  own = model.apply(params, batch).messages_SBTZ
  speaker_SB = jnp.stack([jnp.arange(8)[::-1], jnp.full(8, -1)])
  patched = model.apply(params, batch, None, compose.Intervention(speaker_SB=speaker_SB))
  np.testing.assert_array_equal(patched.messages_SBTZ[0], own[0][::-1])
  assert not patched.messages_SBTZ[1].any()


@pytest.mark.parametrize(
  "changes, told",
  [
    ({"perturb__drop": 0.7, "perturb__patch": 0.7}, "no probabilities"),
    ({"perturb__drop": 0.1, **NO_MESSAGES}, "touch messages"),
    ({"perturb__swap": 0.1, "router__level": "token"}, "needs experts"),
  ],
)
def test_what_cannot_be_perturbed_is_told(changes, told):
  with pytest.raises(InputError, match=told):
    tiny(**changes)
