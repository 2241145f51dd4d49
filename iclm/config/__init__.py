"""ConfigDict in, frozen dataclasses out: a stray, missing or contradictory key raises."""

from iclm.config.errors import InputError, nearest
from iclm.config.read import from_config_dict, to_dict
from iclm.config.schema import (
  Bottleneck,
  Checkpoint,
  Config,
  Data,
  Dependence,
  Evaluation,
  Experts,
  Loss,
  Mesh,
  Model,
  Optimizer,
  Perturb,
  Router,
  Shift,
  Source,
  Study,
  Tokenizer,
  Trains,
)

__all__ = [
  "Bottleneck",
  "Checkpoint",
  "Config",
  "Data",
  "Dependence",
  "Evaluation",
  "Experts",
  "InputError",
  "Loss",
  "Mesh",
  "Model",
  "Optimizer",
  "Perturb",
  "Router",
  "Shift",
  "Source",
  "Study",
  "Tokenizer",
  "Trains",
  "from_config_dict",
  "nearest",
  "to_dict",
]
