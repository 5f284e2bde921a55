"""Conjugate gradients: A x = b from products v -> A v."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.precision import exact_products

ITERATIONS_BETWEEN_TRUE_RESIDUALS = 50


class CGResult(NamedTuple):
    """What conjugate gradients found.

    Attributes:
        solution: x, a pytree like ``b``.
        iterations: steps taken, int32.
        residual_norm: ‖b - A x‖.
    """

    solution: Any
    iterations: jax.Array
    residual_norm: jax.Array


class _CGState(NamedTuple):
    x: jax.Array
    residual: jax.Array
    direction: jax.Array
    measured_direction: Any
    residual_product: jax.Array
    residual_norm: jax.Array
    iterations: jax.Array
    improvable: jax.Array


@exact_products()
def conjugate_gradient(
    matvec: Callable,
    b: Any,
    *,
    max_iterations: int,
    tolerance: Any = 1e-5,
    x0: Any = None,
    preconditioner: Callable | None = None,
    metric: Callable | None = None,
) -> CGResult:
    """Solve A x = b for a symmetric positive definite A (Hestenes & Stiefel 1952).

    With residual r, preconditioned residual z = M r and direction p:

        α = pᵀr / pᵀAp,   x ← x + α p,   r ← r - α A p,   p ← z + (r₊ᵀz₊ / rᵀz) p

    It stops when ‖r‖ ≤ tolerance · ‖b‖, after ``max_iterations``, when pᵀAp ≤ 0 (A is not positive
    definite; x is what it has by then), or when r is not finite. b is scaled first, so that a tiny
    right-hand side is solved as well as a large one.

    In rounded arithmetic the recursive r falls below the true one. Solves longer than 50 steps, and
    those with a start, recompute it every 50 steps and before they stop, keeping the direction.
    They also stop where rounding alone is left: where the true residual has not halved since it was
    last computed, and half of it or more is what the recursion missed. The ``residual_norm`` then
    says how far they came.

    The solution can be differentiated, forward and in reverse, in b and in whatever ``matvec``
    closes over: A dx = db - dA x is solved the same way. With a ``metric`` it cannot, in reverse.

    Args:
        matvec: v -> A v on pytrees like ``b``.
        b: any pytree.
        max_iterations: a Python int.
        tolerance: relative to ‖b‖.
        x0: where to start, zero by default.
        preconditioner: r -> M r, M symmetric positive definite and near A⁻¹.
        metric: v -> K v, where vectors are coordinates in a basis that is not orthonormal and has
            the Gram matrix K. Then K A is symmetric, lengths and products are K's, and ``matvec``
            is (v, K v) -> A v, so that K v need not be computed twice.

    Raises:
        ValueError: ``max_iterations`` below one, a negative tolerance, or an ``x0`` unlike ``b``.
    """
    checks.whole("max_iterations", max_iterations)
    tolerance = checks.not_negative("tolerance", tolerance)
    b = jax.tree.map(jnp.asarray, b)
    start = b if x0 is None else jax.tree.map(jnp.asarray, x0)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (start, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"x0 has arrays {shapes[0]} and b has {shapes[1]}: give x0 the form of b")

    def like_b(*v: Any) -> Any:
        return jax.tree.map(lambda product, of: product.astype(of.dtype), matvec(*v), b)

    def solve(multiply: Callable, b: Any) -> tuple[Any, tuple]:
        from_x0 = None if x0 is None else jax.lax.stop_gradient(start)
        return _solve(multiply, b, max_iterations, tolerance, from_x0, preconditioner, metric)

    if metric is not None:
        x, counts = solve(like_b, b)
    else:
        x, counts = jax.lax.custom_linear_solve(like_b, b, solve, symmetric=True, has_aux=True)
    return CGResult(x, *counts)


def _solve(
    matvec: Callable,
    b: Any,
    max_iterations: int,
    tolerance: Any,
    x0: Any,
    preconditioner: Callable | None,
    metric: Callable | None,
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The solution, and the iterations and the residual's norm."""
    rhs, unravel = ravel_pytree(b)

    def multiply(v: jax.Array, measured_v: jax.Array) -> jax.Array:
        both = (v,) if metric is None else (v, measured_v)
        return ravel_pytree(matvec(*map(unravel, both)))[0]

    def measured(v: jax.Array) -> jax.Array:
        return v if metric is None else ravel_pytree(metric(unravel(v)))[0]

    def norm(v: jax.Array) -> jax.Array:
        largest = _largest(v)
        relative = v / largest
        return largest * jnp.sqrt(jnp.maximum(relative @ measured(relative), 0))

    def precondition(r: jax.Array) -> jax.Array:
        return r if preconditioner is None else ravel_pytree(preconditioner(unravel(r)))[0]

    if x0 is None:
        x, residual = jnp.zeros_like(rhs), rhs
    else:
        x = ravel_pytree(x0)[0].astype(rhs.dtype)
        residual = rhs - multiply(x, measured(x))
    scale = jnp.maximum(_largest(rhs), _largest(residual)) if x0 is not None else _largest(rhs)
    rhs, x, residual = rhs / scale, x / scale, residual / scale
    target = tolerance * norm(rhs)

    def unfinished(s: _CGState) -> jax.Array:
        far = (s.residual_norm > target) & jnp.isfinite(s.residual_norm)
        return far & s.improvable & (s.iterations < max_iterations)

    def advance(s: _CGState) -> _CGState:
        direction = s.direction if metric is None else s.measured_direction
        product = multiply(s.direction, direction)
        curvature = direction @ product
        positive = curvature > 0
        slope = direction @ s.residual
        alpha = jnp.where(positive, slope / jnp.where(positive, curvature, 1), 0)
        residual = s.residual - alpha * product
        measured_residual = measured(residual)
        z, measured_z = residual, measured_residual
        if preconditioner is not None:
            z = precondition(residual)
            measured_z = measured(z)
        residual_product = measured_residual @ z
        beta = _ratio(residual_product, s.residual_product)
        return _CGState(
            x=s.x + alpha * s.direction,
            residual=residual,
            direction=z + beta * s.direction,
            measured_direction=() if metric is None else measured_z + beta * direction,
            residual_product=residual_product,
            residual_norm=jnp.sqrt(jnp.maximum(measured_residual @ residual, 0)),
            iterations=s.iterations + positive,
            improvable=positive,
        )

    def advance_then_correct(s: _CGState) -> _CGState:
        stop = s.iterations + ITERATIONS_BETWEEN_TRUE_RESIDUALS
        before = s.residual_norm
        s = jax.lax.while_loop(lambda s: unfinished(s) & (s.iterations < stop), advance, s)
        residual = rhs - multiply(s.x, measured(s.x))
        now, missed = norm(residual), norm(residual - s.residual)
        only_rounding = (missed >= now / 2) & (now > before / 2)
        return s._replace(
            residual=residual,
            measured_direction=() if metric is None else measured(s.direction),
            residual_product=measured(residual) @ precondition(residual),
            residual_norm=now,
            improvable=s.improvable & ~only_rounding,
        )

    z = precondition(residual)
    state = _CGState(
        x=x,
        residual=residual,
        direction=z,
        measured_direction=() if metric is None else measured(z),
        residual_product=measured(residual) @ z,
        residual_norm=norm(residual),
        iterations=jnp.int32(0),
        improvable=jnp.bool_(True),
    )
    corrected = max_iterations > ITERATIONS_BETWEEN_TRUE_RESIDUALS or x0 is not None
    state = jax.lax.while_loop(unfinished, advance_then_correct if corrected else advance, state)
    return unravel(scale * state.x), (state.iterations, scale * state.residual_norm)


def _largest(v: jax.Array) -> jax.Array:
    """The largest absolute value, or one where all are zero."""
    largest = jnp.max(jnp.abs(v), initial=0)
    return jnp.where(largest == 0, 1, largest)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / jnp.where(denominator == 0, 1, denominator)


class CGPath(NamedTuple):
    """The iterates of conjugate gradients at growing intervals.

    Attributes:
        iterates: at iterations 1, 2, 3, 4, 5, 7, 9, ... (1.3 times apart), raveled, ``(slots, n)``.
        kept: how many of them were reached.
        last: where it stopped, raveled, ``(n,)``.
        iterations: steps taken.
    """

    iterates: jax.Array
    kept: jax.Array
    last: jax.Array
    iterations: jax.Array


@exact_products()
def cg_path(
    matvec: Callable,
    b: Any,
    *,
    max_iterations: int,
    x0: Any,
    preconditioner: Callable,
    progress: float = 5e-4,
) -> CGPath:
    """Minimise φ(x) = ½ xᵀAx - bᵀx by conjugate gradients, as Martens (2010, section 4) stops them.

    After i steps, with k = max(10, i / 10), it stops when φ < 0 and the last k steps brought less
    than k · ``progress`` of φ. That asks for progress of what is minimised, not of the residual.

    Args:
        matvec: v -> A v on pytrees like ``b``.
        b: any pytree.
        max_iterations: a Python int.
        x0: where to start, a pytree like ``b``.
        preconditioner: r -> M r, M symmetric positive definite and near A⁻¹.
        progress: relative progress an iteration.
    """
    checks.whole("max_iterations", max_iterations)
    rhs, unravel = ravel_pytree(b)
    scale = _largest(rhs)
    rhs = rhs / scale
    growing = np.ceil(1.3 ** np.arange(1 + math.log(max_iterations, 1.3)))
    marks = np.unique(growing[growing <= max_iterations].astype(int))
    slots = np.full(max_iterations + 1, len(marks))
    slots[marks] = np.arange(len(marks))

    def multiply(v: jax.Array) -> jax.Array:
        return ravel_pytree(matvec(unravel(v)))[0]

    def precondition(r: jax.Array) -> jax.Array:
        return ravel_pytree(preconditioner(unravel(r)))[0]

    def quadratic(x: jax.Array, residual: jax.Array) -> jax.Array:
        return -0.5 * x @ (rhs + residual)

    def unfinished(carry: tuple) -> jax.Array:
        *_, history, i, positive, _ = carry
        k = jnp.maximum(10, i // 10)
        now, before = history[i], history[jnp.maximum(i - k, 0)]
        settled = (i > k) & (now < 0) & (now - before > k * progress * now)
        return positive & ~settled & (i < max_iterations) & jnp.isfinite(now)

    def advance(carry: tuple) -> tuple:
        x, residual, direction, product_rz, history, i, _, iterates = carry
        product = multiply(direction)
        curvature = direction @ product
        positive = (curvature > 0) & (product_rz > 0)
        alpha = jnp.where(positive, product_rz / curvature, 0)
        x, residual = x + alpha * direction, residual - alpha * product
        z = precondition(residual)
        following = residual @ z
        direction = z + following / product_rz * direction
        i = i + positive
        history = history.at[i].set(quadratic(x, residual))
        iterates = iterates.at[jnp.asarray(slots)[i]].set(x, mode="drop")
        return x, residual, direction, following, history, i, positive, iterates

    x = ravel_pytree(x0)[0].astype(rhs.dtype) / scale
    residual = rhs - multiply(x)
    z = precondition(residual)
    history = jnp.zeros(max_iterations + 1, rhs.dtype).at[0].set(quadratic(x, residual))
    iterates = jnp.zeros((len(marks), rhs.size), rhs.dtype)
    start = (x, residual, z, residual @ z, history, jnp.int32(0), jnp.bool_(True), iterates)
    x, _, _, _, _, i, _, iterates = jax.lax.while_loop(unfinished, advance, start)
    return CGPath(scale * iterates, jnp.sum(jnp.asarray(marks) <= i), scale * x, i)
