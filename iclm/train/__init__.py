"""Training: the one loop, what a run starts with, and what is read once before it."""

from iclm.train.loop import Interrupted, Result, fit
from iclm.train.watch import RunStopped

__all__ = ["Interrupted", "Result", "RunStopped", "fit"]
