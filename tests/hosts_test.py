"""Runs of several real processes: the same as one, whole after a loss, and told what is wrong."""

import inspect
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from conftest import QUICK
from small_run import metrics_of, n_lines

from experiments import hosts
from experiments.launch import command, local
from iclm import processes, sharding
from iclm.config import InputError

ROOT = pathlib.Path(__file__).parents[1]
STEPS, EVERY = 20, 5
CONFIG = """
import pathlib, sys
sys.path.insert(0, {tests!r})
from small_run import small_config
changes = {{"mesh.data": 4, "mesh.expert": 2, "optimizer.kind": "adamw", "experts.dropout": 0.0}}
changes |= {{"batch_size": 8, "steps": {steps}, "log_every": 1, "evaluation.every": 0}}
changes |= {{"checkpoint.every": {every}, "checkpoint.keep": 9, "checkpoint.best": 0}}
changes |= {{"evaluation.best": ""}}
get_config = lambda: small_config(pathlib.Path({data!r}), **changes)
"""
LOST = r"error: process \d of 2 lost another process of the run \(.*it goes on from its last check"


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
  """A folder with a config in it, and what is compiled; processes of their own find both."""
  folder = tmp_path_factory.mktemp("hosts")
  text = CONFIG.format(tests=str(ROOT / "tests"), data=str(data), steps=STEPS, every=EVERY)
  (folder / "c.py").write_text(text)
  old = dict(os.environ)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["XLA_FLAGS"] = QUICK
  yield folder
  os.environ.clear()
  os.environ.update(old)


def words(place, name, *more):
  return [f"--config={place / 'c.py'}", f"--workdir={place / name}", *more]


def run(place, name, n, n_devices, *more):
  """A run to its end, by the launcher of this machine; returns its folder."""
  assert local.run(words(place, name, *more), n, n_devices) == 0
  return place / name


def start(place, name, index, *more, port, n=2, n_devices=4):
  """One process of a run."""
  joining = [f"--coordinator=localhost:{port}", f"--processes={n}", f"--process={index}"]
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={n_devices}"
  argv = command.train(sys.executable, words(place, name, *more), joining)
  env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  return subprocess.Popen(argv, cwd=ROOT, env=env, **pipes)  # type: ignore[call-overload]


def losses(folder):
  return {line["step"]: line["loss_nats"] for line in metrics_of(folder) if "loss_nats" in line}


def assert_alike(folder, other):
  """Over every step, and in what the evaluation says at the end."""
  a, b = losses(folder), losses(other)
  assert a.keys() == b.keys() == set(range(1, STEPS + 1))
  np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)
  sets = [json.loads((f / "results.json").read_text())["sets"]["test"] for f in (folder, other)]
  np.testing.assert_allclose(*(found["nll_nats"] for found in sets), rtol=1e-5)
  assert sets[0]["routes"] == sets[1]["routes"] and sets[0]["n"] == sets[1]["n"] == 16


@pytest.fixture(scope="module")
def one(place):
  """One process with eight devices."""
  return run(place, "1x8", 1, 8)


@pytest.fixture(scope="module")
def two(place):
  """Two processes with four devices each."""
  return run(place, "2x4", 2, 4)


@pytest.mark.slow
def test_two_and_four_processes_are_one_and_repeat_themselves(place, one, two):
  assert_alike(one, two)  # That two repeat themselves, a run shows that was stopped: see below.
  four = run(place, "4x2", 4, 2)
  assert_alike(one, four)
  assert metrics_of(run(place, "4x2again", 4, 2)) == metrics_of(four)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(place, one):
  folder = shutil.copytree(one, place / "1x8-2x4")
  for step in range(2 * EVERY, STEPS + 1, EVERY):
    shutil.rmtree(folder / "checkpoints" / str(step))
  assert_alike(run(place, folder.name, 2, 4), one)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_says_so_and_fewer_go_on(place, one, victim):
  name, port = f"killed{victim}", local.free_port()
  both = [start(place, name, i, "--lost_s=10", port=port) for i in range(2)]
  await_lines(place / name, EVERY + 2, both)
  both[victim].send_signal(signal.SIGKILL)
  said = both[1 - victim].communicate(timeout=100)[0]
  both[victim].communicate()
  assert both[1 - victim].returncode == hosts.LOST, said
  assert re.search(LOST, said) and "Traceback" not in said
  assert_alike(run(place, name, 1, 8), one)


@pytest.mark.slow
def test_sigterm_of_one_process_saves_in_all_and_is_bitwise_made_good(place, two):
  port = local.free_port()
  both = [start(place, "stopped", i, port=port) for i in range(2)]
  await_lines(place / "stopped", 2, both)
  both[1].send_signal(signal.SIGTERM)
  for process in both:
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 143, said
    step = int(re.search(r"interrupted at step (\d+);", said)[1])  # type: ignore[index]
    assert step < STEPS and (place / "stopped" / "checkpoints" / str(step)).is_dir()
  assert metrics_of(run(place, "stopped", 2, 4)) == metrics_of(two)


def await_lines(folder, n, processes):
  """Returns once a run has logged so many steps."""
  while n_lines(folder) < n:
    for process in processes:
      assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)


@pytest.mark.slow
def test_processes_that_are_told_different_things_are_refused(place):
  port = local.free_port()
  rates = "--config.optimizer.lr=0.001", "--config.optimizer.lr=0.5"
  both = [start(place, "apart", i, rates[i], "--lost_s=10", port=port) for i in range(2)]
  said = both[1].communicate(timeout=200)[0]
  assert both[1].returncode == 2, said
  assert "process 1 was started with another config than process 0: config.optimizer.lr" in said
  said = both[0].communicate(timeout=200)[0]
  assert both[0].returncode == hosts.LOST, said


def test_a_process_that_never_joins_is_told_of_with_its_rank(place):
  two = [start(place, "none", i, "--join_s=2", port=local.free_port()) for i in range(2)]
  told = "at least one other process never joined", r"process 0 never answered at localhost:\d+"
  for i, process in enumerate(two):
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 2, said
    assert re.search(rf"^error: process {i} of 2 .* waited 2 s \(--join_s\), and {told[i]}$", said,
                     re.M), said  # fmt: skip
    assert "Traceback" not in said and not (place / "none").exists()


ENDS = """
import os, sys, time
from experiments import cli, hosts
from iclm import config, processes, sharding
index, port, end = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.argv = sys.argv[:1]
def main(flag):
  hosts.join(hosts.Place(f"localhost:{port}", 2, index, 60, 5))
  processes.meet(sharding.make_mesh(config.Mesh(data=2, expert=1, model=1)))
  if index == 1:
    os._exit(9)
  time.sleep(1)
  if end == "barrier":
    processes.barrier("here")
  return 0
cli.run(main)
"""


@pytest.mark.parametrize("end", ["barrier", "orderly"])
def test_a_loss_is_told_wherever_it_is_met(end):
  port = str(local.free_port())
  argv = lambda i: [sys.executable, "-c", ENDS, str(i), port, end]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  both = [subprocess.Popen(argv(i), env=env, **pipes) for i in range(2)]  # type: ignore[call-overload]
  said = both[0].communicate(timeout=100)[0]
  both[1].communicate(timeout=100)
  assert both[0].returncode == hosts.LOST, said
  assert re.search(LOST, said) and "Traceback" not in said


def test_a_barrier_of_xla_is_no_loss():
  made = jax.errors.JaxRuntimeError
  assert not hosts.is_loss(made("RESOURCE_EXHAUSTED: Out of memory at %opt-barrier.12"))
  assert not hosts.is_loss(ValueError("a barrier"))
  assert hosts.is_loss(made("DEADLINE_EXCEEDED: Barrier timed out. Id: end"))


def given(**changes):
  flag = {"coordinator": "", "processes": 0, "process": -1, "distributed": False}
  flag |= {"join_s": 300, "lost_s": 60} | changes
  holder = types.SimpleNamespace(**flag)
  return hosts.read(holder)  # type: ignore[arg-type]


def test_the_place_of_a_process_is_read_from_its_flags():
  assert given() is None
  assert given(coordinator="h:1", processes=2, process=1) == hosts.Place("h:1", 2, 1, 300, 60)
  assert given(distributed=True) == hosts.Place("", 0, -1, 300, 60)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"processes": 2, "process": 0}, "--coordinator= must be HOST:PORT"),
    ({"coordinator": "h", "processes": 2, "process": 0}, "--coordinator=h must be HOST:PORT"),
    ({"coordinator": "h:65536", "processes": 2, "process": 0}, "port below 65,536"),
    ({"coordinator": "a h:1", "processes": 2, "process": 0}, "must be HOST:PORT"),
    ({"coordinator": "h:1"}, "--process=-1 must be one of 0 to -1, of --processes=0"),
    ({"coordinator": "h:1", "processes": 2, "process": 2}, "--process=2 must be one of 0 to 1"),
    ({"coordinator": "h:1", "distributed": True}, "--distributed finds --coordinator"),
    ({"distributed": True, "join_s": 0}, "--join_s=0 must be at least 1 second"),
  ],
)
def test_flags_that_place_a_process_nowhere_are_refused(changes, told):
  with pytest.raises(InputError, match=told):
    given(**changes)


def test_a_port_that_is_taken_is_told():
  with socket.create_server(("localhost", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(
      InputError, match=f"cannot listen at port {port} of this host: Address already in use; name"
    ):
      hosts.join(hosts.Place(f"localhost:{port}", 2, 0, 5, 5))
  hosts._check_port(port)


def share_of(n_processes, rows, model):
  """`sharding.share` of a mesh of so many processes, as far as it is looked at."""
  owner = np.arange(rows * model) // (rows * model // n_processes)
  devices = np.array([types.SimpleNamespace(process_index=i) for i in owner])
  shape = {"data": rows, "expert": 1, "model": model}
  mesh = types.SimpleNamespace(devices=devices.reshape(rows, 1, model), shape=shape)
  return inspect.unwrap(sharding.share)(mesh)  # It is no Mesh, as the tests' type checks would say.


def test_rows_are_shared_out_and_those_of_a_split_row_are_held_twice(monkeypatch):
  shares = []
  for index in range(4):
    monkeypatch.setattr(sharding.jax, "process_index", lambda index=index: index)
    shares.append([share_of(4, rows, 16 // rows) for rows in (16, 4, 2, 1)])
  # 16 parts of rows on 16 devices of 4 processes; 4; 2, each of two processes; 1, of all.
  assert shares == [
    [(0, 4), (0, 4), (0, 2), (0, 1)],
    [(1, 4), (1, 4), (0, 2), (0, 1)],
    [(2, 4), (2, 4), (1, 2), (0, 1)],
    [(3, 4), (3, 4), (1, 2), (0, 1)],
  ]
  monkeypatch.setattr(sharding.jax, "process_index", lambda: 0)
  with pytest.raises(InputError, match="must divide one another"):
    share_of(2, 3, 2)


def test_one_process_has_nobody_to_agree_with():
  tree = {"x": np.arange(3)}
  assert processes.is_first() and processes.of_first(7) == 7 and processes.fetch(tree) is not None
  processes.barrier("alone")
  with processes.StopSignals() as signals:
    assert not signals.told()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.told()
