"""Conjugate gradients, Lanczos and trust regions, from products v -> A v."""

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
    residual_product: jax.Array
    residual_norm: jax.Array
    iterations: jax.Array
    positive_curvature: jax.Array


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
    right-hand side is solved as well as a large one. In rounded arithmetic the recursive r falls
    below the true one; solves longer than 50 steps recompute it every 50 steps and before they
    stop, keeping the direction.

    Args:
        matvec: v -> A v on pytrees like ``b``.
        b: any pytree.
        max_iterations: a Python int.
        tolerance: relative to ‖b‖.
        x0: where to start, zero by default.
        preconditioner: r -> M r, M symmetric positive definite and near A⁻¹.
        metric: v -> K v, where vectors are coordinates in a basis that is not orthonormal and has
            the Gram matrix K. Then K A is symmetric, and lengths and products are K's.

    Raises:
        ValueError: ``max_iterations`` below one, a negative tolerance, or an ``x0`` unlike ``b``.
    """
    checks.whole("max_iterations", max_iterations)
    checks.not_negative("tolerance", tolerance)
    rhs, unravel = ravel_pytree(b)
    largest = jnp.max(jnp.abs(rhs))
    scale = jnp.where(largest == 0, 1, largest)
    rhs = rhs / scale

    def multiply(v: jax.Array) -> jax.Array:
        return ravel_pytree(matvec(unravel(v)))[0]

    def measured(v: jax.Array) -> jax.Array:
        return v if metric is None else ravel_pytree(metric(unravel(v)))[0]

    def norm(v: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.maximum(v @ measured(v), 0))

    def precondition(r: jax.Array) -> jax.Array:
        return r if preconditioner is None else ravel_pytree(preconditioner(unravel(r)))[0]

    if x0 is None:
        x, residual = jnp.zeros_like(rhs), rhs
    else:
        x = ravel_pytree(x0)[0].astype(rhs.dtype) / scale
        if x.shape != rhs.shape:
            raise ValueError(f"x0 has {x.size} numbers and b has {rhs.size}: give x0 the form of b")
        residual = rhs - multiply(x)

    target = tolerance * norm(rhs)

    def unfinished(s: _CGState) -> jax.Array:
        improvable = (s.residual_norm > target) & jnp.isfinite(s.residual_norm)
        return improvable & s.positive_curvature & (s.iterations < max_iterations)

    def advance(s: _CGState) -> _CGState:
        product = multiply(s.direction)
        direction = measured(s.direction)
        curvature = direction @ product
        positive = curvature > 0
        alpha = jnp.where(positive, direction @ s.residual / curvature, 0)
        residual = s.residual - alpha * product
        z = precondition(residual)
        residual_product = measured(residual) @ z
        return _CGState(
            x=s.x + alpha * s.direction,
            residual=residual,
            direction=z + residual_product / s.residual_product * s.direction,
            residual_product=residual_product,
            residual_norm=norm(residual),
            iterations=s.iterations + positive,
            positive_curvature=positive,
        )

    def advance_then_correct(s: _CGState) -> _CGState:
        stop = s.iterations + ITERATIONS_BETWEEN_TRUE_RESIDUALS
        s = jax.lax.while_loop(lambda s: unfinished(s) & (s.iterations < stop), advance, s)
        residual = rhs - multiply(s.x)
        return s._replace(
            residual=residual,
            residual_product=measured(residual) @ precondition(residual),
            residual_norm=norm(residual),
        )

    z = precondition(residual)
    state = _CGState(
        x=x,
        residual=residual,
        direction=z,
        residual_product=measured(residual) @ z,
        residual_norm=norm(residual),
        iterations=jnp.int32(0),
        positive_curvature=jnp.bool_(True),
    )
    long = max_iterations > ITERATIONS_BETWEEN_TRUE_RESIDUALS
    state = jax.lax.while_loop(unfinished, advance_then_correct if long else advance, state)
    return CGResult(unravel(scale * state.x), state.iterations, scale * state.residual_norm)


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
    largest = jnp.max(jnp.abs(rhs))
    scale = jnp.where(largest == 0, 1, largest)
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


class LanczosResult(NamedTuple):
    """A ≈ Vᵀ T V on the Krylov space of the start: T is tridiagonal, V has orthonormal rows.

    Attributes:
        diagonal: of T, ``(k,)``.
        off_diagonal: of T, ``(k - 1,)``.
        vectors: V, ``(k, n)``, on raveled pytrees.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    vectors: jax.Array


@exact_products()
def lanczos(matvec: Callable, start: Any, iterations: int) -> LanczosResult:
    """Lanczos' three-term recurrence with full reorthogonalisation (Lanczos 1950).

        βᵢ qᵢ₊₁ = A qᵢ - αᵢ qᵢ - βᵢ₋₁ qᵢ₋₁,   αᵢ = qᵢᵀ A qᵢ

    Every new vector passes twice through Gram-Schmidt against all earlier ones. Where the Krylov
    space ends (βᵢ = 0 to rounding), a random orthogonal vector continues, coupled to nothing.

    Args:
        matvec: v -> A v on pytrees like ``start``, A symmetric.
        start: any pytree, n numbers in all; its length does not matter.
        iterations: k, at most n.

    Raises:
        ValueError: ``iterations`` is below one or above n.
    """
    checks.whole("iterations", iterations)
    first, unravel = ravel_pytree(start)
    size = first.size
    if iterations > size:
        raise ValueError(f"{size} unknowns allow at most {size} iterations, got {iterations}")
    rounding = 10 * jnp.finfo(first.dtype).eps * jnp.sqrt(size)

    def orthogonal(v: jax.Array, basis: jax.Array) -> jax.Array:
        v = v - basis.T @ (basis @ v)
        return v - basis.T @ (basis @ v)

    def unit(v: jax.Array) -> jax.Array:
        v = v / jnp.max(jnp.abs(v))
        return v / jnp.linalg.norm(v)

    def restart(basis: jax.Array, i: Any) -> jax.Array:
        random = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (size,), first.dtype)
        return unit(orthogonal(random, basis))

    def advance(i: jax.Array, carry: tuple) -> tuple:
        basis, diagonal, off_diagonal, scale = carry
        q = basis[i]
        product = ravel_pytree(matvec(unravel(q)))[0]
        alpha = q @ product
        remainder = orthogonal(product, basis)
        beta = jnp.linalg.norm(remainder)
        scale = jnp.maximum(scale, jnp.linalg.norm(product))
        ended = beta <= rounding * scale
        following = jax.lax.cond(
            ended, lambda: restart(basis, i), lambda: remainder / jnp.where(ended, 1, beta)
        )
        return (
            basis.at[i + 1].set(following, mode="drop"),
            diagonal.at[i].set(alpha),
            off_diagonal.at[i].set(jnp.where(ended, 0, beta)),
            scale,
        )

    empty = jnp.zeros((iterations, size), first.dtype)
    row = jnp.zeros(iterations, first.dtype)
    begin = jax.lax.cond(
        jnp.any(first != 0), lambda: unit(first), lambda: restart(empty, iterations)
    )
    carry = (empty.at[0].set(begin), row, row, jnp.zeros((), first.dtype))
    basis, diagonal, off_diagonal, _ = jax.lax.fori_loop(0, iterations, advance, carry)
    return LanczosResult(diagonal, off_diagonal[:-1], basis)


def ritz(result: LanczosResult) -> tuple[jax.Array, jax.Array]:
    """The eigenvalues of T, ascending ``(k,)``, and their weights ``(k,)``, which sum to one.

    The outermost ones approach A's extreme eigenvalues. The weights are the squared first
    components of T's eigenvectors: those of Gauss quadrature for the spectrum seen from the start.
    """
    values, vectors = jnp.linalg.eigh(_tridiagonal(result))
    return values, vectors[0] ** 2


@exact_products()
def spectral_quadrature(
    matvec: Callable, like: Any, key: jax.Array, *, iterations: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights of A's spectral density, by stochastic Lanczos quadrature.

    From a random start the weighted Ritz values are the nodes of a Gauss quadrature for the density
    1/n Σ δ(t - λᵢ), seen from that start; the mean over Gaussian starts is unbiased (Ubaru, Chen &
    Saad 2017; Ghorbani et al. 2019).

    Args:
        matvec: v -> A v on pytrees like ``like``, A symmetric.
        like: any pytree, n numbers in all.
        key: for the starts.
        iterations: Lanczos steps from each start, at most n.
        samples: the number of starts.

    Returns:
        Nodes ``(samples, iterations)`` and weights of the same shape, whose rows sum to one.
    """
    checks.whole("samples", samples)
    flat, unravel = ravel_pytree(like)

    def from_one_start(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jax.random.normal(key, flat.shape, flat.dtype)
        return ritz(lanczos(matvec, unravel(start), iterations))

    return jax.lax.map(from_one_start, jax.random.split(key, samples))


class TrustRegionResult(NamedTuple):
    """A step s within a radius that lowers the model m(s) = gᵀs + ½ sᵀAs.

    Attributes:
        step: s, a pytree like the gradient.
        model_decrease: -m(s), zero or more.
        on_boundary: whether ‖s‖ is the radius.
        iterations: products with A.
    """

    step: Any
    model_decrease: jax.Array
    on_boundary: jax.Array
    iterations: jax.Array


class _SteihaugState(NamedTuple):
    step: jax.Array
    residual: jax.Array
    direction: jax.Array
    iterations: jax.Array
    on_boundary: jax.Array


@exact_products()
def steihaug_cg(
    matvec: Callable, gradient: Any, radius: Any, *, max_iterations: int, tolerance: Any = 1e-5
) -> TrustRegionResult:
    """Lower gᵀs + ½ sᵀAs within ‖s‖ ≤ radius by conjugate gradients (Steihaug 1983; Toint 1981).

    Conjugate gradients for A s = -g, until ‖g + A s‖ ≤ tolerance · ‖g‖. Where they would leave the
    ball, or meet pᵀAp ≤ 0, the step goes along p to the boundary and ends there.

    Args:
        matvec: v -> A v on pytrees like ``gradient``, A symmetric, definite or not.
        gradient: g, any pytree.
        radius: above zero.
        max_iterations: a Python int.
        tolerance: relative to ‖g‖.

    Raises:
        ValueError: a radius or a number of iterations that is not above zero.
    """
    checks.positive("radius", radius)
    checks.whole("max_iterations", max_iterations)
    checks.not_negative("tolerance", tolerance)
    flat, unravel = ravel_pytree(gradient)
    largest = jnp.max(jnp.abs(flat))
    scale = jnp.where(largest == 0, 1, largest)
    g, scaled_radius = flat / scale, radius / scale
    target = tolerance * jnp.linalg.norm(g)

    def unfinished(s: _SteihaugState) -> jax.Array:
        norm = jnp.linalg.norm(s.residual)
        improvable = (norm > target) & jnp.isfinite(norm)
        return improvable & ~s.on_boundary & (s.iterations < max_iterations)

    def advance(s: _SteihaugState) -> _SteihaugState:
        product = ravel_pytree(matvec(unravel(s.direction)))[0]
        curvature = s.direction @ product
        squared = s.residual @ s.residual
        alpha = squared / curvature
        outside = jnp.linalg.norm(s.step + alpha * s.direction) >= scaled_radius
        leaves = outside | ~(curvature > 0)
        length = jnp.where(leaves, _to_boundary(s.step, s.direction, scaled_radius), alpha)
        residual = s.residual + length * product
        return _SteihaugState(
            step=s.step + length * s.direction,
            residual=residual,
            direction=residual @ residual / squared * s.direction - residual,
            iterations=s.iterations + 1,
            on_boundary=leaves,
        )

    start = _SteihaugState(jnp.zeros_like(g), g, -g, jnp.int32(0), jnp.bool_(False))
    end = jax.lax.while_loop(unfinished, advance, start)
    return TrustRegionResult(
        step=unravel(scale * end.step),
        model_decrease=-0.5 * scale * (end.step @ (g + end.residual)) * scale,
        on_boundary=end.on_boundary,
        iterations=end.iterations,
    )


def _to_boundary(z: jax.Array, d: jax.Array, radius: jax.Array) -> jax.Array:
    """The τ ≥ 0 with ‖z + τ d‖ = radius, by the root formula that cancels nothing."""
    near_one, exponent = jnp.frexp(radius)
    inside, length = jnp.ldexp(z, -exponent), jnp.linalg.norm(d)
    b, norm = inside @ (d / length), jnp.linalg.norm(inside)
    c = (norm - near_one) * (norm + near_one)
    root = jnp.sqrt(jnp.maximum(b**2 - c, 0))
    return jnp.ldexp(jnp.where(b > 0, -c / (b + root), root - b), exponent) / length


def _norm(v: jax.Array) -> jax.Array:
    """‖v‖, though the squares may leave the range of the type."""
    largest = jnp.max(jnp.abs(v))
    scale = jnp.where(largest == 0, 1, largest)
    return scale * jnp.linalg.norm(v / scale)


@exact_products()
def lanczos_trust_region(
    matvec: Callable, gradient: Any, radius: Any, *, iterations: int
) -> TrustRegionResult:
    """Minimise gᵀs + ½ sᵀAs within ‖s‖ ≤ radius over a Krylov space: Newton-Lanczos.

    On the Krylov space of g, A is the tridiagonal T of Lanczos and g its first unit vector. There
    the problem is solved exactly, the hard case too, from T's eigenvectors (Gould, Lucidi, Roma &
    Toint 1999). With as many iterations as unknowns, it is the exact solution in the whole space.

    Args:
        matvec: v -> A v on pytrees like ``gradient``, A symmetric, definite or not.
        gradient: g, any pytree. At g = 0 a random start stands in, to find a way down.
        radius: above zero.
        iterations: the dimension of the Krylov space; the number of unknowns, if that is less.

    Raises:
        ValueError: a radius or a number of iterations that is not above zero.
    """
    checks.positive("radius", radius)
    checks.whole("iterations", iterations)
    flat, unravel = ravel_pytree(gradient)
    krylov = lanczos(matvec, gradient, min(iterations, flat.size))
    eigenvalues, eigenvectors = jnp.linalg.eigh(_tridiagonal(krylov))
    slopes = _norm(flat / radius) * eigenvectors[0]
    y, on_boundary = minimise_in_ball(eigenvalues, slopes, 1.0)
    return TrustRegionResult(
        step=unravel(radius * (krylov.vectors.T @ (eigenvectors @ y))),
        model_decrease=-radius * (slopes @ y + 0.5 * eigenvalues @ y**2) * radius,
        on_boundary=on_boundary,
        iterations=jnp.int32(len(krylov.diagonal)),
    )


@exact_products()
def minimise_in_ball(
    eigenvalues: jax.Array, slopes: jax.Array, radius: Any
) -> tuple[jax.Array, jax.Array]:
    """The y that minimises slopesᵀy + ½ Σ λᵢ yᵢ² within ‖y‖ ≤ radius, and whether ‖y‖ = radius.

    y(μ) = -slopes / (λ - λ₁ + μ) with the least μ ≥ max(0, λ₁) that keeps ‖y‖ ≤ radius, found by
    bisection (Moré & Sorensen 1983). In the hard case, where λ₁ < 0 and no μ > 0 reaches the
    radius, the first eigenvector makes up the rest.

    Args:
        eigenvalues: ascending, ``(k,)``.
        slopes: the gradient in the eigenvectors' basis, ``(k,)``.
        radius: above zero.
    """
    gaps = eigenvalues - eigenvalues[0]
    rounding = 10 * jnp.finfo(slopes.dtype).eps
    largest = jnp.max(jnp.abs(eigenvalues))
    flat = jnp.abs(eigenvalues) <= rounding * largest
    level = jnp.abs(slopes) <= rounding * _norm(slopes)
    slopes = jnp.where(flat & level, 0, slopes)

    def at(shift: jax.Array) -> jax.Array:
        denominator = gaps + shift
        return jnp.where(slopes == 0, 0, -slopes / denominator)

    def halve(_: int, bounds: tuple) -> tuple:
        low, high = bounds
        middle = (low + high) / 2
        outside = jnp.linalg.norm(at(middle)) > radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    least = jnp.maximum(eigenvalues[0], 0)
    most = jnp.maximum(least, _norm(slopes) / radius)
    _, shift = jax.lax.fori_loop(0, 100, halve, (least, most))
    negative = eigenvalues[0] < -rounding * largest
    inside = ~negative & (jnp.linalg.norm(at(least)) <= radius)
    y = at(jnp.where(inside, least, shift))
    others = jnp.linalg.norm(y[1:])
    rest = jnp.sqrt(jnp.maximum((radius - others) * (radius + others), 0))
    hard = negative & (shift <= rounding * largest)
    y = jnp.where(hard, y.at[0].set(jnp.where(slopes[0] > 0, -rest, rest)), y)
    return y, ~inside & (hard | (jnp.linalg.norm(y) > 0))


def _tridiagonal(krylov: LanczosResult) -> jax.Array:
    above = jnp.diag(krylov.off_diagonal, 1)
    return jnp.diag(krylov.diagonal) + above + above.T
