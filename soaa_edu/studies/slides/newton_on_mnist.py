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
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.results import capped, final_accuracy, final_loss
from soaa_edu.studies.runs import BATCH_SIZE, seconds_of_steps, training_run
from soaa_edu.studies.slides.network import SLIDES_STEPS, field_figure, slides_objective
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
LIBRARY_CUTOFF = 9.5e-3
TIMED = ("sgd_at_0.1", "newton", "sgd_at_0.5/32", "newton_undamped")
GUESSING_LOSS = float(np.log(10))
GUESSING_ACCURACY = 0.1


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int | None = None
    epochs: int = 7
    seeds: int = 5
    undamped_seeds: int = 3
    cutoffs: tuple[float, ...] = (1e-6, 9.5e-4, LIBRARY_CUTOFF, 1e-1)
    timed_steps: int = 200
    timed_repeats: int = 5
    dense_hidden: int = 5
    dense_steps: int = 2
    minutes: float = 60.0


SCALES = {
    "quick": Settings(
        train_size=640,
        epochs=2,
        seeds=2,
        undamped_seeds=2,
        cutoffs=(LIBRARY_CUTOFF,),
        timed_steps=10,
        timed_repeats=2,
        dense_hidden=1,
        minutes=0.25,
    ),
    "laptop": Settings(),
    "gpu": Settings(cutoffs=(LIBRARY_CUTOFF,), dense_hidden=10, dense_steps=5, minutes=9.5),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method and seed, and one in which all are timed in turn."""
    objective = slides_objective()
    damped = {
        "sgd_at_0.1": first_order(objective, optax.sgd(0.1)),
        "sgd_at_0.5/32": first_order(objective, optax.sgd(0.5 / 32)),
        "newton": newton(objective, learning_rate=0.5, damping=32.0),
    }
    undamped = {
        cutoff: newton(objective, learning_rate=0.5, cutoff=cutoff) for cutoff in settings.cutoffs
    }
    data = mnist(settings.train_size)

    def run(optimizer: Optimizer, seed: int) -> Callable[[], Any]:
        return partial(training_run, optimizer, seed, data, settings.epochs)

    runs = {
        stored.name(method=method, seed=seed): run(optimizer, seed)
        for method, optimizer in damped.items()
        for seed in range(settings.seeds)
    }
    runs |= {
        stored.name(**at_cutoff(cutoff), seed=seed): run(optimizer, seed)
        for cutoff, optimizer in undamped.items()
        for seed in range(settings.undamped_seeds)
    }
    optimizers = {**damped, "newton_undamped": undamped[LIBRARY_CUTOFF]}
    timed = {method: optimizers[method] for method in TIMED}
    return {**runs, stored.name(cost="step"): partial(_timing, timed, settings)}


def at_cutoff(cutoff: float) -> dict[str, str]:
    """The labels of undamped Newton at a cut-off of the pseudo-inverse."""
    if cutoff == LIBRARY_CUTOFF:
        return {"method": "newton_undamped"}
    return {"method": "newton_cut_off", "at": f"{cutoff:.1e}"}


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


def dense_seconds_a_step(results: dict) -> np.ndarray:
    """Seconds of each dense step, extrapolated by n³ where a smaller network was timed."""
    timing = stored.one(results, cost="step")["dense"]
    growth = (SLIDES_PARAMETERS / timing["parameters"]) ** 3
    return growth * (np.array(timing["form"]) + np.array(timing["pseudo_inverse"]))


def loss_at_cutoffs(axes: Axes, results: dict) -> None:
    """Undamped Newton at each cut-off of the pseudo-inverse, a line for each seed, up to 10."""
    for cutoff, color in zip(results["settings"]["cutoffs"], plotting.PALETTE, strict=False):
        at = at_cutoff(cutoff)
        loss = capped(stored.over_runs(results, "loss", **at))
        x = stored.middles(loss.shape[1], stored.steps(results, **at))
        first, *_ = axes.plot(x, loss.T, color=color, linewidth=1)
        first.set_label(f"cut-off {cutoff:g}")
    axes.axhline(np.log(10), color=plotting.BLACK, linestyle=":", label="guessing, ln 10")
    axes.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, 10.5))
    axes.legend()


def figure(results: dict) -> Figure:
    """Loss against steps and seconds, accuracy against epochs, and the cut-off's effect."""
    drawing, axes = plt.subplots(2, 2, figsize=(10, 7))
    field_figure(axes, results, TIMED)
    loss_at_cutoffs(axes[1, 1], results)
    for panel in axes[0]:
        panel.set(ylim=(0, 3))
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S2 to S5."""
    dense = "seconds of a step by dense algebra over those of SGD:"

    def slow(says: str) -> list[Clause]:
        return [Clause(says, dense, "above 10 times", [_slower(results)])]

    undamped, damped = (_seconds_findings(results, m) for m in ("newton_undamped", "newton"))
    return [
        judge("S2", _does_not_converge(results), findings=_cutoffs_findings(results)),
        judge("S3", slow("Newton is slow"), findings=undamped),
        judge("S4", _converges_behind_sgd(results), findings=_losses_findings(results)),
        judge("S5", slow("still slow"), findings=damped),
    ]


def _does_not_converge(results: dict) -> list[Clause]:
    loss = final_loss(results, method="newton_undamped") - GUESSING_LOSS
    accuracy = final_accuracy(results, method="newton_undamped") - GUESSING_ACCURACY
    return [
        Clause(
            "it doesn't converge",
            "final training loss less that of guessing:",
            "at least 0.1 nats",
            [measured(loss)],
        ),
        Clause(
            "and its accuracy stays that of guessing",
            "test accuracy less a tenth:",
            "at most 5 points",
            [measured(accuracy)],
        ),
    ]


def _cutoffs_findings(results: dict) -> list[str]:
    return [
        f"cut-off {cutoff:g}: training loss "
        f"{mean_and_spread(final_loss(results, **at_cutoff(cutoff)))}"
        for cutoff in results["settings"]["cutoffs"]
    ]


def _slower(results: dict) -> Reading:
    sgd = stored.cost(results, "seconds_a_step", "sgd_at_0.1").mean()
    return known(np.log(dense_seconds_a_step(results).min() / sgd))


def _seconds_findings(results: dict, method: str) -> list[str]:
    """What the same step takes by dense algebra and by the exact short way."""
    sgd, exact = (stored.cost(results, "seconds_a_step", m).mean() for m in ("sgd_at_0.1", method))
    dense_steps = dense_seconds_a_step(results).mean()
    timed = stored.one(results, cost="step")["dense"]["parameters"]
    return [
        f"dense algebra: {dense_steps:.3g} s a step (timed with {timed} parameters), "
        f"extrapolated to {dense_steps * SLIDES_STEPS / 3600:,.0f} h for the slides' "
        f"{SLIDES_STEPS} steps",
        f"the same step taken the exact short way: {1e3 * exact:.3g} ms, {exact / sgd:.3g} times "
        f"SGD's {1e3 * sgd:.2g} ms, {exact * SLIDES_STEPS:,.0f} s for as many; SGD "
        f"{sgd * SLIDES_STEPS:.2g} s",
    ]


def _converges_behind_sgd(results: dict) -> list[Clause]:
    damped, sgd = (final_loss(results, method=m) for m in ("newton", "sgd_at_0.1"))
    behind = [measured(damped - sgd)]
    return [
        Clause(
            "damping makes it converge",
            "final training loss less that of guessing:",
            "below 1 nats",
            [measured(damped - GUESSING_LOSS)],
        ),
        Clause("behind SGD", "its loss less SGD's:", "above 0.01 nats", behind),
        Clause("by a little", "its loss less SGD's:", "at most 0.1 nats", behind),
    ]


def _losses_findings(results: dict) -> list[str]:
    methods = ("newton", "sgd_at_0.5/32", "sgd_at_0.1")
    damped, slow, _ = (final_loss(results, method=m) for m in methods)
    low, high = interval(damped - slow)
    found = [
        f"{label(m)}: training loss {mean_and_spread(final_loss(results, method=m))}, "
        f"test accuracy {mean_and_spread(final_accuracy(results, method=m))}"
        for m in methods
    ]
    curvature = f"what the curvature adds: loss less that of SGD at 0.5/32, [{low:.4f}, {high:.4f}]"
    return [*found, curvature]
