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
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import Dataset, mnist
from soaa_edu.objective import Objective
from soaa_edu.optimizers import Optimizer, first_order, hessian_free, levenberg_marquardt, newton
from soaa_edu.studies.results import capped
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
    seconds_of_dispatched_steps,
    seconds_of_steps,
    slides_objective,
    training_run,
)
from soaa_edu.studies.searches import grid_around, tuned_runs
from soaa_edu.studies.verdicts import Clause, Verdict, interval, judge, mean_and_spread, measured
from soaa_edu.training import sweep

TITLE = "Hessian-free and Gauss-Newton on MNIST"
CLAIMS = ("S6", "S8")
SLIDES_FIELD = ("sgd", "damped", "hessian_free", "gauss_newton")
PAIRED = ("sgd", "matched_sgd", "gauss_newton")
LOSS_MARGIN = 0.005
ACCURACY_MARGIN = 0.2
TUNED = ("tuned_sgd", "tuned_adam", "tuned_gauss_newton")


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    train_size: int | None
    epochs: int
    seeds: int
    tuning_values: int
    large_batch: int
    paired_seeds: int
    timed_steps: int
    timed_repeats: int
    minutes: float


SCALES = {
    "quick": Settings(1920, 2, 2, 3, 320, 3, 20, 3, 1.25),
    "laptop": Settings(None, 7, 5, 9, 2048, 100, 200, 5, 25.0),
    "gpu": Settings(None, 7, 5, 9, 2048, 25, 200, 5, 9.5),
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
    for method in PAIRED:
        runs[f"{method}_paired"] = partial(_paired, untuned[method], data, settings)
    return {
        **runs,
        "timing": partial(_timing, seconds_of_steps, untuned, settings),
        "timing_dispatched": partial(_timing, seconds_of_dispatched_steps, untuned, settings),
    }


def _paired(optimizer: Optimizer, data: Dataset, settings: Settings) -> dict[str, Any]:
    """Ends alone, of many seeds: mean loss of the last epoch, and test accuracy."""
    keys = jnp.stack([jax.random.key(seed) for seed in range(settings.paired_seeds)])
    told = sweep(
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
        "final_loss": told["loss"][..., -last:].mean(axis=-1).ravel(),
        "test_accuracy": told["test_accuracy"][..., -1].ravel(),
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


def slower(results: dict, dispatched: bool) -> np.ndarray:
    """Seconds of a Hessian-free step over SGD's, by repeat."""
    cell = results["cells"]["timing_dispatched" if dispatched else "timing"]["seconds_a_step"]
    return np.array(cell["hessian_free"]) / np.array(cell["sgd"])


def paired(results: dict, method: str, key: str) -> np.ndarray:
    """``"final_loss"`` or ``"test_accuracy"`` of many seeds; lost runs count as 10, and as 0."""
    found = np.array(results["cells"][f"{method}_paired"][key], float)
    return capped(found) if key == "final_loss" else np.nan_to_num(found)


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
    few, many = (len(f(results, "sgd", "final_loss")) for f in (over_seeds, paired))
    return [
        judge("S6", _fast_and_good(results), seeds=few, findings=_fast_and_good_told(results)),
        judge("S8", _best_of_all(results), seeds=many, findings=_best_of_all_told(results)),
    ]


def _fast_and_good(results: dict) -> list[Clause]:
    loss = np.log(final_loss(results, "hessian_free") / final_loss(results, "sgd"))
    behind = final_accuracy(results, "sgd") - final_accuracy(results, "hessian_free")
    return [
        Clause(
            "its speed is on par with SGD's",
            "seconds of a step over SGD's:",
            "at most",
            1.1,
            "times",
            [
                measured(np.log(slower(results, dispatched=False)), "compiled in one loop"),
                measured(np.log(slower(results, dispatched=True)), "sent step by step"),
            ],
        ),
        Clause("as good", "its loss beside SGD's:", "at most", 1.0, "%", [measured(loss)]),
        Clause(
            "as right", "test accuracy behind SGD's:", "at most", 0.2, "points", [measured(behind)]
        ),
    ]


def _fast_and_good_told(results: dict) -> list[str]:
    sgd, free = (final_loss(results, m) for m in ("sgd", "hessian_free"))
    apart = np.abs(free - final_loss(results, "damped")).max()
    exact = seconds_a_step(results, "damped") / seconds_a_step(results, "sgd")
    return [
        f"hessian-free: training loss {mean_and_spread(free)}, SGD {mean_and_spread(sgd)}; the "
        f"slides' own: {SLIDES['hessian_free']['loss']} and {SLIDES['sgd']['loss']}",
        f"its loss is at most {apart:.1g} from that of the exact step, which takes "
        f"{exact.mean():.2g} SGD steps",
    ]


def _best_of_all(results: dict) -> list[Clause]:
    """Beside SGD, the best of the slides' other methods, seed by seed."""
    mine, rival = ((paired(results, m, "final_loss")) for m in ("gauss_newton", "sgd"))
    right = paired(results, "gauss_newton", "test_accuracy")
    return [
        Clause(
            "Gauss-Newton receives the best results",
            "SGD's loss less its own:",
            "above",
            LOSS_MARGIN,
            "nats",
            [measured(rival - mine)],
        ),
        Clause(
            "in accuracy too",
            "its accuracy less SGD's:",
            "above",
            ACCURACY_MARGIN,
            "points",
            [measured(right - paired(results, "sgd", "test_accuracy"))],
        ),
    ]


def _best_of_all_told(results: dict) -> list[str]:
    """SGD at 0.5/4, and the three methods tuned at both batch sizes."""
    matched = paired(results, "matched_sgd", "final_loss") - paired(
        results, "gauss_newton", "final_loss"
    )
    low, high = interval(matched)
    found = [f"SGD at 0.5/4 less Gauss-Newton at λ = 4: [{low:.4f}, {high:.4f}]"]
    found += [
        f"{STYLES[m]['label']}: training loss {mean_and_spread(final_loss(results, m))}, "
        f"accuracy {mean_and_spread(final_accuracy(results, m))}"
        for m in SLIDES_FIELD
    ]
    for batch_size in (BATCH_SIZE, results["settings"]["large_batch"]):
        losses = {m: over_tuned_seeds(results, m, batch_size, "final_loss") for m in TUNED}
        ahead = np.minimum(losses["tuned_sgd"], losses["tuned_adam"]) - losses["tuned_gauss_newton"]
        low, high = interval(ahead)
        found.append(
            f"batch {batch_size}, the best of tuned SGD and Adam less tuned Gauss-Newton: "
            f"[{low:.4f}, {high:.4f}]"
        )
        found += [
            f"batch {batch_size}, {m.removeprefix('tuned_').replace('_', '-')} tuned to "
            f"{results['cells'][f'{m}_at_{batch_size}']['search']['best']:.3g}: training loss "
            f"{mean_and_spread(losses[m])}, accuracy "
            f"{mean_and_spread(over_tuned_seeds(results, m, batch_size, 'test_accuracy')[:, -1])}"
            for m in TUNED
        ]
    return found
