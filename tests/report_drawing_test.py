"""What pages draw: curves, shades, numbers and maps."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from iclm.audit import drawing, run
from iclm.evals import statistics


def test_curves_span_their_box():
  metrics = [{"step": s, "answer_nats": v} for s, v in ((5, 2.0), (10, 1.0))]
  curve = drawing.curve(metrics, "answer_nats", "t")
  # Half of the 320 wide box at step 5 of 10, its top at the maximum; 1 of 2 is half of 120 high.
  assert [(line.name, line.path) for line in curve.lines] == [
    ("answer_nats", "M160.0,0.0 L320.0,60.0h0")
  ]
  assert (curve.low, curve.high, curve.last_step) == (0.0, 2.0, 10)
  assert drawing.curve(metrics, "rate_", "t") is None
  thinned = drawing.curve([{"step": s, "rate_nats": 1.0} for s in range(1, 403)], "rate_", "t")
  assert thinned.last_step == 402
  assert drawing.curve([{"step": 0, "rate_nats": 1.0}], "rate_", "t").lines[0].path == "M0.0,0.0h0"
  assert drawing.curve([{"step": 1, "rate_nats": None}], "rate_", "t") is None


def test_what_is_unknown_for_one_reason_is_told_once():
  unknown = {"value": None, "null_p95": None, "p": None, "n": 4}
  known = {"pair": "a, b", "estimator": "cka", "value": 0.5, "n": 40, "note": None}
  rows = [
    known,
    *(
      {"pair": pair, "estimator": of, "note": note} | unknown
      for pair, note in (("b, c", "too few"), ("c, d", "constant"), ("d, e", "too few"))
      for of in ("nhsic", "club")
    ),
  ]
  found = run._pairs(rows)
  assert found["a, b"] == [known] and list(found) == ["a, b", "b, c; d, e", "c, d"]
  assert [(row["estimator"], row["note"]) for row in found["b, c; d, e"]] == [
    ("nhsic, club", "too few")
  ]


def test_shades_are_clear_at_zero_and_grey_where_unknown():
  assert drawing.shade(0.0, 2.0).endswith(",0.00)")
  assert drawing.shade(2.0, 2.0) == "rgba(40,90,220,0.70)"
  assert drawing.shade(-9.0, 2.0) == "rgba(215,45,45,0.70)"
  assert drawing.shade(1.0, -1.0) == drawing.shade(-1.0, 1.0)  # Of nats, more is worse.
  assert drawing.shade(None, 2.0) == "rgba(128,128,128,.2)"


def test_numbers_have_no_negative_zero_and_a_dash_for_what_is_unknown():
  assert drawing.number(-0.0004) == "0.000" and drawing.number(-0.0006) == "-0.001"
  assert drawing.number(None) == drawing.number(float("nan")) == "–"
  assert drawing.number(12345.6, 0) == "12,346"


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_dots_and_intervals_lie_on_their_axis(values):
  mean = statistics.t_interval(np.array(values), level=0.95)
  found = drawing.strip("t", {"a": (values, mean)})
  assert 0 <= found.low <= min(values) and max(values) <= found.high <= 1
  assert found.low < found.high
  (row,) = found.rows
  assert all(0 <= x <= 100 for x in (*row.dots, row.mean, *(row.interval or ())))
  # Per cent of the axis, rounded to two digits, is the value again.
  back = [found.low + x / 100 * (found.high - found.low) for x in row.dots]
  np.testing.assert_allclose(back, values, atol=1e-4)


def test_a_map_keeps_angles_and_gives_no_colour_twice():
  many = [f"d{i}" for i in range(12)]
  xy = [[float(i), 0.5 * i] for i in range(12)]
  found = drawing.prompt_map({"xy": xy, "share": [1, 0], "domain": many, "expert": [7] * 12})
  # Both axes have one scale: 320 units for 11, and half of that in height; margins of 10.
  assert (found.marks[-1].x, found.marks[-1].y) == (330.0, 10.0) and found.height == 180.0
  assert {mark.word for mark in found.marks} == {"7"}
  ink = [colour for _, colour in found.legend if colour != drawing.OTHER]
  assert len(ink) == len(set(ink)) == 8
  one = {"xy": [[1.0, 1.0]], "share": [0, 0], "domain": ["a"], "expert": [0]}
  assert drawing.prompt_map(one).height == 20.0
