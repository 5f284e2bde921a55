"""SOAA: Adam with a diagonal Fisher, and a trust region that follows the loss."""

from typing import Any

import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.diagonal_fisher import (
    VARIANCES,
    TrustState,
    checked,
    fisher_step,
    next_state,
    printed_growth,
    sherman_morrison_growth,
    trust_state,
    update_moments,
    with_rate,
)
from soaa_edu.optimizers.transformations import transformation

FISHERS = ("printed", "sherman_morrison")


def soaa(
    learning_rate: Any,
    *,
    total_steps: int,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 0.25,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    variance: str = "centred",
    fisher: str = "printed",
) -> optax.GradientTransformationExtraArgs:
    """SOAA: θ ← θ - α λ θ - α d, an optax transformation (Vo 2024, algorithm 1).

    Args:
        learning_rate: α, a number or an optax schedule.
        total_steps: this and the rest as in ``scale_by_soaa``.
        b1: likewise.
        b2: likewise.
        gamma: likewise.
        eps: likewise.
        weight_decay: λ, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        variance: likewise.
        fisher: likewise.

    Returns:
        A transformation whose ``update`` takes the loss as ``value``.

    Raises:
        ValueError: a number out of its range, an unknown name, or weight decay without the
            parameters.
    """
    core = scale_by_soaa(
        learning_rate=learning_rate,
        total_steps=total_steps,
        b1=b1,
        b2=b2,
        gamma=gamma,
        eps=eps,
        variance=variance,
        fisher=fisher,
    )
    return with_rate(core, learning_rate, weight_decay, mask)


def scale_by_soaa(
    *,
    total_steps: int,
    learning_rate: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 0.25,
    eps: Any = 1e-8,
    variance: str = "centred",
    fisher: str = "printed",
) -> optax.GradientTransformationExtraArgs:
    """SOAA's direction d, an optax transformation (Vo 2024, algorithm 1).

    With m̂ and ŝ as in Adam, v̂ the variance of the gradients, and every Σ over all parameters:

        F = (1 + Σ m̂² / Σ (v̂ + eps)) v̂
        d = m̂ dt / (max(dt F, √ŝ) + eps)

    and where the loss l is given, l̂ its debiased running average, at step t of T:

        dt ← min(max((l̂ - l) / max(pr, eps) · dt, (1 - γ)^((t-1)/T)), 1 + γ^((t-1)/T))
        pr ← α Σ (m̂ d - ½ v̂ d²)

    The first step, and a step without a finite loss, leave dt as it is, at first 1. The paper
    doesn't say what v is; here it is the centred second moment, as in TAdam, from which SOAA
    descends.

    Args:
        total_steps: T.
        learning_rate: α of the chain that follows, a number or an optax schedule, by which pr is
            known.
        b1: decay of m and of the averaged loss.
        b2: decay of s and v.
        gamma: γ, which sets the bounds of dt; at 0, dt stays 1.
        eps: keeps divisions finite.
        variance: ``"centred"``, or ``"second_moment"`` for v = s.
        fisher: ``"printed"`` as above; ``"sherman_morrison"`` takes F = (1 + Σ m̂² / (v̂ + eps)) v̂,
            with which m̂ / F is (diag(v̂) + m̂m̂ᵀ)⁻¹ m̂ as eps → 0.

    Returns:
        A transformation whose ``update`` takes the loss as ``value``.

    Raises:
        ValueError: a number out of its range or an unknown name.
    """
    rate, total_steps, b1, b2, gamma, eps = checked(learning_rate, total_steps, b1, b2, gamma, eps)
    checks.one_of("variance", variance, VARIANCES)
    checks.one_of("fisher", fisher, FISHERS)
    growth = printed_growth if fisher == "printed" else sherman_morrison_growth

    def init(params: Any) -> TrustState:
        return trust_state(params, variance)

    def update(
        gradients: Any, state: TrustState, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, TrustState]:
        t = state.steps + 1
        dt, pr, l_avg = state.trust_scale, state.predicted_decrease, state.loss_average

        moments, debiasing = update_moments(state.moments, gradients, t, b1, b2)
        step = fisher_step(moments, debiasing, growth(moments, debiasing, eps), dt, eps)

        progress = (t - 1) / (1.0 * total_steps)
        low, high = (1 - gamma) ** progress, 1 + gamma**progress
        if value is None:
            return step.direction, next_state(state, moments, (dt, l_avg, pr), (low, high), step)

        averaged = b1 * l_avg + (1 - b1) * value
        ratio = jnp.where(t == 1, 0, (averaged / (1 - b1**t) - value) / jnp.maximum(pr, eps))
        resized = jnp.where(t == 1, dt, jnp.minimum(jnp.maximum(ratio * dt, low), high))
        trust = (resized, averaged, rate(state.steps) * step.decrease)
        return step.direction, next_state(
            state, moments, trust, (low, high), step, ratio=ratio, loss=value
        )

    return transformation(init, update)
