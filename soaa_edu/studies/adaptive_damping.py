"""Who sets the damping: a fixed λ, Levenberg-Marquardt or a trust region (claims S10 and S11).

Gauss-Newton on the slides' network, full steps. Each rule has one number to choose, and the same
nine tries to choose it: λ itself, the first λ, or the first radius. A try is a run on each of three
seeds: tuned on one, a fixed λ at the edge of stability wins the search and dies on a later seed.
Small batches and large ones, because a rule that watches the loss on the batch of the step can only
see what that batch shows.
The trust region's subproblem solver is also held against dense eigenvalues.

At the gpu scale there are four batch sizes and nine seeds. A rule at a batch size is one program of
27 runs side by side, for nine tries on three seeds, which also serves the nine fresh ones. By
arithmetic, not measured: 12 programs, and 10 to 40 seconds for the runs of a rule at a batch of 64,
whose steps follow each other 6,559 times; 7 minutes of an H100.
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
from scipy.optimize import brentq

from soaa_edu.data import mnist
from soaa_edu.linear_solvers import lanczos_trust_region
from soaa_edu.objective import Objective
from soaa_edu.optimizers import Optimizer, hessian_free, levenberg_marquardt, trust_region
from soaa_edu.studies.runs import (
    STYLES,
    middles,
    over_tuned_seeds,
    slides_objective,
)
from soaa_edu.studies.searches import grid_around, tuned_runs
from soaa_edu.studies.verdicts import Part, Verdict, interval, judge, mean_and_spread

TITLE = "Fixed damping, Levenberg-Marquardt and trust regions"
CLAIMS = ("S10", "S11")
LEAST_SEEDS = 3
RULES = ("tuned_gauss_newton", "levenberg_marquardt", "trust_region")
NO_WORSE = 0.01
NEAR = 0.05
SOLVED = 1e-8


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    train_size: int | None
    epochs: int
    seeds: int
    tuning_values: int
    tuning_seeds: int
    batch_sizes: tuple[int, ...]
    iterations: int
    minutes: float


SCALES = {
    "quick": Settings(1920, 2, 2, 3, 1, (64, 640), 10, 1.5),
    "laptop": Settings(None, 3, 5, 9, 3, (64, 2048), 20, 40.0),
    "gpu": Settings(None, 7, 9, 9, 3, (64, 512, 2048, 16_384), 20, 7.0),
}


def families(
    objective: Objective, iterations: int
) -> dict[str, tuple[float, Callable[[float], Optimizer]]]:
    """Each rule: the middle of its grid, and value -> optimizer."""
    free = partial(hessian_free, objective, curvature="gauss_newton", max_iterations=iterations)
    region = partial(trust_region, objective, curvature="gauss_newton", iterations=iterations)
    return {
        "tuned_gauss_newton": (2.0, lambda damping: free(damping=damping)),
        "levenberg_marquardt": (2.0, lambda first: free(damping=levenberg_marquardt(first))),
        "trust_region": (1.0, lambda radius: region(radius=radius)),
    }


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each rule and batch size, and one for the solver."""
    data = mnist(settings.train_size)
    rules = families(slides_objective(), settings.iterations)
    runs: dict[str, Callable[[], Any]] = {}
    for batch_size in settings.batch_sizes:
        for rule, (middle, build) in rules.items():
            runs[f"{rule}_at_{batch_size}"] = partial(
                tuned_runs,
                build,
                grid_around(middle, 4.0, settings.tuning_values),
                data,
                epochs=settings.epochs,
                batch_size=batch_size,
                seeds=settings.seeds,
                tuning_seeds=settings.tuning_seeds,
            )
    return {**runs, "solver": partial(_solver_errors, settings.seeds)}


def _solver_errors(seeds: int) -> dict[str, Any]:
    """How far Newton-Lanczos is from the dense solution, on indefinite problems of 40 unknowns."""
    with jax.enable_x64(True):
        return {"errors": [_solver_error(jax.random.key(seed)) for seed in range(max(seeds, 3))]}


def _solver_error(key: jax.Array) -> float:
    matrix_key, gradient_key = jax.random.split(key)
    matrix = jax.random.normal(matrix_key, (40, 40))
    matrix = matrix + matrix.T
    gradient = jax.random.normal(gradient_key, (40,))
    ours = lanczos_trust_region(lambda v: matrix @ v, gradient, 1.0, iterations=40).step
    exact = dense_trust_region(np.asarray(matrix), np.asarray(gradient), 1.0)
    return float(jnp.linalg.norm(ours - exact))


def dense_trust_region(matrix: np.ndarray, gradient: np.ndarray, radius: float) -> np.ndarray:
    """The step on the boundary from all eigenvalues and a root of ‖(A + λI)⁻¹ g‖ = radius."""
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    slopes = eigenvectors.T @ gradient

    def excess(damping: float) -> float:
        return 1 / radius - 1 / float(np.linalg.norm(slopes / (eigenvalues + damping)))

    edge = max(0.0, -eigenvalues[0])
    damping = brentq(excess, edge * (1 + 1e-12), edge + np.linalg.norm(slopes) / radius, xtol=1e-15)
    return -eigenvectors @ (slopes / (eigenvalues + damping))


def draw_batch(axes: Axes, results: dict, batch_size: int) -> None:
    """Training loss against epochs, each rule at its best, a line for each seed."""
    for rule in RULES:
        loss = over_tuned_seeds(results, rule, batch_size, "loss")
        steps = int(over_tuned_seeds(results, rule, batch_size, "steps")[0])
        x = middles(loss.shape[1], steps) / steps * results["settings"]["epochs"]
        style = STYLES[rule]
        first, *_ = axes.plot(x, loss.T, color=style["color"], linewidth=1, alpha=0.8)
        first.set_label(style["label"])
    axes.set(xlabel="epoch", ylabel="training loss (nats)", title=f"batch {batch_size:,}")
    axes.set(ylim=(0, 2.5))


def figure(results: dict) -> Figure:
    """Loss against epochs at each batch size."""
    sizes = results["settings"]["batch_sizes"]
    drawing, axes = plt.subplots(1, len(sizes), figsize=(4.5 * len(sizes), 4), sharey=True)
    for panel, batch_size in zip(axes, sizes, strict=True):
        draw_batch(panel, results, batch_size)
    axes[-1].legend()
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S10: no worse than the best fixed λ. S11: no worse than Levenberg-Marquardt, and exact."""
    sizes = results["settings"]["batch_sizes"]
    errors = results["cells"]["solver"]["errors"]
    found = {
        "S10": [_behind(results, "levenberg_marquardt", "tuned_gauss_newton", b) for b in sizes],
        "S11": [
            Part("distance to the dense solution", min(errors), max(errors), SOLVED, above=False),
            *(_behind(results, "trust_region", "levenberg_marquardt", b) for b in sizes),
        ],
    }
    notes = [
        f"batch {b}, {rule.removeprefix('tuned_').replace('_', '-')} from "
        f"{_search(results, rule, b)['best']:.3g}: "
        f"training loss {mean_and_spread(over_tuned_seeds(results, rule, b, 'final_loss'))}; "
        f"{tries_near_the_best(results, rule, b)} of "
        f"{len(_search(results, rule, b)['values'])} tries within {NEAR} of the best"
        for b in sizes
        for rule in RULES
    ]
    return [
        judge(
            claim,
            parts,
            seeds=results["settings"]["seeds"],
            least_seeds=LEAST_SEEDS,
            settled_by="the laptop scale, and there by more seeds",
            notes=notes,
        )
        for claim, parts in found.items()
    ]


def _search(results: dict, rule: str, batch_size: int) -> dict:
    return results["cells"][f"{rule}_at_{batch_size}"]["search"]


def tries_near_the_best(results: dict, rule: str, batch_size: int) -> int:
    """How many values of a rule's search end within ``NEAR`` of its best training loss."""
    scores = np.array(_search(results, rule, batch_size)["scores"])
    return int(np.sum(scores <= scores.min() + NEAR))


def _behind(results: dict, rule: str, rival: str, batch_size: int) -> Part:
    behind = over_tuned_seeds(results, rule, batch_size, "final_loss") - over_tuned_seeds(
        results, rival, batch_size, "final_loss"
    )
    against = "the best fixed λ" if rival == "tuned_gauss_newton" else "Levenberg-Marquardt"
    words = f"batch {batch_size}: its training loss less that of {against}"
    return Part(words, *interval(behind), NO_WORSE, above=False)
