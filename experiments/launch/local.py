"""Train with several processes on this machine, as on the hosts of a pod.

  python -m experiments.launch.local --processes=2 --devices=4 -- \\
    --config=configs/quickstart.py --workdir=runs/two --config.mesh.data=8

Behind the -- stand the flags of experiments.train. Every process has as many virtual CPU devices as
--devices says. SIGTERM and Ctrl-C reach all of them, and the run can go on from there.
"""

import concurrent.futures
import os
import socket
import sys
from collections.abc import Sequence

from absl import flags

from experiments import cli, jobs
from experiments.launch import command
from iclm import train
from iclm.config import InputError


def main(flag: flags.FlagValues, words: Sequence[str]) -> int:
  for name in ("processes", "devices"):
    if getattr(flag, name) < 1:
      raise InputError(f"--{name}={getattr(flag, name)} must be at least 1")
  command.check(words)
  for name in ("config", "workdir"):
    command.value(words, name)
  return run(words, flag.processes, flag.devices)


def run(words: Sequence[str], n: int, n_devices: int) -> int:
  """Starts the processes of a run and waits for all; returns the exit code of what went wrong.

  A process that was lost, or has lost another one, is told of after one that says why.

  Args:
    words: the flags of `experiments.train`.
    n: how many processes, each with `n_devices` virtual devices.
  """
  forced = f"--xla_force_host_platform_device_count={n_devices}"
  xla = f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')} {forced}"
  start = ["env", "JAX_PLATFORMS=cpu", xla]
  coordinator = f"--coordinator=localhost:{free_port()}"
  joining = [[coordinator, f"--processes={n}", f"--process={i}"] for i in range(n)]
  commands = [start + command.train(sys.executable, words, of) for of in joining]
  with jobs.Children() as children, concurrent.futures.ThreadPoolExecutor(n) as pool:
    codes = list(pool.map(lambda argv: children.call(argv, None), commands))
  failed = [code for code in codes if code]
  said = [code for code in failed if code > 0]
  if children.stopped and not said:  # Before they knew what a signal means.
    raise train.Interrupted("interrupted; the same command goes on")
  return min(said) if said else int(bool(failed))


def free_port() -> int:
  """A port that nobody listened on just now."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


if __name__ == "__main__":
  flags.DEFINE_integer("processes", 2, "How many processes train together.")
  flags.DEFINE_integer("devices", 1, "Virtual devices of each process.")
  cli.run_with_words(main)
