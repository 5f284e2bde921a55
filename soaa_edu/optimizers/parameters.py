"""What every method does with the parameters it is given."""

from typing import Any

import jax
import jax.numpy as jnp

from soaa_edu.optimizers.protocol import Optimizer


def as_arrays(tree: Any) -> Any:
    """The tree with its Python numbers as arrays.

    Raises:
        TypeError: an array is complex.
    """
    arrays = jax.tree.map(jnp.asarray, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"parameters{jax.tree_util.keystr(path)} are complex, and these methods are for "
                "real parameters: hold the real and the imaginary part as two arrays"
            )
    return arrays


def at_least_float32(tree: Any) -> Any:
    """The arrays in float32, or in their own type where that is wider."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), as_arrays(tree)
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether every entry is finite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def any_nonzero(tree: Any) -> jax.Array:
    """Whether an entry is not zero."""
    return jnp.any(jnp.array([jnp.any(leaf != 0) for leaf in jax.tree.leaves(tree)]))


def in_float32(optimizer: Optimizer) -> Optimizer:
    """The same method, which computes in float32 where the parameters are narrower.

    A decomposition, a residual or a damping needs more digits than bfloat16 has. The parameters
    come back in their own type.
    """

    def init(params: Any) -> Any:
        return optimizer.init(at_least_float32(params))

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        given = as_arrays(params)
        moved, state, info = optimizer.step(at_least_float32(given), state, batch, key)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, given), state, info

    return Optimizer(init, step, optimizer.objective)
