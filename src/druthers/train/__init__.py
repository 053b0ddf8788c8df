"""Training: pairs and a reference in, checkpoints and outcomes out."""

from druthers.train.interruption import Interrupted
from druthers.train.loop import train

__all__ = ["Interrupted", "train"]
