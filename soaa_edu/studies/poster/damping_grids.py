"""Learning rate and damping of K-FAC and Gauss-Newton at each batch size (claim P6, Figure 5).

A network sees its images a fixed number of times at every batch size, once for each learning rate,
damping and seed of a grid. A seed's best damping at a batch size is where the loss, the lowest over
the learning rates, has its minimum along the damping; between the grid's points a parabola in the
logarithms says where. How the best damping grows is an exponent: the slope of its logarithm over
that of the batch size, or of the learning rate. An exponent within 0.25 of 1 counts as
proportional: over the factor of 64 between the laptop's batch sizes that moves the best damping by
64^0.25 = 2.8, less than one step of its grid.

K-FAC inverts its factors as often as in the study of batch sizes, so that at small batches inverses
are some steps old, and damping might have to make up for their age. At one learning rate it is
therefore also run with an inversion at every step.

Budget: at the quick scale 54 runs of a fraction of a second; at the laptop scale 1,620 runs of
about a second, 27 min on one CPU core.

At the gpu scale the network has 270,000 parameters and sees all of MNIST five times at batches of
64, 512, 4,096 and 16,384. Each method and batch size is one program, which trains 7 rates by 7
dampings by 3 seeds side by side: 8 programs of 147 runs. By arithmetic, not measured, they compile
in 25 s each and run in 10 to 60 s on an H100: a K-FAC step of all runs takes 10 ms at a batch of
64, half of it for the inverses, and 350 ms at 16,384; one of Gauss-Newton, with ten products, 12 ms
and 2.5 s.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from soaa_edu import plotting
from soaa_edu.data import mnist
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS, label
from soaa_edu.studies.poster.field import refresh_every
from soaa_edu.studies.race import Task
from soaa_edu.studies.results import capped
from soaa_edu.studies.searches import grid_around
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Reading, Verdict, judge, mean_and_spread, measured
from soaa_edu.training import sweep

TITLE = "Learning rate and damping at each batch size"
CLAIMS = ("P6",)
FIELD = ("kfac", "gauss_newton")
FRESH = "kfac_fresh"
COLOUR_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


RATES = {
    "kfac": grid_around(0.0125, 4.0, 7),
    "gauss_newton": grid_around(1.25, 2.5, 7),
    FRESH: [0.0125],
}
DAMPINGS = {
    "kfac": grid_around(0.00625, 4.0, 9),
    "gauss_newton": grid_around(0.4, 4.0, 9),
    FRESH: grid_around(0.00625, 4.0, 9),
}


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default. Grids are by method."""

    batch_sizes: tuple[int, ...] = (32, 128, 512, 2048)
    learning_rates: dict[str, list[float]] = RATES
    dampings: dict[str, list[float]] = DAMPINGS
    images: int | None = 4096
    hidden: int = 32
    epochs: int = 3
    seeds: int = 3
    minutes: float = 27.0


SCALES = {
    "quick": Settings(
        batch_sizes=(32, 128),
        learning_rates={"kfac": grid_around(0.05, 4.0, 3)},
        dampings={"kfac": grid_around(0.1, 10.0, 3)},
        images=512,
        hidden=8,
        epochs=1,
        minutes=0.25,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        batch_sizes=(64, 512, 4096, 16_384),
        learning_rates={method: RATES[method] for method in FIELD},
        dampings={
            "kfac": grid_around(0.00625, 5.0, 7),
            "gauss_newton": grid_around(0.4, 5.0, 7),
        },
        images=None,
        hidden=256,
        epochs=5,
        minutes=8.0,
    ),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """A cell for each method and batch size."""
    objective = Objective(
        mlp([784, settings.hidden, settings.hidden, 10], jnp.tanh), softmax_cross_entropy
    )
    data = mnist(settings.images)
    images = len(data.train[0])
    found: dict[str, Callable[[], Any]] = {}
    for method, rates in settings.learning_rates.items():
        axes = {"learning_rate": rates, "damping": settings.dampings[method]}
        for size in settings.batch_sizes:
            labels = {"method": method, "batch": size}
            last = max(images // size // 10, 1)
            task = Task(labels, objective, lambda: data, images, settings.epochs, size, last)
            found[stored.name(**labels)] = partial(_grid, method, task, axes, settings.seeds)
    return found


def build(method: str, task: Task, **point: Any) -> Optimizer:
    """A method at a point of its grid."""
    if method == "gauss_newton":
        return methods.build(method, task.objective, task.steps, max_iterations=10, **point)
    invert_every = 1 if method == FRESH else refresh_every(task.steps_an_epoch)
    return methods.build("kfac", task.objective, task.steps, invert_every=invert_every, **point)


def _grid(method: str, task: Task, axes: dict[str, list[float]], seeds: int) -> dict[str, Any]:
    """Final losses and accuracies, ``(rates, dampings, seeds)``."""
    model: Any = task.objective.model
    last = task.last or task.steps_an_epoch
    swept = sweep(
        partial(build, method, task),
        axes,
        model.init,
        task.load(),
        epochs=task.epochs,
        batch_size=task.batch_size,
        keys=jnp.stack([jax.random.key(seed) for seed in range(seeds)]),
    )
    return {
        "loss": capped(swept["loss"][..., -last:].mean(axis=-1)),
        "accuracy": np.nan_to_num(swept["test_accuracy"][..., -1]),
    }


def methods_of(results: dict) -> list[str]:
    """The methods that these results are about."""
    return [method for method in FIELD if method in results["settings"]["learning_rates"]]


def grids(results: dict, method: str) -> tuple[np.ndarray, np.ndarray]:
    """A method's learning rates and dampings."""
    settings = results["settings"]
    return np.array(settings["learning_rates"][method]), np.array(settings["dampings"][method])


def over_grid(results: dict, method: str, batch_size: int, key: str = "loss") -> np.ndarray:
    """A method's final losses or accuracies, ``(rates, dampings, seeds)``."""
    return np.array(stored.one(results, method=method, batch=batch_size)[key])


def lowest_at(values: np.ndarray, losses: np.ndarray) -> float:
    """Where losses are lowest along evenly spaced logarithms: a parabola's minimum, or an edge.

    Args:
        values: ascending, each the same factor times the one before, ``(n,)``.
        losses: above zero, ``(n,)``.

    Returns:
        The minimum of the parabola in log ``values`` and log ``losses`` through the best of the
        ``values`` and its neighbours; the best itself where it has but one.
    """
    best = int(losses.argmin())
    if best in (0, len(values) - 1):
        return float(values[best])
    before, here, after = np.log(losses[best - 1 : best + 2])
    bend = before - 2 * here + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float(values[best] * (values[1] / values[0]) ** shift)


def best_damping(results: dict, method: str, batch_size: int) -> np.ndarray:
    """The damping of the lowest loss over all learning rates, one for each seed."""
    _, dampings = grids(results, method)
    lowest = over_grid(results, method, batch_size).min(axis=0)
    return np.array([lowest_at(dampings, losses) for losses in lowest.T])


def best_damping_at_rates(results: dict, method: str, batch_size: int) -> np.ndarray:
    """The damping of the lowest loss at each learning rate, ``(rates, seeds)``."""
    _, dampings = grids(results, method)
    losses = over_grid(results, method, batch_size)
    return np.array([[lowest_at(dampings, seed) for seed in at_rate.T] for at_rate in losses])


def exponent(x: Any, y: np.ndarray) -> np.ndarray:
    """The slope of log ``y`` over log ``x`` by least squares along the first axis of ``y``."""
    log_x = np.log(np.asarray(x, float))
    log_x -= log_x.mean()
    return np.tensordot(log_x, np.log(y), axes=1) / (log_x @ log_x)


def batch_exponent(results: dict, method: str) -> np.ndarray:
    """The exponent of the best damping in the batch size, one for each seed."""
    sizes = results["settings"]["batch_sizes"]
    return exponent(sizes, np.array([best_damping(results, method, size) for size in sizes]))


def batch_exponent_at_rates(results: dict, method: str) -> np.ndarray:
    """The same at a fixed learning rate, mean over the rates, one for each seed."""
    sizes = results["settings"]["batch_sizes"]
    best = np.array([best_damping_at_rates(results, method, size) for size in sizes])
    return exponent(sizes, best).mean(axis=0)


def fresh_rate(results: dict) -> float:
    """The learning rate at which K-FAC was also run with an inversion at every step."""
    (rate,) = results["settings"]["learning_rates"][FRESH]
    return rate


def best_at_fresh_rate(results: dict, method: str) -> np.ndarray:
    """Best dampings at that rate of ``"kfac"`` or ``FRESH``, ``(batch sizes, seeds)``."""
    rates, _ = grids(results, method)
    place = int(np.argmin(np.abs(rates - fresh_rate(results))))
    sizes = results["settings"]["batch_sizes"]
    return np.array([best_damping_at_rates(results, method, size)[place] for size in sizes])


def exponent_at_fresh_rate(results: dict, method: str) -> np.ndarray:
    """The exponent of those in the batch size, one for each seed."""
    return exponent(results["settings"]["batch_sizes"], best_at_fresh_rate(results, method))


def rate_exponent(results: dict, method: str) -> np.ndarray:
    """The exponent of the best damping in the learning rate, mean over batch sizes, by seed.

    Where the best lies at its grid's edge, the true exponent is the larger one in size.
    """
    rates, _ = grids(results, method)
    sizes = results["settings"]["batch_sizes"]
    best = (best_damping_at_rates(results, method, size) for size in sizes)
    return np.mean([exponent(rates, at_rates) for at_rates in best], axis=0)


def best_point(results: dict, method: str, batch_size: int) -> tuple[int, int]:
    """Where on the grid the mean loss over seeds is lowest: places of its rate and its damping."""
    mean = over_grid(results, method, batch_size).mean(axis=-1)
    rate, damping = np.unravel_index(mean.argmin(), mean.shape)
    return int(rate), int(damping)


def at_edge(results: dict, method: str, batch_size: int) -> list[str]:
    """Of learning rate and damping those whose best value is the first or the last of its grid."""
    names = ("learning rate", "damping")
    places = zip(
        names, best_point(results, method, batch_size), grids(results, method), strict=True
    )
    return [name for name, place, values in places if place in (0, len(values) - 1)]


def verdicts(results: dict) -> list[Verdict]:
    """P6: the best damping grows with the batch size, in proportion, and with the learning rate."""
    methods = methods_of(results)

    def readings(exponents: Callable, less: float = 0.0) -> list[Reading]:
        return [measured(exponents(results, m) - less, label(m)) for m in methods]

    growth = "exponent of the best damping in the"
    clauses = [
        Clause(
            "the smaller the batch, the smaller the best damping",
            f"{growth} batch size:",
            "above 0.1",
            readings(batch_exponent),
        ),
        Clause(
            "in proportion",
            f"{growth} batch size, less 1:",
            "within 0.25",
            readings(batch_exponent, 1.0),
        ),
        Clause(
            "damping is tied to the learning rate",
            f"{growth} learning rate:",
            "above 0.1",
            readings(rate_exponent),
        ),
    ]
    return [judge("P6", clauses, findings=_findings(results))]


def _findings(results: dict) -> list[str]:
    """The exponent where the learning rate is fixed, and which best values are at an edge."""
    found = []
    for method in methods_of(results):
        of = label(method)
        found.append(
            f"{of}, exponent in the batch size at a fixed learning rate: "
            + mean_and_spread(batch_exponent_at_rates(results, method), 2)
        )
        if method == "kfac" and FRESH in results["settings"]["learning_rates"]:
            found.append(
                f"{of}, the same at the rate {fresh_rate(results):.2g} alone: "
                f"{mean_and_spread(exponent_at_fresh_rate(results, 'kfac'), 2)}, and inverting at "
                f"every step {mean_and_spread(exponent_at_fresh_rate(results, FRESH), 2)}"
            )
        found += [
            f"{of} at batch size {size:,}: the best {name} is at its grid's edge"
            for size in results["settings"]["batch_sizes"]
            for name in at_edge(results, method, size)
        ]
    return found


def rows(results: dict) -> list[dict[str, str]]:
    """The best point of each method's grid at each batch size, and the refined damping."""
    settings = results["settings"]
    images = settings["images"] or 60_000
    found = []
    for method in methods_of(results):
        rates, dampings = grids(results, method)
        for size in settings["batch_sizes"]:
            rate, damping = best_point(results, method, size)
            refined = np.log10(best_damping(results, method, size))
            accuracies = over_grid(results, method, size, "accuracy")[rate, damping]
            found.append(
                {
                    "method": label(method),
                    "batch": f"{size:,}",
                    "steps": f"{settings['epochs'] * (images // size):,}",
                    "rate": f"{rates[rate]:.2g}",
                    "damping": f"{dampings[damping]:.2g}",
                    "log10 of best by seed": mean_and_spread(refined, 2),
                    "loss": mean_and_spread(over_grid(results, method, size)[rate, damping], 3),
                    "accuracy": mean_and_spread(accuracies, 3),
                }
            )
    return found


def table(results: dict) -> str:
    """The rows as text."""
    return as_text(rows(results))


def draw_heat_map(
    axes: Axes, results: dict, method: str, batch_size: int, colours: LogNorm | None = None
) -> AxesImage:
    """Mean loss over seeds at each learning rate and damping, the best cell marked.

    ``colours`` are what several maps share, from ``shared_colours``.
    """
    rates, dampings = grids(results, method)
    shown = panels.heat_map(
        axes,
        over_grid(results, method, batch_size).mean(axis=-1),
        [f"{rate:.2g}" for rate in rates],
        [""] * len(dampings),
        norm=colours or shared_colours(results),
        cmap="viridis_r",
        origin="lower",
    )
    rate, damping = best_point(results, method, batch_size)
    axes.plot(
        damping,
        rate,
        linestyle="",
        marker="*",
        markersize=13,
        color="white",
        markeredgecolor="black",
        label="lowest",
    )
    powers = np.arange(np.ceil(np.log10(dampings[0])), np.floor(np.log10(dampings[-1])) + 1)
    places = np.interp(powers, np.log10(dampings), range(len(dampings)))
    axes.set_xticks(places, [f"$10^{{{power:.0f}}}$" for power in powers])
    axes.set(
        xlabel="damping",
        ylabel="learning rate",
        title=f"{label(method)}, batch {batch_size:,}",
    )
    return shown


def shared_colours(results: dict) -> LogNorm:
    """From the lowest mean loss of all methods to that of guessing, ln 10, or more."""
    lowest = min(
        over_grid(results, method, size).mean(axis=-1).min()
        for method in methods_of(results)
        for size in results["settings"]["batch_sizes"]
    )
    return LogNorm(lowest, max(np.log(10), 2 * lowest))


def draw_best(axes: Axes, results: dict, method: str) -> None:
    """Best damping against the batch size: all seeds, the fitted exponent, and exponent 1."""
    sizes = np.array(results["settings"]["batch_sizes"], float)
    best = np.array([best_damping(results, method, int(size)) for size in sizes])
    slope = batch_exponent(results, method).mean()
    from_middle = sizes / np.exp(np.log(sizes).mean())
    middle = np.exp(np.log(best).mean())
    color = METHODS[method]["color"]
    axes.plot(sizes, best, "o", color=color, alpha=0.6, markersize=5)
    axes.plot(
        sizes, middle * from_middle**slope, color=color, label=f"fitted, exponent {slope:.2f}"
    )
    axes.plot(
        sizes,
        middle * from_middle,
        color=plotting.BLACK,
        linestyle="--",
        linewidth=1,
        label="proportional, exponent 1",
    )
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="best damping")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.set_title(label(method))
    axes.legend()


def figure(results: dict) -> Figure:
    """A row for each method: its heat maps, a column for each batch size, and its best damping."""
    methods, sizes = methods_of(results), results["settings"]["batch_sizes"]
    colours = shared_colours(results)
    drawing, axes = plt.subplots(
        len(methods),
        len(sizes) + 1,
        figsize=(2.9 * len(sizes) + 4.8, 3.2 * len(methods)),
        width_ratios=[*[1] * len(sizes), 1.5],
        squeeze=False,
    )
    for row, method in zip(axes, methods, strict=True):
        for column, size in enumerate(sizes):
            shown = draw_heat_map(row[column], results, method, size, colours)
            if column:
                row[column].set_ylabel("")
                row[column].tick_params(labelleft=False)
        draw_best(row[-1], results, method)
    bar = drawing.colorbar(
        shown,
        ax=axes[:, :-1],
        location="left",
        fraction=0.04,
        extend="max",
        ticks=COLOUR_TICKS,
        format="%g",
        label="training loss at the end (nats)",
    )
    bar.minorticks_off()
    return drawing
