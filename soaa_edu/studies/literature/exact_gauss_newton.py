"""Steps to a loss: exact Gauss-Newton, whole and layer by layer, against SOAP, Muon and K-FAC (L1).

A small decoder reads fresh text of the synthetic language. Gauss-Newton solves its system anew at
every step by conjugate gradients, for the whole network or for each layer by itself. The others
take five times as many steps, on more of the same text. Every method begins its search with nine
tries: nine learning rates, or three by three of learning rate and damping for Gauss-Newton and
K-FAC. What counts is the first step at which a running mean of the training loss is down to the
highest loss that any of them ends at, so that all of them get there.

A first run took full steps of Gauss-Newton and tuned its damping alone. The whole one was the same,
but the steps of all layers together went too far, and layer by layer took 5.9 times the steps of
the whole. The source searches the length of every step, so the learning rate is tuned here too.
Points are tried on one seed, and the one chosen for the whole matrix loses a run in five.

The source goes to 150 million parameters and to batches of millions of tokens; here are 19
thousand, and 2,048 tokens a step. Budget: at the quick scale some 20 runs of a second or two; at
the laptop scale some 100 runs of 5 to 40 seconds. At the gpu scale the decoder has 0.8 million
parameters and a step 65,536 tokens; a method is one program of nine runs side by side. By
arithmetic, not measured: 7 programs, 1 to 2 minutes each.
"""

from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import text
from soaa_edu.engine import Cell
from soaa_edu.models import decoder
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.race import Task, races, step_costs
from soaa_edu.studies.results import capped, final_loss, middles
from soaa_edu.studies.searches import Grid, grid_around, middle
from soaa_edu.studies.tables import COLUMNS, as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "Exact Gauss-Newton against SOAP, Muon and K-FAC: steps to a loss"
CLAIMS = ("L1",)
WHOLE, LAYERS = "gauss_newton", "gauss_newton_layers"
EXACT = (WHOLE, LAYERS)
BASELINES = ("soap", "muon")
FIELD = (*EXACT, *BASELINES, "kfac", "shampoo", "adamw")
REPORTED = 5.4
TWO_NUMBERS = {
    **{method: {"learning_rate": (0.5, 2.0), "damping": (0.1, 4.0)} for method in EXACT},
    "kfac": {"learning_rate": (0.1, 3.0), "damping": (0.1, 10.0)},
}
"""The middle of each axis of a grid, and the ratio of its values."""
SETTINGS: dict[str, dict[str, Any]] = {
    "kfac": {"kl_clip": 1e-2},
}
"""What is not tuned, and not the library's default."""


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    steps: int = 60
    others_times: int = 5
    batch_size: int = 64
    length: int = 32
    width: int = 32
    depth: int = 1
    iterations: int = 20
    tries: int = 9
    seeds: int = 5
    minutes: float = 40.0


SCALES = {
    "quick": Settings(steps=8, batch_size=16, width=8, iterations=5, tries=1, seeds=3, minutes=1.5),
    "laptop": Settings(),
    "gpu": Settings(
        steps=100, batch_size=512, length=128, width=128, depth=4, iterations=50, minutes=14.0
    ),
}


def task(method: str, settings: Settings) -> Task:
    """Fresh text for all steps of a method; the last tenth of them counts."""
    model = decoder(text.VOCABULARY, width=settings.width, depth=settings.depth)
    steps = settings.steps if method in EXACT else settings.steps * settings.others_times
    rows = steps * settings.batch_size
    load = partial(
        text.synthetic, rows * settings.length, length=settings.length, test_characters=10_000
    )
    objective = Objective(model, softmax_cross_entropy)
    return Task({}, objective, load, rows, 1, settings.batch_size, max(steps // 10, 1))


def grid(method: str, tries: int) -> Grid:
    """Learning rates; fewer of them by dampings for Gauss-Newton and K-FAC."""
    if method in TWO_NUMBERS:
        each = round(tries**0.5)
        return {name: grid_around(*middle, each) for name, middle in TWO_NUMBERS[method].items()}
    return {"learning_rate": grid_around(1e-2 if method == "muon" else 4e-3, 2.0, tries)}


def build(method: str, given: Task, *, iterations: int = 20, **point: Any) -> Optimizer:
    """A method with its tuned number."""
    settings = SETTINGS.get(method, {})
    if method in EXACT:
        settings = {"max_iterations": iterations, "tolerance": 1e-3}
    return methods.build(method, given.objective, given.steps, **point, **settings)


def cells(settings: Settings) -> dict[str, Cell]:
    """A cell for each method, and one for what a step takes."""
    found: dict[str, Cell] = {}
    built = partial(build, iterations=settings.iterations)
    points = partial(grid, tries=settings.tries)
    for method in FIELD:
        given = task(method, settings)
        found |= races([given], [method], built, points, seeds=settings.seeds)
    return found | {stored.name(cost="step"): Cell(partial(_seconds, settings))}


def _seconds(settings: Settings) -> dict[str, Any]:
    """What a step of each method takes, one beside the other."""
    given = task(WHOLE, settings)
    optimizers = {
        method: build(method, given, iterations=settings.iterations, **middle(grid(method, 1)))
        for method in FIELD
    }
    return step_costs(given, optimizers, steps=5)


def target(results: dict) -> float:
    """The highest mean loss that a method ends at."""
    return max(float(final_loss(results, method=method).mean()) for method in FIELD)


def steps_to_target(results: dict, method: str) -> np.ndarray:
    """The first step at which the running mean of a run is down to the target, one for each seed.

    The mean is over a twentieth of a run; a run that stays above counts with all its steps.
    """
    losses = stored.over_runs(results, "loss", method=method)
    steps = stored.steps(results, method=method)
    stretch = max(round(losses.shape[1] / 20), 1)
    ends = middles(losses.shape[1], steps)[stretch - 1 :]
    found = []
    for loss in losses:
        mean = np.convolve(loss, np.ones(stretch) / stretch, mode="valid")
        there = np.flatnonzero(mean <= target(results))
        found.append(ends[there[0]] if len(there) else steps)
    return np.array(found, float)


def fewer(results: dict, rival: str, method: str) -> np.ndarray:
    """Log of a rival's steps to the target over a method's, one for each seed."""
    return np.log(steps_to_target(results, rival) / steps_to_target(results, method))


def verdicts(results: dict) -> list[Verdict]:
    """L1: whole Gauss-Newton takes far fewer steps, and layer by layer nearly as few."""
    label = methods.label
    clauses = [
        Clause(
            "full Gauss-Newton takes fewer steps than strong baselines",
            "their steps to the same loss over its own:",
            "above 1.1 times",
            [measured(fewer(results, rival, WHOLE), label(rival)) for rival in BASELINES],
        ),
        Clause(
            f"by a factor of {REPORTED}",
            f"the same over {REPORTED}:",
            "at least 1.25 times",
            [
                measured(fewer(results, rival, WHOLE) - np.log(REPORTED), label(rival))
                for rival in BASELINES
            ],
        ),
        Clause(
            "a layerwise one nearly matches it",
            "its steps over those of the full one:",
            "at most 1.25 times",
            [measured(fewer(results, LAYERS, WHOLE))],
        ),
    ]
    findings = [
        f"{label(method)}: steps to {target(results):.3f} nats, "
        f"{mean_and_spread(steps_to_target(results, method), 1)}, "
        f"{mean_and_spread(seconds_to_target(results, method), 2)} s"
        for method in FIELD
    ]
    return [judge("L1", clauses, findings=findings)]


def seconds_to_target(results: dict, method: str) -> np.ndarray:
    """Those steps at the median time of one."""
    return steps_to_target(results, method) * np.median(
        stored.cost(results, "seconds_a_step", method)
    )


def rows(results: dict) -> list[dict[str, str]]:
    """What was tuned, where it ended, steps and seconds to the target, and the state."""
    return [
        {
            "method": methods.label(method),
            "tuned": COLUMNS["tuned"](results, method),
            "steps": f"{stored.steps(results, method=method)}",
            "final loss": mean_and_spread(final_loss(results, method=method), 3),
            "steps to target": mean_and_spread(steps_to_target(results, method), 1),
            "ms/step": f"{1e3 * np.median(stored.cost(results, 'seconds_a_step', method)):.3g}",
            "seconds to target": mean_and_spread(seconds_to_target(results, method), 2),
            "state/params": f"{stored.state_over_parameters(results, method):.2f}",
        }
        for method in FIELD
    ]


def table(results: dict) -> str:
    """The rows as text."""
    return as_text(rows(results), f"target: {target(results):.3f} nats")


def draw_losses(axes: Axes, results: dict, against: str) -> None:
    """Median training loss against steps or seconds on log scales, and the target."""
    for method in FIELD:
        losses = capped(stored.over_runs(results, "loss", method=method))
        x = middles(losses.shape[1], stored.steps(results, method=method))
        if against == "second":
            x = x * np.median(stored.cost(results, "seconds_a_step", method))
        axes.plot(x, np.median(losses, axis=0), **methods.METHODS[method])
    axes.axhline(target(results), color=plotting.BLACK, linewidth=0.8, linestyle=(0, (1, 3)))
    ends = [final_loss(results, method=method).min() for method in FIELD]
    axes.set(xscale="log", ylim=(0.95 * min(ends), 2.5 * min(ends)))
    axes.set(xlabel=panels.along(against), ylabel=panels.LOSS)


def figure(results: dict) -> Figure:
    """The loss against steps, and against seconds."""
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
    draw_losses(left, results, "step")
    draw_losses(right, results, "second")
    right.set(ylabel="")
    left.legend(fontsize=8)
    return drawing
