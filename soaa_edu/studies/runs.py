"""Single runs as plain numbers, and what a step of them takes."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soaa_edu import plotting
from soaa_edu.data import Dataset, mnist
from soaa_edu.optimizers import Optimizer
from soaa_edu.training import History, train

BATCH_SIZE = 64
MOST_POINTS = 140


def training_run(
    optimizer: Optimizer,
    seed: int,
    data: Dataset,
    epochs: int,
    batch_size: int = BATCH_SIZE,
    last: int | None = None,
    curves: bool = True,
) -> dict[str, Any]:
    """One run as plain numbers, its curves in stretches; methods share start and order by seed.

    The final loss is the mean over the ``last`` steps, or over the last epoch.
    """
    init_key, train_key = jax.random.split(jax.random.key(seed))
    history = train(
        optimizer,
        optimizer.objective.model.init(init_key),
        data,
        epochs=epochs,
        batch_size=batch_size,
        key=train_key,
        progress=False,
    )
    return {
        **record(history, last or len(history.loss) // epochs, curves),
        "seconds": history.seconds.sum(),
    }


def seconds_of_steps(optimizer: Optimizer, steps: int, repeats: int) -> np.ndarray:
    """Seconds of a step, the mean over an epoch of ``steps``, for each repeat after a first."""
    key = jax.random.key(0)
    history = train(
        optimizer,
        optimizer.objective.model.init(key),
        mnist(steps * BATCH_SIZE),
        epochs=repeats + 1,
        batch_size=BATCH_SIZE,
        key=key,
        evaluate=False,
        progress=False,
    )
    return history.seconds[1:] / steps


def seconds_of_dispatched_steps(optimizer: Optimizer, steps: int, repeats: int) -> np.ndarray:
    """Seconds of a step that the host sends to the device one by one, reading each loss."""
    key = jax.random.key(0)
    images, labels = mnist(BATCH_SIZE).train
    batch = (jnp.asarray(images), jnp.asarray(labels))
    params = optimizer.objective.model.init(key)
    state = optimizer.init(params)
    step = jax.jit(optimizer.step)
    seconds = []
    for _ in range(repeats + 1):
        began = perf_counter()
        for _ in range(steps):
            params, state, info = step(params, state, batch, key)
            float(info["loss"])
        seconds.append((perf_counter() - began) / steps)
    return np.array(seconds[1:])


def epochs_in_turn(
    optimizers: dict[str, Optimizer], data: Dataset, batch_size: int
) -> dict[str, list[float]]:
    """Seconds of an epoch of each method, taking turns, for three repeats after a first."""
    key = jax.random.key(1)

    def seconds(optimizer: Optimizer) -> float:
        params = optimizer.objective.model.init(jax.random.key(0))
        history = train(
            optimizer,
            params,
            data,
            epochs=1,
            batch_size=batch_size,
            key=key,
            evaluate=False,
            progress=False,
        )
        return float(history.seconds[0])

    rounds = [{name: seconds(o) for name, o in optimizers.items()} for _ in range(4)][1:]
    return {name: [times[name] for times in rounds] for name in optimizers}


def record(history: History, last: int, curves: bool = True) -> dict[str, Any]:
    """A run as plain numbers, its curves in stretches; the final loss over the last steps."""
    ends = {
        "steps": len(history.loss),
        "final_loss": history.loss[-last:].mean(),
        "diverged_at": history.diverged_at,
        "test_loss": history.test_loss,
        "test_accuracy": history.test_accuracy,
    }
    if not curves:
        return ends
    points = -(-ends["steps"] // -(-ends["steps"] // MOST_POINTS))
    return {
        **ends,
        "loss": plotting.binned(history.loss, points),
        "info": {name: plotting.binned(values, points) for name, values in history.info.items()},
    }


def one_program(build: Callable[[Any], Optimizer]) -> Callable[[float], Optimizer]:
    """``build`` with its number kept in the state: all values share one compiled program."""

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        value, inner = state
        params, inner, info = build(value).step(params, inner, batch, key)
        return params, (value, inner), info

    def at(value: float) -> Optimizer:
        optimizer = build(value)

        def init(params: Any) -> tuple[jax.Array, Any]:
            return jnp.asarray(value, jnp.float32), optimizer.init(params)

        return Optimizer(init, step, optimizer.objective)

    return at


def state_bytes(optimizer: Optimizer, params: Any) -> int:
    """What the state of an optimizer takes in memory."""
    shapes = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
