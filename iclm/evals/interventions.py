"""What a model's mechanisms do, found by intervening on them; every effect is under do - without.

  force       every input is served by expert e, whatever its route
  knock-out   the message of the serving expert is replaced: by its mean, by zero, or by that of
              another input of the same expert (resampled); routes stay
  swap        the inputs of expert e are served by expert f

A message is replaced where the answer is predicted; in the topology `around` those of the prompt
stay. An expert's knock-out changes only the inputs that it serves. Under a router that mixes
experts, the one of the largest weight counts as serving, and what is replaced is the message of the
mixture.
Source: Chan et al., "Causal scrubbing", 2022 (resampling). See `iclm.evals.interchange` too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from iclm import progress
from iclm.data import rows
from iclm.data.records import Example
from iclm.evals import effects, routing
from iclm.evals.accuracy import Scores
from iclm.evals.subject import Messages, Subject, served_by, speaking

FROM_REFERENCE = ("mean", "resampled")  # Knock-outs for which other examples are needed.


class Measured(NamedTuple):
  """Scores of N examples under each intervention.

  Attributes:
    without: no intervention.
    forced: per expert, all inputs served by it.
    knocked: "mean", "zero" and "resampled" -> scores; empty where a model has no messages.
    unheard: experts that serve some of the inputs and no reference example: there is no mean
      and no other message of theirs to stand in, and those scores are no knock-outs of them.
  """

  without: Scores
  forced: list[Scores]
  knocked: dict[str, Scores]
  unheard: frozenset[int] = frozenset()


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
  experts = progress.watch(range(n_experts), n_experts, "inputs forced to one expert")
  forced = [subject.score(examples, served_by(e)) for e in experts]
  knocked, unheard = {}, frozenset()
  if subject.config.bottleneck.kind != "none":
    pool = subject.messages(reference)
    unheard = frozenset(np.setdiff1d(without.index_N, pool.index_N).tolist())
    found = _replacements(pool, without.index_N, n_experts, seed)
    for name, z_SNPZ in progress.watch(found.items(), len(found), "experts knocked out"):
      only_domain = [False] * (len(z_SNPZ) - 1) + [True]
      knocked[name] = subject.score(examples, speaking(z_SNPZ, only_domain))
  return Measured(without, forced, knocked, unheard)


def _replacements(
  pool: Messages, index_N: Int[np.ndarray, "N"], n_experts: int, seed: int
) -> dict[str, Float[np.ndarray, "S N P Z"]]:
  """What the serving experts' messages are replaced by; 0 for one that is not in the pool."""
  shape = (len(pool.z_SNPZ), len(index_N), *pool.z_SNPZ.shape[2:])
  mean, resampled = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
  rng = np.random.default_rng(seed)
  for e in range(n_experts):
    (mine,), (served,) = np.nonzero(pool.index_N == e), np.nonzero(index_N == e)
    if not len(mine) or not len(served):
      continue
    said = pool.z_SNPZ[-1, mine][pool.mask_NP[mine]]
    mean[-1, served] = said.mean(axis=0)
    resampled[-1, served] = prolonged(pool, rng.choice(mine, len(served)))[-1]
  return {"mean": mean, "zero": np.zeros(shape, np.float32), "resampled": resampled}


def prolonged(pool: Messages, pick_N: Int[np.ndarray, "N"]) -> Float[np.ndarray, "S N P Z"]:
  """The messages of some inputs; behind the end of an answer, its last one."""
  last_N = pool.mask_NP.sum(axis=1) - 1
  place_NP = np.minimum(np.arange(pool.mask_NP.shape[1]), last_N[pick_N][:, None])
  return pool.z_SNPZ[:, pick_N[:, None], place_NP]


def report(
  measured: Measured,
  examples: Sequence[Example],
  n_experts: int,
  seed: int,
  question: rows.Question,
) -> dict[str, Any]:
  """Effect matrices expert x domain with bootstrap intervals, importance, swaps and regret.

  Args:
    seed: of the bootstrap.
    question: how prompts are split into context and question; contexts are resampled whole.

  Returns:
    JSON-able. Effects are changes of accuracy, `*_nats` of the answer's negative log-likelihood.
    What cannot be estimated is None, and `notes` says why.
  """
  domain_N = np.array([example.domain for example in examples])
  domains = [str(d) for d in np.unique(domain_N)]
  without = measured.without
  member_DN = np.array([domain_N == d for d in domains])
  served_EN = without.index_N == np.arange(n_experts)[:, None]
  context_N = rows.contexts(examples, question)
  estimator = effects.Estimator(context_N, seed)
  few_D = [len(np.unique(context_N[m])) < effects.MIN_INPUTS for m in member_DN]

  def in_domains(changes_E: Sequence[effects.Change | None]) -> list[list[effects.Place]]:
    each = list(zip(domains, member_DN, few_D, strict=True))
    return [
      [effects.Place(x, m, f"expert {e} in {d!r}", few) for d, m, few in each]
      for e, x in enumerate(changes_E)
    ]

  forced_E = [effects.change(under, without) for under in measured.forced]
  tables = [estimator.table("force", in_domains(forced_E))]
  for kind in measured.knocked:
    name = "knockout" + ("" if kind == "mean" else f"_{kind}")
    tables.append(estimator.table(name, in_domains(_knocked(measured, served_EN, kind))))
  tables.append(estimator.table("swap", _swaps(forced_E, served_EN)))
  found = {key: x for table in tables for key, x in table.items()}
  found |= {"domains": domains, "ci95": {k: x for t in tables for k, x in t["ci95"].items()}}
  nll_EN = np.array([under.nll_N for under in measured.forced])
  every_N = np.ones(len(examples), bool)
  regret = estimator.cell(without.nll_N - nll_EN.min(axis=0), every_N, "regret_nats")
  found["regret_nats"], found["ci95"]["regret_nats"] = regret
  found["importance"] = _importance(measured, served_EN, estimator)
  found["dominance"] = _dominance(found.get("knockout_nats"), member_DN, served_EN, domains)
  notes = _notes(measured, served_EN, dict(zip(domains, member_DN, strict=True)), context_N)
  return found | {"notes": notes + estimator.notes}


def _notes(measured: Measured, served_EN, member: dict[str, np.ndarray], context_N) -> list[str]:
  """What the inputs, the routes and the reference examples cannot tell."""
  n = {d: (int(m.sum()), len(np.unique(context_N[m]))) for d, m in member.items()}
  notes = [
    f"domain {d!r} has {of} examples on {apart} contexts; intervals need {effects.MIN_INPUTS}"
    for d, (of, apart) in n.items()
    if apart < effects.MIN_INPUTS
  ]
  notes += [f"no input reaches expert {e}" for e, on_N in enumerate(served_EN) if not on_N.any()]
  if measured.unheard:
    names = ", ".join(map(str, sorted(measured.unheard)))
    notes.append(
      f"no reference example reaches expert {names}: what a knock-out by the mean or by another "
      "message costs is unknown there"
    )
  if not measured.knocked:
    notes.append("a model without a bottleneck has no message to knock out")
  return notes


def _knocked(
  measured: Measured, served_EN: Bool[np.ndarray, "E N"], kind: str
) -> list[effects.Change | None]:
  """What each expert's knock-out changes: nothing where another one serves; None if unknown."""
  x = effects.change(measured.knocked[kind], measured.without)
  return [
    None
    if kind in FROM_REFERENCE and e in measured.unheard
    else effects.Change(*(np.where(on_N, x_N, 0.0) for x_N in x))
    for e, on_N in enumerate(served_EN)
  ]


def _swaps(
  forced_E: Sequence[effects.Change], served_EN: Bool[np.ndarray, "E N"]
) -> list[list[effects.Place]]:
  """[e][f]: what the inputs of e lose when f serves them; None where e has no input."""
  return [
    [
      effects.Place(x, on_N, f"the inputs of expert {e} to {f}", not on_N.any())
      for f, x in enumerate(forced_E)
    ]
    for e, on_N in enumerate(served_EN)
  ]


def _importance(
  measured: Measured, served_EN: Bool[np.ndarray, "E N"], estimator: effects.Estimator
) -> list[dict[str, Any]]:
  """Causal importance, the cost of an expert's knock-out over all inputs, beside its use."""
  used = [{"expert": e, "routed": float(on_N.mean())} for e, on_N in enumerate(served_EN)]
  if "mean" not in measured.knocked:
    return used
  every_N = np.ones(served_EN.shape[1], bool)
  blank = dict.fromkeys(("nats", "ci95", "accuracy", "accuracy_ci95"))
  return [
    row | (blank if x is None else estimator.row(x, every_N, f"importance of expert {e}"))
    for e, (row, x) in enumerate(zip(used, _knocked(measured, served_EN, "mean"), strict=True))
  ]


def _dominance(
  knockout_nats: list[list[float | None]] | None,
  member_DN: Bool[np.ndarray, "D N"],
  served_EN: Bool[np.ndarray, "E N"],
  domains: Sequence[str],
) -> dict[str, Any]:
  """How much more an expert's knock-out changes its own domain than it changes the others.

  Experts and domains are matched one to one by the inputs served, not by the effects, of which the
  largest would then be taken for their own. Routes are hard, so that an expert costs nothing where
  it serves nothing: pure routes alone make the cost elsewhere 0, and the ratio undefined.

  Returns:
    "matching" (domain -> expert or None), "own_nats" and "other_nats" (means over the cells of
    matched experts of the size of the effect, so that a gain and a loss do not cancel), "ratio" of
    the two; what is undefined is None, and "note" says why, and of whom losing an expert is a gain.
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
  effect_ED = np.array(knockout_nats, float)  # NaN where it is unknown.
  (matched,) = np.nonzero((expert_D >= 0) & ~np.isnan(effect_ED[expert_D]).any(axis=1))
  notes = [
    f"the knock-out of expert {expert_D[d]}, of {domains[d]!r}, is unknown"
    for d in map(int, np.setdiff1d(np.nonzero(expert_D >= 0), matched))
  ]
  if not len(matched):
    return found | {"note": "; ".join(notes) or "no domain has an expert"}
  effect_MD = effect_ED[expert_D[matched]]
  is_own_MD = np.arange(len(domains)) == matched[:, None]
  own, other = float(np.abs(effect_MD[is_own_MD]).mean()), np.abs(effect_MD[~is_own_MD])
  found["own_nats"] = own
  gains = [domains[int(d)] for d in matched[effect_MD[is_own_MD] < 0]]
  if gains:
    notes.append(f"without its own expert {', '.join(map(repr, gains))} is better off")
  if not len(other):
    notes.append("there is one domain, and so no other one")
    return found | {"note": "; ".join(notes)}
  found["other_nats"] = float(other.mean())
  if found["other_nats"] <= 0:
    notes.append("ratio is undefined: knock-outs cost the other domains nothing")
  else:
    found["ratio"] = own / found["other_nats"]
  return found | {"note": "; ".join(notes) or None}
