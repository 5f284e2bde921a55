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

import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import mnist
from soaa_edu.objective import Objective
from soaa_edu.optimizers import Optimizer, first_order, hessian_free, levenberg_marquardt, newton
from soaa_edu.studies.runs import (
    BATCH_SIZE,
    SLIDES,
    STYLES,
    accuracy_against_epochs,
    final_accuracy,
    final_loss,
    loss_against_seconds,
    loss_against_steps,
    middles,
    over_seeds,
    over_tuned_seeds,
    seconds_a_step,
    seconds_of_steps,
    slides_objective,
    training_run,
)
from soaa_edu.studies.searches import grid_around, tuned_runs
from soaa_edu.studies.verdicts import Part, Verdict, interval, judge, mean_and_spread

TITLE = "Hessian-free and Gauss-Newton on MNIST"
CLAIMS = ("S6", "S8")
LEAST_SEEDS = 3
SLIDES_FIELD = ("sgd", "damped", "hessian_free", "gauss_newton")
TUNED = ("tuned_sgd", "tuned_adam", "tuned_gauss_newton")
AS_FAST = 2.0
SAME_PATH = 0.01
AS_GOOD_LOSS = SLIDES["hessian_free"]["loss"] - SLIDES["sgd"]["loss"]
AS_GOOD_ACCURACY = 0.01


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    train_size: int | None
    epochs: int
    seeds: int
    tuning_values: int
    large_batch: int
    timed_steps: int
    timed_repeats: int
    minutes: float


SCALES = {
    "quick": Settings(1920, 2, 2, 3, 320, 20, 3, 1.25),
    "laptop": Settings(None, 7, 5, 9, 2048, 200, 5, 15.0),
    "gpu": Settings(None, 7, 5, 9, 2048, 200, 5, 8.5),
}


def methods(objective: Objective) -> dict[str, Optimizer]:
    """The slides' methods and what stands beside them untuned."""
    gauss_newton = partial(hessian_free, objective, learning_rate=0.5, curvature="gauss_newton")
    return {
        "sgd": first_order(objective, optax.sgd(0.1)),
        "matched_sgd": first_order(objective, optax.sgd(0.5 / 4)),
        "damped": newton(objective, learning_rate=0.5, damping=32.0),
        "hessian_free": hessian_free(objective, learning_rate=0.5, damping=32.0),
        "gauss_newton": gauss_newton(damping=4.0),
        "levenberg_marquardt": gauss_newton(damping=levenberg_marquardt(4.0)),
    }


def families(objective: Objective) -> dict[str, tuple[float, Callable[[float], Optimizer]]]:
    """What is tuned: the middle of its grid, and value -> optimizer."""
    return {
        "tuned_sgd": (0.25, lambda rate: first_order(objective, optax.sgd(rate))),
        "tuned_adam": (2e-3, lambda rate: first_order(objective, optax.adam(rate))),
        "tuned_gauss_newton": (
            2.0,
            lambda damping: hessian_free(
                objective, learning_rate=0.5, damping=damping, curvature="gauss_newton"
            ),
        ),
    }


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method and seed, one for each tuned family and batch, and the timing."""
    objective = slides_objective()
    data = mnist(settings.train_size)
    untuned = methods(objective)
    runs: dict[str, Callable[[], Any]] = {
        f"{method}.{seed}": partial(training_run, optimizer, seed, data, settings.epochs)
        for method, optimizer in untuned.items()
        for seed in range(settings.seeds)
    }
    for batch_size in (BATCH_SIZE, settings.large_batch):
        for method, (middle, build) in families(objective).items():
            runs[f"{method}_at_{batch_size}"] = partial(
                tuned_runs,
                build,
                grid_around(middle, 2.0, settings.tuning_values),
                data,
                epochs=settings.epochs,
                batch_size=batch_size,
                seeds=settings.seeds,
            )
    return {**runs, "timing": partial(_timing, untuned, settings)}


def _timing(optimizers: dict[str, Optimizer], settings: Settings) -> dict[str, Any]:
    return {
        "seconds_a_step": {
            method: seconds_of_steps(optimizer, settings.timed_steps, settings.timed_repeats)
            for method, optimizer in optimizers.items()
        }
    }


def slides_table(*studies: dict) -> str:
    """The slides' three tables in one: seconds, training loss, test accuracy, theirs and ours.

    Args:
        studies: results of this study and of ``newton_on_mnist``; a method that several of them
            have is taken from the first.
    """
    lines = [f"{'':22}{'seconds':>18}{'training loss':>20}{'test accuracy':>20}"]
    lines.append(f"{'':22}{'slides':>9}{'ours':>9}" + f"{'slides':>10}{'ours':>10}" * 2)
    for method, reported in SLIDES.items():
        results = next((r for r in studies if f"{method}.0" in r["cells"]), None)
        if results is None:
            continue
        steps = over_seeds(results, method, "steps")[0]
        lines.append(
            f"{STYLES[method]['label']:22}{reported['seconds']:9,}"
            f"{steps * seconds_a_step(results, method).mean():9,.3g}"
            f"{reported['loss']:10.4f}{final_loss(results, method).mean():10.4f}"
            f"{reported['accuracy']:10.4f}{final_accuracy(results, method).mean():10.4f}"
        )
    return "\n".join(lines)


def draw_tuned(axes: Axes, results: dict, batch_size: int) -> None:
    """Training loss against epochs at a batch size, each tuned family at its best."""
    for method in TUNED:
        loss = over_tuned_seeds(results, method, batch_size, "loss")
        steps = int(over_tuned_seeds(results, method, batch_size, "steps")[0])
        x = middles(loss.shape[1], steps) / steps * results["settings"]["epochs"]
        plotting.band(axes, x, loss, **STYLES[method])
    axes.set(xlabel="epoch", ylabel="training loss (nats)", ylim=(0, 1))
    axes.legend()


def figure(results: dict) -> Figure:
    """The slides' field by steps, seconds and accuracy, and the tuned field at the large batch."""
    drawing, axes = plt.subplots(2, 2, figsize=(10, 7))
    field = ("sgd", "hessian_free", "gauss_newton")
    loss_against_steps(axes[0, 0], results, field)
    loss_against_seconds(axes[0, 1], results, field)
    accuracy_against_epochs(axes[1, 0], results, field)
    draw_tuned(axes[1, 1], results, results["settings"]["large_batch"])
    for panel in axes[0]:
        panel.set(ylim=(0, 1), title=f"batch {BATCH_SIZE}")
    axes[1, 0].set(title=f"batch {BATCH_SIZE}")
    axes[1, 1].set(title=f"batch {results['settings']['large_batch']:,}")
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S6 and S8."""
    found = {"S6": _fast_and_good(results), "S8": _best_of_all(results)}
    return [
        judge(
            claim,
            parts,
            seeds=len(over_seeds(results, "sgd", "final_loss")),
            least_seeds=LEAST_SEEDS,
            settled_by="the laptop scale, and there by more seeds",
            notes=notes,
        )
        for claim, (parts, notes) in found.items()
    ]


def _fast_and_good(results: dict) -> tuple[list[Part], list[str]]:
    sgd, free = (final_loss(results, m) for m in ("sgd", "hessian_free"))
    apart = np.abs(free - final_loss(results, "damped"))
    slower = seconds_a_step(results, "hessian_free") / seconds_a_step(results, "sgd")
    behind = final_accuracy(results, "sgd") - final_accuracy(results, "hessian_free")
    parts = [
        Part("its step's seconds over SGD's", *interval(slower), AS_FAST, above=False),
        Part("its training loss less SGD's", *interval(free - sgd), AS_GOOD_LOSS, above=False),
        Part("its test accuracy behind SGD's", *interval(behind), AS_GOOD_ACCURACY, above=False),
        Part("how far its loss is from the exact step's", *interval(apart), SAME_PATH, above=False),
    ]
    exact = seconds_a_step(results, "damped") / seconds_a_step(results, "sgd")
    notes = [
        f"hessian-free: training loss {mean_and_spread(free)}, SGD {mean_and_spread(sgd)}",
        f"the exact step takes {exact.mean():.2g} SGD steps",
    ]
    return parts, notes


def _best_of_all(results: dict) -> tuple[list[Part], list[str]]:
    loss, accuracy = final_loss(results, "gauss_newton"), final_accuracy(results, "gauss_newton")
    field = [m for m in SLIDES_FIELD if m != "gauss_newton"]
    nearest_loss = np.min([final_loss(results, m) for m in field], axis=0)
    nearest_accuracy = np.max([final_accuracy(results, m) for m in field], axis=0)
    parts = [
        Part(
            "the slides' other methods' best loss less its own", *interval(nearest_loss - loss), 0
        ),
        Part(
            "its test accuracy less the slides' other methods' best",
            *interval(accuracy - nearest_accuracy),
            0,
        ),
    ]
    large = results["settings"]["large_batch"]
    notes = [
        f"at λ = 4: training loss {mean_and_spread(loss)}, accuracy {mean_and_spread(accuracy)}"
    ]
    for batch_size in (BATCH_SIZE, large):
        ours = over_tuned_seeds(results, "tuned_gauss_newton", batch_size, "final_loss")
        rivals = [
            over_tuned_seeds(results, rival, batch_size, "final_loss")
            for rival in ("tuned_sgd", "tuned_adam")
        ]
        parts.append(
            Part(
                f"batch {batch_size}: tuned SGD's and Adam's best loss less tuned Gauss-Newton's",
                *interval(np.min(rivals, axis=0) - ours),
                0,
            )
        )
        notes += [
            f"batch {batch_size}, {m.removeprefix('tuned_').replace('_', '-')} tuned to "
            f"{results['cells'][f'{m}_at_{batch_size}']['search']['best']:.3g}: training loss "
            f"{mean_and_spread(over_tuned_seeds(results, m, batch_size, 'final_loss'))}, accuracy "
            f"{mean_and_spread(over_tuned_seeds(results, m, batch_size, 'test_accuracy')[:, -1])}"
            for m in TUNED
        ]
    return parts, notes
