"""Weights of the Llama family from and to folders that `transformers` reads and writes.

A folder holds config.json and safetensors files; adapters of `peft` come and go as folders too.
Nothing is unpickled, no code of a folder runs.
"""

from iclm.hf.adapters import Adapter, adapter_of, exportable, into, load_adapter, save_adapter
from iclm.hf.description import is_folder, read_model
from iclm.hf.load import check_base, load_base, load_tokenizer
from iclm.hf.save import base_sha256, save_base

__all__ = [
  "Adapter",
  "adapter_of",
  "base_sha256",
  "check_base",
  "exportable",
  "into",
  "is_folder",
  "load_adapter",
  "load_base",
  "load_tokenizer",
  "read_model",
  "save_adapter",
  "save_base",
]
