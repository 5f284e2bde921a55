"""What SOAA and TAdam share: their state, three running averages, and the step they make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.transformations import decayed_weights

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


class Constants(NamedTuple):
    """The hyperparameters of SOAA and TAdam, checked."""

    rate: Callable
    total_steps: Any
    b1: Any
    b2: Any
    gamma: Any
    eps: Any


def checked(
    learning_rate: Any, total_steps: Any, b1: Any, b2: Any, gamma: Any, eps: Any
) -> Constants:
    """The hyperparameters, the learning rate as a function of the steps taken.

    Raises:
        ValueError: a number is out of its range.
    """
    rate = learning_rate
    if not callable(learning_rate):
        number = checks.positive("learning_rate", learning_rate)

        def rate(steps: Any) -> Any:
            return number

    return Constants(
        rate,
        checks.whole("total_steps", total_steps),
        checks.fraction("b1", b1),
        checks.fraction("b2", b2),
        checks.fraction("gamma", gamma),
        checks.positive("eps", eps),
    )


def trust_state(params: Any, variance: str) -> TrustState:
    """Before the first step: averages of nothing, dt = 1."""

    def zeros() -> Any:
        return jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)), params
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
    step: FisherStep,
    ratio: Any = jnp.nan,
    loss: Any = 0.0,
) -> TrustState:
    """The state after a step with ``trust`` = (dt, l_avg, pr), if its loss is finite."""
    before = (state.trust_scale, state.loss_average, state.predicted_decrease)
    heard = jnp.isfinite(loss)
    dt, l_avg, pr = (jnp.where(heard, new, old) for new, old in zip(trust, before))
    values = (dt, *bounds, jnp.where(heard, ratio, jnp.nan), step.share)
    if state.moments.variance is None:
        moments = moments._replace(variance=None)
    info = {name: jnp.asarray(number) for name, number in zip(INFO, values)}
    return TrustState(state.steps + 1, moments, dt, l_avg, pr, info)


def with_rate(
    core: optax.GradientTransformationExtraArgs, learning_rate: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """θ ← θ - α (d + λ θ), with the direction d of the core and its state, which counts steps."""
    decayed = decayed_weights(weight_decay, mask)

    def update(
        gradients: Any, state: TrustState, params: Any = None, **extra: Any
    ) -> tuple[Any, TrustState]:
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        direction, following = core.update(gradients, state, params, **extra)
        direction, _ = decayed.update(direction, decayed.init(params), params)
        return jax.tree.map(lambda d: (-rate * d).astype(d.dtype), direction), following

    return optax.GradientTransformationExtraArgs(core.init, update)


def update_moments(
    moments: Moments, gradients: Any, t: jax.Array, b1: Any, b2: Any
) -> tuple[Moments, Debiasing]:
    """The averages after gradient number t, and what takes their bias out.

    The variance takes in (g - m̂)² / w with w = b1 (1 - b1^(t-1)) / (1 - b1^t). It is
    (g - m̂_prev)(g - m̂), since g - m̂ = w (g - m̂_prev), in a form that rounding cannot make
    negative; at t = 1, and where b1 = 0, it is zero.
    """
    weight = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
    still = (t == 1) | (weight == 0)
    of_weight = jnp.where(still, 0, 1 / jnp.where(still, 1, weight))
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
    return _finite(1 + squares / (variances + eps * count(moments.mean)))


def sherman_morrison_growth(moments: Moments, debiasing: Debiasing, eps: Any) -> jax.Array:
    """1 + Σ m̂² / (v̂ + eps), by which (diag(v̂) + m̂m̂ᵀ)⁻¹ m̂ is smaller than m̂ / v̂ as eps → 0."""

    def quotient(m: jax.Array, v: jax.Array) -> jax.Array:
        return m**2 / (debiasing.square * v + eps)

    return _finite(1 + debiasing.mean**2 * total(quotient, moments.mean, moments.variance))


def _finite(growth: jax.Array) -> jax.Array:
    """So small that dt / (1 - b2^t) times it is finite too, and a variance of zero stays zero."""
    return jnp.minimum(growth, 1e-9 * float(jnp.finfo(growth.dtype).max))


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


def total(function: Callable, *trees: Any) -> jax.Array:
    """The sum of a function of the entries, over all entries of all arrays."""
    sums = jax.tree.map(lambda *leaves: jnp.sum(function(*leaves)), *trees)
    return jnp.asarray(sum(jax.tree.leaves(sums)))


def count(tree: Any) -> int:
    """How many entries all arrays have."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
