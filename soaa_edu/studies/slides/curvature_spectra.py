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
from soaa_edu.studies import results as stored
from soaa_edu.studies.runs import BATCH_SIZE
from soaa_edu.studies.slides.network import slides_objective
from soaa_edu.studies.verdicts import Clause, Verdict, judge, known
from soaa_edu.training import train

TITLE = "Spectra of the Hessian and of Gauss-Newton along training"
CLAIMS = ("S7",)
MOMENTS = ("at the start", "after one epoch", "at the end")
NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
LOOKS = {"hessian": (plotting.VERMILLION, "o", -0.06), "gauss_newton": (plotting.GREEN, "s", 0.06)}
LINEAR_BELOW = 0.02


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int | None = None
    epochs: int = 7
    seeds: int = 3
    probe_size: int = 2048
    iterations: int = 120
    samples: int = 4
    minutes: float = 5.0


SCALES = {
    "quick": Settings(
        train_size=1920, epochs=2, seeds=2, probe_size=256, iterations=40, samples=2, minutes=0.67
    ),
    "laptop": Settings(),
    "gpu": Settings(probe_size=60_000, iterations=200, samples=16),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each seed."""
    return {
        stored.name(seed=seed): partial(_spectra, seed, settings) for seed in range(settings.seeds)
    }


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


def draw_spectrum(axes: Axes, results: dict, moment: str) -> None:
    """What share of each matrix's eigenvalues lies in each bin, on an axis linear around zero."""
    edges = LINEAR_BELOW * np.sinh(np.linspace(-8, 8, 74))
    middles = np.linspace(-8, 8, 74)[:-1] + 8 / 73
    first_seed = next(iter(results["cells"].values()))[moment]
    for curvature, (color, marker, shift) in LOOKS.items():
        found = first_seed[curvature]
        mass, _ = np.histogram(found["nodes"], edges, weights=found["weights"])
        x, mass = middles[mass > 0] + shift, mass[mass > 0]
        axes.vlines(x, 1e-8, mass, color=color, linewidth=1.2)
        axes.plot(x, mass, marker, color=color, markersize=3, label=NAMES[curvature])
    ticks = np.array([-1, -0.1, 0, 0.1, 1, 10])
    axes.set_xticks(np.arcsinh(ticks / LINEAR_BELOW), [f"{tick:g}" for tick in ticks])
    axes.set(yscale="log", ylim=(1e-6, 2), xlim=(-6.5, 8.3), xlabel="eigenvalue", title=moment)


def figure(results: dict) -> Figure:
    """The spectra at the three moments."""
    drawing, axes = plt.subplots(1, 3, figsize=(11, 4), sharey=True)
    for panel, moment in zip(axes, MOMENTS, strict=True):
        draw_spectrum(panel, results, moment)
    axes[0].set_ylabel("share of all eigenvalues")
    axes[2].legend(loc="upper right", fontsize=8)
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
            "at least 1e-10",
            [known(relative["gauss_newton"].min())],
        ),
        Clause(
            "the Hessian is not",
            smallest_of.format("mildest"),
            "below 0.001",
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
    return [judge("S7", clauses, findings=findings)]
