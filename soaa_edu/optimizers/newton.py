"""Newton's method with the exact step, in the few directions that a batch can see."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.curvature import (
    apply_to_identity,
    check_curvature,
    curvature_matvec,
    damped,
    dense,
    jacobian,
)
from soaa_edu.linear_solvers.conjugate_gradients import conjugate_gradient
from soaa_edu.objective import Objective
from soaa_edu.optimizers.parameters import in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.spans import row_space
from soaa_edu.optimizers.trials import DampingRule, next_damping, try_step
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

    With a λ that adapts, Gauss-Newton is the method of Levenberg (1944) and Marquardt (1963). Its
    Jacobian is formed with one row for each output, so that an example's outputs must depend on its
    inputs alone, and the step is solved in as many unknowns as there are parameters or outputs,
    whichever are fewer. A step that raises the loss is rejected, and so is one along which a matrix
    with negative eigenvalues leads upwards.

    Args:
        objective: ``(params, batch) -> scalar``; an ``Objective`` for ``"gauss_newton"``.
        learning_rate: α.
        damping: λ. A Python zero chooses the pseudo-inverse; a traced one is taken as positive.
            ``levenberg_marquardt(initial=...)`` adapts it.
        curvature: C, ``"hessian"`` or ``"gauss_newton"``.
        cutoff: undamped, eigenvalues below ``cutoff`` times the largest absolute one count as
            zero. ``None``: the number of parameters times the rounding unit of their type.

    ``Info`` has, damped, ``cg_iterations`` (-1 after elimination), undamped, ``rank`` and the
    ``smallest_eigenvalue`` and ``largest_eigenvalue`` of C, and with an adapted damping
    ``damping`` (of this step), ``reduction_ratio`` and ``accepted``.

    Raises:
        ValueError: a negative damping, learning rate or cutoff; an unknown curvature; at the first
            step, a system too large to form.
        TypeError: ``"gauss_newton"`` without an ``Objective``.
    """
    learning_rate = checks.positive("learning_rate", learning_rate)
    rule = damping if isinstance(damping, DampingRule) else None
    if rule is None:
        damping = checks.not_negative("damping", damping)
    check_curvature(objective, curvature)
    if cutoff is not None:
        cutoff = checks.not_negative("cutoff", cutoff)
    undamped = rule is None and checks.concrete(damping) == 0

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

    def init(params: Any) -> Any:
        return () if rule is None else jnp.asarray(rule.initial, ravel_pytree(params)[0].dtype)

    def adapted_step(
        rule: DampingRule, params: Any, strength: Any, batch: Any
    ) -> tuple[Any, Any, dict]:
        _, unravel = ravel_pytree(params)
        if curvature == "gauss_newton":
            loss, gradient, direction = levenberg_marquardt_step(objective, params, batch, strength)
        else:
            loss, gradient, direction = dense_step(objective, params, batch, strength)
        update = unravel(-learning_rate * direction)
        predicted = decrease_along(direction, gradient, strength, learning_rate)
        trial = try_step(objective, params, batch, loss, gradient, update, predicted)
        return (
            trial.params,
            next_damping(rule, strength, trial),
            {
                "loss": loss,
                "damping": strength,
                "reduction_ratio": trial.reduction_ratio,
                "accepted": trial.accepted,
            },
        )

    @exact_products()
    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        if rule is not None:
            return adapted_step(rule, params, state, batch)
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
    solution = jnp.linalg.solve(plus_diagonal(matrix, damping), vector)
    return solution, {"cg_iterations": jnp.int32(-1)}


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
    rows = apply_to_identity(
        lambda u: ravel_pytree(transposed(u.reshape(outputs.shape)))[0],
        outputs.size,
        outputs.dtype,
    )
    kernel = (rows @ rows.T).reshape(-1, *outputs.shape)
    system = jax.vmap(output_hessian)(kernel).reshape(outputs.size, -1).T
    solution = jnp.linalg.solve(plus_diagonal(system, damping), residual.ravel())
    return unravel(rows.T @ solution)


def levenberg_marquardt_step(
    objective: Any, params: Any, batch: Any, damping: Any
) -> tuple[Any, Any, Any]:
    """The loss, its gradient and (JᵀSJ + λI)⁻¹ Jᵀr, raveled, all of them from one Jacobian.

    With no more parameters than outputs it is a Cholesky factor's solution, ``nan`` where S, and
    with it JᵀSJ, has eigenvalues below -λ; else Jᵀ (S J Jᵀ + λI)⁻¹ r.
    """
    inputs, targets = batch
    outputs = objective.model(params, inputs)
    loss, residual = jax.value_and_grad(objective.loss)(outputs, targets)
    _, output_hessian = jax.linearize(jax.grad(lambda z: objective.loss(z, targets)), outputs)
    rows = jacobian(objective.model, params, inputs)
    gradient = rows.T @ residual.ravel()
    refuse_if_too_large(min(rows.shape))

    def weighted(columns: Any) -> Any:
        """S times each column."""
        each = jax.vmap(output_hessian, -1, -1)(columns.reshape(*outputs.shape, -1))
        return each.reshape(columns.shape)

    if outputs.size < gradient.size:
        system = plus_diagonal(weighted(rows @ rows.T), damping)
        return loss, gradient, rows.T @ jnp.linalg.solve(system, residual.ravel())
    factor = jsl.cho_factor(plus_diagonal(rows.T @ weighted(rows), damping))
    return loss, gradient, jsl.cho_solve(factor, gradient)


def dense_step(objective: Any, params: Any, batch: Any, damping: Any) -> tuple[Any, Any, Any]:
    """The loss, its gradient and (H + λI)⁻¹ g, raveled."""
    loss, tree = jax.value_and_grad(objective)(params, batch)
    gradient, _ = ravel_pytree(tree)
    refuse_if_too_large(gradient.size)
    matrix = dense(curvature_matvec(objective, params, batch, "hessian"), params)
    return loss, gradient, jnp.linalg.solve(plus_diagonal(matrix, damping), gradient)


def decrease_along(direction: Any, gradient: Any, damping: Any, rate: Any) -> Any:
    """What the model without damping promises for the step -αd where (C + λI) d = g.

    αgᵀd - ½α² dᵀCd = (α - ½α²) gᵀd + ½α² λ dᵀd (Madsen, Nielsen & Tingleff 2004, eq. 3.14, for
    α = 1), without another product with C.
    """
    linear, square = direction @ gradient, direction @ direction
    return (rate - 0.5 * rate**2) * linear + 0.5 * rate**2 * damping * square


def plus_diagonal(matrix: Any, damping: Any) -> Any:
    """C + λI."""
    return matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype)


def refuse_if_too_large(unknowns: int) -> None:
    """Raise ``ValueError`` where a dense matrix is out of reach, and say what it would cost."""
    if unknowns > LARGEST_DENSE_SYSTEM:
        raise ValueError(
            f"the exact Newton step needs a matrix of {unknowns:,} x {unknowns:,}: "
            f"{8 * unknowns**2 / 1e9:,.0f} GB in float64 and about {unknowns**3:.0e} operations a "
            "step. Train a smaller model, a smaller batch on a model that declares its input "
            "layer, or take a method that needs only products with the curvature"
        )
