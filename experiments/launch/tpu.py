"""Train on Cloud TPU, by the public gcloud commands; it has never been run on a real TPU.

  python -m experiments.launch.tpu all --name=pod --zone=us-west4-a --type=v5litepod-16 --queued \\
    --spot --share=10.0.0.2:/vol1 --dry_run -- \\
    --config=configs/acre.py --workdir=/mnt/iclm/acre --config.mesh.data=16

create    ask for the TPU, and wait until it is there
install   copy the last commit to every host, with what it needs, and mount the share
run       start the same command on every host, in the background
logs      follow what process 0 prints, to its end; fails where the training did
fetch     copy the workdir to --out
delete    remove the TPU, which costs money until then
all       these six, in this order

Behind the -- stand the flags of experiments.train. --dry_run prints the commands and runs none.
"""

import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from experiments import cli
from experiments.launch import command, slices
from iclm.config import InputError, nearest
from iclm.nn import attention

MOUNT = pathlib.PurePosixPath("/mnt/iclm")
HERE = pathlib.PurePosixPath("iclm")  # The repository in a host's home, where training runs.
PYTHON = "$HOME/venv/bin/python"
STEPS = ("create", "install", "run", "logs", "fetch", "delete")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+-[a-z]+\d+-[a-z]")
_SHARE = re.compile(r"[\w.-]+:/\S+")


class Pod(NamedTuple):
  """What is asked for; see the flags."""

  name: str
  zone: str
  kind: str
  project: str
  queued: bool
  spot: bool
  share: str
  out: str
  words: tuple[str, ...]


def main(flag: flags.FlagValues, words: Sequence[str]) -> int:
  known = (*STEPS, "all")
  if not words or words[0] not in known:
    given = repr(words[0]) if words else "none"
    hint = nearest(words[0], known) if words else f"valid are {', '.join(known)}"
    raise InputError(f"the first word must be what to do, and is {given}; {hint}")
  steps = STEPS if words[0] == "all" else words[:1]
  fields = {name: getattr(flag, name) for name in Pod._fields if name not in ("kind", "words")}
  pod = Pod(**fields, kind=flag.type, words=tuple(words[1:]))
  check(pod, steps)
  lines = [(step, argv) for step in steps for argv in commands(pod, step)]
  if flag.dry_run:
    print("\n".join(shlex.join(argv) for _, argv in lines))
    return 0
  return _run(pod, lines)


def check(pod: Pod, steps: Sequence[str]) -> None:
  """Raises InputError where gcloud would refuse, or a run on several hosts could not work."""
  if not _NAME.fullmatch(pod.name):
    raise InputError(
      f"--name={pod.name} must begin with a lowercase letter, hold lowercase letters, digits and "
      "hyphens, not end on a hyphen, and have at most 63 of them"
    )
  if not _ZONE.fullmatch(pod.zone):
    raise InputError(f"--zone={pod.zone} must be the zone of the TPU, such as us-west4-a")
  if pod.share and not _SHARE.fullmatch(pod.share):
    raise InputError(f"--share={pod.share} must be SERVER:/VOLUME of an NFS server")
  if {"create", "install", "run"} & set(steps):
    n_hosts = slices.of(pod.kind).hosts
    if n_hosts > 1 and not pod.share:
      raise InputError(
        f"--type={pod.kind} has {n_hosts} hosts, whose processes share one workdir; give them "
        f"--share=SERVER:/VOLUME of an NFS server, which is mounted at {MOUNT}"
      )
    if pod.spot and not pod.share:
      raise InputError(
        "--spot: where the TPU is taken away its disk goes too, with all that the run has kept; "
        "give --share=SERVER:/VOLUME of an NFS server, or no --spot"
      )
  if {"run", "fetch"} & set(steps):
    command.value(pod.words, "config")
    workdir = pathlib.PurePosixPath(command.value(pod.words, "workdir"))
    if workdir.parts[:1] and workdir.parts[0].startswith("~"):
      raise InputError(f"--workdir={workdir} is taken as it stands on the host; write no ~ in it")
    if not workdir.parts or ".." in workdir.parts:
      raise InputError(f"--workdir={workdir} must name a folder, without ..")
    if pod.share and MOUNT not in workdir.parents:
      raise InputError(f"--workdir={workdir} is not on the share; choose a folder under {MOUNT}")
  if "fetch" in steps and not pod.out:
    raise InputError("--out= names no folder to copy the workdir to")
  if {"create", "install", "run"} & set(steps) and pod.words:
    _check_run(pod)


def _check_run(pod: Pod) -> None:
  """Raises InputError where the training would refuse its flags, once the TPU costs money."""
  command.check(pod.words)
  path = command.value(pod.words, "config").partition(":")[0]
  c = cli.config_of([word for word in pod.words if word.startswith("--config")])
  attention.check_kernel(c.model, "tpu")
  found, n = slices.of(pod.kind), c.mesh.devices
  if n > found.chips or (found.hosts > 1 and n != found.chips):
    raise InputError(
      f"config.mesh = {c.mesh} asks for {n} devices, and --type={pod.kind} has {found.chips}; "
      "choose --config.mesh.data, .expert and .model whose product that is"
    )
  there = ["git", "cat-file", "-e", f"HEAD:{path}"]
  if subprocess.run(there, check=False, capture_output=True).returncode:
    raise InputError(f"--config={path} is not in the last commit, which is what the hosts get")


def commands(pod: Pod, step: str) -> list[list[str]]:
  """The command lines of one step, each as its words."""
  where = [f"--zone={pod.zone}", *([f"--project={pod.project}"] if pod.project else [])]
  vm = lambda verb, *rest: ["gcloud", "compute", "tpus", "tpu-vm", verb, *rest, *where]
  queue = lambda verb, *rest: ["gcloud", "compute", "tpus", "queued-resources", verb, *rest, *where]
  ssh = lambda worker, line: vm("ssh", pod.name, f"--worker={worker}", f"--command={line}")
  if step == "create":
    return _create(pod, vm, queue)
  if step == "install":
    archive = f"{pod.name}.tar.gz"
    packed = ["git", "archive", "--format=tar.gz", "--prefix=iclm/", f"--output=runs/{archive}"]
    copied = vm("scp", f"runs/{archive}", f"{pod.name}:", "--worker=all")
    mounted = [ssh("all", _mount(pod.share))] if pod.share else []
    made = ["mkdir", "-p", "runs"]
    return [made, [*packed, "HEAD"], copied, ssh("all", _install(archive)), *mounted]
  if step == "run":
    return [ssh("all", _start(pod))]
  if step == "logs":
    return [ssh("0", "tail -n +1 --pid=$(cat iclm.pid) -F iclm.log; exit $(cat iclm.code)")]
  if step == "fetch":
    workdir = HERE / command.value(pod.words, "workdir")
    source = f"{pod.name}:{workdir}"
    return [["mkdir", "-p", pod.out], vm("scp", "--recurse", source, pod.out, "--worker=0")]
  if pod.queued:
    return [queue("delete", pod.name, "--force", "--quiet")]
  return [vm("delete", pod.name, "--quiet")]


def _create(pod: Pod, vm, queue) -> list[list[str]]:
  found = slices.of(pod.kind)
  more = [f"--accelerator-type={pod.kind}", *(["--spot"] if pod.spot else [])]
  if pod.share:  # What the documentation asks for where NFS is mounted.
    more.append("--metadata=enable-oslogin=TRUE")
  if not pod.queued:
    return [vm("create", pod.name, f"--version={found.runtime}", *more)]
  asked = [f"--node-id={pod.name}", f"--runtime-version={found.runtime}", *more]
  state = shlex.join(queue("describe", pod.name, "--format=value(state.state)"))
  wait = (
    f'while true; do state=$({state}) || exit 1; echo "$state"; case "$state" in ACTIVE) exit 0;; '
    "FAILED|SUSPENDED) exit 1;; esac; sleep 30; done"
  )
  return [queue("create", pod.name, *asked), ["bash", "-c", wait]]


def _install(archive: str) -> str:
  """The hosts' own Python may be older than what is needed: uv brings one."""
  return (
    f"tar -xzf {archive} && python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python=3.12 venv && "
    f"python3 -m uv pip install --quiet --python={PYTHON} -e './iclm[tpu]'"
  )


def _mount(share: str) -> str:
  """Attributes are kept for a second only: a process must see what another one has written."""
  return (
    f"sudo apt-get -qq install -y nfs-common && sudo mkdir -p {MOUNT} && "
    f"(mountpoint -q {MOUNT} || sudo mount -o actimeo=1 {shlex.quote(share)} {MOUNT}) && "
    f"sudo chmod 777 {MOUNT}"
  )


def _start(pod: Pod) -> str:
  """Nothing that goes on in the background holds what ssh listens to, or it would wait for it."""
  joining = ["--distributed"] if slices.of(pod.kind).hosts > 1 else []
  words = shlex.join(command.train("python", pod.words, joining)).removeprefix("python")
  inner = f"{PYTHON}{words}; echo $? > $HOME/iclm.code"
  return (
    f"rm -f iclm.code && cd iclm && {{ nohup bash -c {shlex.quote(inner)} > $HOME/iclm.log 2>&1 "
    "< /dev/null & echo $! > $HOME/iclm.pid; }"
  )


def _run(pod: Pod, lines: Sequence[tuple[str, list[str]]]) -> int:
  for step, argv in lines:
    print(f"+ {shlex.join(argv)}", flush=True)
    try:
      code = subprocess.run(argv, check=False).returncode
    except OSError as error:
      code = error.strerror or "an error"
    except KeyboardInterrupt:
      print(f"error: {step} was interrupted; {_alive(pod)}", file=sys.stderr)
      return cli.INTERRUPTED
    if code:
      print(f"error: {step} ended with {code}; {_alive(pod)}", file=sys.stderr)
      return 1
  return 0


def _alive(pod: Pod) -> str:
  """What is left, and how to be rid of it."""
  (remove,) = commands(pod, "delete")
  what = f"the TPU {pod.name} in {pod.zone}"
  return f"{what} may be there and cost money until it is deleted: {shlex.join(remove)}"


if __name__ == "__main__":
  flags.DEFINE_string("name", "", "Name of the TPU.")
  flags.DEFINE_string("zone", "", "Its zone, such as us-west4-a.")
  flags.DEFINE_string("type", "", "Its accelerator type, such as v5litepod-16.")
  flags.DEFINE_string("project", "", "The Google Cloud project; that of gcloud's config if empty.")
  flags.DEFINE_bool("queued", False, "Wait in the queue for it, where create alone would refuse.")
  flags.DEFINE_bool("spot", False, "Cheaper, and may be taken away; the same run goes on later.")
  flags.DEFINE_string("share", "", f"SERVER:/VOLUME of an NFS server, mounted at {MOUNT}.")
  flags.DEFINE_string("out", "runs/tpu", "Where fetch copies the workdir to.")
  flags.DEFINE_bool("dry_run", False, "Print the commands, and run none.")
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C: it says what is left.
  cli.run_with_words(main)
