"""First- and second-order methods at batch sizes from 64 to 16,384 (claim P1, Figure 1).

An MLP, a CNN and a ViT see their images a fixed number of times, so that a batch twice as large
means half as many steps. Every method is tuned at every batch size, with nine tries and more where
the best lies at an edge: up to 11 for a learning rate, up to 35 for the two numbers of K-FAC.
Losses are means over the last tenth of the last epoch.

Budget: at the quick scale 12 runs of about a second; at the laptop scale some 1,250 runs of 1 to
30 seconds, 2 h 15 min on one of two cores that were both busy.

At the gpu scale the MLP has 270,000 parameters, the ViT 139,000 and the CNN 105,000. They see all
of MNIST ten times, at batches from 256 to 16,384, and the learning rate of every method rises over
a twentieth of the steps and falls along a cosine. A method at a batch size is one program of nine
runs side by side, which serves its search and its nine fresh seeds: SGD, Adam, K-FAC and Shampoo
make 16 programs on the MLP, and 12 on each of the others at three batch sizes. They come first, a
network after the other, then PSGD and SOAA. By arithmetic, not measured, a program compiles in 25 s
on an H100, and its runs take some 10 s on the MLP and 50 s on the others. By its rehearsal the
largest, at 16,384 on the ViT and the CNN, needs 50 to 70 GB for nine runs; with less, fewer go side
by side. The poster's DeiT-small on ImageNet is 300 epochs of 1.3 million images of 224 x 224
pixels, 10^19 operations a run, a thousand times what the whole of this takes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu.data import mnist
from soaa_edu.engine import Cell
from soaa_edu.models import Model, cnn, mlp, vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.poster.field import FIELD, FIRST_ORDER, build, grid
from soaa_edu.studies.race import Task, costs, epoch_costs, races
from soaa_edu.studies.results import beside, final_accuracy, final_loss, middles
from soaa_edu.studies.tables import as_text, of_race
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured, one_answer

TITLE = "First- and second-order methods at batch sizes from 64 to 16,384"
CLAIMS = ("P1",)
CLAIMED = ("kfac", "shampoo")
TARGET_LOSS = 0.5
NETWORKS = {"mlp": "MLP", "cnn": "CNN", "vit": "ViT"}
ALL_SIZES = tuple(64 * 2**k for k in range(9))
FEW_SIZES = (64, 1024, 16_384)
THREE_SIZES = (256, 2048, 16_384)
SIZES = {"mlp": ALL_SIZES, "cnn": FEW_SIZES, "vit": FEW_SIZES}
IMAGES: dict[str, int | None] = {"mlp": 32_768, "cnn": 20_000, "vit": 20_000}
TIMED: dict[str, tuple[int, ...]] = dict.fromkeys(NETWORKS, FEW_SIZES)


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    batch_sizes: dict[str, tuple[int, ...]] = SIZES
    images: dict[str, int | None] = IMAGES
    hidden: int = 64
    width: int = 16
    channels: int = 8
    depth: int = 2
    epochs: int = 3
    warm_up: float = 0.0
    methods: tuple[str, ...] = FIELD
    tries: int = 9
    seeds: int = 3
    timed: dict[str, tuple[int, ...]] = TIMED
    minutes: float = 135.0


SCALES = {
    "quick": Settings(
        batch_sizes={"mlp": (64, 1024)},
        images={"mlp": 2048},
        hidden=16,
        epochs=2,
        methods=("adam", "kfac"),
        tries=1,
        timed={},
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        batch_sizes={"mlp": (256, 1024, 4096, 16_384), "vit": THREE_SIZES, "cnn": THREE_SIZES},
        images=dict.fromkeys(NETWORKS),
        hidden=256,
        width=64,
        channels=72,
        depth=4,
        epochs=10,
        warm_up=0.05,
        seeds=9,
        timed={"mlp": (4096,), "vit": (2048,), "cnn": (2048,)},
        minutes=55.0,
    ),
}
COMPILATION = 25.0
PASSES = 2.5
STEP = {"mlp": (1.5e-3, 3e-6), "cnn": (2e-3, 20e-6), "vit": (4e-3, 20e-6)}
"""By arithmetic for an H100: seconds to compile a program; how often its runs are trained in a
search and for its seeds; seconds of a step of all runs, and more for each example."""


def network(name: str, settings: Settings) -> Model:
    """One of the three networks at the size of a scale."""
    if name == "mlp":
        return mlp([784, settings.hidden, settings.hidden, 10], jnp.tanh)
    if name == "cnn":
        return cnn(channels=(settings.channels,) * 3)
    return vit(width=settings.width, depth=settings.depth)


def tasks(settings: Settings) -> dict[tuple[str, int], Task]:
    """Network and batch size -> the task."""
    found = {}
    for name, sizes in settings.batch_sizes.items():
        objective = Objective(network(name, settings), softmax_cross_entropy)
        load = partial(mnist, settings.images[name])
        images = settings.images[name] or 60_000
        for size in sizes:
            labels = {"network": name, "batch": size}
            last = max(images // size // 10, 1)
            found[name, size] = Task(labels, objective, load, images, settings.epochs, size, last)
    return found


def cells(settings: Settings) -> dict[str, Cell]:
    """A cell for each method on each task, the claim's methods and their rivals first; timings."""
    on = tasks(settings)
    built = partial(build, warm_up=settings.warm_up)
    found: dict[str, Cell] = {}
    for group in (True, False):
        found |= races(
            on.values(),
            [m for m in settings.methods if (m in (*FIRST_ORDER, *CLAIMED)) == group],
            built,
            partial(grid, tries=settings.tries),
            seeds=settings.seeds,
            share=_seconds,
        )
    timed = [on[name, size] for name, sizes in settings.timed.items() for size in sizes]
    share = COMPILATION * len(settings.methods)
    points = partial(grid, tries=1)
    return found | costs(timed, settings.methods, built, points, epoch_costs, share=share)


def _seconds(task: Task) -> float:
    latency, of_example = STEP[task.labels["network"]]
    return COMPILATION + PASSES * task.steps * (latency + task.batch_size * of_example)


def networks_of(results: dict) -> list[str]:
    """The networks on which the claim's methods and their rivals are all there."""
    asked = {m for m in (*FIRST_ORDER, *CLAIMED) if m in results["settings"]["methods"]}
    networks = [name for name in NETWORKS if name in results["settings"]["batch_sizes"]]
    return [name for name in networks if asked <= {*methods_of(results, name)}]


def methods_of(results: dict, network: str) -> list[str]:
    """The methods that were raced on a network at all its batch sizes."""
    sizes = {str(size) for size in sizes_of(results, network)}
    return [
        method
        for method in results["settings"]["methods"]
        if {*stored.values_of(results, "batch", method=method, network=network)} == sizes
    ]


def sizes_of(results: dict, network: str) -> list[int]:
    """The batch sizes at which a network was trained."""
    return list(results["settings"]["batch_sizes"][network])


def rivals(results: dict) -> list[str]:
    """The first-order methods that were raced."""
    return [method for method in FIRST_ORDER if method in results["settings"]["methods"]]


def log_ratio(results: dict, method: str, network: str, batch: int) -> np.ndarray:
    """Log of a method's loss over the better first-order method's, one for each seed."""
    rival = stored.lowest(results, rivals(results), network=network, batch=batch)
    return beside(results, method, rival, network=network, batch=batch)


def accuracy_gained(results: dict, method: str, network: str, batch: int) -> np.ndarray:
    """A method's test accuracy less that of the first-order method of higher mean accuracy."""
    mine, *theirs = (
        final_accuracy(results, method=m, network=network, batch=batch)
        for m in (method, *rivals(results))
    )
    return mine - max(theirs, key=np.mean)


def steps_to_target(results: dict, **labels: Any) -> np.ndarray:
    """Steps after which a stretch's mean loss is at most 0.5; infinity where none is."""
    loss = stored.over_runs(results, "loss", **labels)
    reached = np.nan_to_num(loss, nan=np.inf) <= TARGET_LOSS
    places = middles(loss.shape[1], stored.steps(results, **labels))[reached.argmax(axis=1)]
    return np.where(reached.any(axis=1), places, np.inf)


def verdicts(results: dict) -> list[Verdict]:
    """P1: at the largest batch K-FAC and Shampoo beat first order, by more than at the smallest."""
    at_largest, growth = [], []
    for network in networks_of(results):
        smallest, *_, largest = sizes_of(results, network)
        for method in (m for m in CLAIMED if m in results["settings"]["methods"]):
            where = f"{label(method)}, {NETWORKS[network]}"
            gained = accuracy_gained(results, method, network, largest)
            less = accuracy_gained(results, method, network, smallest)
            at_largest.append(measured(gained, where))
            growth.append(measured(gained - less, where))
    clauses = [
        Clause(
            "second order outperforms first order at large batch",
            "accuracy less that of the better of SGD and Adam at the largest batch:",
            "above 0.2 points",
            at_largest,
        ),
        Clause(
            "by more than at small batch",
            "the same, less what it is at the smallest:",
            "above 0.2 points",
            growth,
        ),
    ]
    return [judge("P1", clauses, findings=_findings(results))]


def _findings(results: dict) -> list[str]:
    """Accuracies at the largest batch, and the losses there beside first order's."""
    found = []
    for network in networks_of(results):
        largest = sizes_of(results, network)[-1]
        at = {"network": network, "batch": largest}
        accuracies = (
            f"{label(m)} {mean_and_spread(final_accuracy(results, method=m, **at), 3)}"
            for m in methods_of(results, network)
        )
        found.append(f"{NETWORKS[network]}, accuracy at {largest:,}: {', '.join(accuracies)}")
        for method in (m for m in CLAIMED if m in results["settings"]["methods"]):
            lower = log_ratio(results, method, network, largest)
            found.append(
                f"{NETWORKS[network]}, loss of {label(method)} below first order's: "
                f"{one_answer(lower, 'below 1 %')}, "
                f"{100 * np.expm1(lower.mean()):+.0f} %"
            )
    return found


def rows(results: dict, network: str, batch: int) -> list[dict[str, str]]:
    """Loss, accuracy, steps to the target and, where it was timed, cost at a batch size."""
    at = {"network": network, "batch": batch}
    methods = methods_of(results, network)
    columns = ["tuned", "loss", "accuracy"]
    if batch in results["settings"]["timed"].get(network, ()):
        columns += ["ms/step", "Adam steps", "state/params"]
    found = of_race(results, methods, columns, **at)
    for method, row in zip(methods, found, strict=True):
        reached = np.median(steps_to_target(results, method=method, **at))
        row[f"steps to {TARGET_LOSS}"] = f"{reached:.0f}" if np.isfinite(reached) else "-"
    return [{"network": NETWORKS[network], "batch": f"{batch:,}", **row} for row in found]


def table(results: dict, network: str, batch: int) -> str:
    """The rows as text."""
    return as_text(rows(results, network, batch))


def draw_losses(axes: Axes, results: dict, network: str) -> None:
    """Final training loss against the batch size."""
    _draw(axes, results, network, final_loss)
    axes.set(ylabel=panels.LOSS, yscale="log")


def draw_accuracies(axes: Axes, results: dict, network: str) -> None:
    """Test accuracy against the batch size, as in the poster's Figure 1."""
    _draw(axes, results, network, final_accuracy)
    axes.set(ylabel="test accuracy")


def _draw(axes: Axes, results: dict, network: str, quantity: Any) -> None:
    def number(method: str, size: int) -> np.ndarray:
        return quantity(results, method=method, network=network, batch=size)

    panels.against_size(axes, sizes_of(results, network), number, methods_of(results, network))
    axes.set(xlabel="batch size", title=NETWORKS[network])


def figure(results: dict) -> Figure:
    """Accuracy above, loss below, a column for each network."""
    networks = networks_of(results)
    drawing, axes = plt.subplots(
        2, len(networks), figsize=(4.2 * len(networks) + 1, 6.5), squeeze=False
    )
    for column, network in enumerate(networks):
        draw_accuracies(axes[0, column], results, network)
        draw_losses(axes[1, column], results, network)
    axes[0, 0].legend()
    return drawing
