"""ACRE, text and symbolic from one model, from the generator, on two cores.

  python -m experiments.train --config=configs/acre.py --workdir=runs/acre

Result (seed 0, two cores, 56 minutes beside other work, commit 13b9d56), real validation files,
exact match: symbolic 0.991, 0.992, 0.984 (IID, Comp, Sys), text 0.994, 0.994, 0.989; the indirect
questions alone 0.957, 0.963, 0.914 and 0.977, 0.977, 0.961.

`--config=configs/acre.py:comp` and `:sys` train on the splits that are truly out of distribution
(disjoint objects; one view of lit evidence, then two), and are evaluated on both sides of them.
For comp, colours, shapes, materials and digits are tokens of their own, so that an object which
training never showed is spelled like one that it did.

Against the plateau at which objects are not yet told apart: three views of one object each at
first, many questions per context, prefix attention, heads that attend to their like, and Muon.
"""

from configs import base, presets

FORMS = ("symbolic", "text")
# What is trained -> what is evaluated, in distribution first.
SPLITS = {
  "iid": ("iid_val", "comp_published", "sys_published"),
  "comp": ("comp_train", "comp_test"),
  "sys": ("sys_train", "sys_test"),
}
# What an object is made of, in words and in numbers.
APART = (
  *("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
  *("cube", "cylinder", "sphere", "rubber", "metal"),
  *"0123456789",
)


def get_config(split: str = "iid"):
  evaluated = base.pick(split, SPLITS)
  c = base.get_config()
  c.steps = 13_000
  c.batch_size = 16
  c.model = presets.tiny()
  c.model.update(layers=5, trunk_layers=4, attention="prefix", rope_theta=1e6, qk_init="equal")
  c.experts.update(count=2, rank=8, projections=("q", "v"))
  c.router.update(reads="embed", detach=True, scale=32.0)
  c.optimizer.update(kind="muon", lr=3e-3, b1=0.95, schedule="wsd", warmup=100, decay=0.3)
  c.optimizer.router_lr = 0.1
  c.data.train = {form: base.source(acre=form, split=split, ramp=30_000) for form in FORMS}
  c.data.domains = tuple(f"acre_{form}" for form in FORMS)
  c.data.update(questions_per_row=8, counted=16)  # Of each question an answer and its end.
  c.data.seq_len = 136  # The longest of 40,000 rows needs 124.
  c.data.tokenizer.update(split="sentences", vocab_size=1_024)
  if split == "comp":
    c.data.tokenizer.apart = APART
    c.dependence.given = "none"  # Of 64 answers in a step too few are alike.
    c.data.update(questions_per_row=4, counted=8)
    c.data.seq_len = 224  # The longest of 40,000 rows needs 211.
  c.evaluation.update(every=2_000, batch_size=32)
  c.evaluation.sets = {
    f"{form}_{name}": base.source(tfds=f"acre/{form}", split=name, limit=1_000)
    for form in FORMS
    for name in evaluated
  }
  c.evaluation.best = f"symbolic_{evaluated[0]}"
  c.checkpoint.update(every=500, keep=2, best=1)
  return c
