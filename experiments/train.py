"""Train a model of independent mechanisms, and whatever its config's study adds.

  python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where a killed run left off. Any key of the config can be changed:
--config.steps=500 --config.router.kind=vq

Several processes, on one host or many, train one model when each is started with the same flags and
--coordinator=HOST:PORT --processes=N --process=I, where HOST is process 0's, or with --distributed
where JAX finds all that by itself. They share one --workdir. See also experiments/launch.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from experiments import baselines, cli, hosts, study, update
from iclm import config


def main(flag: flags.FlagValues) -> int:
  # What stands behind a colon goes to the file's get_config.
  path = pathlib.Path(config_flags.get_config_filename(flag["config"]).partition(":")[0])
  if not path.is_file():
    there = sorted(map(str, path.parent.glob("*.py")))
    raise config.InputError(f"there is no config {path}; {config.nearest(str(path), there)}")
  c = config.from_config_dict(flag.config)
  update.check(c)
  hosts.join(hosts.read(flag))
  folder = config.path(flag.workdir)
  study.report(c, folder, baselines.fit(c, folder, "iclm"))
  return 0


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "A file of configs/.", short_name="c")
  flags.DEFINE_string("workdir", None, "The run's folder; one run each.")
  hosts.define()
  flags.register_validator("workdir", lambda name: name != "", "--workdir= names no folder")
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
