"""Shapes of base models, from one that trains on two cores to Llama-2-7B."""

from ml_collections import config_dict

_LARGE = {"dtype": "bfloat16", "remat": "full"}


def _shape(layers, d_model, heads, kv_heads, d_ff, **changes) -> config_dict.ConfigDict:
  shape = config_dict.create(
    layers=layers,
    trunk_layers=layers // 2,
    d_model=d_model,
    heads=heads,
    kv_heads=kv_heads,
    head_size=d_model // heads,
    d_ff=d_ff,
    rope_theta=10_000.0,
    rope_scaling={
      "kind": "none",
      "factor": 1.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_length": 8192,
    },
    position_gap=1,
    norm_eps=1e-5,
    tied=False,
    qkv_bias=False,
    qk_norm=False,
    window=0,
    context=0,
    vocab_size=0,
    qk_init="independent",
    attention="causal",
    kernel="xla",
    dtype="float32",
    remat="none",
  )
  shape.update(changes)
  return shape


def tiny() -> config_dict.ConfigDict:
  """0.2M parameters: the quickstart, and with a layer more ACRE on two cores."""
  return _shape(4, 64, 4, 4, 172)


def small() -> config_dict.ConfigDict:
  """0.9M parameters with 1,024 words: the reference run."""
  return _shape(3, 128, 4, 4, 344)


def bench_small() -> config_dict.ConfigDict:
  """3M parameters: size S of the benchmark."""
  return _shape(4, 256, 4, 4, 688)


def bench_medium() -> config_dict.ConfigDict:
  """25M parameters: size M of the benchmark."""
  return _shape(8, 512, 8, 8, 1376)


def base_10m() -> config_dict.ConfigDict:
  """11M parameters, 20 MiB in bfloat16: small enough to lie in a repository."""
  return _shape(8, 320, 5, 5, 860, dtype="bfloat16")


def base_30m() -> config_dict.ConfigDict:
  """26M parameters: one GPU."""
  return _shape(8, 512, 8, 8, 1376, dtype="bfloat16")


def tinyllama_1b() -> config_dict.ConfigDict:
  """1.1B parameters: Zhang et al. 2024 (arXiv 2401.02385)."""
  return _shape(22, 2048, 32, 4, 5632, context=2048, vocab_size=32_000, **_LARGE)


def llama2_7b() -> config_dict.ConfigDict:
  """6.7B parameters: Touvron et al. 2023 (arXiv 2307.09288)."""
  return _shape(32, 4096, 32, 32, 11008, context=4096, vocab_size=32_000, **_LARGE)


def llama3_8b() -> config_dict.ConfigDict:
  """8.0B parameters: Llama 3.1 (arXiv 2407.21783). Llama 3 has no rope_scaling and context 8192."""
  scaling = {"kind": "llama3", "factor": 8.0}
  more = {"rope_theta": 5e5, "rope_scaling": scaling, "context": 131_072, "vocab_size": 128_256}
  return _shape(32, 4096, 32, 8, 14336, **_LARGE | more)


def qwen3_4b() -> config_dict.ConfigDict:
  """4.0B parameters: Qwen 3 (arXiv 2505.09388)."""
  more = {"head_size": 128, "rope_theta": 1e6, "norm_eps": 1e-6, "tied": True, "qk_norm": True}
  more |= {"context": 40_960, "vocab_size": 151_936}
  return _shape(36, 2560, 32, 8, 9728, **_LARGE | more)
