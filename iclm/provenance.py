"""What is needed to do a run again: commit, config, versions and devices."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from iclm import config
from iclm.config import Config

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def of(c: Config) -> dict[str, Any]:
  """The part of a results file that says where it came from."""
  device = jax.devices()[0]
  return {
    "commit": _git("rev-parse", "HEAD"),
    "dirty": _git("status", "--porcelain") not in ("", None),
    "config_sha256": config_sha256(c),
    "seed": c.seed,
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
    | {"python": platform.python_version()},
    "device": {"kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
  }


def config_sha256(c: Config) -> str:
  """Names a config; a key that the library has gained since gives another name."""
  return hashlib.sha256(json.dumps(config.to_dict(c), sort_keys=True).encode()).hexdigest()


def _git(*args: str) -> str | None:
  """Output of git in the folder of this package; None where it is no checkout."""
  here = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
