"""One Newton step against gradient descent's many, at every condition number (claim S1).

Random quadratics in float64 whose eigenvalues run from 1 to κ. The minimiser x* is chosen first, so
that the error is known and not itself the product of a solver. Gradient descent takes its best
fixed step, 2 / (λ_min + λ_max).

The steps of gradient descent follow each other by the million, which a GPU takes more slowly than a
CPU: the gpu scale is the laptop's without the largest condition number.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.optimizers import newton
from soaa_edu.problems import random_quadratic
from soaa_edu.studies.results import name
from soaa_edu.studies.verdicts import Clause, Verdict, judge, measured

TITLE = "Newton's one step on quadratics, and gradient descent's many"
CLAIMS = ("S1",)
TARGET = 1e-6
NO_BATCH = (None, None)
CONDITIONS = tuple(10.0**k for k in range(7))


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    dimensions: int = 20
    condition_numbers: tuple[float, ...] = CONDITIONS
    seeds: int = 5
    minutes: float = 2.0


SCALES = {
    "quick": Settings(condition_numbers=CONDITIONS[:5], seeds=3, minutes=0.07),
    "laptop": Settings(),
    "gpu": Settings(condition_numbers=CONDITIONS[:6], minutes=2.5),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each condition number."""
    return {
        name(condition=f"{condition:.0e}"): partial(_race, condition, settings)
        for condition in settings.condition_numbers
    }


def _race(condition: float, settings: Settings) -> dict[str, Any]:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), settings.seeds)
        races = [_one_race(key, condition, settings.dimensions) for key in keys]
    errors, counts = zip(*races, strict=True)
    return {
        "condition_number": condition,
        "newton_error": errors,
        "newton_error_over_rounding": [
            e / _rounding(condition, settings.dimensions) for e in errors
        ],
        "gradient_descent_steps": counts,
    }


def _one_race(key: jax.Array, condition: float, dimensions: int) -> tuple[float, int]:
    matrix_key, solution_key, start_key = jax.random.split(key, 3)
    eigenvalues = jnp.geomspace(1, condition, dimensions)
    matrix = jax.hessian(random_quadratic(matrix_key, eigenvalues))(jnp.zeros(dimensions))
    solution = jax.random.normal(solution_key, (dimensions,))
    start = jax.random.normal(start_key, (dimensions,))
    error, count = _newton_error_and_descent_steps(matrix, solution, start, 2 / (1 + condition))
    return float(error), int(count)


@jax.jit
def _newton_error_and_descent_steps(
    matrix: jax.Array, solution: jax.Array, start: jax.Array, rate: jax.Array
) -> tuple[jax.Array, Any]:
    b = matrix @ solution

    def f(x: jax.Array, batch: Any = None) -> jax.Array:
        return 0.5 * x @ matrix @ x - b @ x

    after, _, _ = newton(f).step(start, (), NO_BATCH, None)
    error = jnp.linalg.norm(after - solution) / jnp.linalg.norm(start - solution)
    target = TARGET * jnp.linalg.norm(start - solution)

    def far(carry: tuple) -> jax.Array:
        x, _ = carry
        return jnp.linalg.norm(x - solution) > target

    def descend(carry: tuple) -> tuple:
        x, count = carry
        return x - rate * jax.grad(f)(x), count + 1

    return error, jax.lax.while_loop(far, descend, (start, 0))[1]


def _rounding(condition: Any, dimensions: int) -> Any:
    """d κ eps, what a backward stable solver of d unknowns may lose."""
    return dimensions * condition * np.finfo(float).eps


def _table(results: dict, key: str) -> np.ndarray:
    return np.array([cell[key] for cell in results["cells"].values()], float)


def figure(results: dict) -> Figure:
    """Steps to a millionth of the first error, and what one Newton step leaves."""
    conditions = _table(results, "condition_number")
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    counts = _table(results, "gradient_descent_steps")
    plotting.band(
        left, conditions, counts.T, label="gradient descent", color=plotting.BLUE, marker="o"
    )
    left.plot(conditions, np.ones_like(conditions), "s-", color=plotting.VERMILLION, label="Newton")
    left.set(xlabel="condition number κ", ylabel=f"steps to {TARGET:g} of the first error")
    errors = _table(results, "newton_error")
    plotting.band(
        right, conditions, errors.T, label="Newton", color=plotting.VERMILLION, marker="s"
    )
    rounding = _rounding(conditions, results["settings"]["dimensions"])
    right.plot(conditions, rounding, "--", color=plotting.BLACK, label="rounding, d κ eps")
    right.set(xlabel="condition number κ", ylabel="relative error after one Newton step")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.legend()
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S1: one step leaves no more than rounding, at every condition number."""
    rounding = _table(results, "newton_error_over_rounding").max(axis=0)
    conditions = _table(results, "condition_number")
    counts = _table(results, "gradient_descent_steps")
    one_step = Clause(
        "Newton solves a convex quadratic in one step",
        "the error left at the worst κ is",
        "at most 1 of the rounding bound d κ eps",
        [measured(rounding)],
    )
    findings = [
        f"κ = {condition:g}: gradient descent takes {count.mean():,.0f} steps"
        for condition, count in zip(conditions, counts, strict=True)
    ]
    return [judge("S1", [one_step], findings=findings)]
