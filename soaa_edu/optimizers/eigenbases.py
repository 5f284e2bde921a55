"""Eigenbases that turn slowly: how they begin, how a refresh turns them, and arrays in them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soaa_edu.optimizers.blocks import one_at_a_time
from soaa_edu.optimizers.refreshes import refreshed


def first_bases(statistics: Any) -> Any:
    """The eigenvectors of every matrix in a tree of stacks ``(k, n, n)``.

    They are columns, those of the largest eigenvalues first.
    """

    def eigenvectors(statistic: jax.Array) -> jax.Array:
        return jnp.linalg.eigh(statistic)[1][:, ::-1]

    return jax.tree.map(partial(one_at_a_time, eigenvectors), statistics)


def turned_bases(images: Any, orders: Any) -> Any:
    """Bases after one power iteration: QR of the images L Q, their columns taken in ``orders``."""
    return jax.tree.map(partial(one_at_a_time, _orthogonal), images, orders)


def rotate(array: jax.Array, bases: tuple) -> jax.Array:
    """Q_Lᵀ A Q_R of each block of a matrix; a vector as it is."""
    return bases[0].mT @ array @ bases[1] if bases else array


def rotate_back(array: jax.Array, bases: tuple) -> jax.Array:
    """Q_L A Q_Rᵀ of each block of a matrix; a vector as it is."""
    return bases[0] @ array @ bases[1].mT if bases else array


def renewed(
    since_refresh: jax.Array,
    interval: Any,
    seen: jax.Array,
    first: Callable[[], Any],
    turned: Callable[[], Any],
    old: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    """Bases, and what lives in them, as they are in this step.

    Args:
        since_refresh: steps since the bases were turned, -1 before there are any.
        interval: the age at which they are turned.
        seen: whether there is a gradient to begin from.
        first: gives a tree like ``old`` where there is none yet and a gradient is seen.
        turned: likewise where they are due.
        old: a tree of arrays.

    Returns:
        The tree, their age after this step, and whether this was the first.
    """
    none_yet, due = since_refresh < 0, since_refresh >= interval
    begins = none_yet & seen
    tree = refreshed(begins, first, refreshed(due, turned, old))
    age = optax.safe_increment(jnp.where(begins | due, 0, since_refresh))
    return tree, jnp.where(none_yet & ~begins, -1, age), begins


def _orthogonal(image: jax.Array, order: jax.Array) -> jax.Array:
    return jnp.linalg.qr(image[:, order])[0]
