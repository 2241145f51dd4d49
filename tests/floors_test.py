"""The house: imports go down only, and rooms on one floor never import each other."""

import ast
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = (
  ("axes", "config"),
  (
    *("nn", "routing", "information", "losses", "optim", "sharding"),
    *("inputs", "manifest", "processes"),
  ),
  ("experts", "data", "outputs", "progress", "provenance"),
  ("compose",),
  ("step", "checkpoints", "hf", "generate"),
  ("evals", "workdir"),
  ("train", "audit"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LINEN = ("nn", "experts", "sharding", "compose")


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_a_floor():
  rooms = {p.stem if p.is_file() else p.name for p in (ROOT / "iclm").iterdir()}
  rooms -= {"__init__", "__pycache__"}
  assert rooms == set(FLOOR)


def test_imports_go_down_only():
  for path in (ROOT / "iclm").rglob("*.py"):
    room = path.relative_to(ROOT / "iclm").parts[0].removesuffix(".py")
    if room == "__init__":
      continue
    for name in imports(path):
      top, *rest = name.split(".")
      assert top not in ("experiments", "configs", "tests"), f"{path} imports {name}"
      if top == "iclm" and rest and rest[0] != room:
        assert FLOOR[rest[0]] < FLOOR[room], f"{path} imports {name}"


def test_flags_and_linen_stay_where_they_belong():
  for path in (ROOT / "iclm").rglob("*.py"):
    room = path.relative_to(ROOT / "iclm").parts[0].removesuffix(".py")
    for name in imports(path):
      assert not name.startswith(("absl.flags", "ml_collections")), f"{path} imports {name}"
      assert not name.startswith("flax") or room in LINEN, f"{path} imports {name}"


def test_configs_import_ml_collections_and_configs_only():
  for path in (ROOT / "configs").rglob("*.py"):
    for name in imports(path):
      assert name.split(".")[0] in ("ml_collections", "configs"), f"{path} imports {name}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout, so nothing is tracked")
def test_nothing_large_is_tracked():
  """A wheel once was; the largest thing that belongs here is the demo's parameters."""
  names = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.split("\0")
  sizes = {name: (ROOT / name).stat().st_size for name in names if (ROOT / name).is_file()}
  assert [name for name, size in sizes.items() if size > 2 * 2**20] == []
