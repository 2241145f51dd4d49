"""Weights of the Llama family from and to folders that `transformers` reads and writes.

A folder holds config.json and safetensors files. Nothing is unpickled, no code of the folder runs.
"""

from iclm.hf.description import is_folder, read_model
from iclm.hf.load import check_base, load_base, load_tokenizer
from iclm.hf.save import save_base

__all__ = ["check_base", "is_folder", "load_base", "load_tokenizer", "read_model", "save_base"]
