"""Muon against the Shampoo it comes from, and against SOAP and Adam (claim L4).

An MLP, a ViT and a decoder. Every method has a learning rate to tune, on the same nine tries and a
seed of their own, and all else is the library's or optax's default. Muon orthogonalises the
momentum of the hidden matrices, and Adam takes the rest at the same learning rate; steps of Muon
have entries of size 0.2, as Adam's have. *Shampoo without memory* is the same with an iteration
that converges: L = MMᵀ and R = MᵀM of the momentum M alone give L^-¼ M R^-¼ = UVᵀ, the polar factor
(chapter 12). Shampoo, grafted, and SOAP have statistics of some twenty gradients of every array,
and renew roots or bases every ten steps.

The source's networks have 124 million parameters and more, and batches of half a million tokens,
for which it counts less than 1 % more operations for Muon. A layer takes 6 B m n operations for B
rows of the batch, and Muon's five iterations 10 (2 m² n + m³), m its shorter side: for the MLP's
784 by 128 at batch 512 that is 0.9 times as many again.

At the gpu scale the decoder has 4.8 million parameters and takes 610 steps of 16,384 characters. By
arithmetic, not measured: five programs of five runs each, as in the race of SOAA; 12 minutes of an
H100.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu.data import mnist
from soaa_edu.engine import Cell, device_note
from soaa_edu.models import vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods, networks, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.networks import SIZES, Size
from soaa_edu.studies.race import Task, costs, races, step_costs
from soaa_edu.studies.searches import Grid, grid_around
from soaa_edu.studies.tables import as_text, of_race
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "Muon against the Shampoo it comes from"
CLAIMS = ("L4",)
FIELD = ("adam", "muon", "shampoo_without_memory", "shampoo", "soap")
NAMES = {"mlp": "MLP", "vit": "ViT", "decoder": "decoder"}
STRETCHES = 10


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    networks: tuple[str, ...] = tuple(NAMES)
    size: dict[str, Any] = (
        SIZES["laptop"]._replace(image_epochs=2, hidden=(128, 128), characters=256_000)._asdict()
    )
    vit_images: int = 20_480
    vit_batch: int = 128
    tuning_values: int = 9
    seeds: int = 7
    timed_steps: int = 20
    minutes: float = 35.0


SCALES = {
    "quick": Settings(
        networks=("mlp", "decoder"),
        size=SIZES["quick"]._asdict(),
        tuning_values=1,
        seeds=3,
        timed_steps=8,
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        networks=("decoder",),
        size=SIZES["gpu"]._asdict(),
        tuning_values=5,
        seeds=5,
        timed_steps=100,
        minutes=12.0,
    ),
}


def grid(method: str, values: int) -> Grid:
    """Learning rates, the same for all: every step here is about as large as Adam's."""
    return {"learning_rate": grid_around(4e-3, 2.0, values)}


def build(method: str, given: Task, **point: Any) -> Optimizer:
    """A method with its tuned number."""
    return methods.build(method, given.objective, given.steps, **point)


def task(name: str, settings: Settings) -> Task:
    """One of the three networks with its data."""
    if name != "vit":
        return networks.task(name, Size(**settings.size), STRETCHES)
    data = mnist(settings.vit_images)
    objective = Objective(vit(), softmax_cross_entropy)
    given = Task(
        {"network": name}, objective, lambda: data, len(data.train[0]), 1, settings.vit_batch
    )
    return given._replace(last=given.steps // STRETCHES)


def cells(settings: Settings) -> dict[str, Cell]:
    """One cell for each method on each network, and one for the timing of each network."""
    tasks = [task(name, settings) for name in settings.networks]
    points = partial(grid, values=settings.tuning_values)
    found = races(tasks, FIELD, build, points, seeds=settings.seeds)
    timed = partial(step_costs, steps=settings.timed_steps)
    return found | costs(tasks, FIELD, build, partial(grid, values=1), timed)


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return stored.values_of(results, "network", method="muon")


def verdicts(results: dict) -> list[Verdict]:
    """L4: as good as Shampoo, the same as Shampoo without memory, at hardly any cost."""
    on = networks_of(results)

    def loss(says: str, rival: str, asks: str) -> Clause:
        readings = [
            measured(stored.beside(results, "muon", rival, network=n), NAMES[n]) for n in on
        ]
        return Clause(says, f"Muon's loss beside that of {label(rival)}:", asks, readings)

    times = [
        measured(np.log(stored.in_adam_steps(results, "muon", network=n)), NAMES[n]) for n in on
    ]
    clauses = [
        loss("as good as Shampoo, or better", "shampoo", "at most 1 %"),
        loss("it is Shampoo without accumulation", "shampoo_without_memory", "within 1 %"),
        Clause(
            "for hardly more operations than SGD",
            "Muon's seconds of a step beside Adam's:",
            "at most 10 %",
            times,
        ),
    ]
    return [judge("L4", clauses, findings=[_losses(results, n) for n in on])]


def _losses(results: dict, network: str) -> str:
    each = (
        f"{label(m)} {mean_and_spread(stored.final_loss(results, method=m, network=network), 3)}"
        for m in FIELD
    )
    return f"{NAMES[network]}: {', '.join(each)}"


def rows(results: dict, network: str) -> list[dict[str, str]]:
    """Losses, seconds of a step and memory of every method on a network."""
    columns = ["tuned", "loss", "test loss", "ms/step", "Adam steps", "state/params"]
    return of_race(results, FIELD, columns, network=network)


def table(results: dict) -> str:
    """The rows of every network as text."""
    found = [{"network": NAMES[n], **row} for n in networks_of(results) for row in rows(results, n)]
    return as_text(found, device_note(results, list(stored.select(results, cost="step"))))


def draw_losses(
    axes: Axes, results: dict, network: str, field: Sequence[str] = FIELD, against: str = "step"
) -> None:
    """Training loss against steps, or against seconds at the timed seconds of a step."""
    panels.curves(axes, results, field, against=against, points=2 * STRETCHES, network=network)
    axes.set(yscale="log", title=NAMES[network])


def figure(results: dict) -> Figure:
    """Loss against steps above, against seconds below, a column for each network."""
    on = networks_of(results)
    drawing, axes = plt.subplots(2, len(on), figsize=(4.2 * len(on) + 1, 6.5), squeeze=False)
    for column, network in enumerate(on):
        draw_losses(axes[0, column], results, network)
        draw_losses(axes[1, column], results, network, against="second")
    axes[0, -1].legend(fontsize=8)
    return drawing
