"""The spectra of the Hessian and of Gauss-Newton along training (claim S7).

The slides' network, trained with SGD at 0.1. At the start, after one epoch and at the end, Lanczos
gives the smallest and the largest eigenvalue of both matrices on a fixed part of the training set,
and stochastic Lanczos quadrature their density. All in float64.

At the gpu scale the part of the training set is all of it, and Lanczos takes more steps. By
arithmetic, not measured: six programs and 20,000 products with a matrix for each of three seeds, 90
seconds of an H100 each.
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
from soaa_edu.curvature import CURVATURES, curvature_matvec
from soaa_edu.data import mnist
from soaa_edu.linear_solvers import lanczos, ritz, spectral_quadrature
from soaa_edu.optimizers import first_order
from soaa_edu.studies.runs import BATCH_SIZE, slides_objective
from soaa_edu.studies.verdicts import Clause, Verdict, judge, known
from soaa_edu.training import train

TITLE = "Spectra of the Hessian and of Gauss-Newton along training"
CLAIMS = ("S7",)
ROUNDING = 1e-10
CLEARLY = 1e-3
MOMENTS = ("at the start", "after one epoch", "at the end")
NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    train_size: int | None
    epochs: int
    seeds: int
    probe_size: int
    iterations: int
    samples: int
    minutes: float


SCALES = {
    "quick": Settings(1920, 2, 2, 256, 40, 2, 0.67),
    "laptop": Settings(None, 7, 3, 2048, 120, 4, 5.0),
    "gpu": Settings(None, 7, 3, 60_000, 200, 16, 5.0),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each seed."""
    return {f"sgd.{seed}": partial(_spectra, seed, settings) for seed in range(settings.seeds)}


def _spectra(seed: int, settings: Settings) -> dict[str, Any]:
    objective = slides_objective()
    data = mnist(settings.train_size)
    init_key, first_key, rest_key, probe_key = jax.random.split(jax.random.key(seed), 4)
    optimizer = first_order(objective, optax.sgd(0.1))

    def trained(params: Any, epochs: int, key: jax.Array) -> Any:
        return train(
            optimizer,
            params,
            data,
            epochs=epochs,
            batch_size=BATCH_SIZE,
            key=key,
            evaluate=False,
            progress=False,
        ).params

    params = [optimizer.objective.model.init(init_key)]
    params.append(trained(params[0], 1, first_key))
    params.append(trained(params[1], settings.epochs - 1, rest_key))
    probe = jax.tree.map(lambda array: np.asarray(array[: settings.probe_size]), data.train)
    with jax.enable_x64(True):
        return {
            moment: {
                curvature: _spectrum(objective, at, probe, curvature, probe_key, settings)
                for curvature in CURVATURES
            }
            for moment, at in zip(MOMENTS, params, strict=True)
        }


def _spectrum(
    objective: Any, params: Any, probe: Any, curvature: str, key: jax.Array, settings: Settings
) -> dict[str, Any]:
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), params)
    batch = (jnp.asarray(probe[0], jnp.float64), jnp.asarray(probe[1]))
    start_key, density_key = jax.random.split(key)
    start = jax.tree.map(lambda p: jax.random.normal(start_key, p.shape, p.dtype), params)

    @jax.jit
    def measure(params: Any, batch: Any) -> tuple:
        matvec = curvature_matvec(objective, params, batch, curvature)
        extreme, _ = ritz(lanczos(matvec, start, settings.iterations))
        nodes, weights = spectral_quadrature(
            matvec, params, density_key, iterations=settings.iterations, samples=settings.samples
        )
        return extreme[0], extreme[-1], nodes, weights / settings.samples

    smallest, largest, nodes, weights = measure(params, batch)
    seen = np.asarray(weights.ravel()) > 1e-12
    return {
        "smallest": smallest,
        "largest": largest,
        "nodes": np.asarray(nodes.ravel())[seen],
        "weights": np.asarray(weights.ravel())[seen],
    }


def extremes(results: dict, curvature: str, key: str) -> np.ndarray:
    """``"smallest"`` or ``"largest"`` eigenvalues, ``(seeds, moments)``."""
    return np.array(
        [[cell[m][curvature][key] for m in MOMENTS] for cell in results["cells"].values()], float
    )


def draw_density(axes: Axes, results: dict, moment: str) -> None:
    """The densities of both matrices, eigenvalues to a shared width, on a logarithmic scale."""
    first = next(iter(results["cells"].values()))[moment]
    largest = max(first[c]["largest"] for c in CURVATURES)
    lowest = min(first["hessian"]["smallest"], 0)
    grid = np.linspace(lowest - 0.05 * largest, 1.05 * largest, 1500)
    width = 0.005 * largest
    peak = 0.0
    for curvature, color in zip(CURVATURES, (plotting.VERMILLION, plotting.GREEN), strict=True):
        nodes, weights = (np.array(first[curvature][key]) for key in ("nodes", "weights"))
        bumps = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        density = bumps @ weights
        peak = max(peak, density.max())
        axes.plot(grid, density, color=color, label=NAMES[curvature])
    axes.set(yscale="log", ylim=(1e-6, 5 * peak))
    axes.set(xlabel="eigenvalue", ylabel="density", title=moment)


def figure(results: dict) -> Figure:
    """The densities at the three moments."""
    drawing, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for panel, moment in zip(axes, MOMENTS, strict=True):
        draw_density(panel, results, moment)
    axes[0].legend()
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S7: no negative eigenvalue of Gauss-Newton beyond rounding, clear ones of the Hessian."""
    relative = {
        c: extremes(results, c, "smallest") / extremes(results, c, "largest") for c in CURVATURES
    }
    smallest_of = "smallest over largest eigenvalue, {} moment and seed:"
    clauses = [
        Clause(
            "Gauss-Newton is positive semidefinite",
            smallest_of.format("lowest"),
            "at least",
            ROUNDING,
            "",
            [known(relative["gauss_newton"].min())],
        ),
        Clause(
            "the Hessian is not",
            smallest_of.format("mildest"),
            "below",
            CLEARLY,
            "",
            [known(relative["hessian"].max())],
        ),
    ]
    findings = [
        f"{moment}: Hessian from {low:.3g} to {high:.3g}"
        for moment, low, high in zip(
            MOMENTS,
            extremes(results, "hessian", "smallest").mean(axis=0),
            extremes(results, "hessian", "largest").mean(axis=0),
            strict=True,
        )
    ]
    return [judge("S7", clauses, seeds=len(results["cells"]), findings=findings)]
