"""Steps without a matrix: the slides' network against SGD, a larger one against Adam."""

from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import optax

import soaa_edu
from benchmarks.loops import compare


def main() -> None:
    """Print milliseconds of a step, the mean of 50 in one loop, and one whole comparison."""
    hessian_free = soaa_edu.hessian_free
    objective = soaa_edu.Objective(
        soaa_edu.models.mlp([784, 10, 10]), soaa_edu.softmax_cross_entropy
    )
    print("mlp([784, 10, 10]), batch 64 (Hessian-free at most 7 SGD steps)")
    compare(
        objective,
        64,
        {
            "SGD": soaa_edu.first_order(objective, optax.sgd(0.1)),
            "Hessian-free, damping 32": hessian_free(objective, learning_rate=0.5, damping=32.0),
            "Gauss-Newton, damping 4": hessian_free(
                objective, learning_rate=0.5, damping=4.0, curvature="gauss_newton"
            ),
        },
    )
    larger = soaa_edu.Objective(
        soaa_edu.models.mlp([784, 256, 256, 10], jnp.tanh), soaa_edu.softmax_cross_entropy
    )
    ten = partial(hessian_free, larger, curvature="gauss_newton", max_iterations=10, tolerance=0.0)
    print("mlp([784, 256, 256, 10]) tanh, batch 512 (Gauss-Newton at most 11 Adam steps)")
    compare(
        larger,
        512,
        {
            "Adam": soaa_edu.first_order(larger, optax.adam(1e-3)),
            "Gauss-Newton, 10 CG iterations": ten(damping=1.0),
            "the same, Levenberg-Marquardt": ten(damping=soaa_edu.levenberg_marquardt(1.0)),
        },
    )
    print("the same network and batch (layer by layer at most the whole)")
    compare(
        larger,
        512,
        {
            "Gauss-Newton, 10 CG iterations": ten(damping=1.0),
            "the same, layer by layer": ten(damping=1.0, blocks="layers"),
        },
    )
    print(
        f"the slides' comparison, one seed, 7 epochs: {slides_comparison(objective):.0f} s of 240"
    )


def slides_comparison(objective: Any) -> float:
    """Seconds for SGD, damped Newton, Hessian-free and Gauss-Newton, compilation included."""
    mnist = soaa_edu.data.mnist()
    params = objective.model.init(jax.random.key(0))
    half = {"learning_rate": 0.5}
    methods = [
        soaa_edu.first_order(objective, optax.sgd(0.1)),
        soaa_edu.newton(objective, damping=32.0, **half),
        soaa_edu.hessian_free(objective, damping=32.0, **half),
        soaa_edu.hessian_free(objective, damping=4.0, curvature="gauss_newton", **half),
    ]
    began = perf_counter()
    for method in methods:
        soaa_edu.train(
            method,
            params,
            mnist,
            epochs=7,
            batch_size=64,
            key=jax.random.key(1),
            progress=False,
        )
    return perf_counter() - began
