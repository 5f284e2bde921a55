"""The orthogonal factor of a matrix: from its singular values, and by products alone."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from soaa_edu import checks
from soaa_edu.precision import exact_products

CUBIC = (1.5, -0.5)
"""Newton and Schulz's own coefficients, which converge to the polar factor."""
QUINTIC = (3.4445, -4.775, 2.0315)
"""Muon's (Jordan et al. 2024): five iterations take singular values from 0.01 up to 0.7 to 1.2."""


@exact_products()
def polar_factor(matrix: jax.Array) -> jax.Array:
    """U Vᵀ of G = U Σ Vᵀ, from its singular values, in the matrix's type.

    Singular values that rounding can't tell from zero have no part in it, as in NumPy's rank, so
    that the zero matrix has the factor zero.

    Args:
        matrix: G, ``(..., m, n)``, one matrix or a stack of them.
    """
    wide = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    left, values, right = jnp.linalg.svd(wide, full_matrices=False)
    least = max(matrix.shape[-2:]) * jnp.finfo(wide.dtype).eps * values[..., :1]
    counts = (values > least).astype(wide.dtype)
    return ((left * counts[..., None, :]) @ right).astype(matrix.dtype)


@exact_products()
def newton_schulz(
    matrix: jax.Array, iterations: int = 5, coefficients: Sequence[float] = QUINTIC
) -> jax.Array:
    """``polar_factor`` by products alone, in the matrix's type.

    From X = G / ‖G‖, the Frobenius norm, whose singular values are at most 1, each iteration

        X ← (a I + b X Xᵀ + c (X Xᵀ)²) X

    keeps the singular vectors and takes every singular value σ to p(σ) = a σ + b σ³ + c σ⁵ (Björck
    & Bowie 1971; Higham 2008, section 8.3). ``CUBIC`` multiplies the small ones by 1.5 at first and
    converges quadratically in the end; ``QUINTIC`` multiplies them by 3.4 and does not converge.
    The zero matrix stays zero.

    Args:
        matrix: G, ``(..., m, n)``, one matrix or a stack of them. The products are as large as the
            shorter side.
        iterations: how many, one or more.
        coefficients: of p, from the one of σ on.

    Raises:
        ValueError: no iterations, or no coefficients.
    """
    iterations = checks.whole("iterations", iterations)
    if not len(coefficients):
        raise ValueError("coefficients are empty: take CUBIC or QUINTIC")
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = _normalized(matrix.mT if tall else matrix)
    for _ in range(iterations):
        x = _polynomial(coefficients, x @ x.mT) @ x
    return x.mT if tall else x


def _polynomial(coefficients: Sequence[float], square: jax.Array) -> jax.Array:
    """Σ cₖ Aᵏ by Horner's rule, with a product less than there are powers."""
    first, *rest = coefficients
    constant = first * jnp.eye(square.shape[-1], dtype=square.dtype)
    if len(rest) < 2:
        return constant + sum(c * square for c in rest)
    return constant + square @ _polynomial(rest, square)


def _normalized(matrix: jax.Array) -> jax.Array:
    """Each matrix over its Frobenius norm, which is taken in float32 or wider."""
    wide = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(wide), axis=(-2, -1), keepdims=True)
    relative = wide / jnp.where(largest == 0, 1, largest)
    norm = jnp.sqrt(jnp.sum(relative**2, axis=(-2, -1), keepdims=True))
    return (relative / jnp.where(norm == 0, 1, norm)).astype(matrix.dtype)
