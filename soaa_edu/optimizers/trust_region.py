"""Trust regions: the radius chooses the damping, and the loss chooses the radius."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.curvature import check_curvature, curvature_matvec
from soaa_edu.linear_solvers.krylov import lanczos, ritz
from soaa_edu.linear_solvers.subproblems import lanczos_trust_region, steihaug_cg
from soaa_edu.optimizers.parameters import in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.trials import try_step
from soaa_edu.precision import exact_products

CAT_BETA = CAT_THETA = 0.1
CAT_SHRINK, CAT_GROW = 8.0, 16.0
CAT_NORM_ITERATIONS = 10
NOT_YET_CHOSEN = 0.0


def trust_region(
    objective: Callable,
    *,
    radius: Any = 1.0,
    subproblem: str = "lanczos",
    update: str = "classical",
    curvature: str = "hessian",
    iterations: int = 50,
) -> Optimizer:
    """θ ← θ + s, s minimising gᵀs + ½ sᵀCs within ‖s‖ ≤ Δ; kept only if the loss does not rise.

    The radius Δ follows ρ, the actual over the predicted decrease on the batch of the step. A step
    that teaches nothing leaves it: one of length zero, or on a batch whose loss is not finite.

    ``"classical"`` (Nocedal & Wright 2006, algorithm 4.1): Δ ← ‖s‖/4 where ρ < 1/4; Δ ← 2Δ where
    ρ > 3/4 and ‖s‖ = Δ.

    ``"cat"``, consistently adaptive (Hamad & Hinder 2024), with β = θ = 0.1: the predicted decrease
    grows by θ/2 · min(‖g‖, ‖g₊‖) · ‖s‖, which makes ρ̂; Δ ← Δ/8 where ρ̂ < β, else max(16 ‖s‖, Δ). It
    costs one more gradient.

    Args:
        objective: ``(params, batch) -> scalar``; an ``Objective`` for ``"gauss_newton"``.
        radius: the first Δ. ``None``, with ``"cat"``: 10 ‖g‖ / ‖C‖ at the first step, ‖C‖ from ten
            steps of Lanczos.
        subproblem: ``"lanczos"`` solves it exactly over a Krylov space, ``"steihaug"`` by conjugate
            gradients that stop at the boundary.
        update: ``"classical"`` or ``"cat"``.
        curvature: C, ``"hessian"`` or ``"gauss_newton"``.
        iterations: the most products with C for one step.

    ``Info`` has ``radius`` (of this step), ``reduction_ratio``, ``accepted``, ``on_boundary`` and
    ``iterations``.

    Raises:
        ValueError: a number out of its range or an unknown name; no radius without ``"cat"``.
        TypeError: ``"gauss_newton"`` without an ``Objective``.
    """
    checks.one_of("subproblem", subproblem, ("lanczos", "steihaug"))
    checks.one_of("update", update, ("classical", "cat"))
    checks.whole("iterations", iterations)
    check_curvature(objective, curvature)
    if radius is not None:
        radius = checks.positive("radius", radius)
    elif update != "cat":
        raise ValueError(
            'radius=None is the start that CAT chooses: give a radius, or update="cat"'
        )

    def first_radius(matvec: Callable, gradient: Any) -> jax.Array:
        size = ravel_pytree(gradient)[0].size
        values, _ = ritz(lanczos(matvec, gradient, min(CAT_NORM_ITERATIONS, size)))
        norm = optax.tree.norm(gradient)
        return within_limits(jnp.where(norm > 0, 10 * norm / jnp.max(jnp.abs(values)), 1.0))

    def solve(matvec: Callable, gradient: Any, radius: jax.Array) -> Any:
        if subproblem == "lanczos":
            return lanczos_trust_region(matvec, gradient, radius, iterations=iterations)
        return steihaug_cg(matvec, gradient, radius, max_iterations=iterations)

    def init(params: Any) -> jax.Array:
        start = NOT_YET_CHOSEN if radius is None else radius
        return jnp.asarray(start, ravel_pytree(params)[0].dtype)

    @exact_products()
    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        loss, gradient = jax.value_and_grad(objective)(params, batch)
        matvec = curvature_matvec(objective, params, batch, curvature)
        now = state
        if radius is None:
            now = jax.lax.cond(
                state == NOT_YET_CHOSEN, lambda: first_radius(matvec, gradient), lambda: state
            )
        solved = solve(matvec, gradient, now)
        predicted = solved.model_decrease
        trial = try_step(objective, params, batch, loss, gradient, solved.step, predicted)
        length = optax.tree.norm(solved.step)
        ratio = trial.reduction_ratio
        if update == "classical":
            grown = jnp.where((ratio > 3 / 4) & solved.on_boundary, 2 * now, now)
            following = jnp.where(ratio < 1 / 4, length / 4, grown)
        else:
            moved = jax.tree.map(jnp.add, params, solved.step)
            slope = jnp.minimum(
                optax.tree.norm(gradient), optax.tree.norm(jax.grad(objective)(moved, batch))
            )
            share = predicted / (predicted + CAT_THETA / 2 * slope * length)
            ratio = jnp.where(trial.measurable & (predicted > 0), ratio * share, ratio)
            grown = jnp.maximum(CAT_GROW * length, now)
            following = jnp.where(ratio >= CAT_BETA, grown, now / CAT_SHRINK)
        following = jnp.where(trial.informative, within_limits(following), state)
        return (
            trial.params,
            following,
            {
                "loss": loss,
                "radius": now,
                "reduction_ratio": ratio,
                "accepted": trial.accepted,
                "on_boundary": solved.on_boundary,
                "iterations": solved.iterations,
            },
        )

    return in_float32(Optimizer(init, step, objective))


def within_limits(radius: jax.Array) -> jax.Array:
    """The radius, at least and at most what its type can still square."""
    limits = jnp.finfo(radius.dtype)
    return jnp.clip(radius, 10 * float(limits.tiny) ** 0.5, float(limits.max) ** 0.5 / 10)
