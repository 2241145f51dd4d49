"""What is needed to do a run again: commit, config, versions and devices."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
from typing import Any

import jax

from iclm import config
from iclm.config import Config

_ROOT = pathlib.Path(__file__).parents[1]
_ARCHIVED = _ROOT / ".git_archival.txt"  # Git writes the commit into it when it makes an archive.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def of(c: Config) -> dict[str, Any]:
  """The part of a results file that says where it came from."""
  device, changes = jax.devices()[0], _git("status", "--porcelain")
  return {
    "commit": _git("rev-parse", "HEAD") or _archived(),
    "dirty": None if changes is None else changes != "",  # None: nobody knows.
    "config_sha256": config_sha256(c),
    "seed": c.seed,
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
    | {"python": platform.python_version()},
    "device": {"kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
  }


def config_sha256(c: Config) -> str:
  """Names a config; a key that the library has gained since gives another name."""
  return hashlib.sha256(json.dumps(config.to_dict(c), sort_keys=True).encode()).hexdigest()


def _archived() -> str | None:
  """The commit that an archive is of; None in a checkout, where it is not filled in."""
  told = _ARCHIVED.read_text() if _ARCHIVED.exists() else ""
  found = re.search(r"node: ([0-9a-f]{40,64})", told)
  return found[1] if found else None


def _git(*args: str) -> str | None:
  """Output of git in a checkout of this project; None where there is none.

  An archive, or what pip has installed, may lie within a repository of something else.
  """
  if not (_ROOT / ".git").exists():
    return None
  try:
    done = subprocess.run(["git", *args], cwd=_ROOT, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
