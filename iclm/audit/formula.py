"""Operations of a train step by formula: what `flops.of` counts, from the shapes of the config.

Per token and matrix parameter a forward pass takes 2, a backward pass 2 for the states and, where
the weights move, 2 for these. Attention's two products take 4 times keys times width, and twice
that backward. Norms, softmax, the router, the dependence and the optimizer are left out.
"""

import functools
import math
from collections.abc import Collection

from iclm import compose
from iclm.config import LEARNED, Config
from iclm.nn import block


def train_step(c: Config, seen: float = 1.0) -> float:
  """Returns operations of one step over all devices.

  Args:
    seen: share of the pairs of positions that attention computes, in (0, 1]: all of them under a
      mask; half where a causal kernel skips the others.
  """
  m, moves = c.model, c.trains.base
  lower, n_upper = moves and c.trains.lower, m.layers - m.trunk_layers
  every = block.PROJECTIONS if moves else ()
  n_tokens, n_counted = c.data.seq_len, c.data.counted or c.data.seq_len
  # Layers that some rows go through, of which the last answers for `n` positions.
  span = lambda layer, n: (n_upper - 1) * layer(n=n_tokens) + layer(n=n) if n_upper else 0.0
  base = functools.partial(_layer, c, backward=moves, moved=every, seen=seen)
  adapted = functools.partial(_adapted, c, moved=every, seen=seen)
  per_row = m.trunk_layers * _layer(c, lower, every if lower else (), seen, n_tokens)
  if c.experts.kind == "none":
    per_row += span(base, n_counted)
  else:
    is_read = c.router.reads == "base" and not c.router.cached
    if c.combine == "residual" or is_read:
      is_learned = is_read and c.router.kind in LEARNED and not c.router.detach
      backward = moves and (c.combine == "residual" or is_learned)
      per_row += span(
        functools.partial(base, backward=backward), n_tokens if is_read else n_counted
      )
    # Around a core that reaches the top, the last layer's message is told of every token.
    is_whole = c.topology.kind == "around" and c.topology.upper == 0
    per_row += _streams(c) * span(adapted, n_tokens if is_whole else n_counted)
  # Around a core the domain expert's message is what the core reads of every token.
  n_said = n_tokens if c.topology.kind == "around" else n_counted
  return c.batch_size * (per_row + n_said * _messages(c) + n_counted * _heads(c))


def _weights(c: Config, names: Collection[str], n: int) -> int:
  """Parameters of matrices of a layer, times the positions of a row that go through each."""
  return sum(math.prod(block.sizes(c.model)[name]) * _through(c, name, n) for name in names)


def _through(c: Config, name: str, n: int) -> int:
  """Positions of a row that a projection is computed for: all where keys and values are made."""
  return c.data.seq_len if name in ("k", "v") else n


def _layer(c: Config, backward: bool, moved: Collection[str], seen: float, n: int) -> float:
  """Of one layer for a row, of which `n` positions go on; those of `moved` weights get a gradient.

  Few queries see every key, as computed: no kernel skips any.
  """
  m, n_tokens = c.model, c.data.seq_len
  is_narrow = n < n_tokens
  weights = _weights(c, block.PROJECTIONS, n)
  attention = (1.0 if is_narrow else seen) * 4 * m.heads * m.head_size * n_tokens * n
  forward = 2 * weights + attention
  if not backward:
    return forward
  # Computed again is all but the last product, which nothing backward reads.
  light = 0.0 if m.kernel == "cudnn" and not is_narrow else attention
  down = _weights(c, ("down",), n)
  again = {"none": 0.0, "light": light, "full": forward - 2 * down}[m.remat]
  return forward + again + 2 * weights + 2 * _weights(c, moved, n) + 2 * attention


def _streams(c: Config) -> int:
  """Rows of the upper layers per input."""
  if c.topology.kind == "around":
    return 1
  if c.compute == "all":
    return c.experts.invariant + c.experts.count
  return len(compose.streams(c))


def _served(c: Config) -> int:
  """Experts that a row meets."""
  is_block = c.compute == "routed" and compose.is_block(c)
  return c.experts.count + c.experts.invariant if is_block else 1


def _learn(c: Config) -> bool:
  """Whether any expert moves."""
  return c.trains.domain or (c.trains.invariant and c.experts.invariant)


def _backward(c: Config) -> bool:
  """Whether a gradient passes the streams' layers: to what lies there or below, or to a route that
  weighs what lies there; the weight of one stream beside others is above them."""
  r = c.router
  weighs = _served(c) > 1 or c.topology.kind == "around"
  routes = c.trains.router and r.straight_through and r.kind in LEARNED and weighs
  return _learn(c) or c.trains.base or routes


def _adapted(c: Config, moved: Collection[str], seen: float, n: int) -> float:
  """Of one layer of a stream, forward and backward with respect to states and weights."""
  m, e = c.model, c.experts
  backward = _backward(c)
  if e.kind == "full":  # The gradient of a sum of two matrices is that of either.
    own = e.projections if _learn(c) else ()
    return _layer(c, backward, {*moved, *own}, seen, n)
  wide = sum(sum(block.sizes(m)[name]) * _through(c, name, n) for name in e.projections)
  again = 2 * (backward and m.remat == "full")
  return _layer(c, backward, moved, seen, n) + _served(c) * e.rank * wide * (_products(c) + again)


def _products(c: Config) -> int:
  """Operations per parameter of an expert's own: forward, and backward for states and weights."""
  return 2 * (1 + _backward(c) + _learn(c))


def _messages(c: Config) -> float:
  """Mean and spread read off the state, and what the message says: three products."""
  if "none" in (c.bottleneck.kind, c.experts.kind):
    return 0.0
  rows = 2 if c.topology.kind == "around" else _streams(c)
  return rows * _served(c) * 3 * _products(c) * c.model.d_model * c.bottleneck.width


def _heads(c: Config) -> float:
  """Logits of a position that counts: of the mix, and of each stream alone if that is trained."""
  vocab = c.model.vocab_size or c.data.tokenizer.vocab_size
  n_streams = len(compose.streams(c))
  n = n_streams if n_streams and c.combine in ("logits", "probas", "concat") else 1
  if c.experts.kind != "none" and c.loss.aux > 0:
    # A mean of logits has them already; a head on all streams is asked for each of them.
    n += {"residual": n_streams, "concat": n_streams**2}.get(c.combine, 0)
  moves = c.trains.base and (c.trains.lower or not c.model.tied)
  moves = c.trains.combine if n_streams and c.combine == "concat" else moves
  return n * 2 * c.model.d_model * vocab * (2 + moves)
