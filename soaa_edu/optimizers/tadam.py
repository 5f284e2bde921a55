"""TAdam, SOAA's ancestor: Adam with a diagonal Fisher, and a trust region with thresholds."""

from typing import Any

import jax.numpy as jnp
import optax

from soaa_edu.optimizers.diagonal_fisher import (
    TrustState,
    check_arguments,
    fisher_step,
    next_state,
    sherman_morrison_growth,
    to_updates,
    trust_state,
    update_moments,
)


def tadam(
    learning_rate: Any,
    *,
    total_steps: int,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 0.25,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """TAdam, an optax transformation (Yang, Cho & Lee 2023, after their public code).

    With m̂ and ŝ as in Adam, v̂ the variance of the gradients, and every Σ over all parameters:

        F = (1 + Σ m̂² / (v̂ + eps)) v̂
        d = m̂ dt / (max(dt F, √ŝ) + eps)
        θ ← θ - α λ θ - α d

    and where the loss l is given, l̂ its debiased running average, at step t of T:

        ρ  = (l̂_prev - l) / max(pr, eps)
        lo = (1 - γ)^(t/T),  hi = 1 + γ^(t/T)
        dt ← min(max(r dt, lo), hi)   with r = lo if ρ < γ, hi if ρ > 1 - γ, else 1
        pr ← α Σ (m̂ d - ½ v̂ d²)

    l̂_prev and pr are zero in the first step. A step without a loss leaves dt as it is, at first 1.
    The public code updates v twice in a step and forgets m̂_prev; here v is updated once, with the
    m̂ of the step before.

    Args:
        learning_rate: α, a number or an optax schedule.
        total_steps: T.
        b1: decay of m and of the averaged loss.
        b2: decay of s and v.
        gamma: γ, the thresholds of ρ and what sets the bounds of dt.
        eps: keeps divisions finite.
        weight_decay: λ, decoupled.

    Returns:
        A transformation whose ``update`` takes the loss as ``value``.

    Raises:
        ValueError: a number out of its range, or weight decay without the parameters.
    """
    check_arguments(learning_rate, total_steps, b1, b2, gamma, eps, weight_decay)

    def init(params: Any) -> TrustState:
        return trust_state(params, "centred")

    def update(
        gradients: Any, state: TrustState, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, TrustState]:
        t = state.steps + 1
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        dt, pr, l_avg = state.trust_scale, state.predicted_decrease, state.loss_average

        moments, debiasing = update_moments(state.moments, gradients, t, b1, b2)
        growth = sherman_morrison_growth(moments, debiasing, eps)
        step = fisher_step(moments, debiasing, growth, dt, eps)
        updates = to_updates(step, rate, weight_decay, gradients, params)

        ratio: Any = jnp.nan
        progress = t / float(total_steps)
        low, high = (1 - gamma) ** progress, 1 + gamma**progress
        if value is not None:
            expected = jnp.where(t == 1, 0, l_avg / jnp.where(t == 1, 1, 1 - b1 ** (t - 1)))
            ratio = (expected - value) / jnp.maximum(pr, eps)
            resize = jnp.where(ratio < gamma, low, jnp.where(ratio > 1 - gamma, high, 1))
            dt = jnp.minimum(jnp.maximum(resize * dt, low), high)
            l_avg = b1 * l_avg + (1 - b1) * value
            pr = rate * step.decrease
        trust = (dt, l_avg, pr)
        return updates, next_state(state, moments, trust, (low, high), ratio, step.share)

    return optax.GradientTransformationExtraArgs(init, update)
