"""What SOAA and TAdam share: their state, three running averages, and the step they make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from soaa_edu import checks

VARIANCES = ("centred", "second_moment")
INFO = (
    "trust_scale",
    "trust_scale_low",
    "trust_scale_high",
    "reduction_ratio",
    "curvature_share",
)


class Moments(NamedTuple):
    """Averages over the steps, each like the parameters, in float32 or wider.

    Attributes:
        mean: of the gradients.
        second_moment: of their squares.
        variance: of their squares around the mean; ``None`` in a state where the second moment
            stands for it.
    """

    mean: Any
    second_moment: Any
    variance: Any


class Debiasing(NamedTuple):
    """What averages that started at zero are multiplied with: 1 / (1 - b^t).

    Attributes:
        mean: m̂ = ``mean`` m.
        square: ŝ = ``square`` s, v̂ = ``square`` v.
    """

    mean: jax.Array
    square: jax.Array


class TrustState(NamedTuple):
    """What SOAA and TAdam remember: three copies of the parameters and a few scalars.

    Attributes:
        steps: how many were taken.
        moments: m, s and v, with their bias.
        trust_scale: dt, for the next step.
        loss_average: l_avg, with its bias.
        predicted_decrease: pr, of the last step.
        info: ``trust_scale``, the dt that this step has set, between ``trust_scale_low`` and
            ``trust_scale_high``; ``reduction_ratio``, actual over predicted decrease, from which it
            was set, ``nan`` without a loss; ``curvature_share``, of all coordinates those with
            dt F > √ŝ, in which the Fisher decided this step.
    """

    steps: jax.Array
    moments: Moments
    trust_scale: jax.Array
    loss_average: jax.Array
    predicted_decrease: jax.Array
    info: dict[str, jax.Array]


class FisherStep(NamedTuple):
    """A step before the learning rate.

    Attributes:
        direction: d, like the parameters.
        decrease: Σ (m̂ d - ½ v̂ d²), what the quadratic model gains for each unit of learning rate.
        share: of all coordinates, those in which the Fisher decides: dt F > √ŝ.
    """

    direction: Any
    decrease: jax.Array
    share: jax.Array


def check_arguments(
    learning_rate: Any,
    total_steps: int,
    b1: Any,
    b2: Any,
    gamma: Any,
    eps: Any,
    weight_decay: Any,
) -> None:
    """Raise ``ValueError`` if a number is out of its range."""
    if not callable(learning_rate):
        checks.positive("learning_rate", learning_rate)
    checks.whole("total_steps", total_steps)
    checks.fraction("b1", b1)
    checks.fraction("b2", b2)
    checks.fraction("gamma", gamma)
    checks.positive("eps", eps)
    checks.not_negative("weight_decay", weight_decay)


def trust_state(params: Any, variance: str) -> TrustState:
    """Before the first step: averages of nothing, dt = 1."""

    def zeros() -> Any:
        return jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
        )

    moments = Moments(zeros(), zeros(), zeros() if variance == "centred" else None)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(moments))
    return TrustState(
        steps=jnp.zeros((), jnp.int32),
        moments=moments,
        trust_scale=jnp.ones((), dtype),
        loss_average=jnp.zeros((), dtype),
        predicted_decrease=jnp.zeros((), dtype),
        info={name: jnp.zeros((), dtype) for name in INFO},
    )


def next_state(
    state: TrustState,
    moments: Moments,
    trust: tuple[Any, Any, Any],
    bounds: tuple[Any, Any],
    ratio: Any,
    share: Any,
) -> TrustState:
    """The state after a step with ``trust`` = (dt, l_avg, pr), scalars in their earlier types."""
    info = dict(zip(INFO, (trust[0], *bounds, ratio, share)))
    if state.moments.variance is None:
        moments = moments._replace(variance=None)
    updated = TrustState(state.steps + 1, moments, *trust, info)
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), updated, state)


def update_moments(
    moments: Moments, gradients: Any, t: jax.Array, b1: Any, b2: Any
) -> tuple[Moments, Debiasing]:
    """The averages after gradient number t, and what takes their bias out.

    The variance takes in (g - m̂)² / w with w = b1 (1 - b1^(t-1)) / (1 - b1^t). It is
    (g - m̂_prev)(g - m̂), since g - m̂ = w (g - m̂_prev), in a form that rounding cannot make
    negative; at t = 1 it is zero.
    """
    weight = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
    of_weight = jnp.where(t == 1, 0, 1 / jnp.where(t == 1, 1, weight))
    debiasing = Debiasing(1 / (1 - b1**t), 1 / (1 - b2**t))

    def spread(g: jax.Array, m: jax.Array) -> jax.Array:
        return of_weight * (g - debiasing.mean * m) ** 2

    def average(decay: Any, old: Any, new: Any) -> Any:
        return jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, old, new)

    mean = average(b1, moments.mean, gradients)
    second_moment = average(b2, moments.second_moment, jax.tree.map(jnp.square, gradients))
    variance = second_moment
    if moments.variance is not None:
        variance = average(b2, moments.variance, jax.tree.map(spread, gradients, mean))
    return Moments(mean, second_moment, variance), debiasing


def printed_growth(moments: Moments, debiasing: Debiasing, eps: Any) -> jax.Array:
    """1 + Σ m̂² / Σ (v̂ + eps)."""
    squares = debiasing.mean**2 * total(jnp.square, moments.mean)
    variances = debiasing.square * total(lambda v: v, moments.variance)
    return 1 + squares / (variances + eps * count(moments.mean))


def sherman_morrison_growth(moments: Moments, debiasing: Debiasing, eps: Any) -> jax.Array:
    """1 + Σ m̂² / (v̂ + eps), by which (diag(v̂) + m̂m̂ᵀ)⁻¹ m̂ is smaller than m̂ / v̂ as eps → 0."""

    def quotient(m: jax.Array, v: jax.Array) -> jax.Array:
        return m**2 / (debiasing.square * v + eps)

    return 1 + debiasing.mean**2 * total(quotient, moments.mean, moments.variance)


def fisher_step(
    moments: Moments, debiasing: Debiasing, growth: jax.Array, dt: jax.Array, eps: Any
) -> FisherStep:
    """d = m̂ dt / (max(dt F, √ŝ) + eps) with F = ``growth`` v̂."""
    mean, second_moment, variance = moments

    def fisher(v: jax.Array) -> jax.Array:
        return dt * growth * debiasing.square * v

    def direction(m: jax.Array, s: jax.Array, v: jax.Array) -> jax.Array:
        root = jnp.sqrt(debiasing.square * s)
        return dt * debiasing.mean * m / (jnp.maximum(fisher(v), root) + eps)

    def decides(s: jax.Array, v: jax.Array) -> jax.Array:
        return 1.0 * (fisher(v) ** 2 > debiasing.square * s)

    d = jax.tree.map(direction, mean, second_moment, variance)
    gain = debiasing.mean * total(lambda m, d: m * d, mean, d)
    curved = debiasing.square * total(lambda v, d: v * d**2, variance, d)
    decided = total(decides, second_moment, variance)
    return FisherStep(d, gain - 0.5 * curved, decided / max(count(mean), 1))


def to_updates(step: FisherStep, rate: Any, weight_decay: Any, gradients: Any, params: Any) -> Any:
    """-α (d + λ θ), in the types of the gradients.

    Raises:
        ValueError: weight decay without the parameters.
    """
    decayed = step.direction
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        if params is None:
            raise ValueError("weight decay needs the parameters: update(gradients, state, params)")
        decayed = jax.tree.map(lambda d, p: d + weight_decay * p, decayed, params)
    return jax.tree.map(lambda d, g: (-rate * d).astype(g.dtype), decayed, gradients)


def total(function: Callable, *trees: Any) -> jax.Array:
    """The sum of a function of the entries, over all entries of all arrays."""
    sums = jax.tree.map(lambda *leaves: jnp.sum(function(*leaves)), *trees)
    return jnp.asarray(sum(jax.tree.leaves(sums)))


def count(tree: Any) -> int:
    """How many entries all arrays have."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
