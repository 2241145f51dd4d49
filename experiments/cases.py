"""One case of a benchmark: a compiled step on random tokens, its times, FLOPs and bytes."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iclm import compose, experts, losses, optim, sharding, step
from iclm.audit import flops, formula
from iclm.config import Config
from iclm.data.pipeline import Batch
from iclm.generate import decoding
from iclm.generate.sampling import Sampling
from iclm.nn import attention, block, transformer

N_ANSWER = 4  # Tokens of an answer, at the end of each row.
N_SAID = 32  # Tokens of an answer that is generated; its prompt fills the rest of the row.
DEFAULTS = {"xla_embed_ir_in_executable": False}  # Of the compiler; changes nothing.


@dataclasses.dataclass
class Case:
  """A step that is called again and again.

  Attributes:
    lowered: what is compiled; `run` is one compilation of it.
    state: what `run` takes first and gives back first.
    args: what else it takes.
    flops: of its matrix products, by its jaxpr.
  """

  name: str
  lowered: Any
  state: Any
  args: tuple[Any, ...]
  flops: float
  run: Any = None
  step_s: list[float] = dataclasses.field(default_factory=list)
  compile_s: list[float] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    self.compile_again()
    print(f"{self.name}: compiled in {self.compile_s[0]:.1f} s", flush=True)

  def compile_again(self) -> None:
    # JAX keeps what it has compiled, and so does a lowering that was given no options.
    jax.clear_caches()
    begun = time.perf_counter()
    self.run = self.lowered.compile(compiler_options=DEFAULTS)
    self.compile_s.append(time.perf_counter() - begun)

  @property
  def peak_bytes(self) -> int:
    """Arguments, outputs that reuse none of them, and what the step needs in between."""
    m = self.run.memory_analysis()
    return (
      m.argument_size_in_bytes
      + m.output_size_in_bytes
      - m.alias_size_in_bytes
      + m.temp_size_in_bytes
    )

  def once(self) -> float:
    """Seconds of one step."""
    begun = time.perf_counter()
    self.state, *_ = jax.block_until_ready(self.run(self.state, *self.args))
    return time.perf_counter() - begun

  @staticmethod
  def summary(seconds: Sequence[float]) -> dict[str, float]:
    q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "n": len(seconds)}

  def mfu(self, c: Config, peak: float) -> float:
    """Model FLOP utilisation: what a step of the config takes by formula, over time and peak.

    Without what rematerialisation computes again, nor pairs of tokens of which one is not seen.
    """
    c = vary(c, model={"remat": "none"})
    needed = formula.train_step(c, seen=0.5 if c.model.attention == "causal" else 1.0)
    return needed / (self.summary(self.step_s)["median"] * peak)

  def told(self) -> dict[str, Any]:
    """JSON-able."""
    return {
      "step_s": self.summary(self.step_s) if self.step_s else None,
      "compile_s": self.summary(self.compile_s),
      "flops": self.flops,
      "peak_bytes": self.peak_bytes,
    }


def vary(c: Config, **parts: Any) -> Config:
  """A config with some keys of its parts replaced."""
  changed = {
    name: dataclasses.replace(getattr(c, name), **new) if isinstance(new, dict) else new
    for name, new in parts.items()
  }
  return dataclasses.replace(c, **changed)


def ratio(case: Case, baseline: Case) -> dict[str, float]:
  """Of step times, by medians, of FLOPs and of bytes."""
  time, other = (c.summary(c.step_s)["median"] for c in (case, baseline))
  return {
    "time": time / other,
    "flops": case.flops / baseline.flops,
    "bytes": case.peak_bytes / baseline.peak_bytes,
  }


def time_in_turns(cases: Sequence[Case], warmup: int, repeats: int) -> None:
  """Times every case once per turn, so that what disturbs the machine disturbs all alike.

  Every turn has another order: none gains by what runs in front of it. Behind a larger case one
  first runs untimed: memory that the larger gave back is its doing. (Right behind every expert on
  every input, of 10 GB, a step of 0.4 s took 1.1 s.)
  """
  for case in cases:
    for _ in range(warmup):
      case.once()
  order, before = np.random.default_rng(0), cases[-1]
  for _ in range(repeats):
    for case in (cases[i] for i in order.permutation(len(cases))):
      if before.peak_bytes > case.peak_bytes:
        case.once()
      case.step_s.append(case.once())
      before = case


def ours(name: str, c: Config) -> Case:
  """The train step of a config, with every loss that it has."""
  vocab, mesh = c.data.tokenizer.vocab_size, sharding.make_mesh(c.mesh)
  model, tx = compose.build(c, vocab, mesh), optim.from_config(c)
  state = step.init_state(c, model, tx, mesh, jax.random.key(0))
  batch = sharding.put_batch(random_batch(c, c.batch_size), mesh)
  args = batch, jax.random.key(1)
  advance = step.make_train_step(c, model, tx, mesh)
  counted = flops.of(advance, state, *args)
  return Case(name, advance.lower(state, *args), state, args, counted)


def plain(name: str, c: Config) -> Case:
  """What the model is to be compared with: one dense model on twice the rows, and a frozen forward
  pass; the dense one has a LoRA, or trains all layers where the experts are full ones.

  Written without the composition: the decoder, an expert's adapters, the cross-entropy and AdamW.
  The frozen pass has the states of all positions, as a router reads them.
  """
  vocab, m, e = c.data.tokenizer.vocab_size, c.model, c.experts
  m = dataclasses.replace(m, trunk_layers=0)
  decoder = transformer.Decoder(m, vocab, 0.0)
  twice, once = (jax.tree.map(jnp.asarray, random_batch(c, n * c.batch_size)) for n in (2, 1))
  base = sharding.unbox(transformer.init(decoder, jax.random.key(0)))
  tx = optax.adamw(c.optimizer.lr, c.optimizer.b1, c.optimizer.b2, c.optimizer.eps)
  if e.kind == "full":
    moving = jax.tree.map(jnp.copy, {k: base[k] for k in transformer.LAYERS if k in base})
  else:
    moving = sharding.unbox(experts.make(c, m.layers).init(jax.random.key(1)))["adapter"]

  def forward(base, layers, batch, is_whole=False):
    is_told = m.kernel == "cudnn"  # As the composition: such a kernel knows what is causal.
    mask_BTT = None if is_told else attention.own_mask(batch.segment_BT, None)
    one_BTE = jnp.ones((*batch.tokens_BT.shape, 1))
    shared = block.shared(m, batch.position_BT, mask_BTT, one_BTE)
    call = lambda method, *args: decoder.apply({"params": base}, *args, method=method)
    _, at_BC = jax.lax.top_k(batch.loss_mask_BT, c.data.counted or c.data.seq_len)
    pick = lambda x: jnp.take_along_axis(x, at_BC, axis=1)
    asked = None if is_whole else at_BC
    state_BCD: Any = call("upper", call("embed", batch.tokens_BT), layers, shared, asked)
    logits_BCV: Any = call("unembed", block.pick(state_BCD, at_BC if is_whole else None))
    return logits_BCV, pick(batch.targets_BT), pick(batch.loss_mask_BT)

  def loss(moving, base, batch):
    if e.kind == "full":
      return losses.next_token_xent(*forward(base | moving, {}, batch))[0]
    # Behind the layer's axis one for experts, of which there is one.
    scaled = {k: (x["a"][:, None], x["b"][:, None] * e.alpha / e.rank) for k, x in moving.items()}
    return losses.next_token_xent(*forward(base, scaled, batch))[0]

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state, base, twice, once):
    moving, moments = state
    value, grads = jax.value_and_grad(loss)(moving, base, twice)
    updates, moments = tx.update(grads, moments, moving)
    seen, *_ = forward(base, {}, once, is_whole=True)
    return (optax.apply_updates(moving, updates), moments), value, jnp.mean(seen)

  state = moving, tx.init(moving)
  args = base, twice, once
  return Case(name, advance.lower(state, *args), state, args, flops.of(advance, state, *args))


def decode(name: str, c: Config, n_rows: int) -> tuple[Case, Case]:
  """Reading `n_rows` prompts and saying a first token, and saying the `N_SAID` - 1 behind it.

  No token ends an answer. The cache is not donated, so that a case may begin again.
  """
  mesh = sharding.make_mesh(c.mesh)
  model = compose.build(c, c.data.tokenizer.vocab_size, mesh)
  params = sharding.unbox(jax.jit(model.init)(jax.random.key(0)))
  whole = random_batch(c, n_rows)
  n_prompt = c.data.seq_len - N_SAID
  of_tokens = [name for name in Batch._fields if name.endswith("_BT")]
  prompts = whole._replace(**{name: getattr(whole, name)[:, :n_prompt] for name in of_tokens})
  prompts = prompts._replace(segment_BT=np.ones_like(prompts.segment_BT))
  given = Sampling(0.0, 0, 1.0), compose.NOTHING, -1
  left_B, key_B = np.full(n_rows, N_SAID, np.int32), jax.random.split(jax.random.key(1), n_rows)

  @jax.jit
  def read(params, prompts):
    return params, decoding.prefill(model, params, prompts, left_B, key_B, *given, room=N_SAID)[0]

  @jax.jit
  def say(params, decoded):
    return params, decoding.decode(model, params, decoded, *given, N_SAID - 1).said_BM

  _, decoded = read(params, prompts)
  # A loop's trips are in its data: one token is counted, and multiplied.
  one = lambda params, decoded: model.apply(params, decoded.next, cache=decoded.cache)
  flops_said = (N_SAID - 1) * flops.of(one, params, decoded)
  of = lambda suffix, f, args, n_flops: Case(
    f"{name}/{suffix}", f.lower(params, args), params, (args,), n_flops
  )
  return of("prompt", read, prompts, flops.of(read, params, prompts)), of(
    "answer", say, decoded, flops_said
  )


def random_batch(c: Config, n_rows: int) -> Batch:
  """Rows of random tokens, of which the last ones are the answer."""
  rng = np.random.default_rng(0)
  shape = n_rows, c.data.seq_len
  n_prompt = c.data.seq_len - N_ANSWER
  tokens = rng.integers(3, c.data.tokenizer.vocab_size, shape).astype(np.int32)
  position = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  is_prompt = position < n_prompt
  return Batch(
    tokens_BT=tokens,
    targets_BT=np.roll(tokens, -1, axis=1),
    segment_BT=np.where(is_prompt, 1, 2).astype(np.int32),
    position_BT=np.array(position),
    loss_mask_BT=(position >= n_prompt - 1).astype(np.float32) * (position < shape[1] - 1),
    prompt_mask_BT=np.array(is_prompt),
    domain_B=np.zeros(n_rows, np.int32),
    read_BD=np.ones((n_rows, c.model.d_model), np.float32) if c.keeps_prompts else None,
  )
