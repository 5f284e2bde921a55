"""Newton's method with the exact step, in the few directions that a batch can see."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.curvature import (
    apply_to_identity,
    check_curvature,
    curvature_matvec,
    damped,
    dense,
)
from soaa_edu.linear_solvers.conjugate_gradients import conjugate_gradient
from soaa_edu.objective import Objective
from soaa_edu.optimizers.parameters import in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.spans import row_space
from soaa_edu.precision import exact_products

LARGEST_DENSE_SYSTEM = 20_000


def newton(
    objective: Callable,
    *,
    learning_rate: Any = 1.0,
    damping: Any = 0.0,
    curvature: str = "hessian",
    cutoff: float | None = None,
) -> Optimizer:
    """Newton's method: θ ← θ - α (C + λI)⁺ g, the step taken exactly (Nocedal & Wright 2006, §3.3).

    A batch of B examples spans at most B directions of the inputs. Where the model declares the
    layer that reads them, the gradient and all curvature of that layer lie in this span, and in an
    orthonormal basis of it the slides' 7,960 unknowns become 750. Nothing is approximated.

    With λ = 0 the step takes the pseudo-inverse there. With λ > 0 it is solved by conjugate
    gradients run to rounding, which needs no matrix, and by Gaussian elimination in the span where
    they do not get that far.

    Args:
        objective: ``(params, batch) -> scalar``; an ``Objective`` for ``"gauss_newton"``.
        learning_rate: α.
        damping: λ. A Python zero chooses the pseudo-inverse; a traced one is taken as positive.
        curvature: C, ``"hessian"`` or ``"gauss_newton"``.
        cutoff: undamped, eigenvalues below ``cutoff`` times the largest absolute one count as
            zero. ``None``: the number of parameters times the rounding unit of their type.

    ``Info`` has, damped, ``cg_iterations`` (-1 after elimination) and, undamped, ``rank`` and
    the ``smallest_eigenvalue`` and ``largest_eigenvalue`` of C.

    Raises:
        ValueError: a negative damping, learning rate or cutoff; an unknown curvature; at the first
            step, a system too large to form.
        TypeError: ``"gauss_newton"`` without an ``Objective``.
    """
    learning_rate = checks.positive("learning_rate", learning_rate)
    damping = checks.not_negative("damping", damping)
    check_curvature(objective, curvature)
    if cutoff is not None:
        cutoff = checks.not_negative("cutoff", cutoff)
    undamped = checks.concrete(damping) == 0

    def solve_in_span(solve: Callable, params: Any, batch: Any) -> tuple[Any, dict]:
        space = row_space(objective, params, batch)
        gradient, unravel = ravel_pytree(jax.grad(space.objective)(space.coordinates, batch))
        refuse_if_too_large(gradient.size)
        matvec = curvature_matvec(space.objective, space.coordinates, batch, curvature)
        solution, info = solve(dense(matvec, space.coordinates), gradient)
        return space.to_parameters(unravel(solution)), info

    def undamped_direction(params: Any, batch: Any) -> tuple[Any, dict]:
        flat, _ = ravel_pytree(params)
        relative = flat.size * jnp.finfo(flat.dtype).eps if cutoff is None else cutoff
        return solve_in_span(partial(pseudo_inverse_solve, cutoff=relative), params, batch)

    def eliminated_direction(params: Any, batch: Any) -> tuple[Any, dict]:
        if isinstance(objective, Objective) and curvature == "gauss_newton":
            space = row_space(objective, params, batch)
            outputs = jax.eval_shape(objective.model, params, batch[0])
            if outputs.size < ravel_pytree(space.coordinates)[0].size:
                refuse_if_too_large(outputs.size)
                direction = push_through_solve(space.objective, space.coordinates, batch, damping)
                return space.to_parameters(direction), {"cg_iterations": jnp.int32(-1)}
        return solve_in_span(partial(eliminate, damping=damping), params, batch)

    def damped_direction(params: Any, batch: Any, gradient: Any) -> tuple[Any, dict]:
        rounding = 32 * jnp.finfo(ravel_pytree(gradient)[0].dtype).eps
        cg = conjugate_gradient(
            damped(curvature_matvec(objective, params, batch, curvature), damping),
            gradient,
            max_iterations=50,
            tolerance=rounding,
        )
        return jax.lax.cond(
            cg.residual_norm > rounding * optax.tree.norm(gradient),
            lambda: eliminated_direction(params, batch),
            lambda: (cg.solution, {"cg_iterations": cg.iterations}),
        )

    def init(params: Any) -> tuple:
        return ()

    @exact_products()
    def step(params: Any, state: tuple, batch: Any, key: Any) -> tuple[Any, tuple, dict]:
        loss, gradient = jax.value_and_grad(objective)(params, batch)
        if undamped:
            direction, info = undamped_direction(params, batch)
        else:
            direction, info = damped_direction(params, batch, gradient)
        params = jax.tree.map(
            lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction
        )
        return params, state, {"loss": loss, **info}

    return in_float32(Optimizer(init, step, objective))


def pseudo_inverse_solve(matrix: Any, vector: Any, cutoff: Any) -> tuple[Any, dict]:
    """C⁺ g with eigenvalues below ``cutoff`` times the largest absolute one taken as zero."""
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix)
    kept = jnp.abs(eigenvalues) > cutoff * jnp.max(jnp.abs(eigenvalues))
    inverse = jnp.where(kept, 1 / jnp.where(kept, eigenvalues, 1), 0)
    return eigenvectors @ (inverse * (eigenvectors.T @ vector)), {
        "rank": jnp.sum(kept),
        "smallest_eigenvalue": eigenvalues[0],
        "largest_eigenvalue": eigenvalues[-1],
    }


def eliminate(matrix: Any, vector: Any, damping: Any) -> tuple[Any, dict]:
    """(C + λI)⁻¹ g by Gaussian elimination."""
    damped = matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype)
    return jnp.linalg.solve(damped, vector), {"cg_iterations": jnp.int32(-1)}


def push_through_solve(objective: Any, params: Any, batch: Any, damping: Any) -> Any:
    """(JᵀSJ + λI)⁻¹ Jᵀr = Jᵀ (S J Jᵀ + λI)⁻¹ r, a system of one unknown for each output.

    S is the Hessian and r the gradient of the mean loss in the outputs. S is singular for softmax
    and is never inverted.
    """
    inputs, targets = batch
    outputs, transposed = jax.vjp(lambda p: objective.model(p, inputs), params)
    residual, output_hessian = jax.linearize(
        jax.grad(lambda z: objective.loss(z, targets)), outputs
    )
    _, unravel = ravel_pytree(params)
    jacobian = apply_to_identity(
        lambda u: ravel_pytree(transposed(u.reshape(outputs.shape)))[0],
        outputs.size,
        outputs.dtype,
    )
    kernel = (jacobian @ jacobian.T).reshape(-1, *outputs.shape)
    system = jax.vmap(output_hessian)(kernel).reshape(outputs.size, -1).T
    system = system + damping * jnp.eye(outputs.size, dtype=outputs.dtype)
    return unravel(jacobian.T @ jnp.linalg.solve(system, residual.ravel()))


def refuse_if_too_large(unknowns: int) -> None:
    """Raise ``ValueError`` where a dense matrix is out of reach, and say what it would cost."""
    if unknowns > LARGEST_DENSE_SYSTEM:
        raise ValueError(
            f"the exact Newton step needs a matrix of {unknowns:,} x {unknowns:,}: "
            f"{8 * unknowns**2 / 1e9:,.0f} GB in float64 and about {unknowns**3:.0e} operations a "
            "step. Train a smaller model, a smaller batch on a model that declares its input "
            "layer, or take a method that needs only products with the curvature"
        )
