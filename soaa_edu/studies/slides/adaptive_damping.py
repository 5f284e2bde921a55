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
from soaa_edu.engine import Cell
from soaa_edu.linear_solvers import lanczos_trust_region
from soaa_edu.optimizers import Optimizer, hessian_free, levenberg_marquardt, trust_region
from soaa_edu.studies import panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.race import Task, finer_races, races
from soaa_edu.studies.results import final_loss
from soaa_edu.studies.searches import Grid, grid_around
from soaa_edu.studies.slides.network import slides_objective
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "Fixed damping, Levenberg-Marquardt and trust regions"
CLAIMS = ("S10", "S11")
FIXED = "gauss_newton"
RULES = (FIXED, "levenberg_marquardt", "trust_region")
REFINING_SEEDS = 10
NEAR = 0.05


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int | None = None
    epochs: int = 3
    seeds: int = 5
    tuning_values: int = 9
    tuning_seeds: int = 3
    batch_sizes: tuple[int, ...] = (64, 2048)
    refined: tuple[int, ...] = (2048,)
    refined_seeds: int = 50
    iterations: int = 20
    minutes: float = 50.0


SCALES = {
    "quick": Settings(
        train_size=1920,
        epochs=2,
        seeds=2,
        tuning_values=3,
        tuning_seeds=1,
        batch_sizes=(64, 640),
        refined=(),
        refined_seeds=0,
        iterations=10,
        minutes=1.5,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        epochs=7,
        seeds=9,
        batch_sizes=(64, 512, 2048, 16_384),
        refined=(),
        refined_seeds=0,
        minutes=7.0,
    ),
}


def grid(rule: str, values: int) -> Grid:
    """λ itself, the first λ, or the first radius."""
    return {"first": grid_around(1.0 if rule == "trust_region" else 2.0, 4.0, values)}


def build(rule: str, task: Task, *, iterations: int, first: Any) -> Optimizer:
    """A rule with its one number."""
    if rule == "trust_region":
        return trust_region(
            task.objective, curvature="gauss_newton", iterations=iterations, radius=first
        )
    damping = levenberg_marquardt(first) if rule == "levenberg_marquardt" else first
    return hessian_free(
        task.objective, curvature="gauss_newton", max_iterations=iterations, damping=damping
    )


def cells(settings: Settings) -> dict[str, Callable[..., Any] | Cell]:
    """One cell for each rule and batch size, and one for the solver."""
    data = mnist(settings.train_size)
    objective = slides_objective()
    images = len(data.train[0])
    tasks = {
        size: Task({"batch": size}, objective, lambda: data, images, settings.epochs, size)
        for size in settings.batch_sizes
    }
    built = partial(build, iterations=settings.iterations)
    return {
        **races(
            tasks.values(),
            RULES,
            built,
            partial(grid, values=settings.tuning_values),
            seeds=settings.seeds,
            tuning_seeds=settings.tuning_seeds,
        ),
        **finer_races(
            [tasks[size] for size in settings.refined],
            RULES,
            built,
            seeds=settings.refined_seeds,
            tuning_seeds=REFINING_SEEDS,
        ),
        "solver": partial(_solver_errors, settings.seeds),
    }


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


def draw_batch(axes: Axes, results: dict, batch: int) -> None:
    """Training loss against epochs, each rule at its best, a line for each seed."""
    panels.curves(axes, results, RULES, against="epoch", each_seed=True, batch=batch)
    axes.set(title=f"batch {batch:,}", ylim=(0, 2.5))


def figure(results: dict) -> Figure:
    """Loss against epochs at each batch size."""
    sizes = results["settings"]["batch_sizes"]
    drawing, axes = plt.subplots(1, len(sizes), figsize=(4.5 * len(sizes), 4), sharey=True)
    for panel, batch_size in zip(axes, sizes, strict=True):
        draw_batch(panel, results, batch_size)
    axes[-1].legend()
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S10 and S11: no worse than the best fixed λ; and the trust region's solver is exact."""
    solver = Clause(
        "Newton-Lanczos solves the trust-region problem",
        "distance to the dense solution:",
        "at most 1e-08",
        [measured(results["cells"]["solver"]["errors"])],
    )
    claims = {
        "S10": [
            _no_worse(results, "levenberg_marquardt", "it adjusts the damping"),
            _loses_no_more(results, "levenberg_marquardt"),
        ],
        "S11": [
            _no_worse(results, "trust_region", "it sets the radius"),
            _loses_no_more(results, "trust_region"),
            solver,
        ],
    }
    findings = [
        f"batch {b}, {label(rule)} from {_search(results, rule, b)['best']['first']:.3g}: "
        f"training loss {mean_and_spread(final_loss(results, method=rule, batch=b))}; "
        f"{tries_near_the_best(results, rule, b)} of "
        f"{len(_search(results, rule, b)['scores'])} tries within {NEAR} of the best"
        for b in results["settings"]["batch_sizes"]
        for rule in RULES
    ]
    return [judge(claim, clauses, findings=findings) for claim, clauses in claims.items()]


def _search(results: dict, rule: str, batch: int) -> dict:
    return stored.search(results, method=rule, batch=batch)


def tries_near_the_best(results: dict, rule: str, batch_size: int) -> int:
    """How many values of a rule's search end within ``NEAR`` of its best training loss."""
    scores = np.array(_search(results, rule, batch_size)["scores"])
    return int(np.sum(scores <= scores.min() + NEAR))


def _no_worse(results: dict, rule: str, says: str) -> Clause:
    """Beside the best fixed λ, batch size by batch size; a lost run counts as a loss of 10."""
    readings = [
        measured(stored.beside(results, rule, FIXED, batch=size), f"batch {size:,}")
        for size in results["settings"]["batch_sizes"]
    ]
    return Clause(says, "its loss beside that of the best fixed λ:", "at most 1 %", readings)


def lost(results: dict, rule: str, batch_size: int) -> np.ndarray:
    """Which of a rule's runs ended above half the loss of guessing, or diverged: one, else zero."""
    losses = stored.over_runs(results, "final_loss", method=rule, batch=batch_size)
    return 1.0 - (losses < np.log(10) / 2)


def _loses_no_more(results: dict, rule: str) -> Clause:
    readings = []
    for batch_size in results["settings"]["batch_sizes"]:
        ours, fixed = (lost(results, r, batch_size) for r in (rule, FIXED))
        readings.append(measured(ours - fixed, f"batch {batch_size:,}"))
    return Clause(
        "and loses no more runs",
        "share of lost runs, less that of the best fixed λ:",
        "at most 5 points",
        readings,
    )
