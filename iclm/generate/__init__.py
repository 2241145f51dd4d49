"""Text from a model: the prompt is read and routed once, then each token costs one token.

prompts -> buckets of tokens -> prefill (a cache per pass, the route) -> decode, a stride at a time
        -> text, cut at a stop string, with the expert that served it
"""

from iclm.generate.decoding import Decoded, Decoding
from iclm.generate.decoding import make as make_decoding
from iclm.generate.prompts import batches, bucket, with_context
from iclm.generate.sampling import GREEDY, Sampling
from iclm.generate.speech import Speech
from iclm.generate.text import Answer, Generator, Options, Piece, check, rows_of

__all__ = [
  "GREEDY",
  "Answer",
  "Decoded",
  "Decoding",
  "Generator",
  "Options",
  "Piece",
  "Sampling",
  "Speech",
  "batches",
  "bucket",
  "check",
  "make_decoding",
  "rows_of",
  "with_context",
]
