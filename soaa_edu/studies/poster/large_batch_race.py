"""K-FAC, Shampoo, SOAP and PSGD against Adam at batch 4,096, on an MLP, a CNN and a ViT.

No claim of the sources hangs on this study; claim P1 sweeps the batch size. Every method has one
number to tune, with the same nine tries. All else is the library's default, but preconditioners are
renewed every 5 steps, since an epoch has 14, and K-FAC clips: in a first try without it, every run
on the CNN with a damping below 0.1 was lost.

At the gpu scale the MLP and the ViT are trained for 20 epochs; the study of batch sizes has the
CNN, and larger networks. A method on a network is one program of nine runs, for its tries and its
seeds. By arithmetic, not measured: 10 programs with 5 to 10 seconds for their runs, and 10 more to
time single runs; 9 minutes of an H100.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu.data import mnist
from soaa_edu.engine import Cell, device_note
from soaa_edu.models import Model, cnn, mlp, vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.race import Task, costs, epoch_costs, races
from soaa_edu.studies.searches import Grid, grid_around
from soaa_edu.studies.tables import as_text, of_race
from soaa_edu.studies.verdicts import Verdict, one_answer

TITLE = "K-FAC, Shampoo, SOAP and PSGD against Adam at batch 4,096"
CLAIMS = ()
FIELD = ("adam", "kfac", "shampoo", "soap", "psgd")
REFRESH_EVERY = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "kfac": {"learning_rate": 0.1, "invert_every": REFRESH_EVERY, "kl_clip": 1e-2},
    "shampoo": {"refresh_every": REFRESH_EVERY},
    "soap": {"refresh_every": REFRESH_EVERY},
}
"""What is not tuned, and not the library's default."""
NETWORKS = {"mlp": "MLP 784-256-256-10, tanh", "cnn": "CNN", "vit": "ViT"}
EPOCHS = {"mlp": 3, "cnn": 3, "vit": 1}


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int | None = None
    batch_size: int = 4096
    epochs: dict[str, int] = EPOCHS
    tuning_values: int = 9
    seeds: int = 3
    timed_steps: int = 5
    minutes: float = 75.0


SCALES = {
    "quick": Settings(
        train_size=2048,
        batch_size=256,
        epochs={"mlp": 1},
        tuning_values=1,
        seeds=2,
        timed_steps=8,
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(epochs={"mlp": 20, "vit": 20}, seeds=5, timed_steps=140, minutes=9.0),
}


def network(name: str) -> Model:
    """One of the three networks, at its size in the book."""
    if name == "mlp":
        return mlp([784, 256, 256, 10], jnp.tanh)
    return cnn() if name == "cnn" else vit()


def grid(method: str, tries: int) -> Grid:
    """The damping of K-FAC, or the learning rate of the others."""
    if method == "kfac":
        return {"damping": grid_around(0.03, 2.0, tries)}
    return {"learning_rate": grid_around(3e-3, 2.0, tries)}


def build(method: str, task: Task, **point: Any) -> Optimizer:
    """A method with its tuned number."""
    settings = SETTINGS.get(method, {})
    return methods.build(method, task.objective, task.steps, **point, **settings)


def tasks(settings: Settings) -> list[Task]:
    """One for each network."""
    data = mnist(settings.train_size)
    return [
        Task(
            {"network": name},
            Objective(network(name), softmax_cross_entropy),
            lambda: data,
            len(data.train[0]),
            epochs,
            settings.batch_size,
        )
        for name, epochs in settings.epochs.items()
    ]


def cells(settings: Settings) -> dict[str, Cell]:
    """One cell for each method on each network, and one for the timing of each network."""
    on = tasks(settings)
    points = partial(grid, tries=settings.tuning_values)
    found = races(on, FIELD, build, points, seeds=settings.seeds)
    timed = partial(epoch_costs, steps=settings.timed_steps)
    return found | costs(on, FIELD, build, partial(grid, tries=1), timed)


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return stored.values_of(results, "network", method="adam")


def against_adam(results: dict, method: str, network: str) -> str:
    """Whether a method's last epoch lies below Adam's by 1 % or more, from all its seeds."""
    return one_answer(stored.beside(results, method, "adam", network=network), "below 1 %")


def rows(results: dict, field: Sequence[str] = FIELD) -> list[dict[str, str]]:
    """Loss, accuracy, cost and the comparison with Adam, one for each network and method."""
    columns = ["tuned", "loss", "accuracy", "ms/step", "Adam steps", "state/params"]
    found = []
    for network in networks_of(results):
        shown = of_race(results, field, columns, network=network)
        for method, row in zip(field, shown, strict=True):
            below = "" if method == "adam" else against_adam(results, method, network)
            found.append({"network": network.upper(), **row, "below Adam": below})
    return found


def table(results: dict, field: Sequence[str] = FIELD) -> str:
    """The rows as text."""
    timed = list(stored.select(results, cost="step"))
    return as_text(rows(results, field), device_note(results, timed))


def draw_losses(
    axes: Axes, results: dict, network: str, field: Sequence[str] = FIELD, against: str = "step"
) -> None:
    """Training loss against steps, or against seconds at the timed seconds of a step."""
    panels.curves(axes, results, field, against=against, network=network)
    axes.set(yscale="log", title=NETWORKS[network])


def figure(results: dict) -> Figure:
    """Loss against steps above, against seconds below, a column for each network."""
    networks = networks_of(results)
    drawing, axes = plt.subplots(
        2, len(networks), figsize=(4.2 * len(networks) + 1, 6.5), squeeze=False
    )
    for column, network in enumerate(networks):
        draw_losses(axes[0, column], results, network)
        draw_losses(axes[1, column], results, network, against="second")
    axes[0, 0].legend()
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """No claim is settled here."""
    return []
