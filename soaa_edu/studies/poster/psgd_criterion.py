"""What decides how good PSGD's preconditioner is: iterations or the batch size (claim P2).

The poster's measure is c(P) = E[δĝᵀ P δĝ + δθᵀ P⁻¹ δθ] with δĝ = H δθ. Here one network (digits
averaged down to 14 x 14, 196-32-10 with tanh) stands still after an epoch of Adam. At each batch
size a fresh P is fitted to pairs (δθ, δĝ), δθ drawn anew and H that of a fresh batch; c(P) is then
taken on one fixed set of pairs whose H is that of many examples, relative to the best P for those
pairs. Only what P has learnt differs: the network, the pairs and the examples are the same.

That PSGD does not suit large batches, since they leave it few iterations, is asked of a race beside
Shampoo, which computes its matrices from the first step on: an MLP at a batch of 16,384, 20 steps.

At the gpu scale a fit takes 8,192 iterations, at six batch sizes and on five seeds. By arithmetic,
not measured: 8 programs and 250,000 iterations of half a millisecond; 5 minutes of an H100.
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

from soaa_edu import plotting
from soaa_edu.curvature import hessian_matvec
from soaa_edu.data import Dataset, mnist
from soaa_edu.engine import Cell
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import first_order
from soaa_edu.optimizers.psgd import criterion, fit, identity_factors, normal_like
from soaa_edu.studies import results as stored
from soaa_edu.studies.poster.field import build, grid
from soaa_edu.studies.race import Task, races
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured
from soaa_edu.training import train

TITLE = "PSGD's criterion against iterations and against samples"
CLAIMS = ("P2",)
POOLED = 14
DAMPING = 0.01
STEP_SIZE = 0.1
SMALL, LARGE = 64, 4096
SWEEPS = 30
RACERS = ("psgd", "shampoo")


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    train_size: int = 60_000
    batch_sizes: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    iterations: int = 1024
    probes: int = 64
    probe_examples: int = 16_384
    seeds: int = 3
    raced_images: int = 32_768
    raced_batch: int = 16_384
    raced_epochs: int = 10
    tries: int = 9
    raced_seeds: int = 20
    minutes: float = 10.0


SCALES = {
    "quick": Settings(
        train_size=8192,
        batch_sizes=(64, 4096),
        iterations=128,
        probes=16,
        probe_examples=2048,
        seeds=2,
        raced_images=2048,
        raced_batch=1024,
        tries=1,
        raced_seeds=3,
        minutes=0.7,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        batch_sizes=(16, 64, 256, 1024, 4096, 16_384),
        iterations=8192,
        probes=256,
        probe_examples=60_000,
        seeds=5,
        raced_images=60_000,
        minutes=6.0,
    ),
}


@cache
def network() -> Any:
    """196-32-10 with tanh and softmax cross-entropy."""
    return Objective(mlp([POOLED**2, 32, 10], jnp.tanh), softmax_cross_entropy)


def pooled_mnist(train_size: int) -> Dataset:
    """Digits averaged down to 14 x 14."""
    images, labels = mnist(train_size).train
    blocks = np.asarray(images).reshape(-1, POOLED, 2, POOLED, 2)
    return Dataset(train=(jnp.asarray(blocks.mean(axis=(2, 4)).reshape(-1, POOLED**2)), labels))


def response(objective: Any, params: Any, batch: Any, v: Any) -> Any:
    """δĝ = (H + λI) δθ on a batch."""
    product = hessian_matvec(lambda p: objective(p, batch), params)(v)
    return jax.tree.map(lambda hv, v: hv + DAMPING * v, product, v)


def as_stacks(tree: Any) -> list[jax.Array]:
    """The arrays of a tree as PSGD takes them: a matrix as a stack of one, a vector as it is."""
    return [leaf[None] if leaf.ndim == 2 else leaf for leaf in jax.tree.leaves(tree)]


def cells(settings: Settings) -> dict[str, Callable[[], Any] | Cell]:
    """One cell for each fit's seed, and one for each method of the race."""
    objective = Objective(mlp([784, 64, 64, 10], jnp.tanh), softmax_cross_entropy)
    task = Task(
        {"batch": settings.raced_batch},
        objective,
        partial(mnist, settings.raced_images),
        settings.raced_images,
        settings.raced_epochs,
        settings.raced_batch,
    )
    points = partial(grid, tries=settings.tries)
    return {
        **{stored.name(fit=seed): partial(_fits, seed, settings) for seed in range(settings.seeds)},
        **races([task], RACERS, build, points, seeds=settings.raced_seeds),
    }


def checkpoints(iterations: int) -> list[int]:
    """1, 2, 4 and so on, as far as there are iterations."""
    return [2**k for k in range(iterations.bit_length()) if 2**k <= iterations]


def _fits(seed: int, settings: Settings) -> dict[str, Any]:
    objective = network()
    data = pooled_mnist(settings.train_size)
    init_key, train_key, probe_key, fit_key = jax.random.split(jax.random.key(seed), 4)
    params = train(
        first_order(objective, optax.adam(1e-3)),
        objective.model.init(init_key),
        data,
        epochs=1,
        batch_size=64,
        key=train_key,
        evaluate=False,
        progress=False,
    ).params
    probe_set = jax.tree.map(lambda array: array[: settings.probe_examples], data.train)

    def pair(key: jax.Array) -> tuple[list, list]:
        v = normal_like(params, key)
        return as_stacks(v), as_stacks(response(objective, params, probe_set, v))

    vs, hs = jax.jit(partial(jax.lax.map, pair))(jax.random.split(probe_key, settings.probes))
    best = sum(best_criterion(np.asarray(v), np.asarray(h)) for v, h in zip(vs, hs))

    found = {}
    for batch_size in settings.batch_sizes:
        factors = [scaled_identity(v, h) for v, h in zip(vs, hs)]
        done, ratios = 0, []
        for until in checkpoints(settings.iterations):
            factors = _advance(batch_size, params, data.train, fit_key, factors, done, until)
            ratios.append(float(_on_probes(factors, vs, hs)) / best)
            done = until
        found[str(batch_size)] = ratios
    return {"best": best, "ratios": found}


@jax.jit
def _on_probes(factors: list, vs: list, hs: list) -> Any:
    """c(P), the mean over the fixed pairs."""

    def mean(q: tuple, v: jax.Array, h: jax.Array) -> jax.Array:
        return jax.lax.map(lambda pair: criterion(q, *pair), (v, h)).mean()

    return sum(map(mean, factors, vs, hs))


@partial(jax.jit, static_argnums=0)
def _advance(
    batch_size: int, params: Any, data: Any, key: Any, factors: list, start: Any, stop: Any
) -> list:
    """Fit P from iteration ``start`` to before ``stop``, a fresh batch and a fresh pair each."""

    def step(iteration: Any, factors: list) -> list:
        rows_key, v_key = jax.random.split(jax.random.fold_in(key, iteration))
        rows = jax.random.randint(rows_key, (batch_size,), 0, len(data[0]))
        batch = jax.tree.map(lambda array: array[rows], data)
        v = normal_like(params, v_key)
        h = response(network(), params, batch, v)
        pairs = zip(factors, as_stacks(v), as_stacks(h))
        return [fit(q, v, h, STEP_SIZE)[0] for q, v, h in pairs]

    return jax.lax.fori_loop(start, stop, step, factors)


def scaled_identity(vs: jax.Array, hs: jax.Array) -> tuple:
    """The multiple of Q = I that is best for the pairs, where every fit begins."""
    identity = identity_factors(vs[0])
    scale = jnp.sqrt(jnp.linalg.norm(vs) / jnp.linalg.norm(hs)) ** (1 / len(identity))
    return tuple(scale * q for q in identity)


def best_criterion(vs: np.ndarray, hs: np.ndarray) -> float:
    """The least mean of hᵀPh + vᵀP⁻¹v over all P of PSGD's form, for one array.

    Of a diagonal each entry is √(Σv²/Σh²). Of P₁ ⊗ P₂ each factor has a closed form while the other
    stands still, the matrix geometric mean of (E[H P₂ Hᵀ])⁻¹ and E[V P₂⁻¹ Vᵀ]; they take turns.
    """
    if vs.ndim == 2:
        return float(2 * np.sum(np.sqrt(np.mean(vs**2, axis=0) * np.mean(hs**2, axis=0))))
    v, h = (np.asarray(array[:, 0], np.float64) for array in (vs, hs))
    right = np.eye(v.shape[2])
    for _ in range(SWEEPS):
        left = _geometric_mean(*_moments(v, h, right))
        right = _geometric_mean(*_moments(v.swapaxes(1, 2), h.swapaxes(1, 2), left))
    of_h, of_v = _moments(v, h, right)
    return float(np.trace(left @ of_h) + np.trace(np.linalg.solve(left, of_v)))


def _moments(v: np.ndarray, h: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[H P Hᵀ] and E[V P⁻¹ Vᵀ] for the other side's P."""
    of_h = np.einsum("pij,jk,plk->il", h, other, h, optimize=True) / len(h)
    of_v = np.einsum("pij,jk,plk->il", v, np.linalg.inv(other), v, optimize=True) / len(v)
    return of_h, of_v


def _geometric_mean(of_h: np.ndarray, of_v: np.ndarray) -> np.ndarray:
    """The P with P of_h P = of_v, which minimises tr(P of_h) + tr(P⁻¹ of_v)."""
    root = _power(of_h, 0.5)
    inverse = _power(of_h, -0.5)
    return inverse @ _power(root @ of_v @ root, 0.5) @ inverse


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.maximum(values, 1e-300) ** exponent @ vectors.T


def excess(results: dict, batch_size: int) -> np.ndarray:
    """c(P) over that of the best P, less one, ``(seeds, checkpoints)``."""
    fits = (stored.one(results, fit=seed) for seed in stored.values_of(results, "fit"))
    return np.array([fit["ratios"][str(batch_size)] for fit in fits], float) - 1


def behind_shampoo(results: dict) -> np.ndarray:
    """Log of PSGD's final loss over Shampoo's at the batch of the race, one for each seed."""
    return stored.beside(results, *RACERS, batch=results["settings"]["raced_batch"])


def at_equal_iterations(results: dict) -> np.ndarray:
    """The excess at the large batch over that at the small, at the end, one for each seed."""
    return excess(results, LARGE)[:, -1] / excess(results, SMALL)[:, -1]


def at_equal_samples(results: dict) -> np.ndarray:
    """The same when both have seen as many examples as the small batch at its end."""
    fewer = int(np.log2(LARGE // SMALL))
    return excess(results, LARGE)[:, -1 - fewer] / excess(results, SMALL)[:, -1]


def draw_excess(axes: Axes, results: dict, samples: bool) -> None:
    """The excess of c(P) against iterations, or against the examples that P has seen."""
    settings = results["settings"]
    iterations = np.array(checkpoints(settings["iterations"]))
    colors = plt.colormaps["viridis"](np.linspace(0, 0.9, len(settings["batch_sizes"])))
    for batch_size, color in zip(settings["batch_sizes"], colors, strict=True):
        x = iterations * (batch_size if samples else 1)
        plotting.band(axes, x, excess(results, batch_size), label=f"{batch_size:,}", color=color)
    axes.set(xscale="log", yscale="log", xlabel="examples seen" if samples else "iterations")
    axes.set(ylabel="c(P) above the best P's, relative")


def figure(results: dict) -> Figure:
    """Against iterations and against examples."""
    drawing, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for panel, samples in zip(axes, (False, True), strict=True):
        draw_excess(panel, results, samples)
    axes[0].legend(title="batch size")
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """P2: a larger batch makes P no better in as many iterations."""
    clauses = [
        Clause(
            "curvature's quality is determined by the number of iterations, whatever the batch",
            f"excess of c(P) at batch {LARGE:,} over that at {SMALL}, after as many iterations:",
            "within 1.25 times",
            [measured(np.log(at_equal_iterations(results)))],
        ),
        Clause(
            "therefore PSGD is not suitable for large batch training",
            f"its loss beside Shampoo's at batch {results['settings']['raced_batch']:,}:",
            "above 1 %",
            [measured(behind_shampoo(results))],
        ),
    ]
    last = {b: excess(results, b)[:, -1] for b in results["settings"]["batch_sizes"]}
    findings = [
        f"excess at batch {b:,} at the end: {mean_and_spread(e, 3)}" for b, e in last.items()
    ]
    after = mean_and_spread(at_equal_samples(results), 2)
    findings.append(
        f"batch {LARGE:,} over batch {SMALL}, after as many examples: {after} times the excess"
    )
    return [judge("P2", clauses, findings=findings)]
