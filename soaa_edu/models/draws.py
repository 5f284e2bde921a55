"""Networks that draw, as dropout does: each example of a batch brings a key of its own.

So the draws belong to the batch. Whatever is computed on it, the loss, its gradient, the signals of
the dense layers, products with the curvature or the loss after a step, sees the same ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Keyed(NamedTuple):
    """Inputs for a network that draws.

    Attributes:
        inputs: ``(B, ...)``, as without keys.
        keys: for each example, ``(B,)``.
    """

    inputs: Any
    keys: jax.Array


def drawing_forward(forward: Callable) -> Callable:
    """A model's ``forward`` that takes inputs with keys, too.

    Args:
        forward: ``(params, inputs, taps, key) -> (outputs, layer_inputs)``, all draws being made
            with the one key, or none if it is ``None``.
    """

    def of_batch(params: Any, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not isinstance(inputs, Keyed):
            return forward(params, inputs, taps, None)

        def of_example(row: Any, tap: Any, key: jax.Array) -> tuple[Any, dict[str, Any]]:
            alone = jax.tree.map(lambda x: x[None], (row, tap))
            return jax.tree.map(lambda x: x[0], forward(params, *alone, key))

        return jax.vmap(of_example)(inputs.inputs, taps, inputs.keys)

    return of_batch


def without_key(caller: str, remedy: str) -> ValueError:
    """The error of a network that draws and has no keys to draw with."""
    return ValueError(
        f"the module given to {caller} draws random numbers, as dropout does, and there are no "
        f"keys: train by soaa_edu.with_dropout(optimizer), or {remedy}"
    )
