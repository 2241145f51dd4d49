"""What the page of a run says."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from iclm import inputs, provenance, workdir
from iclm.audit import cost, drawing, files
from iclm.config import InputError
from iclm.evals import statistics

LEVEL = 0.95
ASK = "name the --out of experiments.evaluate"
CURVES = (
  ("answer_nats", "answer, nats per token"),
  ("rate_", "rates, nats per position"),
  ("usage/", "share of inputs per expert"),
  ("eval/", "evaluation accuracy"),
)
EFFECTS = {
  "force": "accuracy when every input is served by one expert, change",
  "knockout": "accuracy when the expert says its mean message, change",
  "force_nats": "nats of the answer when every input is served by one expert, change",
  "knockout_nats": "nats of the answer when the expert says its mean message, change",
  "swap": "accuracy of one expert's inputs (row) when another one (column) serves them, change",
  "swap_nats": "nats of the same, change",
}
# A run, and those that a study sets beside it, by their folders within its own.
RUNS = {
  "this model": ".",
  "plain base": "plain_base",
  "update of this model": "update/iclm",
  "update of the plain base": "update/plain_base",
  "dense LoRA on the plain base": "update/dense_lora",
}


class Row(NamedTuple):
  """A set, or a group of its examples; what a model was not asked is None."""

  label: str
  n: int
  accuracies: list[statistics.Estimate | None]
  is_group: bool


class Accuracies(NamedTuple):
  """Accuracy of sets and their groups, one column per model, with Wilson's intervals."""

  title: str
  models: list[str]
  rows: list[Row]


class Trained(NamedTuple):
  """What a run cost; parameters by their groups, in which all domain experts are one."""

  label: str
  cost: cost.Cost | None
  parameters: dict[str, int] | None


def content(folder: pathlib.Path, examined: pathlib.Path | None) -> dict[str, Any]:
  """All that the template of a run's page reads; see `iclm.audit.report.render`."""
  results = files.read_results(folder)
  more = {} if examined is None else inputs.read_json(examined, f"there is no {examined}; {ASK}")
  if examined is not None:
    _check_same_run(folder, results, examined, more)
  metrics = files.read_metrics(folder)
  sets, routing = results["sets"], more.get("routing")
  asked = more.get("sets", [])
  after = dict(zip(_ends([s["path"] for s in asked]), asked, strict=True))
  at = f", at step {more['step']}" if "step" in more else ""
  return {
    "name": folder.resolve().name,
    "accuracies": [
      _accuracies("at the end of training", sets, results),
      *([_accuracies(f"evaluated afterwards{at}", after, {})] if after else []),
    ],
    "rates": {name: found["rate_nats"] for name, found in sets.items() if found["rate_nats"]},
    "routes": _routes({name: found["routes"] for name, found in sets.items() if found["routes"]}),
    "effects": _effects(more.get("interventions")),
    "examined_step": more.get("step"),
    "interventions": more.get("interventions"),
    "independence": _pairs(more.get("independence", [])),
    "worst_domain": more.get("worst_domain"),
    "independence_notes": more.get("independence_notes", []),
    "probes": more.get("probes", {}),
    "routing": routing,
    "map": drawing.prompt_map(routing["map"]) if routing and routing.get("map") else None,
    "update": _update(results.get("update")),
    "skipped": next((m["skipped"] for m in reversed(metrics) if m.get("skipped")), 0),
    "curves": [c for prefix, title in CURVES if (c := drawing.curve(metrics, prefix, title))],
    "trained": _trained(folder),
    "provenance": results["provenance"],
  }


def _ends(paths: Sequence[str]) -> list[str]:
  """The shortest ends of paths that tell them apart."""
  every = [pathlib.PurePath(path).parts for path in paths]
  for n in range(1, max(map(len, every), default=0) + 1):
    found = ["/".join(parts[-n:]) for parts in every]
    if len(set(found)) == len(set(every)):
      return found
  return list(paths)


def _check_same_run(folder: pathlib.Path, results, examined: pathlib.Path, more) -> None:
  try:
    ours, theirs = (x["provenance"]["config_sha256"] for x in (results, more))
    whole = all(s.keys() >= {"path", "n", "accuracy", "by_group"} for s in more["sets"])
  except (AttributeError, KeyError, TypeError):
    ours = theirs = whole = None
  if not whole:
    raise InputError(f"{examined} is not what experiments.evaluate writes; name its --out")
  if theirs == ours:
    return
  # The library may have gained keys between the training and the evaluation.
  now = {provenance.config_sha256(workdir.config_of(p.parent)) for p in folder.glob(workdir.CONFIG)}
  if theirs not in now:
    raise InputError(f"{examined} is about another run than {folder}: their configs differ")


def _accuracies(title: str, sets: Mapping[str, Any], results: dict[str, Any]) -> Accuracies:
  """The run's accuracy, beside that of its plain base and of forced routes where it has them."""
  plain = results.get("plain_base", {}).get("sets")
  forced = results.get("forced")
  models = ["accuracy" if plain is None and forced is None else "this model"]
  models += ["plain base"] * (plain is not None)
  models += ["next expert"] * (forced is not None)

  rows = []
  for name, found in sets.items():
    rivals = [] if plain is None else [plain.get(name)]
    cells = [_share(s) for s in (found, *rivals)]
    if forced is not None:
      cells.append(_share(found | {"accuracy": forced[name]} if name in forced else None))
    rows.append(Row(name, found["n"], cells, is_group=False))
    for label, group in _groups(found).items():
      cells = [_share(group)]
      cells += [_share(None if s is None else _groups(s).get(label)) for s in rivals]
      cells += [None] * (forced is not None)
      rows.append(Row(label, group["n"], cells, is_group=True))
  return Accuracies(title, models, rows)


def _groups(found: dict[str, Any]) -> dict[str, Any]:
  """The groups of a set, and what its context determines of open answers beside the solver's."""
  if "determined" not in found:
    return found["by_group"]
  solver = f"determined by the context (ceiling {found['determined']['ceiling']:.3f})"
  return found["by_group"] | {solver: found["determined"]}


def _share(found: dict[str, Any] | None) -> statistics.Estimate | None:
  if found is None:
    return None
  n = found.get("n_contexts", found["n"])  # Open answers of RAVEN have one context each.
  return statistics.wilson_interval(found["accuracy"] * n, n, level=LEVEL)


def _routes(found: Mapping[str, Mapping[str, Sequence[float]]]) -> drawing.Heat | None:
  """Set and domain x expert."""
  cells = {f"{name}: {domain}": x for name, of in found.items() for domain, x in of.items()}
  if not cells:
    return None
  experts = list(map(str, range(len(next(iter(cells.values()))))))
  title = "share of a set's inputs of a domain per expert"
  return drawing.Heat(title, list(cells), experts, list(cells.values()), 1.0)


def _effects(found: dict[str, Any] | None) -> list[drawing.Heat]:
  """Effect matrices, expert x domain, and of swaps expert x expert."""
  heats = []
  for key, title in EFFECTS.items():
    if found is not None and key in found:
      cells = found[key]
      scale = max((abs(x) for row in cells for x in row if x is not None), default=0.0) or 1.0
      scale = -scale if key.endswith("nats") else scale  # Red is worse.
      experts = _experts(len(cells))
      columns = list(map(str, range(len(cells)))) if key.startswith("swap") else found["domains"]
      heats.append(drawing.Heat(title, experts, columns, cells, scale))
  return heats


def _pairs(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """The rows of each pair; those of which nothing is known, for one reason, share one row."""
  found: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    found.setdefault(row["pair"], []).append(row)
  known, alike = {}, {}
  for pair, mine in found.items():
    names = ", ".join(row["estimator"] for row in mine)
    if {(row["value"], row["note"]) for row in mine} == {(None, mine[0]["note"])}:
      alike.setdefault((names, mine[0]["note"]), []).append(pair)
    else:
      known[pair] = mine
  for (names, note), pairs in alike.items():
    known["; ".join(pairs)] = [{"estimator": names, "value": None, "note": note}]
  return known


def _update(found: dict[str, Any] | None) -> dict[str, Any] | None:
  """The update of a study; by number of examples in their order, whose keys were texts in JSON."""
  if found is None:
    return None
  return found | {"curve": dict(sorted(found.get("curve", {}).items(), key=lambda x: int(x[0])))}


def _experts(n: int) -> list[str]:
  return [f"expert\u00a0{e}" for e in range(n)]


def _trained(folder: pathlib.Path) -> list[Trained]:
  """The run itself and what its study set beside it, as far as they came to their ends."""
  return [
    Trained(
      label, cost.of_metrics(files.read_metrics(at)), files.read_results(at).get("parameters")
    )
    for label, path in RUNS.items()
    if ((at := folder / path) / workdir.RESULTS).exists()
  ]
