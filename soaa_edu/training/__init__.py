"""Training: a single run, and a whole grid of runs as one program."""

from soaa_edu.training.dry_run import rehearsal
from soaa_edu.training.grid import sweep
from soaa_edu.training.history import History
from soaa_edu.training.run import train

__all__ = ["History", "rehearsal", "sweep", "train"]
