"""Steps on trial: what the model promised, what the loss did, whether to keep the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks


class Trial(NamedTuple):
    """A step that was tried.

    Attributes:
        params: after the step, or before it where it was rejected.
        reduction_ratio: ρ, the actual over the predicted decrease of the loss; minus infinity
            where no decrease was predicted or the new loss is not finite.
        accepted: whether the step was kept: one was predicted, and the loss did not rise.
    """

    params: Any
    reduction_ratio: jax.Array
    accepted: jax.Array


def predicted_decrease(
    matvec: Callable, gradient: Any, step: Any, metric: Callable = lambda v: v
) -> jax.Array:
    """-(gᵀs + ½ sᵀCs), what the undamped quadratic model promises for the step s.

    ``metric`` is that of the coordinates: v -> v where their basis is orthonormal.
    """
    measured = metric(step)
    return -(optax.tree.vdot(measured, gradient) + 0.5 * optax.tree.vdot(measured, matvec(step)))


def try_step(
    objective: Callable, params: Any, batch: Any, loss: Any, step: Any, predicted: Any
) -> Trial:
    """Take a step if it lowers the loss on the batch it was made from."""
    moved = jax.tree.map(lambda p, s: (p + s).astype(p.dtype), params, step)
    ratio = (loss - objective(moved, batch)) / predicted
    ratio = jnp.where((predicted > 0) & jnp.isfinite(ratio), ratio, -jnp.inf)
    accepted = ratio >= 0
    params = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, params)
    return Trial(params, ratio, accepted)


class DampingRule(NamedTuple):
    """How a damping follows the reduction ratio; made by ``levenberg_marquardt``."""

    initial: Any
    decrease: float
    increase: float
    low: float
    high: float


def levenberg_marquardt(
    initial: Any,
    *,
    decrease: float = 2 / 3,
    increase: float = 3 / 2,
    low: float = 1 / 4,
    high: float = 3 / 4,
) -> DampingRule:
    """Levenberg's and Marquardt's rule for λ, with Martens' (2010) numbers.

    λ ← λ · increase where ρ < low, λ · decrease where ρ > high. ρ compares the loss on the batch of
    the step, before and after it, with the decrease that the undamped model predicted for the step
    as it was taken. A step that raises the loss is rejected.

    Args:
        initial: the first λ, above zero.
        decrease: below one.
        increase: above one.
        low: a reduction ratio.
        high: a larger reduction ratio.

    Raises:
        ValueError: a number out of its range.
    """
    checks.positive("initial", initial)
    if not 0 < decrease < 1 < increase:
        raise ValueError(
            f"decrease must be below one and increase above, got {decrease:g} and {increase:g}"
        )
    if not low < high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}")
    return DampingRule(initial, decrease, increase, low, high)


def adapt(rule: DampingRule, damping: jax.Array, ratio: jax.Array) -> jax.Array:
    """The next λ, never below the smallest number that it can grow from."""
    factor = jnp.where(ratio < rule.low, rule.increase, 1.0)
    factor = jnp.where(ratio > rule.high, rule.decrease, factor)
    smallest = 1e6 * jnp.finfo(damping.dtype).tiny
    return jnp.maximum(damping * factor.astype(damping.dtype), smallest)
