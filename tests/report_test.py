"""The page of a run: complete, self-contained, and safe to open."""

import html.parser
import json

import pytest
from conftest import tiny

from iclm import config, provenance
from iclm.audit import cost, files, report, run
from iclm.config import InputError

EVIL = "<script>alert(1)</script>"
SET = {
  "n": 40, "accuracy": 0.75, "by_group": {EVIL: {"n": 40, "accuracy": 0.75}},
  "routes": {EVIL: [0.25, 0.75]}, "rate_nats": {"invariant": 0.5, "domain": 1.5},
}  # fmt: skip
RESULTS = {
  "sets": {"test": SET},
  "train_s": 12.3,
  "parameters": {"base": 1_000, "domain": 234},
  "plain_base": {"sets": {"test": SET | {"accuracy": 0.5}}, "train_s": 6.0},
  "forced": {"test": 0.25},
  "provenance": {
    "commit": "abc", "dirty": True, "seed": 3, "config_sha256": "f" * 64,
    "device": {"kind": "cpu", "count": 1, "cores": 2},
  },
}  # fmt: skip
SPOKEN, UNSPOKEN = {"nats": 0.125, "ci95": [-0.0625, 2.375]}, {"nats": None, "ci95": None}
EXAMINED = {
  "step": 7,
  "provenance": RESULTS["provenance"],
  "sets": [SET | {"path": f"a/{EVIL}"}],
  "interventions": {
    "domains": [EVIL], "force": [[0.0], [-0.5]], "knockout": [[None], [0.25]],
    "notes": ["no input reaches expert 0"],
    "interchange": {"domain": {
      kind: SPOKEN | {"same_route": UNSPOKEN, "other_route": SPOKEN}
      for kind in ("same_domain", "same_group", "any")
    }},
  },
  "independence": [
    {"pair": "a, b", "estimator": "nhsic", "value": None, "null_p95": None, "p": None, "n": 4,
     "note": "too few"}
  ],
  "independence_notes": ["3 of 7 examples share a context"],
  "probes": {"domain": {"group": {"accuracy": None, "majority": 0.5, "note": "constant"}}},
  "routing": {"nmi": None, "nmi_group": 0.5, "purity": 1.0, "purity_of_one_expert": 0.5, "ece": 0.1,
              "regret_nats": 0.2, "notes": ["one domain"],
              "map": {"xy": [[0.0, 1.0], [2.0, 0.0]], "share": [0.75, 0.25],
                      "domain": [EVIL, "b"], "expert": [1, 0]}},
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
  lines = [
    {"step": s, "answer_nats": 2 - s / 10, "usage/0": 0.5, "rate_nats": None, "wall/step_s": 0.5,
     "wall/tokens_per_s": 1e3, "wall/s": s / 2}
    for s in (1, 2, 10)
  ]  # fmt: skip
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
  # Wilson's interval of 30 of 40 at 95 %: 0.598 to 0.858; of the plain base's 20: 0.352 to 0.648;
  # of the forced routes' 10: 0.142 to 0.402.
  for interval in ("0.598 – 0.858", "0.352 – 0.648", "0.142 – 0.402"):
    assert interval in page
  assert "evaluated afterwards, at step 7" in page and "of its\nstep 7." in page
  assert "1,234" in page and "domain 234." in page  # All parameters, and those of a group.
  for text in ("no input reaches expert 0", "too few", "with uncommitted changes", "seed 3", "–"):
    assert text in page
  # Messages from inputs of the same route and of another one stand apart, with their intervals.
  assert page.count("-0.062 to 2.375") == 6 and "another</td>" in page


def test_open_answers_have_what_is_determined_beside_its_ceiling(tmp_path):
  part = {"n": 30, "accuracy": 0.5, "ceiling": 0.9}
  sets = {"test": SET | {"determined": part}}
  page = report.render(write(tmp_path, RESULTS | {"sets": sets}), None)
  assert "determined by the context (ceiling 0.900)" in page
  # Wilson's interval of 15 of 30: 1/2 +- z / 2 sqrt(n + z^2), z = 1.96.
  assert "0.332 – 0.668" in page
  # Of four contexts with ten questions each, three quarters of which are right:
  # (3 + z^2 / 2 +- z sqrt(3 / 4 + z^2 / 4)) / (4 + z^2).
  sets = {"test": SET | {"n_contexts": 4}}
  assert "0.301 – 0.954" in report.render(write(tmp_path, RESULTS | {"sets": sets}), None)


def test_evaluated_files_of_one_name_are_told_apart(tmp_path):
  sets = [EXAMINED["sets"][0] | {"path": f"acre/{split}/val.jsonl"} for split in ("IID", "Sys")]
  (tmp_path / "out.json").write_text(json.dumps(EXAMINED | {"sets": sets}))
  page = report.render(write(tmp_path), tmp_path / "out.json")
  page = page.replace("\u200b", "")  # Where a name may break.
  assert "IID/val.jsonl" in page and "Sys/val.jsonl" in page and "acre/" not in page


def test_a_page_tells_what_an_update_did_and_cost(tmp_path):
  def model(moved, n_bytes, step_s):
    others = {"accuracy": [0.5, 0.25], "logits_changed": 0, "max_change_nats": 0.0}
    return {
      "moved": moved, "parameters_moved": 10_272, "shifted": {"accuracy": [0.0, 0.75]},
      "same_surface": {"accuracy": [0.625, 0.375]}, "others": others, "elsewhere": others,
      "optimizer_bytes": n_bytes, "step_s": step_s, "n": 500,
    }  # fmt: skip

  update = {
    "models": {
      "iclm": model([EVIL], 82_176, 0.031), "dense LoRA": model(["domain"], 466_072, None),
    },
    "budget": {
      "parameters_moved": {"ours": 10_272, "lora": 58_259, "message_head": 0.4, "limit": 10_681.6}
    },
    "recovery": {
      "dense LoRA": {"difference": 0.01, "low95": None, "n": 1, "note": "too few tests"}
    },
    "curve": {
      "50": {m: {"shifted": 0.125, "others": 0.5} for m in ("iclm", "dense LoRA")},
    },
  }  # fmt: skip
  page = report.render(write(tmp_path, RESULTS | {"update": update}), None)
  assert "script" not in parsed(page).names
  for text in ("82,176", "<td>31</td>", "<td>–</td>", "10,272 of at most 10,682", "too few tests"):
    assert text in page
  assert "0.625 → 0.375" in page and "0.125, 0.500" in page and "Parameters moved" in page
  assert "no other expert serves one" not in page
  # Tests of one surface, all of which the retrained expert serves.
  for missing in ("same_surface", "elsewhere"):
    del update["models"]["iclm"][missing]
  page = report.render(write(tmp_path, RESULTS | {"update": update}), None)
  assert page.count("<td>–</td>") >= 3 and "no other expert serves one" in page


def test_a_page_names_each_domains_expert(tmp_path):
  found = {"matching": {EVIL: 1, "b": None}, "own_nats": 0.0021, "other_nats": 0.0}
  found |= {"ratio": None, "note": "ratio is undefined"}
  more = EXAMINED | {"interventions": EXAMINED["interventions"] | {"dominance": found}}
  (tmp_path / "out.json").write_text(json.dumps(more))
  page = report.render(write(tmp_path), tmp_path / "out.json")
  assert "script" not in parsed(page).names
  assert "b none" in page and "0.0021 nats" in page and "(ratio is undefined)" in page


def test_a_page_says_why_there_is_no_independence(tmp_path):
  more = EXAMINED | {"independence": [], "probes": {}, "independence_notes": ["it says nothing"]}
  (tmp_path / "out.json").write_text(json.dumps(more))
  page = report.render(write(tmp_path), tmp_path / "out.json")
  parsed(page)
  assert "<h2>Independence" in page and "it says nothing." in page and "estimator</th>" not in page


def test_what_a_run_lacks_the_page_lacks(tmp_path):
  plain = SET | {"routes": {}, "rate_nats": {}}
  results = {key: RESULTS[key] for key in ("train_s", "provenance")} | {"sets": {"test": plain}}
  page = report.render(write(tmp_path, results), None)
  parsed(page)
  assert "plain base" not in page and "Next expert" not in page and "Parameters of" not in page
  for title in ("Routes", "Interventions", "Independence", "Partial update"):
    assert f"<h2>{title}" not in page
  assert "<h2>Training" in page


def test_cost_adds_up_over_sittings():
  assert cost.of_metrics([{"step": 5, "eval/x": 1.0}]) is None
  # A sitting of 25 s to step 18, of which 20 s are the first eight steps; resumed from step 18, the
  # clock is at 30 s by step 20 (two steps at 15 s, with compilation), and at 50 s by step 30.
  lines = [
    {"step": step, "wall/step_s": s, "wall/tokens_per_s": 10 / s, "wall/s": wall_s}
    for step, s, wall_s in ((8, 2.5, 20.0), (18, 0.5, 25.0), (20, 15.0, 30.0), (30, 2.0, 50.0))
  ]
  assert cost.of_metrics(lines[:1]) == (20.0, 2.5, 4.0)
  # 25 s and 50 s; the medians are of the lines without compilation, 0.5 and 2 s.
  assert cost.of_metrics(lines) == (75.0, 1.25, 12.5)


def test_an_evaluation_by_a_later_library_is_of_the_same_run(tmp_path):
  c = tiny()
  (write(tmp_path) / "config.json").write_text(json.dumps(config.to_dict(c)))
  later = EXAMINED | {"provenance": {"config_sha256": provenance.config_sha256(c)}}
  (tmp_path / "out.json").write_text(json.dumps(later))
  assert "evaluated afterwards" in report.render(tmp_path, tmp_path / "out.json")


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
  assert files.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
  with pytest.raises(InputError, match="cannot read"):
    files.read_metrics(tmp_path)


def test_numbers_of_examples_are_in_their_order():
  curve = {str(n): {} for n in (100, 200, 50)}  # As JSON with sorted keys has them.
  assert list(run._update({"curve": curve})["curve"]) == ["50", "100", "200"]


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
  (tmp_path / "results.json").write_text("[]")
  with pytest.raises(InputError, match=r"results\.json is not what experiments\.train writes"):
    report.render(tmp_path, None)
  (tmp_path / "results.json").write_text("{")
  with pytest.raises(InputError, match=r"results\.json cannot be read as JSON"):
    report.render(tmp_path, None)
