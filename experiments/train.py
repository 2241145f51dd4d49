"""Train a model of independent mechanisms, and whatever its config's study adds.

  python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where a killed run left off. Any key of the config can be changed:
--config.steps=500 --config.router.kind=vq
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from experiments import cli, study
from iclm import config, train


def main(flag: flags.FlagValues) -> int:
  path = pathlib.Path(config_flags.get_config_filename(flag["config"]))
  if not path.is_file():
    there = sorted(map(str, path.parent.glob("*.py")))
    raise config.InputError(f"there is no config {path}; {config.nearest(str(path), there)}")
  c = config.from_config_dict(flag.config)
  folder = pathlib.Path(flag.workdir)
  result = train.fit(c, folder, "iclm")
  if result.interrupted:
    print(f"interrupted at step {result.run.step}; the same command goes on from there")
    return cli.INTERRUPTED
  return study.report(c, folder, result)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "A file of configs/.", short_name="c")
  flags.DEFINE_string("workdir", None, "The run's folder; one run each.")
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
