"""Newton on MNIST, undamped and damped, as in the slides' Figures 1 to 5 (claims S2 to S5).

The slides' network, 784-10-10 with ReLU, batches of 64; SGD at 0.1, Newton at 0.5 with λ = 0 or 32.
Beside them SGD at 0.5/32, which is what damped Newton becomes without its curvature, and undamped
Newton at other cut-offs of the pseudo-inverse, since the slides state none. All methods share the
start and the order of examples of each seed.

At the gpu scale undamped Newton runs at the library's cut-off alone, since the decomposition of
every step takes longer there than on a CPU, and the slides' dense step on all 7,960 parameters is
measured five times; their hours are on a GPU. By arithmetic, not measured: 4 programs and 18 runs
of 2 to 80 seconds, a dense step of 40 seconds, 9 minutes of an H100 in all.
"""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.curvature import dense, hessian_matvec
from soaa_edu.data import mnist
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer, first_order, newton
from soaa_edu.studies.results import HIGHEST_LOSS
from soaa_edu.studies.runs import (
    BATCH_SIZE,
    LIBRARY_CUTOFF,
    SLIDES_STEPS,
    STYLES,
    accuracy_against_epochs,
    final_accuracy,
    final_loss,
    loss_against_seconds,
    loss_against_steps,
    middles,
    over_seeds,
    seconds_a_step,
    seconds_of_steps,
    slides_objective,
    training_run,
)
from soaa_edu.studies.verdicts import (
    Clause,
    Reading,
    Verdict,
    interval,
    judge,
    known,
    mean_and_spread,
    measured,
)

TITLE = "Newton on MNIST, undamped and damped"
CLAIMS = ("S2", "S3", "S4", "S5")
SLIDES_PARAMETERS = 7960
TIMED = ("sgd", "damped", "slow_sgd", LIBRARY_CUTOFF)
GUESSING_LOSS = float(np.log(10))
GUESSING_ACCURACY = 0.1
SLOW = 10.0


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    train_size: int | None
    epochs: int
    seeds: int
    undamped_seeds: int
    cutoffs: tuple[float, ...]
    timed_steps: int
    timed_repeats: int
    dense_hidden: int
    dense_steps: int
    minutes: float


CUTOFFS = (1e-6, 9.5e-4, 9.5e-3, 1e-1)
SCALES = {
    "quick": Settings(640, 2, 2, 2, (9.5e-3,), 10, 2, 1, 2, 0.25),
    "laptop": Settings(None, 7, 5, 3, CUTOFFS, 200, 5, 5, 2, 60.0),
    "gpu": Settings(None, 7, 5, 3, (9.5e-3,), 200, 5, 10, 5, 9.5),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method and seed, and one in which all are timed in turn."""
    objective = slides_objective()
    optimizers = {
        "sgd": first_order(objective, optax.sgd(0.1)),
        "slow_sgd": first_order(objective, optax.sgd(0.5 / 32)),
        "damped": newton(objective, learning_rate=0.5, damping=32.0),
    }
    for cutoff in settings.cutoffs:
        optimizers[f"undamped_{cutoff:.1e}"] = newton(objective, learning_rate=0.5, cutoff=cutoff)
    data = mnist(settings.train_size)
    runs = {
        f"{method}.{seed}": partial(training_run, optimizer, seed, data, settings.epochs)
        for method, optimizer in optimizers.items()
        for seed in range(settings.undamped_seeds if "undamped" in method else settings.seeds)
    }
    timed = {method: optimizers[method] for method in TIMED}
    return {**runs, "timing": partial(_timing, timed, settings)}


def _timing(optimizers: dict[str, Optimizer], settings: Settings) -> dict[str, Any]:
    """Seconds of a step: of each method, repeat by repeat, and of dense algebra, step by step."""
    return {
        "seconds_a_step": {
            method: seconds_of_steps(optimizer, settings.timed_steps, settings.timed_repeats)
            for method, optimizer in optimizers.items()
        },
        "dense": _dense_algebra(settings),
    }


def _dense_algebra(settings: Settings) -> dict[str, Any]:
    model = mlp([784, settings.dense_hidden, 10])
    objective = Objective(model, softmax_cross_entropy)
    params = model.init(jax.random.key(0))
    batch = jax.tree.map(lambda array: array[:BATCH_SIZE], mnist(BATCH_SIZE).train)

    def form(params: Any) -> jax.Array:
        return dense(hessian_matvec(lambda p: objective(p, batch), params), params)

    matrix = jax.eval_shape(form, params)
    form_matrix, invert = _compiled(form, params), _compiled(jnp.linalg.pinv, matrix)
    forming, inverting = [], []
    for _ in range(settings.dense_steps):
        hessian, seconds = _timed(form_matrix, params)
        forming.append(seconds)
        inverting.append(_timed(invert, hessian)[1])
    return {"parameters": matrix.shape[0], "form": forming, "pseudo_inverse": inverting}


def _compiled(function: Callable, *arguments: Any) -> Callable:
    return jax.jit(function).lower(*arguments).compile()


def _timed(program: Callable, *arguments: Any) -> tuple[Any, float]:
    began = perf_counter()
    result = jax.block_until_ready(program(*arguments))
    return result, perf_counter() - began


def undamped_methods(results: dict) -> list[str]:
    """The undamped runs, from the smallest cut-off to the largest."""
    names = {name.rpartition(".")[0] for name in results["cells"]}
    return sorted((n for n in names if n.startswith("undamped_")), key=_cutoff)


def _cutoff(method: str) -> float:
    return float(method.removeprefix("undamped_"))


def dense_seconds_a_step(results: dict) -> np.ndarray:
    """Seconds of each dense step, extrapolated by n³ where a smaller network was timed."""
    timing = results["cells"]["timing"]["dense"]
    growth = (SLIDES_PARAMETERS / timing["parameters"]) ** 3
    return growth * (np.array(timing["form"]) + np.array(timing["pseudo_inverse"]))


def loss_at_cutoffs(axes: Axes, results: dict) -> None:
    """Undamped Newton at each cut-off of the pseudo-inverse, a line for each seed, up to 10."""
    for method, color in zip(undamped_methods(results), plotting.PALETTE, strict=False):
        loss = np.fmin(over_seeds(results, method, "loss"), HIGHEST_LOSS)
        x = middles(loss.shape[1], int(over_seeds(results, method, "steps")[0]))
        first, *_ = axes.plot(x, loss.T, color=color, linewidth=1)
        first.set_label(f"cut-off {_cutoff(method):g}")
    axes.axhline(np.log(10), color=plotting.BLACK, linestyle=":", label="guessing, ln 10")
    axes.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, 10.5))
    axes.legend()


def figure(results: dict) -> Figure:
    """Loss against steps and seconds, accuracy against epochs, and the cut-off's effect."""
    drawing, axes = plt.subplots(2, 2, figsize=(10, 7))
    methods = list(TIMED)
    loss_against_steps(axes[0, 0], results, methods)
    loss_against_seconds(axes[0, 1], results, methods)
    accuracy_against_epochs(axes[1, 0], results, methods)
    loss_at_cutoffs(axes[1, 1], results)
    for panel in axes[0]:
        panel.set(ylim=(0, 3))
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S2 to S5."""
    dense = "seconds of a step by dense algebra over those of SGD:"
    claims: dict[str, tuple[str, list[Clause], list[str]]] = {
        "S2": (LIBRARY_CUTOFF, _does_not_converge(results), _cutoffs_told(results)),
        "S3": (
            LIBRARY_CUTOFF,
            [Clause("Newton is slow", dense, "above", SLOW, "times", [_slower(results)])],
            _seconds_told(results, LIBRARY_CUTOFF),
        ),
        "S4": ("damped", _converges_behind_sgd(results), _losses_told(results)),
        "S5": (
            "damped",
            [Clause("still slow", dense, "above", SLOW, "times", [_slower(results)])],
            _seconds_told(results, "damped"),
        ),
    }
    return [
        judge(
            claim, clauses, seeds=len(over_seeds(results, method, "final_loss")), findings=findings
        )
        for claim, (method, clauses, findings) in claims.items()
    ]


def _does_not_converge(results: dict) -> list[Clause]:
    loss = final_loss(results, LIBRARY_CUTOFF) - GUESSING_LOSS
    accuracy = final_accuracy(results, LIBRARY_CUTOFF) - GUESSING_ACCURACY
    return [
        Clause(
            "it doesn't converge",
            "final training loss less that of guessing:",
            "at least",
            0.1,
            "nats",
            [measured(loss)],
        ),
        Clause(
            "and its accuracy stays that of guessing",
            "test accuracy less a tenth:",
            "at most",
            5.0,
            "points",
            [measured(accuracy)],
        ),
    ]


def _cutoffs_told(results: dict) -> list[str]:
    return [
        f"cut-off {_cutoff(m):g}: training loss {mean_and_spread(final_loss(results, m))}"
        for m in undamped_methods(results)
    ]


def _slower(results: dict) -> Reading:
    sgd = seconds_a_step(results, "sgd").mean()
    return known(np.log(dense_seconds_a_step(results).min() / sgd))


def _seconds_told(results: dict, method: str) -> list[str]:
    """What the same step takes by dense algebra and by the exact short way."""
    sgd, exact = (seconds_a_step(results, m).mean() for m in ("sgd", method))
    dense_steps = dense_seconds_a_step(results).mean()
    timed = results["cells"]["timing"]["dense"]["parameters"]
    return [
        f"dense algebra: {dense_steps:.3g} s a step (timed with {timed} parameters), "
        f"extrapolated to {dense_steps * SLIDES_STEPS / 3600:,.0f} h for the slides' "
        f"{SLIDES_STEPS} steps",
        f"the same step taken the exact short way: {1e3 * exact:.3g} ms, {exact / sgd:.3g} times "
        f"SGD's {1e3 * sgd:.2g} ms, {exact * SLIDES_STEPS:,.0f} s for as many; SGD "
        f"{sgd * SLIDES_STEPS:.2g} s",
    ]


def _converges_behind_sgd(results: dict) -> list[Clause]:
    damped, sgd = (final_loss(results, m) for m in ("damped", "sgd"))
    behind = [measured(damped - sgd)]
    return [
        Clause(
            "damping makes it converge",
            "final training loss less that of guessing:",
            "below",
            1.0,
            "nats",
            [measured(damped - GUESSING_LOSS)],
        ),
        Clause("behind SGD", "its loss less SGD's:", "above", 0.01, "nats", behind),
        Clause("by a little", "its loss less SGD's:", "at most", 0.1, "nats", behind),
    ]


def _losses_told(results: dict) -> list[str]:
    damped, slow = (final_loss(results, m) for m in ("damped", "slow_sgd"))
    low, high = interval(damped - slow)
    told = [
        f"{STYLES[m]['label']}: training loss {mean_and_spread(final_loss(results, m))}, "
        f"test accuracy {mean_and_spread(final_accuracy(results, m))}"
        for m in ("damped", "slow_sgd", "sgd")
    ]
    curvature = f"what the curvature adds: loss less that of SGD at 0.5/32, [{low:.4f}, {high:.4f}]"
    return [*told, curvature]
