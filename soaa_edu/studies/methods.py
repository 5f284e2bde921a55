"""The methods that the studies of batch and dataset size compare, and what is tuned of each.

Each gets nine tries: nine learning rates, or three learning rates by three dampings for K-FAC.
Preconditioners are renewed 16 times an epoch, or every ten steps where that is more often, so that
none is older; PSGD's at every step at first, as its author does it, in blocks of at most 256 rows
and columns, since whole ones cost six times as much here. All else is the library's default. SGD's
momentum is 0.9, and so is K-FAC's. The learning rate is constant, or rises over a first part of the
steps and then falls along a cosine.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax

from soaa_edu import plotting
from soaa_edu.optimizers import Optimizer, first_order, kfac, psgd, shampoo, soaa
from soaa_edu.studies.searches import grid_around

METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"label": "SGD", "color": plotting.SKY, "linestyle": "--"},
    "adam": {"label": "Adam", "color": plotting.BLACK, "linestyle": "--"},
    "kfac": {"label": "K-FAC", "color": plotting.BLUE},
    "shampoo": {"label": "Shampoo", "color": plotting.VERMILLION},
    "psgd": {"label": "PSGD", "color": plotting.PURPLE},
    "soaa": {"label": "SOAA", "color": plotting.ORANGE, "linestyle": ":"},
}
"""How each method looks in every picture."""
FIRST_ORDER = ("sgd", "adam")
RENEWALS = 16
OLDEST = 10
PSGD_BLOCK = 256
MOMENTUM = 0.9
MIDDLES = {"sgd": 0.05, "adam": 4e-3, "shampoo": 4e-3, "psgd": 4e-3, "soaa": 4e-3}
RATIO = 2.0
KFAC_RATES = (0.03, 3.0)
KFAC_DAMPINGS = (0.1, 10.0)


def label(method: str) -> str:
    """What a method is called in the book."""
    return METHODS[method]["label"]


def grid(method: str, tries: int) -> dict[str, list[float]]:
    """The points where a method's search begins: nine, or one alone."""
    if method != "kfac":
        return {"learning_rate": grid_around(MIDDLES[method], RATIO, tries)}
    each = round(tries**0.5)
    return {
        name: grid_around(middle, ratio, each)
        for name, (middle, ratio) in {"learning_rate": KFAC_RATES, "damping": KFAC_DAMPINGS}.items()
    }


def renewed_every(steps_an_epoch: int) -> int:
    """Steps from one renewal of a preconditioner to the next."""
    return min(max(steps_an_epoch // RENEWALS, 1), OLDEST)


def rising_and_falling(rate: Any, steps: int, rising: int) -> Callable[[Any], Any]:
    """An optax schedule: up to ``rate`` in so many steps, then along a cosine to zero."""
    falling = optax.cosine_decay_schedule(rate, steps - rising)

    def at(step: Any) -> Any:
        return jnp.where(step < rising, rate * (step + 1) / rising, falling(step - rising))

    return at


def build(
    method: str,
    objective: Any,
    steps_an_epoch: int,
    epochs: int,
    *,
    warm_up: float = 0.0,
    **point: Any,
) -> Optimizer:
    """A method at a point of its grid, for a run of so many steps.

    ``warm_up`` is the part of them in which the learning rate rises, before it falls; at zero it is
    constant.
    """
    renew_every = renewed_every(steps_an_epoch)
    steps = steps_an_epoch * epochs
    if warm_up:
        rising = max(round(warm_up * steps), 1)
        point["learning_rate"] = rising_and_falling(point["learning_rate"], steps, rising)
    if method == "kfac":
        return kfac(objective, momentum=MOMENTUM, invert_every=renew_every, **point)
    made = {
        "sgd": lambda rate: optax.sgd(rate, momentum=MOMENTUM),
        "adam": optax.adam,
        "shampoo": lambda rate: shampoo(rate, refresh_every=renew_every),
        "psgd": partial(psgd, block_size=PSGD_BLOCK),
        "soaa": lambda rate: soaa(rate, total_steps=steps),
    }
    return first_order(objective, made[method](point["learning_rate"]))
