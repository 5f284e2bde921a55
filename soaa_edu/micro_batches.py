"""A batch taken in micro-batches, one after the other, where all at once it needs too much memory.

A mean over the batch is the mean of the micro-batches' means, each weighted by how many examples
it is a mean over: with padding that is not the same number in each.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.objective import Objective
from soaa_edu.precision import exact_products


def in_micro_batches(objective: Objective, micro_batches: int) -> Objective:
    """The same objective, which runs its model on one micro-batch after the other.

    For every method that takes an objective: ``hessian_free(in_micro_batches(objective, 8), ...)``.
    ``kfac`` has an argument ``micro_batches`` instead. The loss sees all outputs at once, so that
    everything is what it was. Nothing else is kept of a micro-batch: going backward runs the model
    forward again (Griewank & Walther 2000), and so does each product with the Gauss-Newton matrix
    or the Fisher. Products with the Hessian keep what they were linearised with, and save little.
    ``train`` evaluates by it too: ``optimizer._replace(objective=...)`` gives a test set that can't
    be split so the plain one.

    Args:
        objective: a model, or any function of parameters and inputs, and its loss.
        micro_batches: how many, of one size.

    Raises:
        TypeError: no ``Objective``.
        ValueError: no whole number; at the first call, one that does not divide the batch.
    """
    micro_batches = checks.whole("micro_batches", micro_batches)
    if not isinstance(objective, Objective):
        raise TypeError(
            "in_micro_batches needs soaa_edu.Objective(model, loss), to split the model's batch"
        )
    if micro_batches == 1:
        return objective
    model = objective.model

    def parted(params: Any, inputs: Any) -> Any:
        take = split_rows(inputs, micro_batches)
        forward = jax.checkpoint(lambda i: model(params, take(i)))
        outputs = jax.lax.map(forward, jnp.arange(micro_batches))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)

    return replace(objective, model=parted)


def split_rows(batch: Any, micro_batches: int) -> Callable[[Any], Any]:
    """i -> the i-th micro-batch, ``(B / micro_batches, ...)``, of arrays ``(B, ...)``.

    It has rows at equal distances, so that devices that share the batch share it too, and it is cut
    out when it is needed, so that there is no second batch.

    Raises:
        ValueError: the micro-batches would not be of one size.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if rows % micro_batches:
        fitting = max(n for n in range(1, micro_batches) if rows % n == 0)
        raise ValueError(
            f"a batch of {rows} can't be split into {micro_batches} micro-batches of one size: "
            f"take micro_batches={fitting}, or a batch size that is a multiple of {micro_batches}"
        )
    folded = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]), batch)
    return lambda i: jax.tree.map(lambda x: x[:, i], folded)


@exact_products()
def mean_over_micro_batches(function: Callable, batch: Any, key: Any, micro_batches: int) -> Any:
    """The means that ``function`` takes of a batch, from those that it takes of its micro-batches.

    Args:
        function: ``(batch, key) -> (means, counts)``: a tree, and over how many examples each of
            its arrays is a mean, a tree of scalars or a prefix of one.
        batch: arrays ``(B, ...)``.
        key: for the whole, from which each micro-batch gets one of its own; or ``None``.
        micro_batches: how many, of one size.
    """
    if micro_batches == 1:
        return function(batch, key)[0]
    keys = None if key is None else jax.random.split(key, micro_batches)
    take = split_rows(batch, micro_batches)

    def read(i: Any) -> tuple[Any, Any]:
        return function(take(i), None if keys is None else keys[i])

    def add(so_far: tuple, i: Any) -> tuple[tuple, None]:
        means, counts = so_far
        of_part, more = read(i)
        counts = jax.tree.map(jnp.add, counts, more)

        def moved(more: Any, count: Any, means: Any, of_part: Any) -> Any:
            return jax.tree.map(
                lambda m, x: (m + (x - m) * more / jnp.maximum(count, 1)).astype(m.dtype),
                means,
                of_part,
            )

        return (jax.tree.map(moved, more, counts, means, of_part), counts), None

    zero = optax.tree.zeros_like(jax.eval_shape(read, 0))
    (means, _), _ = jax.lax.scan(add, zero, jnp.arange(micro_batches))
    return means
