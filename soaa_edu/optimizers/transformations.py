"""What the gradient methods have in common as optax transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.parameters import as_arrays


def transformation(init: Callable, update: Callable) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from ``init(params)`` and ``update(gradients, state, params, **)``.

    Parameters and gradients may hold Python numbers, and complex ones are refused. A gradient that
    is not finite, or whose squared length its type can't hold, counts as zero: a running average
    that has taken in one such would never forget it. Whatever the hyperparameters are, updates come
    in the types of the gradients and the state keeps its own.

    Raises:
        TypeError: by the transformation, where an array is complex.
    """

    def init_of_arrays(params: Any) -> Any:
        return init(as_arrays(params))

    def update_of_arrays(
        gradients: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        gradients = as_arrays(gradients)
        updates, following = update(finite_or_zero(gradients), state, params, **extra)
        return _typed_like(updates, gradients), _typed_like(following, state)

    return optax.GradientTransformationExtraArgs(init_of_arrays, update_of_arrays)


def finite_or_zero(gradients: Any) -> Any:
    """The gradients, or zeros where four times their squared length overflows or is ``nan``."""
    squares = [
        jnp.sum(jnp.square(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))))
        for leaf in jax.tree.leaves(gradients)
    ]
    finite = jnp.isfinite(4 * sum(squares, jnp.zeros(())))
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), gradients)


def alias(
    core: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: Any,
    mask: Any,
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ - α (d + ω θ), d from the core, ω θ where the mask is true, as in ``optax.adamw``.

    Raises:
        ValueError: a number out of its range, or, by the transformation, weight decay without the
            parameters.
    """
    if not callable(learning_rate):
        learning_rate = checks.positive("learning_rate", learning_rate)
    decayed = decayed_weights(weight_decay, mask)
    return optax.chain(core, optax.chain(decayed, optax.scale_by_learning_rate(learning_rate)))


def decayed_weights(weight_decay: Any, mask: Any) -> optax.GradientTransformationExtraArgs:
    """d -> d + ω θ, optax's, which here needs no parameters where ω is zero.

    Raises:
        ValueError: ω is out of its range, or, by the transformation, parameters are missing.
    """
    weight_decay = checks.not_negative("weight_decay", weight_decay)
    decayed = optax.with_extra_args_support(optax.add_decayed_weights(weight_decay, mask))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if checks.concrete(weight_decay) == 0:
            return updates, state
        if params is None:
            raise ValueError("weight decay needs the parameters: update(gradients, state, params)")
        return decayed.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(decayed.init, update)


def _typed_like(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, of: x if x.dtype == of.dtype else x.astype(of.dtype), tree, like)
