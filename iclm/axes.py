"""The names of every axis: dimension letters, logical axes and mesh axes.

Arrays end in their dimension letters (`x_BTD`, `w_EDF`, `route_BE`):

  B batch rows        T tokens           D model width      H heads
  K head size         F hidden width     E domain experts   R adapter rank
  Z message width     V vocabulary       S streams          L layers
  P router width      G row groups

Streams are always in the order of `STREAMS`.
"""

# Logical axes: what a dimension means. `sharding.rules` says where each one lives on the mesh.
BATCH = "batch"
EMBED = "embed"
MLP = "mlp"
HEADS = "heads"
VOCAB = "vocab"
EXPERT = "expert"

# Mesh axes in their order. ConfigDict sorts its keys, so the order is taken from here.
DATA = "data"
MODEL = "model"
MESH = (DATA, EXPERT, MODEL)

# The streams of a model of independent mechanisms, in the order in which they are stacked.
INVARIANT = "invariant"
DOMAIN = "domain"
STREAMS = (INVARIANT, DOMAIN)
