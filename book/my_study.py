"""Does K-FAC pay on my network? A study of your own, in one file.

Put your network, your data and your methods where it says *your*, then:

    soaa-edu reproduce my_study.py
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import soaa_edu
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.race import Task, costs, epoch_costs, races
from soaa_edu.studies.searches import grid_around
from soaa_edu.studies.verdicts import Clause, judge, measured

FIELD = ("sgd", "adam", "kfac")  # your methods


class Settings(NamedTuple):
    """What a scale runs; by default what the laptop does."""

    rows: int = 16_384
    batch_sizes: tuple[int, ...] = (64, 1024)
    epochs: int = 5
    tries: int = 9
    seeds: int = 5
    minutes: float = 5.0


SCALES = {
    "quick": Settings(rows=4096, epochs=2, tries=1, seeds=3, minutes=0.3),
    "laptop": Settings(),
}


def network():
    """Your network, or from_linen, from_nnx or from_equinox of soaa_edu.models around it."""
    return soaa_edu.models.mlp([20, 64, 64, 4], jnp.tanh)


def data(rows):
    """Your arrays: inputs and targets to train on, and to test on; here a random teacher's."""
    teacher = soaa_edu.models.mlp([20, 32, 4], jnp.tanh)
    inputs = jax.random.normal(jax.random.key(0), (rows + 1024, 20)) * jnp.geomspace(0.1, 10, 20)
    targets = teacher(teacher.init(jax.random.key(1)), inputs).argmax(axis=1)
    return soaa_edu.data.Dataset(
        train=(inputs[:rows], targets[:rows]), test=(inputs[rows:], targets[rows:])
    )


def grid(method, tries):
    """Where a method's search begins; it goes on while the best try lies at an edge."""
    middles = {"sgd": 0.1, "adam": 4e-3, "kfac": 0.1}
    points = {"learning_rate": grid_around(middles[method], 2.0, tries)}
    return {**points, "damping": [0.1]} if method == "kfac" else points


def build(method, task, **point):
    """A method at a point of its grid, for one task."""
    fixed = {"momentum": 0.9} if method == "sgd" else {}
    return methods.build(method, task.objective, task.steps, **fixed, **point)


def cells(settings):
    """Each method on each task, and what a step of each costs."""
    objective = soaa_edu.Objective(network(), soaa_edu.softmax_cross_entropy)
    load = partial(data, settings.rows)
    tasks = [
        Task({"batch": size}, objective, load, settings.rows, settings.epochs, size)
        for size in settings.batch_sizes
    ]
    points = partial(grid, tries=settings.tries)
    found = races(tasks, FIELD, build, points, seeds=settings.seeds)
    return found | costs(tasks, FIELD, build, partial(grid, tries=1), epoch_costs)


def figure(results):
    """Loss by steps above and by seconds below, a column for each batch size."""
    sizes = results["settings"]["batch_sizes"]
    drawing, axes = plt.subplots(2, len(sizes), figsize=(10, 6), squeeze=False)
    for column, size in enumerate(sizes):
        for row, against in enumerate(("step", "second")):
            panel = axes[row, column]
            panels.curves(panel, results, FIELD, against=against, points=40, batch=size)
        axes[0, column].set(title=f"batch {size:,}")
    axes[0, 0].legend()
    return drawing


def verdicts(results):
    """The claim, with its margin fixed before the runs: K-FAC ends 10 % below Adam or lower."""
    sizes = results["settings"]["batch_sizes"]
    ratios = {size: stored.beside(results, "kfac", "adam", batch=size) for size in sizes}
    readings = [measured(ratio, f"batch {size:,}") for size, ratio in ratios.items()]
    claim = Clause("K-FAC pays", "its loss beside Adam's:", "below 10 %", readings)
    return [judge("mine", [claim])]
