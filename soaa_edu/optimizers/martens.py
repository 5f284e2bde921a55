"""Hessian-free optimization with everything that Martens (2010) added."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.curvature import (
    check_curvature,
    curvature_matvec,
    damped,
    empirical_fisher_diagonal,
)
from soaa_edu.linear_solvers.conjugate_gradients import CGPath, cg_path
from soaa_edu.optimizers.parameters import all_finite, in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.trials import (
    DampingRule,
    levenberg_marquardt,
    next_damping,
    predicted_decrease,
    try_step,
)
from soaa_edu.precision import exact_products

KEPT_OF_LAST_SOLUTION = 0.95
PRECONDITIONER_EXPONENT = 0.75


class MartensState(NamedTuple):
    """The damping, and the last solution of conjugate gradients."""

    damping: jax.Array
    solution: Any


def martens_hessian_free(
    objective: Callable,
    *,
    damping: DampingRule | None = None,
    curvature: str = "gauss_newton",
    max_iterations: int = 250,
) -> Optimizer:
    """Hessian-free optimization as Martens (2010) runs it, on one batch for the whole step.

    To ``hessian_free`` it adds: the Gauss-Newton matrix; λ by Levenberg's and Marquardt's rule;
    conjugate gradients that start from 0.95 of the last solution, are preconditioned by
    (diag(E) + λ)^¾ with E the empirical Fisher, and stop on the relative progress of the quadratic;
    and steps back through their iterates for as long as the loss itself falls. The paper's line
    search is left out: a step that raises the loss is rejected. A batch whose loss is
    not finite changes nothing.

    Args:
        objective: ``(params, batch) -> scalar``; an ``Objective`` for ``"gauss_newton"``.
        damping: ``levenberg_marquardt(initial=...)``; from one by default.
        curvature: ``"gauss_newton"`` or ``"hessian"``.
        max_iterations: of conjugate gradients.

    ``Info`` has ``cg_iterations``, ``damping`` (of this step), ``reduction_ratio`` and
    ``accepted``.

    Raises:
        ValueError: a number out of its range, or an unknown curvature.
        TypeError: ``"gauss_newton"`` without an ``Objective``, or a damping that is not a rule.
    """
    checks.whole("max_iterations", max_iterations)
    check_curvature(objective, curvature)
    rule = levenberg_marquardt(1.0) if damping is None else damping
    if not isinstance(rule, DampingRule):
        raise TypeError("give levenberg_marquardt(initial=...); hessian_free takes a fixed damping")

    def init(params: Any) -> MartensState:
        strength = jnp.asarray(rule.initial, ravel_pytree(params)[0].dtype)
        return MartensState(strength, jax.tree.map(jnp.zeros_like, params))

    @exact_products()
    def step(params: Any, state: MartensState, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        loss, gradient = jax.value_and_grad(objective)(params, batch)
        matvec = curvature_matvec(objective, params, batch, curvature)
        diagonal = jax.tree.map(
            lambda d: (d + state.damping) ** PRECONDITIONER_EXPONENT,
            empirical_fisher_diagonal(objective, params, batch),
        )
        path = cg_path(
            damped(matvec, state.damping),
            gradient,
            max_iterations=max_iterations,
            x0=jax.tree.map(lambda d: KEPT_OF_LAST_SOLUTION * d, state.solution),
            preconditioner=lambda r: jax.tree.map(jnp.divide, r, diagonal),
        )
        chosen = step_back(lambda p: objective(p, batch), params, path)
        update = jax.tree.map(jnp.negative, chosen)
        predicted = predicted_decrease(matvec, gradient, update)
        trial = try_step(objective, params, batch, loss, gradient, update, predicted)
        solution = ravel_pytree(gradient)[1](path.last)
        following = MartensState(
            next_damping(rule, state.damping, trial),
            optax.tree.where(all_finite(solution), solution, state.solution),
        )
        return (
            trial.params,
            following,
            {
                "loss": loss,
                "cg_iterations": path.iterations,
                "damping": state.damping,
                "reduction_ratio": trial.reduction_ratio,
                "accepted": trial.accepted,
            },
        )

    return in_float32(Optimizer(init, step, objective))


def step_back(loss: Callable, params: Any, path: CGPath) -> Any:
    """The iterate at which the loss at θ - x stops falling, going back from the last one."""
    flat, unravel = ravel_pytree(params)

    def loss_after(x: jax.Array) -> jax.Array:
        return loss(unravel(flat - x))

    def still_falling(carry: tuple) -> jax.Array:
        _, value, index, value_before = carry
        return (index >= 0) & ((value_before < value) | ~jnp.isfinite(value))

    def go_back(carry: tuple) -> tuple:
        _, _, index, value_before = carry
        x = path.iterates[index]
        before = path.iterates[jnp.maximum(index - 1, 0)]
        return x, value_before, index - 1, loss_after(before)

    kept_last = jnp.all(path.iterates[jnp.maximum(path.kept - 1, 0)] == path.last)
    index = path.kept - 1 - kept_last
    nearest = path.iterates[jnp.maximum(index, 0)]
    start = (path.last, loss_after(path.last), index, loss_after(nearest))
    return unravel(jax.lax.while_loop(still_falling, go_back, start)[0])
