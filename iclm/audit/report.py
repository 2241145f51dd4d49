"""One HTML file that says what a run came to: tables, heat maps and curves, nothing to download.

What is missing in a run is missing on the page; what could not be estimated is shown as a dash,
with its reason among the notes. All text that comes from data is escaped.
"""

import importlib.resources
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

from iclm.config import InputError
from iclm.evals import statistics

LEVEL = 0.95
WIDTH, HEIGHT, N_POINTS = 320, 120, 200  # Of a curve, in its own units; points kept of it.
CURVES = (
  ("answer_nats", "answer, nats per token"),
  ("rate_", "rates, nats per position"),
  ("usage/", "share of inputs per expert"),
  ("eval/", "evaluation accuracy"),
)


class Curve(NamedTuple):
  """Lines over the steps of a run; each an SVG path in a box of WIDTH x HEIGHT."""

  title: str
  lines: list[tuple[str, str]]  # Name, path.
  low: float
  high: float
  last_step: int


class Heat(NamedTuple):
  """A matrix whose cells are shaded by value, from -scale to scale, or from 0 to scale."""

  title: str
  rows: Sequence[str]
  columns: Sequence[str]
  cells: Sequence[Sequence[float | None]]
  scale: float


def render(folder: pathlib.Path, examined: pathlib.Path | None) -> str:
  """The page of a run's folder.

  Args:
    folder: of a finished run.
    examined: what `experiments.evaluate --interventions --independence` wrote of it, if anything.

  Raises:
    InputError: there are no results yet, or a file is malformed.
  """
  results = _json(folder / "results.json")
  more = {} if examined is None else _json(examined)
  if examined is not None:
    _check_same_run(folder, results, examined, more)
  metrics = _lines(folder / "metrics.jsonl")
  template = importlib.resources.files("iclm.audit").joinpath("report.html.j2")
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  environment.filters.update(number=_number, shade=_shade)
  return environment.from_string(template.read_text("utf-8")).render(
    name=folder.name,
    sets=[_set(name, found) for name, found in results["sets"].items()],
    examined=[_set(pathlib.Path(s["path"]).name, s) for s in more.get("sets", [])],
    routes=[_routes(name, found) for name, found in results["sets"].items() if found["routes"]],
    effects=_effects(more.get("interventions")),
    interventions=more.get("interventions"),
    independence=more.get("independence", []),
    probes=more.get("probes", {}),
    routing=more.get("routing"),
    update=results.get("update"),
    curves=[c for prefix, title in CURVES if (c := _curve(metrics, prefix, title))],
    train_s=results["train_s"],
    provenance=results["provenance"],
    width=WIDTH,
    height=HEIGHT,
  )


def _check_same_run(folder: pathlib.Path, results, examined: pathlib.Path, more) -> None:
  try:
    ours, theirs = (x["provenance"]["config_sha256"] for x in (results, more))
    whole = all(s.keys() >= {"path", "n", "accuracy", "by_group"} for s in more["sets"])
  except (AttributeError, KeyError, TypeError):
    ours = theirs = whole = None
  if not whole:
    raise InputError(f"{examined} is not what experiments.evaluate writes; name its --out")
  if ours != theirs:
    raise InputError(f"{examined} is about another run than {folder}: their configs differ")


def _json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise InputError(f"there is no {path}; a report needs a run that is complete") from None
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read {path}: {error}") from None


def _lines(path: pathlib.Path) -> list[dict[str, float]]:
  if not path.exists():
    return []
  try:
    return [json.loads(line) for line in path.read_text().splitlines()]
  except ValueError as error:
    raise InputError(f"cannot read {path}: {error}") from None


def _set(name: str, found: dict[str, Any]) -> dict[str, Any]:
  """A set's accuracy with Wilson's interval, whole and by group."""

  def row(label: str, n: int, accuracy: float) -> dict[str, Any]:
    interval = statistics.wilson_interval(round(accuracy * n), n, level=LEVEL)
    return {
      "label": label,
      "n": n,
      "accuracy": accuracy,
      "low": interval.low,
      "high": interval.high,
    }

  groups = [row(label, g["n"], g["accuracy"]) for label, g in found["by_group"].items()]
  return row(name, found["n"], found["accuracy"]) | {"groups": groups, "rates": found["rate_nats"]}


def _routes(name: str, found: dict[str, Any]) -> Heat:
  n_experts = len(next(iter(found["routes"].values())))
  cells = list(found["routes"].values())
  return Heat(
    f"{name}: share of inputs per expert", list(found["routes"]), _names(n_experts), cells, 1.0
  )


def _effects(found: dict[str, Any] | None) -> list[Heat]:
  """Effect matrices, expert x domain."""
  if found is None:
    return []
  titles = {
    "force": "accuracy when every input is served by one expert, change",
    "knockout": "accuracy when the expert says its mean message, change",
    "force_nats": "nats of the answer when every input is served by one expert, change",
    "knockout_nats": "nats of the answer when the expert says its mean message, change",
  }
  heats = []
  for key, title in titles.items():
    if key in found:
      flat = [abs(x) for row in found[key] for x in row if x is not None]
      scale = max(flat, default=0.0) or 1.0
      heats.append(Heat(title, _names(len(found[key])), found["domains"], found[key], scale))
  return heats


def _names(n: int) -> list[str]:
  return [f"expert {e}" for e in range(n)]


def _curve(metrics: Sequence[dict[str, float]], prefix: str, title: str) -> Curve | None:
  """The metrics whose names start so, over the steps; None where there are none."""
  names = sorted({k for m in metrics for k in m if k.startswith(prefix) and "nll" not in k})
  series = {
    k: [(m["step"], m[k]) for m in metrics if k in m and math.isfinite(m[k])] for k in names
  }
  series = {k: points[:: max(1, len(points) // N_POINTS)] for k, points in series.items() if points}
  if not series:
    return None
  values = [y for points in series.values() for _, y in points]
  low, high = min(0.0, *values), max(values)
  last = max(step for points in series.values() for step, _ in points)
  x = lambda step: WIDTH * step / last
  y = lambda value: HEIGHT * (1 - (value - low) / ((high - low) or 1.0))
  paths = {
    k: "M" + " L".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points) for k, points in series.items()
  }
  return Curve(title, list(paths.items()), low, high, int(last))


def _number(value: float | None, digits: int = 3) -> str:
  """A number, or a dash for what is undefined."""
  return "–" if value is None else f"{value:.{digits}f}"


def _shade(value: float | None, scale: float) -> str:
  """The colour of a cell: blue above 0, red below, white at 0."""
  if value is None:
    return "#eee"
  part = max(-1.0, min(1.0, value / scale))
  rest = round(255 * (1 - 0.75 * abs(part)))
  return f"rgb({rest},{rest},255)" if part >= 0 else f"rgb(255,{rest},{rest})"
