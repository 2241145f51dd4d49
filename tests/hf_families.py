"""Tiny random models of `transformers`, one for each thing that sets the families apart.

Their folders and what they answer lie in tests/golden/hf, so that parity is tested without torch.
To renew them (extra `parity`): python -m tests.hf_families
"""

import pathlib
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = pathlib.Path(__file__).parent / "golden" / "hf"
EXPECTED = "expected.safetensors"  # Of a folder: tokens_BT, logits_BTV and states_LBTD.
N_ROWS, N_TOKENS = 2, 12
ADAPTED, PEFT = "llama", "peft"  # The base of an adapter, and that adapter's own folder.

SIZES = {
  "vocab_size": 32,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": False,
}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 48,
}
# Name -> class of the config, and what differs from SIZES.
FAMILIES = {
  "llama": ("Llama", {"num_key_value_heads": 4}),
  "llama_sharded": ("Llama", {}),
  "llama_linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
  # Of the four pairs of a head one keeps its speed, two are mixed, one goes at 1 / factor.
  "llama3": (
    "Llama",
    {"rope_scaling": LLAMA3, "rope_theta": 50.0, "tie_word_embeddings": True}
    | {"num_attention_heads": 2, "num_key_value_heads": 1},
  ),
  "mistral": ("Mistral", {"sliding_window": 5}),
  "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
  "qwen2_window": (
    "Qwen2",
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
  ),
  "qwen3": ("Qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
  "qwen3_untied": ("Qwen3", {"head_dim": 4, "num_key_value_heads": 1}),
}


def build(name: str):
  """A model of `transformers` whose every parameter is random; none is at its usual start."""
  import torch
  import transformers

  kind, changes = FAMILIES[name]
  changes = dict(changes)
  theta = changes.pop("rope_theta", 10_000.0)
  rope = {"rope_type": "default"} | changes.pop("rope_scaling", {}) | {"rope_theta": theta}
  made = getattr(transformers, f"{kind}Config")(
    **SIZES | changes | {"rope_parameters": rope}, attn_implementation="eager"
  )
  model = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
  generator = torch.Generator().manual_seed(sorted(FAMILIES).index(name))
  with torch.no_grad():
    for key, x in model.named_parameters():
      drawn = torch.randn(x.shape, generator=generator)
      if x.ndim == 1:
        x.copy_(0.5 * drawn + (0.0 if key.endswith("bias") else 1.0))
      else:
        x.copy_(drawn if "embed" in key else drawn * x.shape[1] ** -0.5)
  return model


def answer(model) -> dict[str, np.ndarray]:
  """Random tokens, and what the model makes of them: embeddings, each layer's states, logits.

  The last states are after the final norm.
  """
  import torch

  rng = np.random.default_rng(0)
  tokens_BT = rng.integers(0, SIZES["vocab_size"], (N_ROWS, N_TOKENS)).astype(np.int32)
  with torch.no_grad():
    found = model(torch.from_numpy(tokens_BT).long(), output_hidden_states=True)
  states_LBTD = np.stack([state.numpy() for state in found.hidden_states])
  return {"tokens_BT": tokens_BT, "logits_BTV": found.logits.numpy(), "states_LBTD": states_LBTD}


def save(name: str, folder: pathlib.Path) -> None:
  """The model's folder, in several files where its name says so, and its answers."""
  model = build(name)
  model.save_pretrained(folder, max_shard_size="8KB" if "sharded" in name else "1GB")
  (folder / "generation_config.json").unlink(missing_ok=True)
  save_file(answer(model), folder / EXPECTED)


def save_peft(folder: pathlib.Path) -> None:
  """An adapter of `peft` on the upper layer of the first family, and the answers of both."""
  import peft
  import torch

  told = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    use_rslora=True,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    layers_to_transform=[1],
    task_type="CAUSAL_LM",
  )
  model = peft.get_peft_model(build(ADAPTED), told).eval()
  generator = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for key, x in model.named_parameters():
      if "lora_" in key:
        x.copy_(torch.randn(x.shape, generator=generator) * x.shape[1] ** -0.5)
  model.save_pretrained(folder)
  (folder / "README.md").unlink(missing_ok=True)
  save_file(answer(model), folder / EXPECTED)


def expected(folder: pathlib.Path) -> dict[str, np.ndarray]:
  return load_file(folder / EXPECTED)


if __name__ == "__main__":
  for each in FAMILIES:
    shutil.rmtree(GOLDEN / each, ignore_errors=True)
    save(each, GOLDEN / each)
  shutil.rmtree(GOLDEN / PEFT, ignore_errors=True)
  save_peft(GOLDEN / PEFT)
