"""How far each Kronecker product is from the block of the Fisher that it stands for (claim P7).

A network small enough to form every matrix: digits averaged down to 7 x 7, 49-10-10 with tanh, at
the start and trained. In float64, on a fixed part of the training set: the poster's three matrices,
what each approximates, and the step that its one formula θ ← θ - η C⁻ᵉ g then takes, beside the
step of the method itself.

Most of its time goes to decompositions on the host. The gpu scale has more seeds, longer training
and a larger part of the training set; by arithmetic, not measured, it takes 6 minutes anywhere.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.linalg import fractional_matrix_power

from soaa_edu import plotting
from soaa_edu.curvature import (
    dense,
    empirical_fisher_matvec,
    fisher_matvec,
    gauss_newton_matvec,
)
from soaa_edu.data import Dataset, mnist
from soaa_edu.kronecker import factors, run_forward
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import first_order, kfac, shampoo
from soaa_edu.studies import results as stored
from soaa_edu.studies.verdicts import Clause, Verdict, judge, measured
from soaa_edu.training import train

TITLE = "Kronecker products beside the Fisher blocks they stand for"
CLAIMS = ("P7",)
POOLED = 7
DAMPING = 0.01
MOMENTS = ("at the start", "trained")
PRODUCTS = {
    "nearest": "the nearest product",
    "kfac": "K-FAC, A ⊗ G",
    "trace": "(L ⊗ R) / tr L",
    "root_scaled": "L^½ ⊗ R^½, rescaled",
    "root": "L^½ ⊗ R^½",
}


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int = 60_000
    epochs: int = 5
    seeds: int = 5
    probe_size: int = 2048
    minutes: float = 3.0


SCALES = {
    "quick": Settings(train_size=2048, epochs=2, seeds=2, probe_size=256, minutes=0.5),
    "laptop": Settings(),
    "gpu": Settings(epochs=20, seeds=10, probe_size=16_384, minutes=6.0),
}


def pooled(images: Any, side: int = POOLED) -> np.ndarray:
    """28 x 28 images as flat rows ``(n, 784)``, averaged down to ``side`` x ``side``."""
    step = 28 // side
    return (
        np.asarray(images)
        .reshape(-1, side, step, side, step)
        .mean(axis=(2, 4))
        .reshape(-1, side**2)
    )


@cache
def small_network() -> Any:
    """49-10-10 with tanh and softmax cross-entropy: 610 parameters."""
    return Objective(mlp([POOLED**2, 10, 10], jnp.tanh), softmax_cross_entropy)


def trained_params(objective: Any, data: Dataset, epochs: int, seed: int) -> tuple[Any, Any]:
    """The parameters at the start, and after training with Adam on batches of 64."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = objective.model.init(init_key)
    history = train(
        first_order(objective, optax.adam(1e-3)),
        params,
        data,
        epochs=epochs,
        batch_size=64,
        key=train_key,
        evaluate=False,
        progress=False,
    )
    return params, history.params


def in_rows(tree: Any, name: str) -> jax.Array:
    """One layer of a tree like the parameters, [weight; bias] read row by row."""
    layer = tree[name]
    return jnp.concatenate([layer["weight"], layer["bias"][None]]).ravel()


def places(params: Any, name: str) -> np.ndarray:
    """Where one layer's parameters, read row by row, stand among all of them."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    found = [np.arange(end - leaf.size, end).reshape(leaf.shape) for leaf, end in zip(leaves, ends)]
    layer = jax.tree.unflatten(structure, found)[name]
    return np.concatenate([layer["weight"], layer["bias"][None]]).ravel()


def block(matrix: np.ndarray, params: Any, name: str) -> np.ndarray:
    """The block of one layer of a curvature matrix, its parameters read row by row."""
    return matrix[np.ix_(places(params, name), places(params, name))]


def nearest_product(matrix: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A and G of the A ⊗ G nearest in Frobenius norm (Van Loan & Pitsianis 1993)."""
    rearranged = matrix.reshape(rows, columns, rows, columns).transpose(0, 2, 1, 3)
    u, s, vt = np.linalg.svd(rearranged.reshape(rows**2, columns**2), full_matrices=False)
    root = np.sqrt(s[0])
    return root * u[:, 0].reshape(rows, rows), root * vt[0].reshape(columns, columns)


def shampoo_factors(fisher_block: np.ndarray, rows: int, columns: int) -> tuple:
    """L = E[GGᵀ] and R = E[GᵀG] of one example's gradient G, read off E[g gᵀ]."""
    four = fisher_block.reshape(rows, columns, rows, columns)
    return np.einsum("iaja->ij", four), np.einsum("iaib->ab", four)


def products(found: Any, fisher_block: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Each Kronecker product that stands for a layer's block."""
    a, g = np.asarray(found.inputs[name]), np.asarray(found.outputs[name])
    left, right = shampoo_factors(fisher_block, len(a), len(g))
    root = np.kron(_root(left), _root(right))
    return {
        "nearest": np.kron(*nearest_product(fisher_block, len(a), len(g))),
        "kfac": np.kron(a, g),
        "trace": np.kron(left, right) / np.trace(left),
        "root": root,
        "root_scaled": root * np.sum(root * fisher_block) / np.sum(root**2),
    }


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The Frobenius norm of the difference over that of ``expected``."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each seed."""
    return {
        stored.name(seed=seed): partial(_matrices, seed, settings) for seed in range(settings.seeds)
    }


def _matrices(seed: int, settings: Settings) -> dict[str, Any]:
    objective = small_network()
    full = mnist(settings.train_size).train
    data = Dataset(train=(pooled(full[0]), full[1]))
    probe = jax.tree.map(lambda array: np.asarray(array[: settings.probe_size]), data.train)
    moments = trained_params(objective, data, settings.epochs, seed)
    with jax.enable_x64(True):
        batch = (jnp.asarray(probe[0], jnp.float64), jnp.asarray(probe[1]))
        wide = [jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params) for params in moments]
        return {
            moment: _distances(objective, params, batch)
            for moment, params in zip(MOMENTS, wide, strict=True)
        }


@partial(jax.jit, static_argnums=0)
def curvatures(objective: Any, params: Any, batch: Any) -> tuple[dict[str, Any], Any]:
    """The three matrices, and K-FAC's factors from the exact Fisher."""
    matvecs = {
        "fisher": fisher_matvec(objective, params, batch),
        "gauss_newton": gauss_newton_matvec(objective, params, batch),
        "empirical": empirical_fisher_matvec(objective, params, batch),
    }
    signals = run_forward(objective.model, params, batch[0])
    found = factors(objective, signals, batch[1], fisher="exact")
    return {name: dense(matvec, params) for name, matvec in matvecs.items()}, found


def _distances(objective: Any, params: Any, batch: Any) -> dict[str, Any]:
    matrices, found = jax.tree.map(np.asarray, curvatures(objective, params, batch))
    layers = {}
    for name in objective.model.dense_layers:
        fisher_block = block(matrices["fisher"], params, name)
        candidates = products(found, fisher_block, name)
        layers[name] = {kind: relative(c, fisher_block) for kind, c in candidates.items()}
    return {
        "fisher_off": relative(matrices["fisher"], matrices["gauss_newton"]),
        "empirical_off": relative(matrices["empirical"], matrices["gauss_newton"]),
        "layers": layers,
        "formula_off": formula_errors(objective, params, batch, found),
    }


def formula_errors(objective: Any, params: Any, batch: Any, found: Any) -> dict[str, float]:
    """How far C⁻ᵉg, by dense matrices, is from the steps of K-FAC and Shampoo themselves."""
    gradient = jax.grad(objective)(params, batch)
    methods = {
        "kfac": kfac(
            objective, learning_rate=1.0, damping=DAMPING, fisher="exact", exact_damping=True
        ),
        "shampoo": first_order(objective, shampoo(1.0, b1=0.0, grafting=None, ridge=DAMPING)),
    }
    errors = {}
    for method, optimizer in methods.items():
        state = optimizer.init(params)
        after, _, _ = jax.jit(optimizer.step)(params, state, batch, jax.random.key(0))
        worst = 0.0
        for name in objective.model.dense_layers:
            if method == "kfac":
                product = np.kron(found.inputs[name], found.outputs[name])
                flat = np.asarray(in_rows(gradient, name))
                formula = np.linalg.solve(product + DAMPING * np.eye(len(flat)), flat)
                taken = np.asarray(in_rows(params, name) - in_rows(after, name))
            else:
                g = np.asarray(gradient[name]["weight"])
                left, right = (_ridged(side) for side in (g @ g.T, g.T @ g))
                formula = fractional_matrix_power(np.kron(left, right), -0.25) @ g.ravel()
                taken = np.asarray(params[name]["weight"] - after[name]["weight"]).ravel()
            worst = max(worst, relative(formula, taken))
        errors[method] = worst
    return errors


def _ridged(matrix: np.ndarray) -> np.ndarray:
    return matrix + DAMPING * np.linalg.eigvalsh(matrix)[-1] * np.eye(len(matrix))


def over_seeds(results: dict, moment: str, *keys: str) -> np.ndarray:
    """A number at a moment, one for each seed."""
    found = []
    for cell in results["cells"].values():
        value = cell[moment]
        for key in keys:
            value = value[key]
        found.append(value)
    return np.array(found, float)


def worst_layer(results: dict, kind: str) -> np.ndarray:
    """The largest relative distance of a product from its block, over moments and layers."""
    layers = next(iter(results["cells"].values()))[MOMENTS[0]]["layers"]
    return np.max(
        [over_seeds(results, m, "layers", layer, kind) for m in MOMENTS for layer in layers], axis=0
    )


def draw_distances(axes: Axes, results: dict, layer: str) -> None:
    """How far each product is from a layer's block, a row for each, dots for seeds and moments."""
    looks = {"at the start": ("none", plotting.BLUE), "trained": (plotting.VERMILLION,) * 2}
    for moment, (face, edge) in looks.items():
        for row, kind in enumerate(PRODUCTS):
            off = over_seeds(results, moment, "layers", layer, kind)
            y = row + np.linspace(-0.15, 0.15, len(off))
            dots: dict[str, Any] = {
                "markerfacecolor": face,
                "markeredgecolor": edge,
                "markersize": 6,
            }
            axes.plot(off, y, "o", label="" if row else moment, **dots)
    axes.set_yticks(range(len(PRODUCTS)), list(PRODUCTS.values()))
    axes.set(xscale="log", title=layer, xlabel="distance from the Fisher block, relative")


def figure(results: dict) -> Figure:
    """The distances of both layers."""
    layers = list(next(iter(results["cells"].values()))[MOMENTS[0]]["layers"])
    drawing, axes = plt.subplots(
        1, len(layers), figsize=(10, 3.6), sharex=True, sharey=True, squeeze=False
    )
    for panel, layer in zip(axes[0], layers, strict=True):
        draw_distances(panel, results, layer)
    axes[0, 0].invert_yaxis()
    axes[0, 0].legend(loc="lower left")
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """P7: the poster's matrices are what they are called, near what they stand for, one formula."""
    empirical = np.min([over_seeds(results, m, "empirical_off") for m in MOMENTS], axis=0)
    formula = np.max(
        [over_seeds(results, m, "formula_off", k) for m in MOMENTS for k in ("kfac", "shampoo")],
        axis=0,
    )
    nearest = worst_layer(results, "nearest")
    clauses = [
        Clause(
            "one formula for all, with C⁻ᵉ",
            "steps of K-FAC (e = 1) and Shampoo (e = 1/4) off C⁻ᵉg:",
            "at most 1e-06",
            [measured(formula)],
        ),
        Clause(
            "Gauss-Newton is E[∇L∇Lᵀ]",
            "which is the empirical Fisher; off Gauss-Newton, at the nearer moment:",
            "at most 0.01 of its norm",
            [measured(empirical)],
        ),
        Clause(
            "the Kronecker products stand for it",
            "distance from the Fisher block over that of the nearest product, worst layer:",
            "at most 1.1 times",
            [
                measured(np.log(worst_layer(results, kind) / nearest), PRODUCTS[kind])
                for kind in ("kfac", "trace", "root")
            ],
        ),
    ]
    fisher = np.max([over_seeds(results, m, "fisher_off") for m in MOMENTS])
    findings = [
        f"the Fisher off Gauss-Newton: {fisher:.1g}",
        f"the nearest Kronecker product off the block, worst layer and moment: "
        f"{nearest.mean():.3f}",
        f"{PRODUCTS['root_scaled']}: {worst_layer(results, 'root_scaled').mean():.3f}",
        "L ⊗ R itself has the dimension of the squared Fisher: twice the loss makes it 16 times as "
        "large, and the Fisher 4 times",
    ]
    return [judge("P7", clauses, findings=findings)]
