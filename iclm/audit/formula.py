"""Operations of a train step by formula: what `flops.of` counts, from the shapes of the config.

Per token and matrix parameter a forward pass takes 2, a backward pass 2 for the states and, where
the weights move, 2 for these. Attention's two products take 4 times keys times width, and twice
that backward. Norms, softmax, the router, the dependence and the optimizer are left out.
"""

from iclm import compose
from iclm.config import Config
from iclm.nn import transformer


def train_step(c: Config, seen: float = 1.0) -> float:
  """Returns operations of one step over all devices.

  Args:
    seen: share of the pairs of positions that attention computes, in (0, 1]: all of them under a
      mask; half where a causal kernel skips the others.
  """
  m, moves = c.model, c.trains.base
  lower = moves and c.trains.lower
  n_upper = m.layers - m.trunk_layers
  every = float(sum(_weights(c).values()))
  once = lambda backward: _layer(c, backward, every * moves, seen)
  per_token = m.trunk_layers * once(lower)
  if c.experts.kind == "none":
    per_token += n_upper * once(moves)
  else:
    if c.combine == "residual" or (c.router.reads == "base" and not c.router.cached):
      per_token += n_upper * once(moves and c.combine == "residual")
    per_token += _streams(c) * n_upper * _adapted(c, every * moves, seen)
  n_counted = c.data.counted or c.data.seq_len
  # Around a core the domain expert's message is what the core reads of every token.
  n_said = c.data.seq_len if c.topology.kind == "around" else n_counted
  per_row = c.data.seq_len * per_token + n_said * _messages(c) + n_counted * _heads(c)
  return c.batch_size * per_row


def _weights(c: Config) -> dict[str, int]:
  """Parameters of each matrix of a layer."""
  return {name: d_in * d_out for name, (d_in, d_out) in transformer.sizes(c.model).items()}


def _layer(c: Config, backward: bool, moved: float, seen: float) -> float:
  """Of one layer; `moved` of its weights get a gradient."""
  m, sizes = c.model, _weights(c)
  weights = sum(sizes.values())
  attention = seen * 4 * m.heads * m.head_size * c.data.seq_len
  forward = 2 * weights + attention
  if not backward:
    return forward
  # Computed again is all but the last product, which nothing backward reads.
  light = 0.0 if m.kernel == "cudnn" else attention
  again = {"none": 0.0, "light": light, "full": forward - 2 * sizes["down"]}[m.remat]
  return forward + again + 2 * weights + 2 * moved + 2 * attention


def _streams(c: Config) -> int:
  """Rows of the upper layers per input."""
  if c.topology.kind == "around":
    return 1
  if c.compute == "all":
    return c.experts.invariant + c.experts.count
  return len(compose.streams(c))


def _adapted(c: Config, moved: float, seen: float) -> float:
  """Of one layer of a stream, forward and backward with respect to states and weights."""
  m, e = c.model, c.experts
  if e.kind == "full":  # The gradient of a sum of two matrices is that of either.
    own = sum(_weights(c)[name] for name in e.projections)
    return _layer(c, True, max(moved, own), seen)
  wide = sum(sum(transformer.sizes(m)[name]) for name in e.projections)
  served = e.count + e.invariant if compose.is_block(c) else 1
  adapters = served * e.rank * wide * (8 if m.remat == "full" else 6)
  return _layer(c, True, moved, seen) + adapters


def _messages(c: Config) -> float:
  """Mean and spread read off the state, and what the message says: three products, thrice."""
  if c.bottleneck.kind == "none":
    return 0.0
  rows = 2 if c.topology.kind == "around" else _streams(c)
  served = c.experts.count + c.experts.invariant if compose.is_block(c) else 1
  return rows * served * 18 * c.model.d_model * c.bottleneck.width


def _heads(c: Config) -> float:
  """Logits of a position that counts: of the mix, and of each stream alone if that is trained."""
  vocab = c.model.vocab_size or c.data.tokenizer.vocab_size
  n = len(compose.streams(c)) if c.combine in ("logits", "probas", "concat") else 1
  if c.experts.kind != "none" and c.loss.aux > 0:
    n += len(compose.streams(c))
  moves = c.trains.base and (c.trains.lower or not c.model.tied)
  moves = c.trains.combine if c.combine == "concat" else moves
  return n * 2 * c.model.d_model * vocab * (2 + moves)
