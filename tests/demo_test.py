"""The demo of the repository still loads and answers.

Where it no longer does, because a config has a new key or a model another shape, renew it:

  python -m experiments.train --config=configs/frozen_base.py:base --workdir=runs/frozen/base
  python -m experiments.train --config=configs/frozen_base.py:experts --workdir=runs/frozen/experts
  rm -r colab/demo
  python -m experiments.expert --workdir=runs/frozen/experts --export=run --dtype=bfloat16 \
    --out=colab/demo

and run colab/02_demo.ipynb again, whose outputs and last words are about the demo. A new key whose
default changes nothing can also be written into colab/demo/config.json by hand.
"""

import json

import numpy as np
from conftest import ROOT

from configs import frozen_base
from iclm import config, generate, workdir
from iclm.data import mechanisms

DEMO = ROOT / "colab" / "demo"
GREEDY = generate.Options(
  max_tokens=16, temperature=0.0, top_k=0, top_p=1.0, seed=0, stop=(), route=None, disabled=()
)


def test_it_answers_as_well_as_it_says():
  """Its results are those of the run before it was rounded, which costs little."""
  told = json.loads((DEMO / workdir.RESULTS).read_text())["sets"]["iid_test"]["exact_match"]
  run, task = workdir.load_run(DEMO), mechanisms.TASKS["default"]
  examples = [mechanisms.example(task, "iid_test", 0, i) for i in range(48)]
  answers = generate.Generator(*run.parts, 16)([e.prompt for e in examples], GREEDY)
  assert {a.expert for a in answers} == set(range(run.config.experts.count))
  right = np.mean([a.text == e.answer for a, e in zip(answers, examples, strict=True)])
  assert abs(right - told) < 0.2  # Nearly three standard errors of 48 answers.


def test_its_config_is_still_that_of_the_repository():
  """Other configs derive from one another, and what changes one may change this one unseen."""
  mine = config.to_dict(config.from_config_dict(frozen_base.get_config()))
  demo = json.loads((DEMO / workdir.CONFIG).read_text())
  apart = {"data", "evaluation", "study", "checkpoint", "mesh"}
  different = [key for key in demo.keys() - apart if demo[key] != json.loads(json.dumps(mine[key]))]
  assert not different


def test_it_is_small_and_names_no_machine():
  files = [p for p in DEMO.rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in files) < 4 * 2**20
  c = workdir.config_of(DEMO)
  for path in (c.checkpoint.init_from, c.data.dir, c.data.tokenizer.path):
    assert not path.startswith("/")
