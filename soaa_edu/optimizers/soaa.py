"""SOAA: Adam with a diagonal Fisher, and a trust region that follows the loss."""

from typing import Any

import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.diagonal_fisher import (
    VARIANCES,
    TrustState,
    check_arguments,
    fisher_step,
    next_state,
    printed_growth,
    sherman_morrison_growth,
    to_updates,
    trust_state,
    update_moments,
)

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
    variance: str = "centred",
    fisher: str = "printed",
) -> optax.GradientTransformationExtraArgs:
    """SOAA, an optax transformation (Vo 2024, algorithm 1).

    With m̂ and ŝ as in Adam, v̂ the variance of the gradients, and every Σ over all parameters:

        F = (1 + Σ m̂² / Σ (v̂ + eps)) v̂
        d = m̂ dt / (max(dt F, √ŝ) + eps)
        θ ← θ - α λ θ - α d

    and where the loss l is given, l̂ its debiased running average, at step t of T:

        dt ← min(max((l̂ - l) / max(pr, eps) · dt, (1 - γ)^((t-1)/T)), 1 + γ^((t-1)/T))
        pr ← α Σ (m̂ d - ½ v̂ d²)

    The first step, and a step without a loss, leave dt as it is, at first 1. The paper doesn't say
    what v is; here it is the centred second moment, as in TAdam, from which SOAA descends.

    Args:
        learning_rate: α, a number or an optax schedule.
        total_steps: T.
        b1: decay of m and of the averaged loss.
        b2: decay of s and v.
        gamma: γ, which sets the bounds of dt; at 0, dt stays 1.
        eps: keeps divisions finite.
        weight_decay: λ, decoupled.
        variance: ``"centred"``, or ``"second_moment"`` for v = s.
        fisher: ``"printed"`` as above; ``"sherman_morrison"`` takes F = (1 + Σ m̂² / (v̂ + eps)) v̂,
            with which m̂ / F is (diag(v̂) + m̂m̂ᵀ)⁻¹ m̂ as eps → 0.

    Returns:
        A transformation whose ``update`` takes the loss as ``value``.

    Raises:
        ValueError: a number out of its range, an unknown name, or weight decay without the
            parameters.
    """
    check_arguments(learning_rate, total_steps, b1, b2, gamma, eps, weight_decay)
    checks.one_of("variance", variance, VARIANCES)
    checks.one_of("fisher", fisher, FISHERS)

    growth = printed_growth if fisher == "printed" else sherman_morrison_growth

    def init(params: Any) -> TrustState:
        return trust_state(params, variance)

    def update(
        gradients: Any, state: TrustState, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, TrustState]:
        t = state.steps + 1
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        dt, pr, l_avg = state.trust_scale, state.predicted_decrease, state.loss_average

        moments, debiasing = update_moments(state.moments, gradients, t, b1, b2)
        step = fisher_step(moments, debiasing, growth(moments, debiasing, eps), dt, eps)
        updates = to_updates(step, rate, weight_decay, gradients, params)

        ratio: Any = jnp.nan
        progress = (t - 1) / float(total_steps)
        low, high = (1 - gamma) ** progress, 1 + gamma**progress
        if value is not None:
            l_avg = b1 * l_avg + (1 - b1) * value
            ratio = jnp.where(t == 1, 0, (l_avg / (1 - b1**t) - value) / jnp.maximum(pr, eps))
            dt = jnp.where(t == 1, dt, jnp.minimum(jnp.maximum(ratio * dt, low), high))
            pr = rate * step.decrease
        trust = (dt, l_avg, pr)
        return updates, next_state(state, moments, trust, (low, high), ratio, step.share)

    return optax.GradientTransformationExtraArgs(init, update)
