"""Weights of the Llama family from and to folders that `transformers` reads and writes.

A folder holds config.json and safetensors files. Nothing is unpickled, no code of the folder runs.
"""

from iclm.hf.description import read_model
from iclm.hf.load import load_base
from iclm.hf.save import save_base

__all__ = ["load_base", "read_model", "save_base"]
