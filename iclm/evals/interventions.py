"""What a model's mechanisms do, found by intervening on them; every effect is under do - without.

  force       every input is served by expert e, whatever its route
  knock-out   the message of the serving expert is replaced: by its mean, by zero, or by that of
              another input of the same expert (resampled); routes stay
  swap        the inputs of expert e are served by expert f
  interchange a stream speaks with the message of another input

An expert's knock-out changes only the inputs that it serves, since routes are hard.
Source: Geiger et al., "Causal abstractions of neural networks", arXiv 2106.02997 (interchange);
Chan et al., "Causal scrubbing", 2022 (resampling).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from iclm import compose
from iclm.data.records import Example
from iclm.evals import routing, statistics
from iclm.evals.accuracy import Scores
from iclm.evals.subject import Messages, Subject, served_by, speaking

MIN_INPUTS = 20  # Of a domain, below which no interval is given.
LEVEL, N_BOOT = 0.95, 1000


class Measured(NamedTuple):
  """Scores of N examples under each intervention.

  Attributes:
    without: no intervention.
    forced: per expert, all inputs served by it.
    knocked: "mean", "zero" and "resampled" -> scores; empty where a model has no messages.
  """

  without: Scores
  forced: list[Scores]
  knocked: dict[str, Scores]


def measure(
  subject: Subject, examples: Sequence[Example], reference: Sequence[Example], seed: int
) -> Measured:
  """Scores the examples without and under each intervention: E + 1 passes, and 3 with messages.

  Args:
    reference: training examples, from which the means and the resampled messages are taken.
    seed: of the resampling.
  """
  n_experts = subject.config.experts.count
  without = subject.score(examples)
  forced = [subject.score(examples, served_by(e)) for e in range(n_experts)]
  knocked = {}
  if subject.config.bottleneck.kind != "none":
    pool = subject.messages(reference)
    for name, z_SNPZ in _replacements(pool, without.index_N, n_experts, seed).items():
      only_domain = [False] * (len(z_SNPZ) - 1) + [True]
      knocked[name] = subject.score(examples, speaking(z_SNPZ, only_domain))
  return Measured(without, forced, knocked)


def _replacements(
  pool: Messages, index_N: Int[np.ndarray, "N"], n_experts: int, seed: int
) -> dict[str, Float[np.ndarray, "S N P Z"]]:
  """What the serving experts' messages are replaced by; an expert absent from the pool says 0."""
  shape = (len(pool.z_SNPZ), len(index_N), *pool.z_SNPZ.shape[2:])
  mean, resampled = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
  rng = np.random.default_rng(seed)
  for e in range(n_experts):
    (mine,), (served,) = np.nonzero(pool.index_N == e), np.nonzero(index_N == e)
    if not len(mine) or not len(served):
      continue
    said = pool.z_SNPZ[-1, mine][pool.mask_NP[mine]]
    mean[-1, served] = said.mean(axis=0)
    resampled[-1, served] = _prolonged(pool, rng.choice(mine, len(served)))[-1]
  return {"mean": mean, "zero": np.zeros(shape, np.float32), "resampled": resampled}


def _prolonged(pool: Messages, pick_N: Int[np.ndarray, "N"]) -> Float[np.ndarray, "S N P Z"]:
  """The messages of some inputs; behind the end of an answer, its last one."""
  last_N = pool.mask_NP.sum(axis=1) - 1
  place_NP = np.minimum(np.arange(pool.mask_NP.shape[1]), last_N[pick_N][:, None])
  return pool.z_SNPZ[:, pick_N[:, None], place_NP]


def report(
  measured: Measured, examples: Sequence[Example], n_experts: int, seed: int
) -> dict[str, Any]:
  """Effect matrices expert x domain with bootstrap intervals, importance, swaps and regret.

  Args:
    seed: of the bootstrap.

  Returns:
    JSON-able. Effects are changes of accuracy, `*_nats` of the answer's negative log-likelihood.
    What cannot be estimated is None, and `notes` says why.
  """
  domain_N = np.array([example.domain for example in examples])
  domains = [str(d) for d in np.unique(domain_N)]
  without, index_N = measured.without, measured.without.index_N
  member_DN = np.array([domain_N == d for d in domains])
  notes = [
    f"domain {d!r} has {m.sum()} examples; intervals need {MIN_INPUTS}"
    for d, m in zip(domains, member_DN, strict=True)
    if m.sum() < MIN_INPUTS
  ]
  served_EN = index_N == np.arange(n_experts)[:, None]
  notes += [f"no input reaches expert {e}" for e in range(n_experts) if not served_EN[e].any()]
  effect = lambda under: (
    under.correct_N.astype(float) - without.correct_N,
    under.nll_N - without.nll_N,
  )
  found: dict[str, Any] = {"domains": domains, "ci95": {}}

  def add(name: str, effects_EN: Sequence[tuple[np.ndarray, ...]]) -> None:
    for suffix, values in zip(("", "_nats"), zip(*effects_EN, strict=True), strict=True):
      cells = [[_cell(x_N[m], seed) for m in member_DN] for x_N in values]
      found[name + suffix] = [[mean for mean, _ in row] for row in cells]
      found["ci95"][name + suffix] = [[ci for _, ci in row] for row in cells]

  add("force", [effect(under) for under in measured.forced])
  for kind, under in measured.knocked.items():
    change = effect(under)
    name = "knockout" + ("" if kind == "mean" else f"_{kind}")
    add(name, [tuple(np.where(on_N, x_N, 0.0) for x_N in change) for on_N in served_EN])
  if not measured.knocked:
    notes.append("a model without a bottleneck has no message to knock out")
  nll_EN = np.array([under.nll_N for under in measured.forced])
  regret_N = without.nll_N - nll_EN.min(axis=0)
  mean, ci = _cell(regret_N, seed)
  found["regret_nats"], found["ci95"]["regret_nats"] = mean, ci
  found["swap_nats"] = _swaps(nll_EN, without.nll_N, served_EN)
  found["importance"] = _importance(measured, served_EN)
  found["dominance"] = _dominance(found.get("knockout_nats"), member_DN, served_EN, domains)
  return found | {"notes": notes}


def _cell(x_N: np.ndarray, seed: int) -> tuple[float | None, list[float | None] | None]:
  """Mean and interval of an effect; None where there is too little to tell."""
  mean = float(x_N.mean()) if len(x_N) else None
  if len(x_N) < MIN_INPUTS:
    return mean, None
  found = statistics.bootstrap_ci(x_N, seed=seed, n_draws=N_BOOT, level=LEVEL)
  return mean, [found.low, found.high]


def _swaps(nll_EN, nll_N, served_EN: Bool[np.ndarray, "E N"]) -> list[list[float | None]]:
  """[e][f]: what the inputs of e lose, in nats, when f serves them; None where e has no input."""
  return [
    [float((under_N - nll_N)[on_N].mean()) if on_N.any() else None for under_N in nll_EN]
    for on_N in served_EN
  ]


def _importance(measured: Measured, served_EN: Bool[np.ndarray, "E N"]) -> list[dict[str, Any]]:
  """Causal importance, the cost of an expert's knock-out over all inputs, beside its use."""
  under = measured.knocked.get("mean")
  rows = []
  for e, on_N in enumerate(served_EN):
    row: dict[str, Any] = {"expert": e, "routed": float(on_N.mean())}
    if under is not None:
      row["nats"] = float(np.where(on_N, under.nll_N - measured.without.nll_N, 0.0).mean())
    rows.append(row)
  return rows


def _dominance(
  knockout_nats: list[list[float]] | None,
  member_DN: Bool[np.ndarray, "D N"],
  served_EN: Bool[np.ndarray, "E N"],
  domains: Sequence[str],
) -> dict[str, Any]:
  """How much more an expert's knock-out costs its own domain than it costs the others.

  Experts and domains are matched one to one by the inputs served, not by the effects, of which the
  largest would then be taken for their own. Routes are hard, so that an expert costs nothing where
  it serves nothing: pure routes alone make the cost elsewhere 0, and the ratio undefined.

  Returns:
    "matching" (domain -> expert or None), "own_nats" and "other_nats" (means over the cells of
    matched experts), "ratio" of the two; what is undefined is None, and "note" says why.
  """
  expert_D = routing.match(
    member_DN.argmax(0), served_EN.argmax(0), n_domains=len(domains), n_experts=len(served_EN)
  )
  found: dict[str, Any] = {
    "matching": {d: int(e) if e >= 0 else None for d, e in zip(domains, expert_D, strict=True)}
  }
  found |= dict.fromkeys(("own_nats", "other_nats", "ratio", "note"))
  if knockout_nats is None:
    return found | {"note": "a model without a bottleneck has no message to knock out"}
  (matched,) = np.nonzero(expert_D >= 0)
  effect_MD = np.array(knockout_nats)[expert_D[matched]]
  is_own_MD = np.arange(len(domains)) == matched[:, None]
  own, other = effect_MD[is_own_MD].mean(), effect_MD[~is_own_MD]
  found["own_nats"] = float(own)
  if not len(other):
    return found | {"note": "there is one domain, and so no other one"}
  found["other_nats"] = float(other.mean())
  if found["other_nats"] <= 0:
    return found | {"note": "ratio is undefined: knock-outs cost the other domains nothing"}
  return found | {"ratio": found["own_nats"] / found["other_nats"]}


def interchange(
  subject: Subject, examples: Sequence[Example], without: Scores, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
  """What each stream's message carries: the loss of speaking with another input's message.

  Each input gets three partners at random, one that shares its domain but not its group, one that
  shares its group but not its domain, and any other one, the baseline. A message that carries the
  domain and nothing else costs nothing from a partner of the same domain.

  Args:
    without: scores of the examples under no intervention.
    seed: of the choice of partners and of the bootstrap.

  Returns:
    stream -> partner ("same_domain", "same_group", "any") -> n, nats (mean loss) and its ci95;
    None where fewer than `MIN_INPUTS` inputs have such a partner.
  """
  said = subject.messages(examples)
  names = compose.streams(subject.config)
  found: dict[str, dict[str, Any]] = {name: {} for name in names}
  for kind, pick_N in _partners(examples, seed).items():
    has_N = pick_N >= 0
    z_SNPZ = _prolonged(said, np.where(has_N, pick_N, 0))
    for s, name in enumerate(names):
      under = subject.score(examples, speaking(z_SNPZ, [i == s for i in range(len(names))]))
      mean, ci = _cell((under.nll_N - without.nll_N)[has_N], seed)
      enough = int(has_N.sum()) >= MIN_INPUTS
      found[name][kind] = {"n": int(has_N.sum()), "nats": mean if enough else None, "ci95": ci}
  return found


def _partners(examples: Sequence[Example], seed: int) -> dict[str, Int[np.ndarray, "N"]]:
  """For each input one other input of each kind, at random; -1 where there is none."""
  rng = np.random.default_rng(seed)
  domain_N, group_N = (
    np.unique([getattr(e, name) for e in examples], return_inverse=True)[1]
    for name in ("domain", "group")
  )
  kinds = {
    "same_domain": lambda i: (domain_N == domain_N[i]) & (group_N != group_N[i]),
    "same_group": lambda i: (group_N == group_N[i]) & (domain_N != domain_N[i]),
    "any": lambda i: np.arange(len(examples)) != i,
  }
  pick = lambda mask_N: rng.choice(np.nonzero(mask_N)[0]) if mask_N.any() else -1
  return {kind: np.array([pick(of(i)) for i in range(len(examples))]) for kind, of in kinds.items()}
