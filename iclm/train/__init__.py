"""Training: the one loop, what a run starts with, and what is read once before it."""

from iclm.train.loop import Interrupted, Result, RunStopped, fit

__all__ = ["Interrupted", "Result", "RunStopped", "fit"]
