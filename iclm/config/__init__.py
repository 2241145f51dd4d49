"""ConfigDict in, frozen dataclasses out: a stray, missing or contradictory key raises."""

from iclm.config.checks import check
from iclm.config.data_schema import Data, Source
from iclm.config.errors import InputError, check_known, nearest, path, require
from iclm.config.read import difference, from_config_dict, to_dict
from iclm.config.schema import (
  GIVEN,
  LEARNED,
  Config,
  Loss,
  Mesh,
  Model,
  Optimizer,
  Perturb,
  RopeScaling,
  Trains,
)

__all__ = [
  "GIVEN",
  "LEARNED",
  "Config",
  "Data",
  "InputError",
  "Loss",
  "Mesh",
  "Model",
  "Optimizer",
  "Perturb",
  "RopeScaling",
  "Source",
  "Trains",
  "check",
  "check_known",
  "difference",
  "from_config_dict",
  "nearest",
  "path",
  "require",
  "to_dict",
]
