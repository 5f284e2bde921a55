"""Seven epochs of exact Newton in the slides' setting, and the same step by dense algebra."""

from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

import soaa_edu
from soaa_edu.curvature import dense, hessian_matvec

BATCH_SIZE = 64
STEPS = 7 * 937
UNDAMPED_STEPS = 400


def main() -> None:
    """Print seconds for seven epochs: measured, or extrapolated from some steps and marked so."""
    model = soaa_edu.models.mlp([784, 10, 10])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = model.init(jax.random.key(0))
    damped = soaa_edu.newton(objective, learning_rate=0.5, damping=32.0)
    undamped = soaa_edu.newton(objective, learning_rate=0.5)

    seconds = train_seconds(damped, params, soaa_edu.data.mnist(), epochs=7)
    print(f"damped, 7 epochs: {seconds:.1f} s (at most 90)")
    part = soaa_edu.data.mnist(train_size=UNDAMPED_STEPS * BATCH_SIZE)
    minutes = train_seconds(undamped, params, part, epochs=1) * STEPS / UNDAMPED_STEPS / 60
    print(f"undamped: {minutes:.1f} min (at most 40), extrapolated from {UNDAMPED_STEPS} steps")

    batch = jax.tree.map(lambda array: array[:BATCH_SIZE], part.train)
    form, invert = dense_seconds(objective, params, batch)
    hours = (form + invert) * STEPS / 3600
    print(
        f"dense algebra: {hours:.0f} h, extrapolated from one step: "
        f"{form:.1f} s to form the Hessian, {invert:.1f} s for its pseudo-inverse"
    )


def train_seconds(optimizer: Any, params: Any, data: Any, epochs: int) -> float:
    history = soaa_edu.train(
        optimizer,
        params,
        data,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        key=jax.random.key(1),
        evaluate=False,
        progress=False,
    )
    return float(history.seconds.sum())


def dense_seconds(objective: Any, params: Any, batch: Any) -> tuple[float, float]:
    def form(params: Any) -> Any:
        return dense(hessian_matvec(lambda p: objective(p, batch), params), params)

    form_matrix = jax.jit(form).lower(params).compile()
    invert = jax.jit(jnp.linalg.pinv).lower(jax.eval_shape(form, params)).compile()
    began = perf_counter()
    matrix = jax.block_until_ready(form_matrix(params))
    formed = perf_counter()
    jax.block_until_ready(invert(matrix))
    return formed - began, perf_counter() - formed
