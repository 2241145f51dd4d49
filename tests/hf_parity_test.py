"""The same against transformers itself (extra `parity`): models made here, ours read there."""

import hf_families
import jax.numpy as jnp
import numpy as np
import pytest
from hf_test import TOLERANCE, answer, bitwise, model_of, one_device

from iclm import hf
from iclm.data import tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", hf_families.FAMILIES)
def test_in_and_out_again(name, tmp_path):
  hf_families.save(name, tmp_path / "theirs")
  want = hf_families.expected(tmp_path / "theirs")
  model = model_of(tmp_path / "theirs")
  params = hf.load_base(tmp_path / "theirs", model, one_device(), fsdp=False)
  logits_BTV, states_LBTD = answer(model, params, jnp.asarray(want["tokens_BT"]))
  np.testing.assert_allclose(states_LBTD, want["states_LBTD"], rtol=0, atol=TOLERANCE)
  np.testing.assert_allclose(logits_BTV, want["logits_BTV"], rtol=0, atol=TOLERANCE)

  ours, again = tmp_path / "ours", tmp_path / "again"
  hf.save_base(params, model, ours, dtype="float32", max_bytes=8_000, tokenizer=None)
  loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
    ours, attn_implementation="eager", output_loading_info=True
  )
  assert not any(info.values()), info  # Neither missing nor unexpected nor mismatched.
  got = hf_families.answer(loaded)
  for key in want:
    np.testing.assert_array_equal(got[key], want[key], err_msg=key)
  loaded.save_pretrained(again)
  bitwise(again, tmp_path / "theirs")


def test_bfloat16_and_the_tokenizer_arrive(tmp_path):
  hf_families.save("qwen2", tmp_path / "theirs")
  model = model_of(tmp_path / "theirs")
  params = hf.load_base(tmp_path / "theirs", model, one_device(), fsdp=False)
  made = tokenizer.train(["one two", "two three"], 270, tokenizer.WORDS)
  hf.save_base(params, model, tmp_path / "ours", dtype="bfloat16", max_bytes=10**9, tokenizer=made)
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
  assert loaded.dtype == torch.bfloat16
  weight = loaded.model.layers[1].mlp.up_proj.weight.float().detach().numpy()
  np.testing.assert_array_equal(
    weight.T, params["last_layer"]["up"][0].astype(jnp.bfloat16).astype(jnp.float32)
  )
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
  # A row begins with bos here, and with what is exported there.
  assert theirs("one two").input_ids == [made.bos_id, *made.encode("one two")]
  assert (theirs.eos_token_id, theirs.pad_token_id) == (made.eos_id, made.pad_id)
