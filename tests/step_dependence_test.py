"""The dependence term of a step: of which samples it is, and what is told of it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from conftest import VOCAB, tiny
from step_test import start

from iclm import compose, sharding
from iclm.step import advance as advancing
from iclm.step import terms


def test_what_an_intervention_makes_dependent_is_no_dependence(batch):
  c = tiny(loss__dependence=1.0, dependence__given="none", perturb__drop=0.5)
  model, key, state = compose.build(c, VOCAB), jax.random.key(3), start()
  do = compose.perturb(c, 8, jax.random.fold_in(key, 2), state.step)
  kept_B = (do.speaker_SB == jnp.arange(8)[None]).all(0)
  assert 2 <= kept_B.sum() <= 6
  read = lambda batch: terms.loss(
    state.params, batch, key, batch.loss_mask_BT.sum(), config=c, model=model, state=state, tau=1.0
  )[1][0]["dependence_nhsic"]
  # The same without the rows of which one stream was made silent.
  fewer = batch._replace(loss_mask_BT=batch.loss_mask_BT * kept_B[:, None])
  np.testing.assert_allclose(read(batch), read(fewer), rtol=1e-5)


def test_messages_and_dependence_are_read_where_targets_count(batch):
  c = tiny(data__counted=12, loss__dependence=1.0)
  model = compose.build(c, VOCAB)
  params = sharding.unbox(model.init(jax.random.key(0)))
  at = terms._counted(c, batch)
  whole, picked = model.apply(params, batch), model.apply(params, batch, at_BC=at.at_BC)
  index = at.at_BC[None, ..., None]
  for name in ("logits_BTV", "messages_SBTZ"):
    x, y = getattr(whole, name), getattr(picked, name)
    x, y = (x[None], y[None]) if x.ndim == 3 else (x, y)
    np.testing.assert_allclose(jnp.take_along_axis(x, index, axis=2), y, atol=1e-5)
  # As many answers start as there are, whatever else is left out.
  every = terms._counted(tiny(), batch)
  assert int(at.starts_BC.sum()) == int(every.starts_BC.sum()) > 0
  assert float(at.mask_BC.sum()) == float(batch.loss_mask_BT.sum())


def groups_of(label_N, classes):
  """`_groups` of answers of one token each."""
  label_N = jnp.array(label_N)
  c = tiny(dependence__given="label", dependence__classes=classes)
  at = types.SimpleNamespace(targets_BC=label_N[None])
  return terms._groups(c, 99, None, at, jnp.arange(len(label_N)), jnp.ones(len(label_N), bool))


def test_labels_beyond_the_most_frequent_ones_are_counted_as_skipped():
  # Ten labels of 52 rows and room for four of them: six are left out.
  class_N, n_classes, n_rare = groups_of(np.repeat(np.arange(10), 52), 4)
  assert (n_classes, int(n_rare), int((class_N >= 0).sum())) == (4, 6, 4 * 52)
  assert int(groups_of(np.repeat(np.arange(3), 52), 4)[2]) == 0


def test_a_dependence_is_the_mean_of_the_micro_batches_that_could_tell_it():
  metrics = {
    "dependence_nhsic": jnp.array([0.6, 0.0, 0.2]),
    "dependence_classes": jnp.array([2, 0, 1]),
    "dependence_skipped": jnp.array([0, 3, 1]),
    "answer_nats": jnp.array([1.0, 2.0, 3.0]),
  }
  told = {name: float(x) for name, x in advancing._joined(metrics).items()}
  assert told == {
    "dependence_nhsic": np.float32(0.4), "dependence_classes": 3.0, "dependence_skipped": 4.0,
    "answer_nats": 2.0,
  }  # fmt: skip
  none = metrics | {"dependence_classes": jnp.zeros(3), "dependence_nhsic": jnp.zeros(3)}
  assert float(advancing._joined(none)["dependence_nhsic"]) == 0.0
