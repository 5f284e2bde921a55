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

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import Dataset, mnist
from soaa_edu.engine import Cell
from soaa_edu.models import Model, cnn, mlp, vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import FIRST_ORDER, METHODS, build, grid, label
from soaa_edu.studies.results import capped
from soaa_edu.studies.runs import epochs_in_turn, middles, state_bytes
from soaa_edu.studies.searches import tuned
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured, one_answer

TITLE = "First- and second-order methods at batch sizes from 64 to 16,384"
CLAIMS = ("P1",)
CLAIMED = ("kfac", "shampoo")
TARGET_LOSS = 0.5
ACCURACY_MARGIN = 0.2
LOSS_MARGIN = 1.0
NETWORKS = {"mlp": "MLP", "cnn": "CNN", "vit": "ViT"}


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    batch_sizes: dict[str, tuple[int, ...]]
    images: dict[str, int | None]
    hidden: int
    width: int
    channels: int
    depth: int
    epochs: int
    warm_up: float
    methods: tuple[str, ...]
    tries: int
    seeds: int
    timed: dict[str, tuple[int, ...]]
    minutes: float


ALL_SIZES = tuple(64 * 2**k for k in range(9))
FEW_SIZES = (64, 1024, 16_384)
THREE_SIZES = (256, 2048, 16_384)
COMPILATION = 25.0
PASSES = 2.5
STEP = {"mlp": (1.5e-3, 3e-6), "cnn": (2e-3, 20e-6), "vit": (4e-3, 20e-6)}
"""By arithmetic for an H100: seconds to compile a program; how often its runs are trained in a
search and for its seeds; seconds of a step of all runs, and more for each example."""
SCALES = {
    "quick": Settings(
        {"mlp": (64, 1024)},
        {"mlp": 2048},
        16,
        0,
        0,
        0,
        2,
        0.0,
        ("adam", "kfac"),
        1,
        3,
        {},
        1.0,
    ),
    "laptop": Settings(
        {"mlp": ALL_SIZES, "cnn": FEW_SIZES, "vit": FEW_SIZES},
        {"mlp": 32_768, "cnn": 20_000, "vit": 20_000},
        64,
        16,
        8,
        2,
        3,
        0.0,
        tuple(METHODS),
        9,
        3,
        dict.fromkeys(NETWORKS, FEW_SIZES),
        135.0,
    ),
    "gpu": Settings(
        {"mlp": (256, 1024, 4096, 16_384), "vit": THREE_SIZES, "cnn": THREE_SIZES},
        dict.fromkeys(NETWORKS),
        256,
        64,
        72,
        4,
        10,
        0.05,
        tuple(METHODS),
        9,
        9,
        {"mlp": (4096,), "vit": (2048,), "cnn": (2048,)},
        55.0,
    ),
}


def network(name: str, settings: Settings) -> Model:
    """One of the three networks at the size of a scale."""
    if name == "mlp":
        return mlp([784, settings.hidden, settings.hidden, 10], jnp.tanh)
    if name == "cnn":
        return cnn(channels=(settings.channels,) * 3)
    return vit(width=settings.width, depth=settings.depth)


def cells(settings: Settings) -> dict[str, Callable[[], Any] | Cell]:
    """A cell for each method at each batch size on each network, and one for each timing.

    The methods of the claim and their rivals come first, a network after the other.
    """
    found: dict[str, Callable[[], Any] | Cell] = {}
    on = {
        name: (Objective(network(name, settings), softmax_cross_entropy), mnist(images))
        for name, images in settings.images.items()
    }
    central = (*FIRST_ORDER, *CLAIMED)
    for group in (True, False):
        methods = [method for method in settings.methods if (method in central) == group]
        for name, sizes in settings.batch_sizes.items():
            objective, data = on[name]
            for batch_size in sizes:
                latency, of_example = STEP[name]
                steps = settings.epochs * (len(data.train[0]) // batch_size)
                run = steps * (latency + batch_size * of_example)
                for method in methods:
                    found[f"{method}_on_{name}_at_{batch_size}"] = Cell(
                        partial(_race, method, objective, data, batch_size, settings),
                        share=COMPILATION + PASSES * run,
                    )
    for name, sizes in settings.timed.items():
        for batch_size in sizes:
            found[f"cost_on_{name}_at_{batch_size}"] = Cell(
                partial(_costs, *on[name], batch_size, settings),
                share=COMPILATION * len(settings.methods),
            )
    return found


def _race(
    method: str, objective: Objective, data: Dataset, batch_size: int, settings: Settings
) -> dict[str, Any]:
    steps = len(data.train[0]) // batch_size
    return tuned(
        partial(build, method, objective, steps, settings.epochs, warm_up=settings.warm_up),
        grid(method, settings.tries),
        data,
        epochs=settings.epochs,
        batch_size=batch_size,
        seeds=settings.seeds,
        last=max(steps // 10, 1),
    )


def _costs(
    objective: Objective, data: Dataset, batch_size: int, settings: Settings
) -> dict[str, Any]:
    """Seconds of an epoch, one for each of three repeats in turn, and bytes of state."""
    model: Any = objective.model
    params = model.init(jax.random.key(0))
    steps = len(data.train[0]) // batch_size
    optimizers = {
        method: build(
            method,
            objective,
            steps,
            settings.epochs,
            warm_up=settings.warm_up,
            **{name: values[0] for name, values in grid(method, 1).items()},
        )
        for method in settings.methods
    }

    return {
        "seconds_an_epoch": epochs_in_turn(optimizers, data, batch_size),
        "bytes": {method: state_bytes(o, params) for method, o in optimizers.items()},
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def networks_of(results: dict) -> list[str]:
    """The networks on which the claim's methods and their rivals are all there."""
    asked = {m for m in (*FIRST_ORDER, *CLAIMED) if m in results["settings"]["methods"]}
    networks = [name for name in NETWORKS if name in results["settings"]["batch_sizes"]]
    return [name for name in networks if asked <= {*methods_of(results, name)}]


def methods_of(results: dict, network: str) -> list[str]:
    """The methods that were raced on a network at all its batch sizes."""
    return [
        method
        for method in results["settings"]["methods"]
        if all(
            f"{method}_on_{network}_at_{size}" in results["cells"]
            for size in sizes_of(results, network)
        )
    ]


def sizes_of(results: dict, network: str) -> list[int]:
    """The batch sizes at which a network was trained."""
    return list(results["settings"]["batch_sizes"][network])


def over_runs(results: dict, method: str, network: str, batch_size: int, key: str) -> np.ndarray:
    """A tuned method's numbers, seeds along the first axis."""
    return stored.over_runs(results, f"{method}_on_{network}_at_{batch_size}", key)


def final_loss(results: dict, method: str, network: str, batch_size: int) -> np.ndarray:
    """Training loss at the end, one for each seed; that of a diverged run counts as 10."""
    return capped(over_runs(results, method, network, batch_size, "final_loss"))


def accuracy(results: dict, method: str, network: str, batch_size: int) -> np.ndarray:
    """Test accuracy at the end, one for each seed; that of a diverged run counts as 0."""
    return np.nan_to_num(over_runs(results, method, network, batch_size, "test_accuracy")[:, -1])


def best_first_order(results: dict, network: str, batch_size: int) -> str:
    """Of SGD and Adam, where both were run, the one with the lower mean loss."""
    rivals = [method for method in FIRST_ORDER if method in results["settings"]["methods"]]
    return min(rivals, key=lambda method: final_loss(results, method, network, batch_size).mean())


def log_ratio(results: dict, method: str, network: str, batch_size: int) -> np.ndarray:
    """Log of a method's loss over the better first-order method's, one for each seed."""
    rival = best_first_order(results, network, batch_size)
    losses = (final_loss(results, m, network, batch_size) for m in (method, rival))
    return stored.log_ratio(*losses)


def steps_to_target(results: dict, method: str, network: str, batch_size: int) -> np.ndarray:
    """Steps after which a stretch's mean loss is at most 0.5; infinity where none is."""
    loss = over_runs(results, method, network, batch_size, "loss")
    steps = int(over_runs(results, method, network, batch_size, "steps")[0])
    reached = np.nan_to_num(loss, nan=np.inf) <= TARGET_LOSS
    places = middles(loss.shape[1], steps)[reached.argmax(axis=1)]
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
            "above",
            ACCURACY_MARGIN,
            "points",
            at_largest,
        ),
        Clause(
            "by more than at small batch",
            "the same, less what it is at the smallest:",
            "above",
            ACCURACY_MARGIN,
            "points",
            growth,
        ),
    ]
    return [judge("P1", clauses, seeds=results["settings"]["seeds"], findings=_told(results))]


def accuracy_gained(results: dict, method: str, network: str, batch_size: int) -> np.ndarray:
    """A method's test accuracy less that of the first-order method of higher mean accuracy."""
    rivals = [m for m in FIRST_ORDER if m in results["settings"]["methods"]]
    best = max(rivals, key=lambda rival: accuracy(results, rival, network, batch_size).mean())
    mine = accuracy(results, method, network, batch_size)
    return mine - accuracy(results, best, network, batch_size)


def _told(results: dict) -> list[str]:
    """Accuracies at the largest batch, and the losses there beside first order's."""
    found = []
    for network in networks_of(results):
        largest = sizes_of(results, network)[-1]
        found.append(
            f"{NETWORKS[network]}, accuracy at {largest:,}: "
            + ", ".join(
                f"{label(m)} {mean_and_spread(accuracy(results, m, network, largest), 3)}"
                for m in methods_of(results, network)
            )
        )
        for method in (m for m in CLAIMED if m in results["settings"]["methods"]):
            lower = log_ratio(results, method, network, largest)
            answer = one_answer(lower, "below", LOSS_MARGIN, "%")
            found.append(
                f"{NETWORKS[network]}, loss of {label(method)} below first order's: {answer}, "
                f"{100 * np.expm1(lower.mean()):+.0f} %"
            )
    return found


def rows(results: dict, network: str, batch_size: int) -> list[dict[str, str]]:
    """Loss, accuracy, steps to the target and cost of each method at a batch size."""
    costs = results["cells"].get(f"cost_on_{network}_at_{batch_size}")
    found = []
    for method in methods_of(results, network):
        given = (results, method, network, batch_size)
        reached = np.median(steps_to_target(*given))
        best = results["cells"][f"{method}_on_{network}_at_{batch_size}"]["search"]["best"]
        row = {
            "network": NETWORKS[network],
            "batch": f"{batch_size:,}",
            "method": label(method),
            "tuned": ", ".join(f"{value:.2g}" for value in best.values()),
            "loss": mean_and_spread(final_loss(*given), 3),
            "accuracy": mean_and_spread(accuracy(*given), 3),
            f"steps to {TARGET_LOSS}": f"{reached:.0f}" if np.isfinite(reached) else "-",
        }
        if costs:
            times = np.array(costs["seconds_an_epoch"][method])
            adam = np.array(costs["seconds_an_epoch"]["adam"])
            row["s/epoch"] = f"{np.median(times):.2f}"
            row["Adam steps"] = f"{np.median(times / adam):.1f}"
            row["state/params"] = f"{costs['bytes'][method] / costs['parameter_bytes']:.1f}"
        found.append(row)
    return found


def table(results: dict, network: str, batch_size: int) -> str:
    """The rows as text."""
    return as_text(rows(results, network, batch_size))


def draw(
    axes: Axes, results: dict, network: str, quantity: Callable, methods: Sequence[str] | None
) -> None:
    """``quantity`` of each method against the batch size, a band for the seeds."""
    sizes = sizes_of(results, network)
    for method in methods or methods_of(results, network):
        values = np.array([quantity(results, method, network, size) for size in sizes]).T
        plotting.band(axes, sizes, values, marker="o", markersize=3, **METHODS[method])
    plotting.sizes_axis(axes, sizes)
    axes.set(xlabel="batch size", title=NETWORKS[network])


def draw_losses(
    axes: Axes, results: dict, network: str, methods: Sequence[str] | None = None
) -> None:
    """Final training loss against the batch size."""
    draw(axes, results, network, final_loss, methods)
    axes.set(ylabel="training loss (nats)", yscale="log")


def draw_accuracies(
    axes: Axes, results: dict, network: str, methods: Sequence[str] | None = None
) -> None:
    """Test accuracy against the batch size, as in the poster's Figure 1."""
    draw(axes, results, network, accuracy, methods)
    axes.set(ylabel="test accuracy")


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
