"""What the loop around a step costs: the wait for a batch, and the stall of a checkpoint."""

import contextlib
import pathlib
import tempfile
import time
from typing import Any

import jax

from experiments.cases import Case
from iclm import compose, optim, sharding, step, workdir
from iclm.config import Config
from iclm.data import assemble

N_BETWEEN = 10  # Steps from one checkpoint to the next.


def measure(c: Config, n_saves: int) -> tuple[list[Case], dict[str, Any]]:
  """Trains as `iclm.train` does, on the config's own data, and looks at the clock in between.

  The wait is what the loop stands still for the next batch, and the stall what it stands still in
  a save, the end of the save before it included. Both over the median of a step.
  """
  mesh = sharding.make_mesh(c.mesh)
  training = assemble.training_rows(c)
  tokenizer = assemble.make_tokenizer(c, training)
  model, tx = compose.build(c, tokenizer.vocab_size, mesh), optim.from_config(c)
  state = step.init_state(c, model, tx, mesh, jax.random.key(0))
  loader = assemble.loader(c, training, tokenizer, *sharding.share(mesh))
  advance, meta = step.make_train_step(c, model, tx, mesh), workdir.meta(c, tokenizer)
  waits, steps, stalls = [], [], []
  with (
    tempfile.TemporaryDirectory() as folder,
    workdir.checkpoints(pathlib.Path(folder), c) as saves,
    contextlib.closing(loader.iterate(0)) as batches,
  ):
    for n in range(N_BETWEEN * n_saves + N_BETWEEN):
      begun = time.perf_counter()
      batch = next(batches)
      waited = time.perf_counter()
      state, _ = jax.block_until_ready(
        advance(state, sharding.put_batch(batch, mesh), jax.random.key(1))
      )
      done = time.perf_counter()
      if n >= N_BETWEEN:  # The first ones compile, and fill the caches.
        waits.append(waited - begun)
        steps.append(done - waited)
        if n % N_BETWEEN == 0:
          saves.save(n, state, meta, None)
          stalls.append(time.perf_counter() - done)
  found = {"step_s": steps, "wait_s": waits, "stall_s": stalls}
  told: dict[str, Any] = {name: Case.summary(seconds) for name, seconds in found.items()}
  median = told["step_s"]["median"]
  shares = {
    "input_wait_over_step": told["wait_s"]["median"] / median,
    "checkpoint_stall_over_step": told["stall_s"]["median"] / median,
  }
  return [], shares | told
