"""The same against PEFT itself (extra `parity`): adapters made here, ours read there."""

import hf_families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_adapters_test import TOLERANCE, rows, start, stream
from hf_families import ADAPTED, GOLDEN

from iclm import hf, losses

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def there(folder, base=GOLDEN / ADAPTED):
  """Logits of an adapter of ours, as PEFT has them."""
  model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
  return hf_families.answer(peft.PeftModel.from_pretrained(model, folder).eval())


def test_theirs_come_in(tmp_path):
  hf_families.save_peft(tmp_path / "theirs")
  c, made, params = start()
  want = hf_families.expected(tmp_path / "theirs")
  read = hf.load_adapter(tmp_path / "theirs", c, hf.adapter_of(c, params, 1), None)
  got = stream(made, hf.into(params, 1, read.layers), want["tokens_BT"], 1)
  np.testing.assert_allclose(got, want["logits_BTV"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("combine", ["residual", "logits", "probas"])
def test_a_trained_expert_goes_out(combine, tmp_path):
  c, made, params = start(combine=combine)
  tokens_BT = np.random.default_rng(2).integers(0, 32, (4, 12)).astype(np.int32)
  batch = rows(tokens_BT)
  targets_BT = np.roll(tokens_BT, -1, axis=1)

  def loss(domain):
    logits_BTV = made.apply(params | {"domain": domain}, batch).logits_BTV
    return losses.next_token_xent(logits_BTV, targets_BT, np.ones((4, 12)))[0]

  domain = params["domain"]
  for _ in range(5):
    domain = jax.tree.map(lambda p, g: p - 0.5 * g, domain, jax.jit(jax.grad(loss))(domain))
  assert loss(domain) < loss(params["domain"])
  params = params | {"domain": domain}
  for expert in (0, 2, "invariant"):
    out = tmp_path / str(expert)
    hf.save_adapter(hf.exportable(c, params, expert), c, out, base_sha256="", base_name="x")
    want = there(out)
    got = stream(made, params, jnp.asarray(want["tokens_BT"]), expert)
    if combine == "probas":  # Of its logits, up to what a softmax does not tell.
      want["logits_BTV"] = np.asarray(jax.nn.log_softmax(want["logits_BTV"]))
    np.testing.assert_allclose(got, want["logits_BTV"], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_merged_one_is_read_by_transformers(tmp_path):
  c, made, params = start()
  adapter = hf.exportable(c, params, 1)
  about = {"dtype": "float32", "max_bytes": 8_000, "tokenizer": None}
  hf.save_base(params["base"], c.model, tmp_path / "merged", **about, adapter=adapter)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "merged", attn_implementation="eager"
  )
  got = hf_families.answer(model.eval())
  want = stream(made, params, got["tokens_BT"], 1)
  np.testing.assert_allclose(got["logits_BTV"], want, rtol=0, atol=2e-4)
