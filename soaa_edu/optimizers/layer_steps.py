"""What K-FAC and EKFAC share: which layers move, a layer as a matrix, and a direction as a step."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.curvature import fisher_matvec, gauss_newton_matvec
from soaa_edu.kronecker import Factors
from soaa_edu.objective import Loss, Objective, weights_of
from soaa_edu.optimizers.parameters import all_finite
from soaa_edu.optimizers.trials import (
    DampingRule,
    next_damping,
    predicted_decrease,
    try_step,
)


class Descent(NamedTuple):
    """How a direction becomes a step, checked.

    Attributes:
        rate: steps taken -> η.
        momentum: steps taken -> μ.
        damping: steps taken -> λ, the first one where a rule moves it.
        rule: of Levenberg and Marquardt, or ``None``.
        kl_clip: c, or ``None``.
        weight_decay: ω.
    """

    rate: Callable
    momentum: Callable
    damping: Callable
    rule: DampingRule | None
    kl_clip: Any
    weight_decay: Any


def descent(
    learning_rate: Any, damping: Any, momentum: Any, kl_clip: Any, weight_decay: Any
) -> Descent:
    """The hyperparameters of a step, numbers or schedules.

    Raises:
        ValueError: a number out of its range.
    """
    rule = damping if isinstance(damping, DampingRule) else None
    return Descent(
        rate=schedule("learning_rate", learning_rate, checks.positive),
        momentum=schedule("momentum", momentum, checks.fraction),
        damping=schedule("damping", damping if rule is None else rule.initial, checks.positive),
        rule=rule,
        kl_clip=kl_clip if kl_clip is None else checks.positive("kl_clip", kl_clip),
        weight_decay=checks.not_negative("weight_decay", weight_decay),
    )


def schedule(name: str, value: Any, check: Callable) -> Callable:
    """``steps taken -> value``, of an optax schedule or a number."""
    if callable(value):
        return value
    number = check(name, value)
    return lambda steps: number


def damping_of(how: Descent, state: Any) -> jax.Array:
    """λ of the next step."""
    if how.rule is not None:
        return state.damping
    return jnp.asarray(how.damping(state.steps), state.damping.dtype)


def teaches(objective: Any, loss: jax.Array, gradient: Any, targets: Any) -> jax.Array:
    """Whether a target counts, and the loss and the gradient, or what makes it, are finite."""
    counted = jnp.any(weights_of(objective.loss, targets) > 0)
    return jnp.isfinite(loss) & all_finite(gradient) & counted


class Reading(NamedTuple):
    """What a batch says.

    Attributes:
        loss: at the parameters.
        gradient: g.
        learning: whether there is something to learn from it.
    """

    loss: jax.Array
    gradient: Any
    learning: jax.Array


def take_step(
    how: Descent,
    objective: Any,
    params: Any,
    batch: Any,
    state: Any,
    reading: Reading,
    direction: Any,
) -> tuple[Any, Any, dict]:
    """θ ← θ + s, s ← μ s - η (C⁻¹ g + ω θ); with a rule for λ only if the loss does not rise.

    Args:
        how: the hyperparameters.
        objective: of the layers that move, as are all trees here.
        params: θ.
        batch: that was read.
        state: a named tuple with ``steps``, ``velocity`` and ``damping``.
        reading: of the batch.
        direction: C⁻¹ g.
    """
    loss, gradient, learning = reading
    strength = damping_of(how, state)
    rate, momentum = how.rate(state.steps), how.momentum(state.steps)
    if how.kl_clip is not None:
        divergence = rate**2 * optax.tree.vdot(gradient, direction)
        rate = rate * jnp.minimum(1, jnp.sqrt(how.kl_clip / divergence))
    if checks.concrete(how.weight_decay) != 0:
        direction = jax.tree.map(lambda d, p: d + how.weight_decay * p, direction, params)
    update = jax.tree.map(
        lambda v, d: jnp.where(learning, momentum * v - rate * d, 0).astype(v.dtype),
        state.velocity,
        direction,
    )
    info = {"loss": loss, "damping": strength}
    state = state._replace(steps=state.steps + learning, damping=strength)
    if how.rule is None:
        velocity = optax.tree.where(learning, update, state.velocity)
        return optax.apply_updates(params, update), state._replace(velocity=velocity), info
    product: Callable = fisher_matvec if isinstance(objective.loss, Loss) else gauss_newton_matvec
    predicted = predicted_decrease(product(objective, params, batch), gradient, update)
    trial = try_step(objective, params, batch, loss, gradient, update, predicted)
    info |= {"reduction_ratio": trial.reduction_ratio, "accepted": trial.accepted}
    state = state._replace(
        velocity=jax.tree.map(lambda u: jnp.where(trial.accepted, u, 0), update),
        damping=jnp.where(learning, next_damping(how.rule, strength, trial), strength),
    )
    return trial.params, state, info


def moving_part(objective: Any, params: Any, frozen: Sequence[str]) -> tuple[Any, Any, Any]:
    """The objective of the layers that move, and those and the others' arrays.

    Raises:
        ValueError: there is no layer of that name.
    """
    unknown = set(frozen) - set(params)
    if unknown:
        raise ValueError(f"there is no layer {min(unknown)!r} to freeze: take {list(params)}")
    still = {name: params[name] for name in frozen}
    moving = {name: layer for name, layer in params.items() if name not in still}
    return _with_constants(objective, still), moving, still


def _with_constants(objective: Any, still: Any) -> Any:
    if not still:
        return objective
    model = objective.model

    def forward(params: Any, inputs: Any, taps: Any) -> tuple[Any, Any]:
        return model.forward({**params, **still}, inputs, taps)

    names = tuple(name for name in model.dense_layers if name not in still)
    restricted = replace(model, forward=forward, dense_layers=names)
    return Objective(restricted, objective.loss)


def stack(layer: Any) -> jax.Array:
    """W̃: the weight, and the bias as its last row where there is one."""
    if "bias" not in layer:
        return layer["weight"]
    return jnp.concatenate([layer["weight"], layer["bias"][None]])


def split(stacked: jax.Array, layer: Any) -> Any:
    """The weight, and the bias where the layer has one, of W̃."""
    if "bias" not in layer:
        return {"weight": stacked}
    return {"weight": stacked[:-1], "bias": stacked[-1]}


def between(left: Any, matrix: jax.Array, right: Any) -> jax.Array:
    """Lᵀ M R, a vector standing for a diagonal and ``None`` for the identity."""
    if left is not None:
        matrix = left.T @ matrix if left.ndim > 1 else left[:, None] * matrix
    if right is not None:
        matrix = matrix @ right if right.ndim > 1 else matrix * right
    return matrix


def eigenvectors(average: Factors) -> dict[str, tuple]:
    """Both factors' eigenvalues and eigenvectors, rounding's negative eigenvalues as zeros.

    A factor that is its diagonal has ``None`` for eigenvectors.
    """

    def decompose(factor: jax.Array) -> tuple[jax.Array, Any]:
        if factor.ndim == 1:
            return factor, None
        values, vectors = jnp.linalg.eigh(factor)
        return jnp.maximum(values, 0), vectors

    return {
        name: (decompose(average.inputs[name]), decompose(average.outputs[name]))
        for name in average.inputs
    }


def turned_back(matrix: jax.Array, bases: tuple[Any, Any], layer: Any) -> Any:
    """U M Vᵀ as the arrays of a layer, a basis of ``None`` being the identity."""
    back = [None if basis is None else basis.T for basis in bases]
    return split(between(back[0], matrix, back[1]), layer)
