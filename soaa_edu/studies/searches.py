"""Tuning: the same number of tries for every method, then the best on seeds of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soaa_edu.data import Dataset
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies.results import capped
from soaa_edu.studies.runs import record
from soaa_edu.training import History, sweep

TUNING_SEED = 1000
MOST_WIDENINGS = 6
FINE_TUNING_SEEDS = 3
MOST_CURVES = 9
Grid = Mapping[str, Sequence[float]]


def search(grid: Grid, scores: Callable[[Grid], Any]) -> dict[str, Any]:
    """Try every point of a grid; widen the grid while the best point is at an edge of it.

    Args:
        grid: name -> values, ascending and evenly spaced in ratio; a single value is never
            widened, and a single point is taken untried, with a score of ``nan``.
        scores: grid -> what to make small, an axis for each name in order; ``nan``, and anything
            above, counts as 10.

    Returns:
        The ``points`` tried, name -> values, their ``scores``, and the ``best`` point.
    """
    axes = {name: list(values) for name, values in grid.items()}
    found: dict[tuple, float] = {}

    def try_all(part: Grid) -> None:
        scored = capped(np.asarray(scores(part), float)).reshape(-1).tolist()
        found.update(zip(product(*part.values()), scored, strict=True))

    def best() -> dict[str, float]:
        points = sorted(found, key=found.__getitem__)
        return dict(zip(axes, points[0], strict=True))

    if all(len(values) == 1 for values in axes.values()):
        found[tuple(value for (value,) in axes.values())] = np.nan
    else:
        try_all(axes)
    for _ in range(MOST_WIDENINGS):
        beyond = next(_next_values(axes, best()), None)
        if beyond is None:
            break
        name, value = beyond
        try_all({**axes, name: [value]})
        axes[name] = sorted([*axes[name], value])
    points = sorted(found)
    return {
        "points": {name: [point[i] for point in points] for i, name in enumerate(axes)},
        "scores": [found[point] for point in points],
        "best": best(),
    }


def _next_values(axes: Mapping[str, list[float]], best: Mapping[str, float]) -> Iterator[tuple]:
    """The next value of each axis at whose edge the best point is."""
    for name, values in axes.items():
        if len(values) > 1 and best[name] == values[0]:
            yield name, values[0] ** 2 / values[1]
        elif len(values) > 1 and best[name] == values[-1]:
            yield name, values[-1] ** 2 / values[-2]


def tuned(
    build: Callable[..., Optimizer],
    grid: Grid,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    seeds: int,
    tuning_seeds: int = 1,
    last: int | None = None,
) -> dict[str, Any]:
    """A search on seeds of its own, then the best point's runs on ``seeds`` others.

    Scores and final losses are means over the ``last`` steps, or over the last epoch. Methods
    share start and order of the examples by seed.
    """
    start = build(**{name: values[0] for name, values in grid.items()}).objective.model.init
    last = last or len(data.train[0]) // batch_size

    def runs(part: Grid, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        return sweep(build, part, start, data, epochs=epochs, batch_size=batch_size, keys=keys)

    def scores(part: Grid) -> np.ndarray:
        tries = runs(part, [TUNING_SEED + seed for seed in range(tuning_seeds)])
        return capped(tries["loss"][..., -last:].mean(axis=-1)).mean(axis=-1)

    found = search(grid, scores)
    swept = runs({name: [value] for name, value in found["best"].items()}, range(seeds))
    flat = {name: of_seed.reshape(seeds, -1) for name, of_seed in swept.items()}
    return {
        "search": found,
        "runs": [
            record(_history(flat, seed), last, curves=seed < MOST_CURVES) for seed in range(seeds)
        ],
    }


def refined(build: Callable[..., Optimizer], data: Dataset, found: Any, **settings: Any) -> Any:
    """A finer search around the best point of ``found``, on three seeds or more, then the runs.

    Args:
        build: what was given to ``tuned``.
        data: to train on.
        found: what that gave.
        **settings: its other settings.

    Returns:
        What it gives for three values of each number, √2 apart, and more where the best of them
        lies at an edge.
    """
    best = found["search"]["best"]
    grid = {name: grid_around(value, 2**0.5, 3) for name, value in best.items()}
    return tuned(build, grid, data, **{"tuning_seeds": FINE_TUNING_SEEDS, **settings})


def grid_around(middle: float, ratio: float, values: int) -> list[float]:
    """``values`` numbers, each ``ratio`` times the one before, around ``middle``."""
    return [float(middle * ratio**k) for k in np.arange(values) - values // 2]


def middle(grid: Grid) -> dict[str, float]:
    """The point in the middle of a grid."""
    return {name: values[len(values) // 2] for name, values in grid.items()}


def _history(swept: dict[str, np.ndarray], seed: int) -> History:
    """The run of a seed in a sweep, which keeps no seconds and no parameters."""
    of_seed = {name: values[seed] for name, values in swept.items()}
    of_all = {name: of_seed.pop(name) for name in ("loss", "test_loss", "test_accuracy")}
    return History(**of_all, seconds=np.array([]), params=(), info=of_seed)
