"""Write one HTML page about a run or a sweep.

python -m experiments.report --workdir=runs/quickstart [--examined=OUT.json] --out=report.html
python -m experiments.report --workdir=runs/sweep --out=sweep.html
"""

from absl import flags

from experiments import cli
from iclm import config, outputs
from iclm.audit import report


def main(flag: flags.FlagValues) -> int:
  out = config.path(flag.out)
  outputs.check_can_be_written(out)
  examined = config.path(flag.examined) if flag.examined else None
  outputs.write_text(out, report.render(config.path(flag.workdir), examined))
  print(f"wrote {flag.out}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The folder of a complete run, or of a sweep.")
  flags.DEFINE_string("examined", None, "What experiments.evaluate wrote of the run.")
  flags.DEFINE_string("out", None, "Where the page goes.")
  flags.mark_flags_as_required(["workdir", "out"])
  cli.run(main)
