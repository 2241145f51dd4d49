"""The loop's own cost is measured on the loop's own parts."""

from small_run import small_config

from experiments import loops
from iclm import config


def test_a_wait_and_a_stall_are_seconds_beside_a_step(data):
  c = config.from_config_dict(small_config(data))
  found, figures = loops.measure(c, 2)
  assert found == [] and figures["stall_s"]["n"] == 2
  assert figures["step_s"]["n"] == figures["wait_s"]["n"] == 2 * loops.N_BETWEEN
  for share, seconds in (("input_wait", "wait_s"), ("checkpoint_stall", "stall_s")):
    expected = figures[seconds]["median"] / figures["step_s"]["median"]
    assert figures[f"{share}_over_step"] == expected > 0
