"""Hessian-free and Gauss-Newton on MNIST, as in the slides' Figures 6 to 11 (claims S6 and S8).

The slides' setting: 784-10-10 with ReLU, batches of 64; second-order methods at 0.5. Beside the
slides' own field stand SGD at 0.5/4, which is Gauss-Newton at λ = 4 without its curvature, and SGD,
Adam and Gauss-Newton tuned on equal budgets: nine values of the learning rate, or of λ, on one seed
that is not used again. The same three are tuned once more at a large batch.

At the gpu scale tries and seeds of a tuned method are runs of one program, and nothing else differs
from the laptop's. By arithmetic, not measured: 12 programs, untuned runs of 1 to 13 seconds, 9
minutes of an H100.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu.data import Dataset, mnist
from soaa_edu.engine import Cell
from soaa_edu.optimizers import Optimizer, levenberg_marquardt
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.race import Task, races
from soaa_edu.studies.results import capped, final_accuracy, final_loss
from soaa_edu.studies.runs import (
    BATCH_SIZE,
    seconds_of_dispatched_steps,
    seconds_of_steps,
    training_run,
)
from soaa_edu.studies.searches import Grid, grid_around
from soaa_edu.studies.slides.network import REPORTED, field_figure, slides_objective
from soaa_edu.studies.verdicts import Clause, Verdict, interval, judge, mean_and_spread, measured
from soaa_edu.training import sweep

TITLE = "Hessian-free and Gauss-Newton on MNIST"
CLAIMS = ("S6", "S8")
SLIDES_FIELD = ("sgd_at_0.1", "newton", "hessian_free", "gauss_newton_at_4")
PAIRED = ("sgd_at_0.1", "sgd_at_0.5/4", "gauss_newton_at_4")
TUNED = ("sgd", "adam", "gauss_newton")


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int | None = None
    epochs: int = 7
    seeds: int = 5
    tuning_values: int = 9
    large_batch: int = 2048
    paired_seeds: int = 100
    timed_steps: int = 200
    timed_repeats: int = 5
    minutes: float = 25.0


SCALES = {
    "quick": Settings(
        train_size=1920,
        epochs=2,
        seeds=2,
        tuning_values=3,
        large_batch=320,
        paired_seeds=3,
        timed_steps=20,
        timed_repeats=3,
        minutes=1.25,
    ),
    "laptop": Settings(),
    "gpu": Settings(paired_seeds=25, minutes=9.5),
}


def untuned(task: Task) -> dict[str, Optimizer]:
    """The slides' methods and what stands beside them as it is."""
    half = {"learning_rate": 0.5}
    numbers: dict[str, tuple[str, dict[str, Any]]] = {
        "sgd_at_0.1": ("sgd", {"learning_rate": 0.1}),
        "sgd_at_0.5/4": ("sgd", {"learning_rate": 0.5 / 4}),
        "newton": ("newton", {**half, "damping": 32.0}),
        "hessian_free": ("hessian_free", {**half, "damping": 32.0}),
        "gauss_newton_at_4": ("gauss_newton", {**half, "damping": 4.0}),
        "levenberg_marquardt": ("gauss_newton", {**half, "damping": levenberg_marquardt(4.0)}),
    }
    return {
        name: methods.build(method, task.objective, task.steps, **given)
        for name, (method, given) in numbers.items()
    }


def grid(method: str, values: int) -> Grid:
    """What is tuned: the learning rate, or the damping of Gauss-Newton."""
    if method == "gauss_newton":
        return {"damping": grid_around(2.0, 2.0, values)}
    return {"learning_rate": grid_around({"sgd": 0.25, "adam": 2e-3}[method], 2.0, values)}


def build(method: str, task: Task, **point: Any) -> Optimizer:
    """A tuned method at a point of its grid."""
    fixed = {"learning_rate": 0.5} if method == "gauss_newton" else {}
    return methods.build(method, task.objective, task.steps, **fixed, **point)


def cells(settings: Settings) -> dict[str, Callable[[], Any] | Cell]:
    """One cell for each method and seed, one for each tuned method and batch, and the timings."""
    data = mnist(settings.train_size)
    tasks = [
        Task(
            {"batch": size},
            slides_objective(),
            lambda: data,
            len(data.train[0]),
            settings.epochs,
            size,
        )
        for size in (BATCH_SIZE, settings.large_batch)
    ]
    as_they_are = untuned(tasks[0])
    found: dict[str, Callable[[], Any] | Cell] = {
        stored.name(method=method, seed=seed): partial(
            training_run, optimizer, seed, data, settings.epochs
        )
        for method, optimizer in as_they_are.items()
        for seed in range(settings.seeds)
    }
    found |= races(
        tasks, TUNED, build, partial(grid, values=settings.tuning_values), seeds=settings.seeds
    )
    for method in PAIRED:
        found[stored.name(paired=method)] = partial(_paired, as_they_are[method], data, settings)
    for kind, seconds in (("step", seconds_of_steps), ("sent", seconds_of_dispatched_steps)):
        found[stored.name(cost=kind)] = partial(_timing, seconds, as_they_are, settings)
    return found


def _paired(optimizer: Optimizer, data: Dataset, settings: Settings) -> dict[str, Any]:
    """Ends alone, of many seeds: mean loss of the last epoch, and test accuracy."""
    keys = jnp.stack([jax.random.key(seed) for seed in range(settings.paired_seeds)])
    swept = sweep(
        lambda: optimizer,
        {},
        optimizer.objective.model.init,
        data,
        epochs=settings.epochs,
        batch_size=BATCH_SIZE,
        keys=keys,
    )
    last = len(data.train[0]) // BATCH_SIZE
    return {
        "final_loss": swept["loss"][..., -last:].mean(axis=-1).ravel(),
        "test_accuracy": swept["test_accuracy"][..., -1].ravel(),
    }


def _timing(
    seconds: Callable[..., np.ndarray], optimizers: dict[str, Optimizer], settings: Settings
) -> dict[str, Any]:
    return {
        "seconds_a_step": {
            method: seconds(optimizer, settings.timed_steps, settings.timed_repeats)
            for method, optimizer in optimizers.items()
        }
    }


def slower(results: dict, how: str) -> np.ndarray:
    """Seconds of a Hessian-free step over SGD's, by repeat; ``"step"`` in a loop, or ``"sent"``."""
    seconds = stored.one(results, cost=how)["seconds_a_step"]
    return np.divide(seconds["hessian_free"], seconds["sgd_at_0.1"])


def paired(results: dict, method: str, key: str) -> np.ndarray:
    """``"final_loss"`` or ``"test_accuracy"`` of many seeds; lost runs count as 10, and as 0."""
    found = np.array(stored.one(results, paired=method)[key], float)
    return capped(found) if key == "final_loss" else np.nan_to_num(found)


def slides_table(*studies: dict) -> str:
    """The slides' three tables in one: seconds, training loss, test accuracy, theirs and ours.

    Args:
        studies: results of this study and of ``newton_on_mnist``; a method that several of them
            have is taken from the first.
    """
    lines = [f"{'':22}{'seconds':>18}{'training loss':>20}{'test accuracy':>20}"]
    lines.append(f"{'':22}{'slides':>9}{'ours':>9}" + f"{'slides':>10}{'ours':>10}" * 2)
    for method, reported in REPORTED.items():
        results = next((r for r in studies if stored.select(r, method=method)), None)
        if results is None:
            continue
        seconds = stored.cost(results, "seconds_a_step", method).mean()
        loss, accuracy = (of(results, method=method).mean() for of in (final_loss, final_accuracy))
        lines.append(
            f"{label(method):22}{reported['seconds']:9,}"
            f"{stored.steps(results, method=method) * seconds:9,.3g}"
            f"{reported['loss']:10.4f}{loss:10.4f}"
            f"{reported['accuracy']:10.4f}{accuracy:10.4f}"
        )
    return "\n".join(lines)


def draw_tuned(axes: Axes, results: dict, batch: int) -> None:
    """Training loss against epochs at a batch size, each tuned method at its best."""
    panels.curves(axes, results, TUNED, against="epoch", batch=batch)
    axes.set(ylim=(0, 1), title=f"batch {batch:,}, tuned")
    axes.legend()


def figure(results: dict) -> Figure:
    """The slides' field by steps, seconds and accuracy, and the tuned field at the large batch."""
    drawing, axes = plt.subplots(2, 2, figsize=(10, 7))
    field_figure(axes, results, ("sgd_at_0.1", "hessian_free", "gauss_newton_at_4"))
    draw_tuned(axes[1, 1], results, results["settings"]["large_batch"])
    for panel in axes[0]:
        panel.set(ylim=(0, 1), title=f"batch {BATCH_SIZE}")
    axes[1, 0].set(title=f"batch {BATCH_SIZE}")
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S6 and S8."""
    return [
        judge("S6", _fast_and_good(results), findings=_fast_and_good_findings(results)),
        judge("S8", _best_of_all(results), findings=_best_of_all_findings(results)),
    ]


def _fast_and_good(results: dict) -> list[Clause]:
    loss = stored.beside(results, "hessian_free", "sgd_at_0.1")
    accuracies = (final_accuracy(results, method=m) for m in ("sgd_at_0.1", "hessian_free"))
    behind = np.subtract(*accuracies)
    return [
        Clause(
            "its speed is on par with SGD's",
            "seconds of a step over SGD's:",
            "at most 1.1 times",
            [
                measured(np.log(slower(results, "step")), "compiled in one loop"),
                measured(np.log(slower(results, "sent")), "sent step by step"),
            ],
        ),
        Clause("as good", "its loss beside SGD's:", "at most 1 %", [measured(loss)]),
        Clause("as right", "test accuracy behind SGD's:", "at most 0.2 points", [measured(behind)]),
    ]


def _fast_and_good_findings(results: dict) -> list[str]:
    sgd, free, damped = (
        final_loss(results, method=m) for m in ("sgd_at_0.1", "hessian_free", "newton")
    )
    apart = np.abs(free - damped).max()
    seconds = (stored.cost(results, "seconds_a_step", m) for m in ("newton", "sgd_at_0.1"))
    exact = np.divide(*seconds)
    return [
        f"hessian-free: training loss {mean_and_spread(free)}, SGD {mean_and_spread(sgd)}; the "
        f"slides' own: {REPORTED['hessian_free']['loss']} and {REPORTED['sgd_at_0.1']['loss']}",
        f"its loss is at most {apart:.1g} from that of the exact step, which takes "
        f"{exact.mean():.2g} SGD steps",
    ]


def _best_of_all(results: dict) -> list[Clause]:
    """Beside SGD, the best of the slides' other methods, seed by seed."""
    mine, rival = ((paired(results, m, "final_loss")) for m in ("gauss_newton_at_4", "sgd_at_0.1"))
    right = paired(results, "gauss_newton_at_4", "test_accuracy")
    return [
        Clause(
            "Gauss-Newton receives the best results",
            "SGD's loss less its own:",
            "above 0.005 nats",
            [measured(rival - mine)],
        ),
        Clause(
            "in accuracy too",
            "its accuracy less SGD's:",
            "above 0.2 points",
            [measured(right - paired(results, "sgd_at_0.1", "test_accuracy"))],
        ),
    ]


def _best_of_all_findings(results: dict) -> list[str]:
    """SGD at 0.5/4, and the three methods tuned at both batch sizes."""
    matched, mine = (
        paired(results, m, "final_loss") for m in ("sgd_at_0.5/4", "gauss_newton_at_4")
    )
    low, high = interval(matched - mine)
    found = [f"SGD at 0.5/4 less Gauss-Newton at λ = 4: [{low:.4f}, {high:.4f}]"]
    found += [
        f"{label(m)}: training loss {mean_and_spread(final_loss(results, method=m))}, "
        f"accuracy {mean_and_spread(final_accuracy(results, method=m))}"
        for m in SLIDES_FIELD
    ]
    for batch in (BATCH_SIZE, results["settings"]["large_batch"]):
        losses = {m: final_loss(results, method=m, batch=batch) for m in TUNED}
        ahead = np.minimum(losses["sgd"], losses["adam"]) - losses["gauss_newton"]
        low, high = interval(ahead)
        found.append(
            f"batch {batch}, the best of tuned SGD and Adam less tuned Gauss-Newton: "
            f"[{low:.4f}, {high:.4f}]"
        )
        for method in TUNED:
            (best,) = stored.search(results, method=method, batch=batch)["best"].values()
            accuracy = final_accuracy(results, method=method, batch=batch)
            found.append(
                f"batch {batch}, {label(method)} tuned to {best:.3g}: training loss "
                f"{mean_and_spread(losses[method])}, accuracy {mean_and_spread(accuracy)}"
            )
    return found
