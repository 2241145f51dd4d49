"""The one apply: trunk -> route -> streams -> combine, with interventions as an argument.

  tokens -> embed -> trunk -+-> router: prompt only --> index, weights
                            +-> upper, no adapters ---> h_base                      (residual only)
                            +-> upper, adapters of the invariant and of the chosen
                                domain expert, as one batch -> messages z -> contributions u
  residual:  logits = head(h_base + u_invariant + w u_domain)

That is the topology `parallel`; for the other one see `iclm.compose.around`.

Source: Gendron et al. 2024 (arXiv 2402.02636), section 3. Deviations: one base and gathered
adapters instead of K + 2 models; the router never sees answer or padding; messages are stochastic
and metered; `residual` is ours: under it a fresh model is its base bitwise.
"""

from iclm.compose.cache import Cache
from iclm.compose.cache import empty as empty_cache
from iclm.compose.interface import NOTHING, Draws, Intervention, Model, Output
from iclm.compose.model import build
from iclm.compose.perturb import perturb
from iclm.compose.serving import check_finite, heard_alone, is_block, streams

__all__ = [
  "NOTHING",
  "Cache",
  "Draws",
  "Intervention",
  "Model",
  "Output",
  "build",
  "check_finite",
  "empty_cache",
  "heard_alone",
  "is_block",
  "perturb",
  "streams",
]
