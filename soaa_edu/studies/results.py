"""Reading stored cells: a method's runs, whether tuned coarsely at first or finely later.

A cell whose name ends in ``.refined`` stands for the one without: its tuned numbers come from a
finer search, and its runs from more seeds.
"""

from typing import Any

import numpy as np

REFINED = ".refined"
HIGHEST_LOSS = 10.0


def latest(results: dict, name: str) -> Any:
    """The cell of that name, or the refined one that stands for it."""
    cells = results["cells"]
    return cells.get(name + REFINED, cells[name])


def over_runs(results: dict, name: str, key: str) -> np.ndarray:
    """A number, or a curve, of each run of a cell, seeds along the first axis.

    Curves are kept of the first seeds alone.
    """
    runs = latest(results, name)["runs"]
    return np.array([run[key] for run in runs if key in run], float)


def log_ratio(losses: Any, rivals: Any) -> np.ndarray:
    """Log of losses over a rival's, seed by seed as far as both go; lost runs count as 10."""
    both = min(len(losses), len(rivals))
    return np.log(capped(losses[:both])) - np.log(capped(rivals[:both]))


def capped(losses: Any) -> np.ndarray:
    """Losses, of which those of diverged runs, and all above, count as 10."""
    return np.fmin(losses, HIGHEST_LOSS)


def seeds_of(results: dict, name: str) -> int:
    """How many seeds a cell's runs have."""
    return len(latest(results, name)["runs"])
