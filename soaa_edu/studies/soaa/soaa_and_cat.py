"""SOAA's trust region and the one it is said to rest on, CAT, on small problems (claim A9).

CAT's radius finds its own size from any start, never accepts a step that raises the loss, and needs
no constant of the problem. Here both start from seven sizes, each ten times the one before, the
first radius of CAT and the learning rate of SOAA, on problems small enough for exact curvature
products: a quadratic, Rosenbrock's valley and a small network. Neither is tuned; starting wrong is
the point.

The problems are far too small for a GPU: the gpu scale is the laptop's, for those who compute
everything on one machine.
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

from soaa_edu import problems
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer, first_order, soaa, trust_region
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS
from soaa_edu.studies.runs import one_program
from soaa_edu.studies.verdicts import Clause, Verdict, judge, measured

TITLE = "SOAA's trust region and CAT"
CLAIMS = ("A9",)
SOLVED = 1e-3
FOOT = 1e-9
STARTS = tuple(float(10.0**k) for k in range(-4, 3))
PROBLEMS = ("quadratic", "rosenbrock", "network")
FIELD = ("cat", "soaa")


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    steps: int = 500
    seeds: int = 5
    minutes: float = 2.0


SCALES = {
    "quick": Settings(steps=50, seeds=3, minutes=0.5),
    "laptop": Settings(),
    "gpu": Settings(minutes=5.0),
}


def problem(name: str, seed: int) -> tuple[Callable, Any, Any]:
    """A loss ``(params, batch)``, where to start, and the batch."""
    matrix_key, start_key, data_key = jax.random.split(jax.random.key(seed), 3)
    if name == "quadratic":
        bowl = problems.random_quadratic(matrix_key, jnp.logspace(0, 3, 20))
        return bowl, 3 * jax.random.normal(start_key, (20,)), None
    if name == "rosenbrock":
        return problems.rosenbrock, jax.random.uniform(start_key, (2,), minval=-2, maxval=2), None
    model = mlp([6, 5, 3], jnp.tanh)
    teacher_key, x_key = jax.random.split(data_key)
    inputs = jax.random.normal(x_key, (64, 6))
    labels = jax.random.categorical(teacher_key, model(model.init(teacher_key), inputs))
    loss = Objective(model, softmax_cross_entropy)
    return loss, model.init(start_key), (inputs, labels)


def build(method: str, loss: Callable, steps: int, start: Any) -> Optimizer:
    """CAT with its first radius, or SOAA with its learning rate."""
    if method == "cat":
        return trust_region(loss, radius=start, update="cat", iterations=20)
    return first_order(loss, soaa(start, total_steps=steps))


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method on each problem."""
    return {
        stored.name(method=method, problem=name): partial(_runs, method, name, settings)
        for name in PROBLEMS
        for method in FIELD
    }


def _runs(method: str, name: str, settings: Settings) -> list[dict[str, Any]]:
    """For every seed, lists over the starts of what was found."""
    found = []
    for seed in range(settings.seeds):
        loss, params, batch = problem(name, seed)
        at = one_program(partial(build, method, loss, settings.steps))
        step = at(STARTS[0]).step
        run = jax.jit(partial(_run, step, loss, batch, settings.steps, method))
        told = [jax.tree.map(float, run(params, at(start).init(params))) for start in STARTS]
        found.append({key: [one[key] for one in told] for key in told[0]})
    return found


def _run(
    step: Callable, loss: Callable, batch: Any, steps: int, method: str, params: Any, state: Any
) -> dict[str, Any]:
    """How far the gradient fell, and how the trust region moved."""
    size = "radius" if method == "cat" else "trust_scale"

    def take(carry: tuple, key: Any) -> tuple[tuple, dict]:
        params, state = carry
        norm = optax.tree.norm(jax.grad(loss)(params, batch))
        before = loss(params, batch)
        params, state, info = step(params, state, batch, key)
        rise = loss(params, batch) > before + 1e-5 * jnp.abs(before)
        return (params, state), {"norm": norm, "size": info[size], "rise": rise}

    keys = jax.random.split(jax.random.key(0), steps)
    _, along = jax.lax.scan(take, (params, state), keys)
    norms = jnp.where(jnp.isfinite(along["norm"]), along["norm"], jnp.inf)
    return {
        "fall": jnp.min(norms) / norms[0],
        "decades": jnp.log10(jnp.max(along["size"]) / jnp.min(along["size"])),
        "rising": jnp.mean(along["rise"]),
    }


def over_seeds(results: dict, method: str, name: str, key: str) -> np.ndarray:
    """What a method's runs found on a problem, ``(seeds, starts)``."""
    return np.array([run[key] for run in stored.one(results, method=method, problem=name)], float)


def solved(results: dict, method: str) -> np.ndarray:
    """The share of problems and starts on which the gradient fell to a thousandth, by seed."""
    return np.mean([over_seeds(results, method, n, "fall") <= SOLVED for n in PROBLEMS], (0, 2))


def verdicts(results: dict) -> list[Verdict]:
    """A9: SOAA's trust region beside that of CAT, whose name it takes."""
    difference = solved(results, "soaa") - solved(results, "cat")
    decades = np.max([over_seeds(results, "soaa", n, "decades") for n in PROBLEMS], axis=(0, 2))
    rising = np.mean([over_seeds(results, "soaa", n, "rising") for n in PROBLEMS], axis=(0, 2))
    of_cat = np.mean([over_seeds(results, "cat", n, "rising") for n in PROBLEMS])
    clauses = [
        Clause(
            "it converges from any first radius, as CAT does",
            "share of problems and starts solved, less that of CAT:",
            "at least 10 points",
            [measured(difference)],
        ),
        Clause(
            "its region adapts to the problem's scale",
            "most decades over which dt moves in a run:",
            "above 1 decades",
            [measured(decades)],
        ),
        Clause(
            "its steps descend",
            "share of steps that raise the loss:",
            "at most 1 points",
            [measured(rising)],
        ),
    ]
    shares = [f"{method}: {solved(results, method).mean():.2f}" for method in FIELD]
    findings = [
        "share solved, " + ", ".join(shares),
        f"share of CAT's steps that raise the loss: {of_cat:.3f}",
    ]
    return [judge("A9", clauses, findings=findings)]


def draw_falls(axes: Axes, results: dict, name: str) -> None:
    """How far the gradient fell from each start; what fell further stands at the foot."""
    for method in FIELD:
        style = METHODS[method]
        falls = np.maximum(over_seeds(results, method, name, "fall"), FOOT)
        axes.plot(STARTS, np.median(falls, axis=0), marker="o", **style)
        axes.fill_between(STARTS, falls.min(0), falls.max(0), color=style["color"], alpha=0.2)
    axes.axhline(SOLVED, color="0.6", linestyle=":")
    axes.set(xlabel="start", ylabel="smallest gradient norm, relative", xscale="log", yscale="log")
    axes.set_title(name.capitalize())


def figure(results: dict) -> Figure:
    """How far the gradient fell, a panel for each problem."""
    drawing, axes = plt.subplots(1, len(PROBLEMS), figsize=(13, 4))
    for panel, name in zip(axes, PROBLEMS):
        draw_falls(panel, results, name)
    axes[0].legend()
    return drawing
