"""TrainState, its init, and the two pure steps: one moves the state, one scores a batch."""

from iclm.step.advance import make_train_step, train_step
from iclm.step.score import PositionScores, eval_step
from iclm.step.state import TrainState, abstract_state, init_state

__all__ = [
  "PositionScores",
  "TrainState",
  "abstract_state",
  "eval_step",
  "init_state",
  "make_train_step",
  "train_step",
]
