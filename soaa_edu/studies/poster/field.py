"""What the poster's studies race, how it is built, and where its search begins.

Each method gets nine tries: nine learning rates, or three learning rates by three dampings for
K-FAC. Preconditioners are renewed 16 times an epoch, or every ten steps where that is more often,
so that none is older; PSGD's at every step at first, as its author does it, in blocks of at most
256 rows and columns, since whole ones cost six times as much here. All else is the library's
default. SGD's momentum is 0.9, and so is K-FAC's. The learning rate is constant, or rises over a
first part of the steps and then falls along a cosine.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods
from soaa_edu.studies.race import Task
from soaa_edu.studies.searches import grid_around

FIELD = ("sgd", "adam", "kfac", "shampoo", "psgd", "soaa")
FIRST_ORDER = ("sgd", "adam")
REFRESHES = 16
OLDEST = 10
MIDDLES = {"sgd": 0.05, "adam": 4e-3, "shampoo": 4e-3, "psgd": 4e-3, "soaa": 4e-3}
RATIO = 2.0
KFAC_GRID = {"learning_rate": (0.03, 3.0), "damping": (0.1, 10.0)}


def grid(method: str, tries: int) -> dict[str, list[float]]:
    """The points where a method's search begins: nine, or one alone."""
    if method != "kfac":
        return {"learning_rate": grid_around(MIDDLES[method], RATIO, tries)}
    each = round(tries**0.5)
    return {name: grid_around(*middle, each) for name, middle in KFAC_GRID.items()}


def build(method: str, task: Task, *, warm_up: float = 0.0, **point: Any) -> Optimizer:
    """A method at a point of its grid.

    ``warm_up`` is the part of the steps in which the learning rate rises, before it falls; at zero
    it is constant.
    """
    renewed = refresh_every(task.steps_an_epoch)
    settings: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": 0.9},
        "kfac": {"momentum": 0.9, "invert_every": renewed},
        "shampoo": {"refresh_every": renewed},
        "psgd": {"block_size": 256},
    }
    if warm_up:
        rising = max(round(warm_up * task.steps), 1)
        point["learning_rate"] = rising_and_falling(point["learning_rate"], task.steps, rising)
    return methods.build(method, task.objective, task.steps, **point, **settings.get(method, {}))


def refresh_every(steps_an_epoch: int) -> int:
    """Steps from one renewal of a preconditioner to the next."""
    return min(max(steps_an_epoch // REFRESHES, 1), OLDEST)


def rising_and_falling(rate: Any, steps: int, rising: int) -> Callable[[Any], Any]:
    """An optax schedule: up to ``rate`` in so many steps, then along a cosine to zero."""
    falling = optax.cosine_decay_schedule(rate, steps - rising)

    def at(step: Any) -> Any:
        return jnp.where(step < rising, rate * (step + 1) / rising, falling(step - rising))

    return at
