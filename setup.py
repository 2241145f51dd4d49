"""Dependencies and extras; settings of the tools are in pyproject.toml."""

import setuptools

setuptools.setup(
  name="iclm",
  version="0.1.0",
  description="Independent causal language models in JAX",
  long_description=open("README.md", encoding="utf-8").read(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(
    include=["iclm", "iclm.*", "experiments", "experiments.*", "configs"]
  ),
  package_data={"iclm.audit": ["*.j2"]},
  # Releases of lm_eval after 0.4.13 look for outside models here.
  entry_points={"lm_eval.models": ["iclm = experiments.harness:Harness"]},
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.8",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jaxtyping>=0.3.11",
    "jinja2>=3.1.6",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "rich>=14.0",
    "safetensors>=0.6",
    "scipy>=1.15",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23",
    "tqdm>=4.67",
  ],
  extras_require={
    "test": [
      "beartype>=0.21",
      "hypothesis>=6.150",
      "ipykernel>=6.29",
      "matplotlib>=3.10",
      "nbclient>=0.10",
      "nbformat>=5.10",
      "pyright>=1.1.400",
      "pytest>=9.0",
      "pytest-xdist>=3.8",
      "ruff>=0.14",
    ],
    "gpu": ["jax[cuda13]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
    # Before 0.4.10 the harness asks for torch.
    "eval": ["lm_eval>=0.4.10"],
    "parity": ["torch==2.13.0", "transformers>=5.0", "peft>=0.17"],
  },
)
