"""Steps on trial: what the model promised, what the loss did, whether to keep the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.parameters import all_finite, any_nonzero


class Trial(NamedTuple):
    """A step that was tried.

    Attributes:
        params: after the step, or before it where it was rejected.
        reduction_ratio: ρ, the actual over the predicted decrease of the loss; one where both are
            within rounding; minus infinity where no decrease was predicted or the new loss is not
            finite.
        accepted: whether the step was kept: a decrease was predicted, and the loss did not rise.
        informative: whether there was something to learn from: the loss before the step and its
            gradient are finite, and the gradient is not zero or something was predicted.
        measurable: whether the loss can show what was predicted, or showed a rise.
    """

    params: Any
    reduction_ratio: jax.Array
    accepted: jax.Array
    informative: jax.Array
    measurable: jax.Array


def predicted_decrease(
    matvec: Callable, gradient: Any, step: Any, metric: Callable = lambda v: v
) -> jax.Array:
    """-(gᵀs + ½ sᵀCs), what the undamped quadratic model promises for the step s.

    ``metric`` is that of the coordinates: v -> v where their basis is orthonormal.
    """
    measured = metric(step)
    return -(optax.tree.vdot(measured, gradient) + 0.5 * optax.tree.vdot(measured, matvec(step)))


def try_step(
    objective: Callable,
    params: Any,
    batch: Any,
    loss: Any,
    gradient: Any,
    step: Any,
    predicted: Any,
) -> Trial:
    """Take a step if it lowers the loss on the batch it was made from.

    The loss is rounded. A predicted decrease below ten units of its rounding can't be measured, and
    such a step is taken unless the loss rises by more than that (Conn, Gould & Toint 2000, §17.4).
    """
    rounding = 10 * jnp.finfo(jnp.result_type(loss, jnp.float16)).eps * jnp.abs(loss)
    moved = jax.tree.map(lambda p, s: (p + s).astype(p.dtype), params, step)
    decrease = loss - objective(moved, batch)
    unmeasurable = (predicted > 0) & (predicted <= rounding) & (decrease >= -rounding)
    ratio = jnp.where(unmeasurable, 1.0, decrease / jnp.where(predicted == 0, 1, predicted))
    ratio = jnp.where((predicted > 0) & jnp.isfinite(ratio), ratio, -jnp.inf)
    accepted = ratio >= 0
    finite = jnp.isfinite(loss) & all_finite(gradient)
    return Trial(
        params=optax.tree.where(accepted, moved, params),
        reduction_ratio=ratio,
        accepted=accepted,
        informative=finite & (any_nonzero(gradient) | (predicted != 0)),
        measurable=~unmeasurable,
    )


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

    A step that teaches nothing about λ must not move it away. Where the gradient is zero, or it or
    the loss is not finite, λ stays. Where the predicted decrease is below the rounding of the loss,
    as at a minimum, λ goes back towards ``initial``, by the same factors.

    Args:
        initial: the first λ, above zero.
        decrease: below one.
        increase: above one.
        low: a reduction ratio.
        high: a larger reduction ratio.

    Raises:
        ValueError: a number out of its range.
    """
    initial = checks.positive("initial", initial)
    if not 0 < decrease < 1 < increase:
        raise ValueError(
            f"decrease must be below one and increase above, got {decrease:g} and {increase:g}"
        )
    if not low < high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}")
    return DampingRule(initial, decrease, increase, low, high)


def adapt(rule: DampingRule, damping: jax.Array, ratio: jax.Array) -> jax.Array:
    """λ after a step with this ρ, in its own type and within what the type can hold."""
    factor = jnp.where(ratio < rule.low, rule.increase, 1.0)
    factor = jnp.where(ratio > rule.high, rule.decrease, factor)
    return _within_type(damping * factor.astype(damping.dtype))


def next_damping(rule: DampingRule, damping: jax.Array, trial: Trial) -> jax.Array:
    """λ after a trial: by its ρ, back towards where it began, or as it was."""
    initial = jnp.asarray(rule.initial, damping.dtype)
    towards = jnp.where(
        damping < initial,
        jnp.minimum(damping * jnp.asarray(rule.increase, damping.dtype), initial),
        jnp.maximum(damping * jnp.asarray(rule.decrease, damping.dtype), initial),
    )
    learned = jnp.where(trial.measurable, adapt(rule, damping, trial.reduction_ratio), towards)
    return jnp.where(trial.informative, learned, damping)


def _within_type(damping: jax.Array) -> jax.Array:
    limits = jnp.finfo(damping.dtype)
    least, most = 8 * float(limits.tiny), float(limits.max) / 8
    return jnp.clip(damping, least, most).astype(damping.dtype)
