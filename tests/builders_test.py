"""Tests of the TFDS builders, at tiny sizes: what is loaded is what the generators made."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from iclm.config import InputError
from iclm.data import acre, builders, mechanisms, raven

SIZES = {builders.Acre: 3, builders.Mechanisms: 40, builders.Raven: 3}  # Of every split.
DEFAULT = mechanisms.TASKS["default"]


@pytest.fixture
def data_dir(tmp_path, monkeypatch) -> str:
  """A folder that is not there yet, and builders of a few examples."""
  for kind, n in SIZES.items():
    tiny = [dataclasses.replace(c, sizes=dict.fromkeys(c.sizes, n)) for c in kind.BUILDER_CONFIGS]
    monkeypatch.setattr(kind, "BUILDER_CONFIGS", tiny)
    # TFDS keeps this dict by class.
    monkeypatch.setattr(kind, "builder_configs", {c.name: c for c in tiny})
  return str(tmp_path / "data" / "sets")


@pytest.mark.parametrize("form", ["symbolic", "text"])
def test_acre_is_stored_in_order(data_dir, form):
  for split in ("iid_train", "comp_test"):
    expected = [e for i in range(3) for e in acre.examples(form, split, builders.SEED, i, 4)]
    loaded = builders.load(f"acre/{form}", split, data_dir)
    assert list(loaded) == expected
    assert loaded[5] == expected[5]  # Without reading the rest.
    assert loaded[-1] == expected[-1]
    assert loaded[2:9:3] == expected[2:9:3]
    assert len(loaded) == 12


@pytest.mark.parametrize("name", mechanisms.TASKS)
def test_mechanisms_are_stored_in_order(data_dir, name):
  task = mechanisms.TASKS[name]
  for split in mechanisms.splits(task):
    expected = [mechanisms.example(task, split, builders.SEED, i) for i in range(40)]
    assert list(builders.load(f"mechanisms/{name}", split, data_dir)) == expected
  with pytest.raises(IndexError):
    builders.load(f"mechanisms/{name}", "iid_val", data_dir)[40]


def test_raven_is_stored_in_order(data_dir):
  for name in ("center_single_text_open", "distribute_four_symbolic_balanced"):
    for split in raven.SPLITS:
      which = raven.CONFIGS[name]
      expected = [raven.example(*which, split, builders.SEED, i) for i in range(3)]
      assert list(builders.load(f"raven/{name}", split, data_dir)) == expected


def test_configs_hold_every_split_of_their_generator():
  for config in builders.Acre.BUILDER_CONFIGS:
    assert set(config.sizes) == set(acre.SPLITS)
  for config in builders.Raven.BUILDER_CONFIGS:
    assert set(config.sizes) == set(raven.SPLITS)
  for config in builders.Mechanisms.BUILDER_CONFIGS:
    assert set(config.sizes) == set(mechanisms.splits(mechanisms.TASKS[config.name]))
  assert [config.name for config in builders.Mechanisms.BUILDER_CONFIGS] == list(mechanisms.TASKS)


def test_the_quickstart_has_as_many_examples_as_were_published():
  default = builders.Mechanisms.BUILDER_CONFIGS[0]
  assert default.sizes == {
    "iid_train": 20_000, "iid_val": 2_000, "iid_test": 2_000, "unseen_pairs": 2_000
  }  # fmt: skip


def test_preparing_is_done_once_and_says_nothing(data_dir, monkeypatch, capfd):
  first = builders.load("mechanisms/default", "iid_val", data_dir)[0]
  assert capfd.readouterr() == ("", "")
  monkeypatch.setattr(mechanisms, "example", None)  # Not called again.
  assert builders.load("mechanisms/default", "iid_val", data_dir)[0] == first


def test_of_two_that_prepare_at_once_both_succeed(data_dir, monkeypatch):
  original, fresh = mechanisms.example, [True]

  def example(task, split, seed, index):
    if fresh.pop() if fresh else False:  # Amid preparing: another one begins and is faster.
      assert len(builders.load("mechanisms/default", "iid_val", data_dir)) == 40
    return original(task, split, seed, index)

  monkeypatch.setattr(mechanisms, "example", example)
  stored = builders.load("mechanisms/default", "iid_val", data_dir)[7]
  assert stored == original(DEFAULT, "iid_val", 0, 7)
  assert not fresh
  (version,) = pathlib.Path(data_dir, "mechanisms", "default").iterdir()
  assert version.name == "1.0.0"  # What the slower one wrote is gone.


def test_one_that_is_interrupted_leaves_nothing_to_be_taken_for_data(data_dir, monkeypatch):
  original = mechanisms.example

  def example(task, split, seed, index):
    if split == "iid_test":
      raise KeyboardInterrupt
    return original(task, split, seed, index)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(mechanisms, "example", example)
    builders.load("mechanisms/default", "iid_val", data_dir)
  stored = builders.load("mechanisms/default", "iid_test", data_dir)[3]
  assert stored == original(DEFAULT, "iid_test", 0, 3)


@pytest.mark.parametrize(
  ("builder", "split", "near"),
  [
    ("acre/symbolc", "iid_train", "'acre/symbolic'"),
    ("acre", "iid_train", "'acre/"),
    ("mechanism/default", "iid_train", "'mechanisms/default'"),
    ("acre/text", "comp_publishd", "'comp_published'"),
    ("raven/center_text_open", "iid_val", "'raven/center_single_text_open'"),
    ("mechanisms/default", "unseen", "'unseen_pairs'"),
    ("mechanisms/ful", "iid_train", "'mechanisms/full'"),
    ("mechanisms/full", "unseen_composition", "'unseen_compositions'"),
  ],
)
def test_an_unknown_name_is_told_with_the_nearest(data_dir, builder, split, near):
  with pytest.raises(InputError, match=near):
    builders.load(builder, split, data_dir)
  assert not pathlib.Path(data_dir).exists()


def test_a_folder_that_cannot_be_written_is_told(data_dir, tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(InputError, match=r"data_dir .*file.*; name a folder"):
      builders.load("mechanisms/default", "iid_val", str(path))


def test_a_damaged_data_set_is_told(data_dir):
  builders.load("mechanisms/default", "iid_val", data_dir)
  folder = pathlib.Path(data_dir, "mechanisms", "default", "1.0.0")
  (folder / "dataset_info.json").unlink()
  with pytest.raises(InputError, match="remove it"):
    builders.load("mechanisms/default", "iid_val", data_dir)


def test_tensorflow_is_not_imported(data_dir):
  builders.load("mechanisms/default", "iid_val", data_dir)[0]
  code = """if True:
    import sys
    from iclm.data import builders
    builders.load("mechanisms/default", "iid_val", sys.argv[1])[0]
    assert "tensorflow" not in sys.modules
  """
  root = pathlib.Path(__file__).parents[1]
  subprocess.run([sys.executable, "-c", code, data_dir], check=True, cwd=root)
