"""Steps of several optimizers side by side, many of them in one compiled loop."""

from typing import Any

import jax

import soaa_edu
from benchmarks.timing import in_turn, table

STEPS = 50


def compare(objective: Any, batch_size: int, optimizers: dict[str, Any]) -> None:
    """Print milliseconds of a step, the mean of 50, and multiples of the first optimizer's."""
    params = objective.model.init(jax.random.key(0))
    inputs, labels = soaa_edu.data.mnist(train_size=batch_size * STEPS).train
    batches = (inputs.reshape(STEPS, batch_size, -1), labels.reshape(STEPS, batch_size))

    def loop(optimizer: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state, info = optimizer.step(*carry, batch, jax.random.key(0))
            return (params, state), info["loss"]

        run = jax.jit(lambda p, batches: jax.lax.scan(step, (p, optimizer.init(p)), batches))
        return lambda: run(params, batches)

    calls = {name: loop(optimizer) for name, optimizer in optimizers.items()}
    table(in_turn(calls, rounds=10), per=STEPS)
