"""RAVEN: which pattern comes ninth? Matrices of panels by the published rules, in words.

The open form asks for the panel itself and is the main task; `score` goes by what the context
determines. The form with eight answers exists twice: `published`, whose answers give the right one
away, and `balanced`, whose answers do not.

Source: Zhang et al., "RAVEN: A Dataset for Relational and Analogical Visual rEasoNing", CVPR 2019,
in the wording of Gendron et al., arXiv 2402.02636. center_single is checked against the latter's
file; the other two configurations rest on the stated rules, as no file of them was at hand.
"""

from iclm.data.raven.examples import CONFIGS, SPLITS, example, label
from iclm.data.raven.solver import Score, Solution, predict, right_panel, score, solve
from iclm.data.raven.world import (
  CONFIGURATIONS,
  FORMS,
  LETTERS,
  Prompt,
  parse,
  parse_panel,
  verbalise,
)

__all__ = [
  "CONFIGS",
  "CONFIGURATIONS",
  "FORMS",
  "LETTERS",
  "SPLITS",
  "Prompt",
  "Score",
  "Solution",
  "example",
  "label",
  "parse",
  "parse_panel",
  "predict",
  "right_panel",
  "score",
  "solve",
  "verbalise",
]
