"""Text from a model: the prompt is read and routed once, then each token costs one token.

prompts -> buckets of tokens -> read (a cache per pass, the route) -> say, some tokens at a time
        -> text, cut at a stop string, with the expert that served it
"""

from iclm.generate.decoding import Decoding, Spoken
from iclm.generate.decoding import make as make_decoding
from iclm.generate.prompts import batches, bucket, limit
from iclm.generate.sampling import GREEDY, Sampling
from iclm.generate.speech import Speech
from iclm.generate.text import Answer, Generator, Options, Piece, check, rows_of

__all__ = [
  "GREEDY",
  "Answer",
  "Decoding",
  "Generator",
  "Options",
  "Piece",
  "Sampling",
  "Speech",
  "Spoken",
  "batches",
  "bucket",
  "check",
  "limit",
  "make_decoding",
  "rows_of",
]
