"""What is drawn on a page, in the units of its box; the templates make SVG and tables of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from iclm.evals.statistics import Estimate

WIDTH, HEIGHT, N_POINTS = 320, 120, 200  # Of a curve, in its own units; points kept of it.
MAP_WIDTH, MARGIN = 340, 10  # Of a map of prompts.
INK = ("#2f78c4", "#cf3f4f", "#2a9d63", "#8e5bb5", "#c07c12", "#16979f", "#a0522d", "#d0589b")
OTHER = "#8a8f98"  # Of what comes behind the last colour: two things of one colour mislead.


class Line(NamedTuple):
  """One line of a curve: its name, colour, and SVG path."""

  name: str
  colour: str
  path: str


class Curve(NamedTuple):
  """Lines over the steps of a run, in a box of WIDTH x HEIGHT."""

  title: str
  lines: list[Line]
  low: float
  high: float
  last_step: int


class Heat(NamedTuple):
  """A matrix whose cells are shaded by value: blue up to `scale`, red down to its opposite."""

  title: str
  rows: Sequence[str]
  columns: Sequence[str]
  cells: Sequence[Sequence[float | None]]
  scale: float


class Dots(NamedTuple):
  """One row of a strip: a dot per seed, their mean and its interval, in per cent of the axis."""

  label: str
  dots: list[float]
  mean: float
  interval: tuple[float, float] | None


class Strip(NamedTuple):
  """Rows of dots on one axis, which runs from `low` to `high`."""

  title: str
  low: float
  high: float
  rows: list[Dots]


class Mark(NamedTuple):
  """A prompt on the map: a word in its domain's colour, which says its expert."""

  x: float
  y: float
  colour: str
  word: str
  told: str


class Map(NamedTuple):
  """Marks in a box of MAP_WIDTH x height; `share` of the variance that the two axes hold."""

  marks: list[Mark]
  legend: list[tuple[str, str]]  # Name, colour.
  height: float
  share: Sequence[float]


def colours(names: Sequence[str]) -> dict[str, str]:
  """A colour for each name, none twice but for grey."""
  rest = [OTHER] * max(0, len(names) - len(INK))
  return dict(zip(names, [*INK, *rest], strict=False))


def curve(metrics: Sequence[dict[str, Any]], prefix: str, title: str) -> Curve | None:
  """The metrics whose names start so, over the steps; None where there are none."""
  names = sorted({k for m in metrics for k in m if k.startswith(prefix) and "nll" not in k})
  series = {}
  for name in names:
    found = [(m["step"], m[name]) for m in metrics if name in m]
    points = [(s, y) for s, y in found if s is not None and y is not None and math.isfinite(y)]
    if points:
      series[name] = [*points[: -1 : max(1, len(points) // N_POINTS)], points[-1]]
  if not series:
    return None
  values = [y for points in series.values() for _, y in points]
  low, high = min(0.0, *values), max(values)
  last = max(step for points in series.values() for step, _ in points)
  x = lambda step: WIDTH * step / (last or 1)
  y = lambda value: HEIGHT * (1 - (value - low) / ((high - low) or 1.0))
  ink = colours(list(series))
  lines = [
    # A line to where it is already shows one point as a dot.
    Line(name, ink[name], "M" + " L".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points) + "h0")
    for name, points in series.items()
  ]
  return Curve(title, lines, low, high, int(last))


def strip(title: str, rows: Mapping[str, tuple[Sequence[float], Estimate]]) -> Strip:
  """Shares and their means on an axis that just holds them, in steps of 0.05 and within [0, 1].

  Args:
    rows: label -> the values of its seeds, at least one, and the estimate of their mean; an
      interval that leaves [0, 1] is drawn up to there.
  """
  inside = lambda x: min(1.0, max(0.0, x))
  found = [
    x
    for values, mean in rows.values()
    for x in (*values, mean.low, mean.high)
    if x is not None
  ]  # fmt: skip
  low, high = inside(math.floor(min(found) * 20) / 20), inside(math.ceil(max(found) * 20) / 20)
  if low == high:
    low, high = inside(low - 0.05), inside(high + 0.05)
  at = lambda x: round(100 * (inside(x) - low) / (high - low), 2)
  drawn = []
  for label, (values, mean) in rows.items():
    assert mean.value is not None
    both = None if mean.low is None or mean.high is None else (at(mean.low), at(mean.high))
    drawn.append(Dots(label, [at(x) for x in values], at(mean.value), both))
  return Strip(title, low, high, drawn)


def prompt_map(found: dict[str, Any]) -> Map:
  """The map of `iclm.evals.examination`: both axes on one scale, coloured by domain.

  Args:
    found: "xy", "share", and for each point its "domain" and "expert".
  """
  xs, ys = zip(*found["xy"], strict=True)
  scale = (MAP_WIDTH - 2 * MARGIN) / (max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0)
  ink = colours(sorted(set(found["domain"])))
  marks = [
    Mark(
      round(MARGIN + scale * (x - min(xs)), 1),
      round(MARGIN + scale * (max(ys) - y), 1),
      ink[domain],
      str(expert),
      f"{domain}, expert {expert}",
    )
    for x, y, domain, expert in zip(xs, ys, found["domain"], found["expert"], strict=True)
  ]
  return Map(marks, list(ink.items()), scale * (max(ys) - min(ys)) + 2 * MARGIN, found["share"])


def number(value: float | None, digits: int = 3) -> str:
  """A number, or a dash for what is undefined."""
  if value is None or not math.isfinite(value):
    return "–"
  return f"{round(value, digits) + 0.0:,.{digits}f}"  # Adding 0 makes 0 of -0.


def shade(value: float | None, scale: float) -> str:
  """The colour of a cell over the page's: blue up to `scale`, red to its opposite, none at 0."""
  if value is None:
    return "rgba(128,128,128,.2)"
  part = max(-1.0, min(1.0, value / scale))
  return f"rgba({'40,90,220' if part >= 0 else '215,45,45'},{0.7 * abs(part):.2f})"
