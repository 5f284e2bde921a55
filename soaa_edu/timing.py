"""What compiling an optimizer's update as one program gains."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from soaa_edu import checks


class BothWays(NamedTuple):
    """Seconds of an update, one for each repeat.

    Attributes:
        one_by_one: every array operation dispatched by itself, ``(repeats,)``.
        fused: the same update compiled as one program, ``(repeats,)``.
    """

    one_by_one: np.ndarray
    fused: np.ndarray


def both_ways(
    transformation: optax.GradientTransformation,
    params: Any,
    gradients: Any,
    *,
    repeats: int = 20,
) -> BothWays:
    """Time an optax transformation's update and its addition to the parameters, in turn.

    Compilation is left out, and each update is waited for. A transformation that takes extra
    arguments is given a loss of one.

    Args:
        transformation: for example ``optax.adam(1e-3)``.
        params: any pytree of arrays.
        gradients: like the parameters.
        repeats: how often each way is timed.

    Raises:
        ValueError: ``repeats`` is no whole number of one or more.
    """
    checks.whole("repeats", repeats)
    takes_loss = isinstance(transformation, optax.GradientTransformationExtraArgs)
    extra = {"value": np.float32(1)} if takes_loss else {}

    def update(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    ways: tuple[Callable, Callable] = (update, jax.jit(update))
    state = transformation.init(params)
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for way, kept in zip(ways, seconds):
            began = time.perf_counter()
            jax.block_until_ready(way(params, state, gradients))
            kept.append(time.perf_counter() - began)
    one_by_one, fused = (np.array(kept[1:]) for kept in seconds)
    return BothWays(one_by_one, fused)
