"""TAdam, SOAA's ancestor: Adam with a diagonal Fisher, and a trust region with thresholds."""

from typing import Any

import jax.numpy as jnp
import optax

from soaa_edu.optimizers.diagonal_fisher import (
    TrustState,
    checked,
    fisher_step,
    next_state,
    sherman_morrison_growth,
    trust_state,
    update_moments,
    with_rate,
)
from soaa_edu.optimizers.transformations import transformation


def tadam(
    learning_rate: Any,
    *,
    total_steps: int,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 0.25,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """TAdam: θ ← θ - α λ θ - α d, an optax transformation (Yang, Cho & Lee 2023).

    Args:
        learning_rate: α, a number or an optax schedule.
        total_steps: this and the rest as in ``scale_by_tadam``.
        b1: likewise.
        b2: likewise.
        gamma: likewise.
        eps: likewise.
        weight_decay: λ, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.

    Returns:
        A transformation whose ``update`` takes the loss as ``value``.

    Raises:
        ValueError: a number out of its range, or weight decay without the parameters.
    """
    core = scale_by_tadam(
        learning_rate=learning_rate, total_steps=total_steps, b1=b1, b2=b2, gamma=gamma, eps=eps
    )
    return with_rate(core, learning_rate, weight_decay, mask)


def scale_by_tadam(
    *,
    total_steps: int,
    learning_rate: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 0.25,
    eps: Any = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """TAdam's direction d, an optax transformation (Yang, Cho & Lee 2023, after their public code).

    With m̂ and ŝ as in Adam, v̂ the variance of the gradients, and every Σ over all parameters:

        F = (1 + Σ m̂² / (v̂ + eps)) v̂
        d = m̂ dt / (max(dt F, √ŝ) + eps)

    and where the loss l is given, l̂ its debiased running average, at step t of T:

        ρ  = (l̂_prev - l) / max(pr, eps)
        lo = (1 - γ)^(t/T),  hi = 1 + γ^(t/T)
        dt ← min(max(r dt, lo), hi)   with r = lo if ρ < γ, hi if ρ > 1 - γ, else 1
        pr ← α Σ (m̂ d - ½ v̂ d²)

    l̂_prev and pr are zero in the first step. A step without a finite loss leaves dt as it is, at
    first 1. One version of the public code updates v twice in a step and forgets m̂_prev; here v is
    updated once, with the m̂ of the step before.

    Args:
        total_steps: T.
        learning_rate: α of the chain that follows, a number or an optax schedule, by which pr is
            known.
        b1: decay of m and of the averaged loss.
        b2: decay of s and v.
        gamma: γ, the thresholds of ρ and what sets the bounds of dt.
        eps: keeps divisions finite.

    Returns:
        A transformation whose ``update`` takes the loss as ``value``.

    Raises:
        ValueError: a number out of its range.
    """
    rate, total_steps, b1, b2, gamma, eps = checked(learning_rate, total_steps, b1, b2, gamma, eps)

    def init(params: Any) -> TrustState:
        return trust_state(params, "centred")

    def update(
        gradients: Any, state: TrustState, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, TrustState]:
        t = state.steps + 1
        dt, pr, l_avg = state.trust_scale, state.predicted_decrease, state.loss_average

        moments, debiasing = update_moments(state.moments, gradients, t, b1, b2)
        growth = sherman_morrison_growth(moments, debiasing, eps)
        step = fisher_step(moments, debiasing, growth, dt, eps)

        progress = t / (1.0 * total_steps)
        low, high = (1 - gamma) ** progress, 1 + gamma**progress
        if value is None:
            return step.direction, next_state(state, moments, (dt, l_avg, pr), (low, high), step)

        expected = jnp.where(t == 1, 0, l_avg / jnp.where(t == 1, 1, 1 - b1 ** (t - 1)))
        ratio = (expected - value) / jnp.maximum(pr, eps)
        resize = jnp.where(ratio < gamma, low, jnp.where(ratio > 1 - gamma, high, 1))
        resized = jnp.minimum(jnp.maximum(resize * dt, low), high)
        averaged = b1 * l_avg + (1 - b1) * value
        trust = (resized, averaged, rate(state.steps) * step.decrease)
        return step.direction, next_state(
            state, moments, trust, (low, high), step, ratio=ratio, loss=value
        )

    return transformation(init, update)
