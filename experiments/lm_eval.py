"""EleutherAI's lm-evaluation-harness with trained runs among its models (extra `eval`).

python -m experiments.lm_eval --model iclm --model_args workdir=runs/quickstart --tasks TASK
  [--include_path FOLDER] [--batch_size 16] [--apply_chat_template]

What follows the name is the harness's own command line: `--help` says the rest. With
`workdir=...,end=True` the end token counts, and choices are compared as `experiments.evaluate`
compares them.
"""

import sys

from experiments import cli
from iclm.config import InputError


def main() -> int:
  """Registers the model, and goes on as the harness's own command."""
  try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import MODEL_REGISTRY, register_model
  except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    raise InputError(f"{package} is not installed; pip install -e '.[eval]'") from None
  from experiments import harness

  if harness.NAME not in MODEL_REGISTRY:
    register_model(harness.NAME)(harness.Harness)
  try:
    cli_evaluate()
  except ValueError as error:
    if not str(error).startswith("Tasks not found"):
      raise
    raise InputError(f"{error}; `lm_eval ls tasks` lists them, --include_path adds more") from None
  return 0


if __name__ == "__main__":
  sys.exit(cli.told(main))
