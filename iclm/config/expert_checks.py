"""What experts, their router and the losses on them need of each other; see `checks`."""

from iclm.config.errors import multiple, require
from iclm.config.schema import GIVEN, LEARNED, Config


def check(c: Config) -> None:
  """Raises InputError on the first contradiction."""
  if c.experts.kind != "none":
    _check_experts(c)
  _check_losses(c)
  _check_perturb(c)


def _check_experts(c: Config) -> None:
  e, m = c.experts, c.model
  require(e.count > 0, f"config.experts.count = {e.count}; the plain base is experts.kind='none'")
  require(
    e.count % c.mesh.expert == 0,
    f"config.experts.count = {e.count} does not divide over config.mesh.expert = {c.mesh.expert}; "
    f"{multiple(e.count, c.mesh.expert)} does",
  )
  require(
    0 < e.rank <= m.d_model,
    f"config.experts.rank = {e.rank} is not in 1..config.model.d_model = {m.d_model}",
  )
  require(len(e.projections) > 0, "config.experts.projections is empty: name at least one, e.g. q")
  require(
    len(set(e.projections)) == len(e.projections),
    f"config.experts.projections = {e.projections} names one twice",
  )
  require(
    m.trunk_layers < m.layers,
    f"config.model.trunk_layers = {m.trunk_layers} leaves no layer for the experts' adapters",
  )
  require(
    c.bottleneck.kind == "none" or c.bottleneck.width > 0,
    f"config.bottleneck.width = {c.bottleneck.width} must be positive",
  )
  _check_topology(c)
  _check_full(c)
  _check_cached(c)
  require(
    c.router.kind != "kmeans" or c.router.fit,
    "config.router.kind = 'kmeans' needs config.router.fit = True",
  )
  r = c.router
  require(
    r.kind != "soft" or r.tau_start == r.tau_end or r.tau_steps <= c.steps,
    f"config.router.kind = 'soft' answers at tau_end = {r.tau_end}, which it never comes to: "
    f"config.router.tau_steps = {r.tau_steps} is more than config.steps = {c.steps}",
  )
  require(
    c.router.kind != "oracle" or len(c.data.domains) <= e.count,
    f"config.router.kind = 'oracle' has {len(c.data.domains)} domains (config.data.domains) for "
    f"config.experts.count = {e.count}",
  )
  require(
    c.router.level == "input" or c.compute == "routed",
    "config.router.level = 'token' has no config.compute = 'all'",
  )
  _check_trains(c)


def _check_trains(c: Config) -> None:
  there = {
    "base": True,
    "domain": True,
    "invariant": c.experts.invariant,
    "router": c.router.kind in LEARNED,
    "combine": c.combine == "concat",
  }
  names = [name for name, is_there in there.items() if is_there]
  require(
    any(getattr(c.trains, name) for name in names),
    f"nothing of the model moves: set one of config.trains.{{{', '.join(names)}}} to True",
  )
  require(
    c.trains.domain or not c.trains.only_experts,
    f"config.trains.only_experts = {c.trains.only_experts} needs config.trains.domain = True",
  )
  for i in c.trains.only_experts:
    require(
      0 <= i < c.experts.count,
      f"config.trains.only_experts names expert {i}, but experts are 0..{c.experts.count - 1}",
    )


def _picks(c: Config) -> dict[str, bool]:
  """What one expert for each input takes; to mix all of them is for adapters side by side."""
  return {
    "router.level = 'input'": c.router.level == "input",
    "router.gradient = 'chosen'": c.router.gradient == "chosen",
    "router.kind that is hard": c.router.kind not in ("soft", "uniform"),
  }


def _check_full(c: Config) -> None:
  if c.experts.kind != "full":
    return
  needs = _picks(c) | {
    "topology.kind = 'parallel'": c.topology.kind == "parallel",
    "experts.dropout = 0": c.experts.dropout == 0,
  }
  for need, holds in needs.items():
    require(holds, f"config.experts.kind = 'full' needs config.{need}")


def _check_cached(c: Config) -> None:
  """What is read once must be the same at every step, and be read by nothing else."""
  if not c.router.cached:
    return
  needs = {
    "router.reads = 'base'": c.router.reads == "base",
    "router.level = 'input'": c.router.level == "input",
    "router.kind that looks at the prompt": c.router.kind not in GIVEN,
    "combine other than 'residual', which has the base's states anyway": c.combine != "residual",
    "trains.base = False": not c.trains.base,
    "model.position_gap = 1": c.model.position_gap == 1,
    "data.train without the endless generator (acre)": not any(
      s.acre for s in c.data.train.values()
    ),
  }
  for need, holds in needs.items():
    require(holds, f"config.router.cached = True needs config.{need}")


def _check_topology(c: Config) -> None:
  t, n_upper = c.topology, c.model.layers - c.model.trunk_layers
  around = t.kind == "around"
  require(
    around == (c.combine == "none"),
    f"config.topology.kind = {t.kind!r} and config.combine = {c.combine!r} contradict each other: "
    "'around' has nothing to combine (combine = 'none'), 'parallel' has",
  )
  if not around:
    return
  require(
    t.lower >= 0 and t.upper >= 0 and 0 < t.lower + t.upper < n_upper,
    f"config.topology.lower = {t.lower} and upper = {t.upper} must leave some of the {n_upper} "
    "layers above the trunk to the domain experts and some to the core",
  )
  needs = _picks(c) | {
    "experts.invariant = True": c.experts.invariant,
    "bottleneck.kind other than 'none'": c.bottleneck.kind != "none",
    "compute = 'routed'": c.compute == "routed",
    "loss.aux = 0": c.loss.aux == 0,
    "router.reads other than 'base'": c.router.reads != "base",
  }
  for need, holds in needs.items():
    require(holds, f"config.topology.kind = 'around' needs config.{need}")


def _check_losses(c: Config) -> None:
  """A weight needs the term that it weighs."""
  w, weighed = c.loss, _weighed(c)
  for name, weight in vars(w).items():
    require(
      weight == 0 or name in weighed,
      f"config.loss.{name} = {weight} weighs nothing under config.router.kind = "
      f"{c.router.kind!r}, config.experts.kind = {c.experts.kind!r}; set it to 0",
    )
  require(
    w.beta == 0 or c.bottleneck.kind != "none",
    f"config.loss.beta = {w.beta} weighs a rate, but config.bottleneck.kind = 'none' has none",
  )
  require(
    w.group_dro == 0 or (len(c.data.domains) > 0 and c.accumulate == 1),
    f"config.loss.group_dro = {w.group_dro} weighs the domains of a whole batch; name them in "
    "config.data.domains, and set config.accumulate = 1",
  )
  require(
    c.router.level == "input" or c.accumulate == 1 or w.zloss == w.codebook == w.commitment == 0,
    "config.router.level = 'token' has means over tokens (loss.zloss, codebook, commitment), which "
    f"config.accumulate = {c.accumulate} would take of each micro-batch alone; set it to 1",
  )
  if w.dependence != 0:
    _check_dependence(c)


def _weighed(c: Config) -> set[str]:
  """The weights whose terms these experts and their router have, and that of the domains."""
  if c.experts.kind == "none":
    return {"group_dro"}
  of_router = {"balance", "zloss"} if c.router.kind in LEARNED else set()
  of_codes = {"codebook", "commitment"} if c.router.kind == "vq" else set()
  return {"group_dro", "beta", "dependence", "aux"} | of_router | of_codes


def _check_dependence(c: Config) -> None:
  needs = {
    "dependence.kind other than 'none'": c.dependence.kind != "none",
    "experts.invariant = True": c.experts.invariant,
    "bottleneck.kind other than 'none'": c.bottleneck.kind != "none",
    "dependence.features of 1 or more": c.dependence.features > 0,
    "dependence.features of at most 64 classes under dependence.kind = 'joint_mi'": (
      c.dependence.kind != "joint_mi" or c.dependence.features <= 64
    ),
    f"dependence.features = {c.dependence.features} of at most bottleneck.width = "
    f"{c.bottleneck.width} under dependence.kind = 'joint_mi'": (
      c.dependence.kind != "joint_mi" or c.dependence.features <= c.bottleneck.width
    ),
    "dependence.given = 'none' or dependence.kind = 'hsic'": (
      c.dependence.given == "none" or c.dependence.kind == "hsic"
    ),
    # Where all targets count, a row does not tell at which of a question's an answer starts.
    "data.loss = 'answer' or data.question = 'none'": (
      c.data.loss == "answer" or c.data.asks == "none"
    ),
  }
  for need, holds in needs.items():
    require(holds, f"config.loss.dependence = {c.loss.dependence} needs config.{need}")


def _check_perturb(c: Config) -> None:
  p, says = c.perturb, c.experts.kind != "none" and c.bottleneck.kind != "none"
  require(
    p.drop >= 0 and p.patch >= 0 and p.drop + p.patch <= 1 and 0 <= p.swap <= 1,
    f"config.perturb: drop = {p.drop} + patch = {p.patch}, and swap = {p.swap}, are no "
    "probabilities",
  )
  require(
    p.drop + p.patch == 0 or says,
    f"config.perturb.drop = {p.drop}, patch = {p.patch} touch messages, which this config has not "
    "(experts.kind, bottleneck.kind)",
  )
  require(
    p.swap == 0 or (c.experts.kind != "none" and c.router.level == "input"),
    f"config.perturb.swap = {p.swap} needs experts, and config.router.level = 'input'",
  )
