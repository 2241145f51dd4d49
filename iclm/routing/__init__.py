"""Which expert runs: reading the prompt, deciding, and keeping every expert alive."""

from iclm.routing.kinds import Routing, route, temperature
from iclm.routing.prompt import hash_tokens, pool
from iclm.routing.prototypes import fit_kmeans, revive
from iclm.routing.usage import effective_experts, update_usage

__all__ = [
  "Routing",
  "effective_experts",
  "fit_kmeans",
  "hash_tokens",
  "pool",
  "revive",
  "route",
  "temperature",
  "update_usage",
]
