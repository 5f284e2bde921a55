"""Trust-region subproblems: a quadratic model, minimised within a ball."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.linear_solvers.krylov import lanczos, tridiagonal
from soaa_edu.precision import exact_products


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
    eigenvalues, eigenvectors = jnp.linalg.eigh(tridiagonal(krylov))
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
