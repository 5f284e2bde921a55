"""How an array of parameters becomes matrices, for methods that multiply from both sides."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soaa_edu import checks
from soaa_edu.linear_solvers.roots import inverse_root, inverse_root_by_products

P_BY_PRODUCTS = range(2, 9)


def is_matrix(leaf: Any) -> bool:
    """Whether an array has two axes or more. A scalar or vector gets a diagonal instead."""
    return jnp.ndim(leaf) >= 2 and jnp.size(leaf) > 0


def to_blocks(leaf: Any, block_size: int) -> jax.Array:
    """An array of two axes or more as a stack of matrices ``(k, rows, columns)``.

    All axes but the last are merged into rows, so that a convolution's kernel (height, width, in,
    out) is the dense layer on patches that it is. An axis longer than ``block_size`` is split into
    the fewest equal parts, the last of them padded with zeros (Anil et al. 2020). A scalar or
    vector stays as it is. The type becomes float32 where it was narrower.
    """
    array = jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))
    if not is_matrix(array):
        return array
    matrix = array.reshape(-1, array.shape[-1])
    height, width = matrix.shape
    rows, columns = _part(height, block_size), _part(width, block_size)
    padded = jnp.pad(matrix, ((0, -height % rows), (0, -width % columns)))
    tiles = padded.reshape(len(padded) // rows, rows, -1, columns).swapaxes(1, 2)
    return tiles.reshape(-1, rows, columns)


def from_blocks(blocks: jax.Array, like: Any) -> jax.Array:
    """The array, of the shape and type of ``like``, that ``to_blocks`` cut into these blocks."""
    if not is_matrix(like):
        return blocks.astype(like.dtype)
    width = like.shape[-1]
    height = like.size // width
    _, rows, columns = blocks.shape
    tiles = blocks.reshape(-(-height // rows), -1, rows, columns).swapaxes(1, 2)
    padded = tiles.reshape(len(tiles) * rows, -1)
    return padded[:height, :width].reshape(like.shape).astype(like.dtype)


def second_moments(blocks: jax.Array) -> tuple:
    """GGᵀ and GᵀG of each block G of a matrix; nothing for a vector."""
    return (blocks @ blocks.mT, blocks.mT @ blocks) if is_matrix(blocks) else ()


def inverse_roots(stacks: Any, exponent: Any, ridge: Any) -> Any:
    """``inverse_root`` of every matrix in a tree of stacks ``(k, n, n)``.

    On a CPU it decomposes one matrix at a time. Elsewhere it takes products where the exponent is a
    Python number 1/p with p from 2 to 8. Stacks of equal matrices are joined, so that a network of
    many layers needs few programs.

    Raises:
        ValueError: an exponent or a ridge out of its range.
    """
    checks.positive("exponent", exponent)
    leaves, structure = jax.tree.flatten(stacks)
    alike: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        alike.setdefault((leaf.shape[1:], leaf.dtype), []).append(place)
    for places in alike.values():
        joined = jnp.concatenate([leaves[place] for place in places])
        ends = np.cumsum([len(leaves[place]) for place in places])
        roots = jnp.split(_roots_of_stack(joined, exponent, ridge), ends[:-1])
        for place, root in zip(places, roots):
            leaves[place] = root
    return jax.tree.unflatten(structure, leaves)


def _roots_of_stack(stack: jax.Array, exponent: Any, ridge: Any) -> jax.Array:
    exact = partial(
        one_at_a_time, lambda matrix: inverse_root(matrix, exponent=exponent, ridge=ridge)
    )
    known = checks.concrete(exponent)
    near = [p for p in P_BY_PRODUCTS if known and math.isclose(p * known, 1, rel_tol=1e-7)]
    if not near:
        return exact(stack)

    def by_products(stack: jax.Array) -> jax.Array:
        return inverse_root_by_products(stack, near[0], ridge)

    return jax.lax.platform_dependent(stack, cpu=exact, default=by_products)


def one_at_a_time(function: Callable, *stacks: jax.Array) -> Any:
    """``function`` of each matrix in the stacks, stacked again.

    A decomposition of a whole stack would be one call, but on CPUs two such calls at a time can
    wait for each other's threads for ever (jaxlib 0.10).
    """
    if len(stacks[0]) == 1:
        found = function(*(stack[0] for stack in stacks))
        return jax.tree.map(lambda array: array[None], found)
    return jax.lax.map(lambda matrices: function(*matrices), stacks)


def _part(length: int, block_size: int) -> int:
    parts = -(-length // block_size)
    return -(-length // parts)
