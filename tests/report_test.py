"""The page of a run: complete, self-contained, and safe to open."""

import html.parser
import json

import pytest

from iclm.audit import report
from iclm.config import InputError

EVIL = "<script>alert(1)</script>"
SET = {
  "n": 40, "accuracy": 0.75, "by_group": {EVIL: {"n": 40, "accuracy": 0.75}},
  "routes": {EVIL: [0.25, 0.75]}, "rate_nats": {"invariant": 0.5, "domain": 1.5},
}  # fmt: skip
RESULTS = {
  "sets": {"test": SET},
  "train_s": 12.3,
  "provenance": {
    "commit": "abc", "dirty": True, "seed": 3, "config_sha256": "f" * 64,
    "device": {"kind": "cpu", "count": 1, "cores": 2},
  },
}  # fmt: skip
EXAMINED = {
  "provenance": RESULTS["provenance"],
  "sets": [SET | {"path": f"a/{EVIL}"}],
  "interventions": {
    "domains": [EVIL], "force": [[0.0], [-0.5]], "knockout": [[None], [0.25]],
    "notes": ["no input reaches expert 0"],
    "interchange": {"domain": {k: {"nats": None} for k in ("same_domain", "same_group", "any")}},
  },
  "independence": [
    {"pair": "a, b", "estimator": "nhsic", "value": None, "null_p95": None, "p": None, "n": 4,
     "note": "too few"}
  ],
  "probes": {"domain": {"group": {"accuracy": None, "majority": 0.5, "note": "constant"}}},
  "routing": {"nmi": None, "purity": 1.0, "purity_of_one_expert": 0.5, "ece": 0.1,
              "regret_nats": 0.2, "notes": ["one domain"]},
}  # fmt: skip


class Tags(html.parser.HTMLParser):
  """Checks that tags close in order, and keeps what they point to."""

  VOID = ("meta", "br", "path")

  def __init__(self):
    super().__init__()
    self.open, self.links, self.names = [], [], set()

  def handle_starttag(self, tag, attrs):
    self.names.add(tag)
    self.links += [value for name, value in attrs if name in ("src", "href")]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.names.add(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def write(folder, results=RESULTS):
  (folder / "results.json").write_text(json.dumps(results))
  lines = [{"step": s, "answer_nats": 2 - s / 10, "usage/0": 0.5} for s in (1, 2, 10)]
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  return folder


def parsed(page):
  tags = Tags()
  tags.feed(page)
  assert not tags.open and not tags.links  # Well formed, and nothing to fetch.
  return tags


def test_a_page_is_whole_and_text_from_data_is_text(tmp_path):
  (tmp_path / "out.json").write_text(json.dumps(EXAMINED))
  page = report.render(write(tmp_path), tmp_path / "out.json")
  assert "script" not in parsed(page).names and "&lt;script&gt;" in page
  # Wilson's interval of 30 of 40 at 95 %: 0.598 to 0.858.
  assert "0.598 – 0.858" in page
  for text in ("no input reaches expert 0", "too few", "with uncommitted changes", "seed 3", "–"):
    assert text in page


def test_what_a_run_lacks_the_page_lacks(tmp_path):
  plain = SET | {"routes": {}, "rate_nats": {}}
  page = report.render(write(tmp_path, RESULTS | {"sets": {"test": plain}}), None)
  parsed(page)
  for title in ("Routes", "Interventions", "Independence", "Partial update"):
    assert f"<h2>{title}" not in page
  assert "<h2>Training" in page


def test_curves_span_their_box():
  metrics = [{"step": s, "answer_nats": v} for s, v in ((5, 2.0), (10, 1.0))]
  curve = report._curve(metrics, "answer_nats", "t")
  # Half of the 320 wide box at step 5 of 10, its top at the maximum; 1 of 2 is half of 120 high.
  assert curve.lines == [("answer_nats", "M160.0,0.0 L320.0,60.0")]
  assert (curve.low, curve.high, curve.last_step) == (0.0, 2.0, 10)
  assert report._curve(metrics, "rate_", "t") is None


def test_shades_are_white_at_zero_and_grey_where_unknown():
  assert report._shade(0.0, 2.0) == "rgb(255,255,255)"
  assert report._shade(2.0, 2.0) == "rgb(64,64,255)"
  assert report._shade(-9.0, 2.0) == "rgb(255,64,64)"
  assert report._shade(None, 2.0) == "#eee"


def test_a_run_without_results_is_told(tmp_path):
  with pytest.raises(InputError, match=r"no .*results\.json"):
    report.render(tmp_path, None)
  (tmp_path / "out.json").write_text("[1]")
  with pytest.raises(InputError, match=r"out\.json is not what experiments\.evaluate writes"):
    report.render(write(tmp_path), tmp_path / "out.json")
  other = EXAMINED | {"provenance": {"config_sha256": "0" * 64}}
  (tmp_path / "out.json").write_text(json.dumps(other))
  with pytest.raises(InputError, match="about another run"):
    report.render(tmp_path, tmp_path / "out.json")
  (tmp_path / "results.json").write_text("{")
  with pytest.raises(InputError, match=r"cannot read .*results\.json"):
    report.render(tmp_path, None)
