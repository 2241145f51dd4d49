"""What cannot be saved as a folder of transformers is refused in one sentence, and leaves none."""

import os
import resource

import pytest
from hf_families import GOLDEN
from hf_test import load, model_of

from iclm import config, hf
from iclm.config import InputError
from iclm.hf import description

KINDS = {"dtype": "float32", "max_bytes": 8_000, "tokenizer": None}


def test_nothing_half_written(tmp_path, monkeypatch):
  model, params = load(GOLDEN / "llama")
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "x").touch()
  with pytest.raises(InputError, match="old exists already"):
    hf.save_base(params, model, tmp_path / "old", **KINDS)
  monkeypatch.setattr(description, "CONFIG", "nowhere/config.json")
  with pytest.raises(InputError, match=r"cannot write .*new: No such file"):
    hf.save_base(params, model, tmp_path / "new", **KINDS)
  assert os.listdir(tmp_path) == ["old"]
  monkeypatch.undo()
  large = params | {"embedding": params["embedding"].at[0, 0].set(7e4)}  # float16 ends at 65504.
  with pytest.raises(InputError, match=r"holds 70000, which is too large for float16; bfloat16"):
    hf.save_base(large, model, tmp_path / "new", **KINDS | {"dtype": "float16"})
  assert os.listdir(tmp_path) == ["old"]
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))  # As of a disk that is full.
  try:
    with pytest.raises(InputError, match=r"cannot write .*new: .*File too large"):
      hf.save_base(params, model, tmp_path / "new", **KINDS)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"attention": "prefix"}, "attention = 'prefix': no family has it"),
    ({"position_gap": 3}, "position_gap = 3: no family has it"),
    ({"qkv_bias": True, "qk_norm": True}, "no family has both"),
    ({"context": 0}, "context = 0: say how long"),
    ({"layers": 3}, r"upper_layers/attention_norm/gain is absent, .* asks for \[1, 16\]"),
    ({"qk_norm": True}, r"k_norm/gain is absent, where config.model asks for \[1, 4\]"),
  ],
)
def test_what_cannot_be_saved_is_refused_by_name(changes, told, tmp_path):
  _, params = load(GOLDEN / "llama")
  model = config.schema.Model(**vars(model_of(GOLDEN / "llama")) | changes)
  with pytest.raises(InputError, match=told):
    hf.save_base(params, model, tmp_path / "new", **KINDS)
  assert not os.listdir(tmp_path)
