"""Solves with triangular and definite matrices by products, one half of the matrix at a time.

On a CPU, LAPACK has threads of its own. They go on spinning for a while after each call, in the way
of JAX's, so that a step that calls it can take twice as long. Elsewhere the usual solvers stay.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

from soaa_edu.precision import exact_products

SMALL = 60
"""The largest matrix that is taken row by row. From 64 on, LAPACK's Cholesky has threads."""


@exact_products()
def inverse_of_definite(matrix: jax.Array) -> jax.Array:
    """A⁻¹ = L⁻ᵀ L⁻¹ of a symmetric A = L Lᵀ; ``nan`` where it is not positive definite."""

    def by_products(matrix: jax.Array) -> jax.Array:
        inverse = _inverse_factor(matrix)
        return inverse.T @ inverse

    def usual(matrix: jax.Array) -> jax.Array:
        return cho_solve(cho_factor(matrix), jnp.eye(len(matrix), dtype=matrix.dtype))

    return jax.lax.platform_dependent(jnp.asarray(matrix), cpu=by_products, default=usual)


@exact_products()
def solve_lower(lower: jax.Array, v: jax.Array) -> jax.Array:
    """L⁻¹ v of a lower triangular ``(n, n)`` and a matrix ``(n, m)``."""

    def usual(lower: jax.Array, v: jax.Array) -> jax.Array:
        return solve_triangular(lower, v, lower=True)

    arrays = jnp.asarray(lower), jnp.asarray(v)
    return jax.lax.platform_dependent(*arrays, cpu=_solve_by_halves, default=usual)


def _inverse_factor(matrix: jax.Array) -> jax.Array:
    """L⁻¹ of A = L Lᵀ: L₁₁ is the factor of A₁₁, and L₂₂ that of A₂₂ - L₂₁ L₂₁ᵀ."""
    if len(matrix) <= SMALL:
        return _inverse_by_rows(jnp.linalg.cholesky(matrix))
    half = len(matrix) // 2
    first = _inverse_factor(matrix[:half, :half])
    below = matrix[half:, :half] @ first.T
    second = _inverse_factor(matrix[half:, half:] - below @ below.T)
    return jnp.block([[first, jnp.zeros_like(below.T)], [-second @ (below @ first), second]])


def _solve_by_halves(lower: jax.Array, v: jax.Array) -> jax.Array:
    if len(lower) <= SMALL:
        return _inverse_by_rows(lower) @ v
    half = len(lower) // 2
    first = _solve_by_halves(lower[:half, :half], v[:half])
    second = _solve_by_halves(lower[half:, half:], v[half:] - lower[half:, :half] @ first)
    return jnp.concatenate([first, second])


def _inverse_by_rows(lower: jax.Array) -> jax.Array:
    """Forward substitution, which makes one row of the inverse from those above it."""
    identity, strict = jnp.eye(len(lower), dtype=lower.dtype), jnp.tril(lower, -1)

    def add_row(i: jax.Array, inverse: jax.Array) -> jax.Array:
        return inverse.at[i].set((identity[i] - strict[i] @ inverse) / lower[i, i])

    return jax.lax.fori_loop(0, len(lower), add_row, jnp.zeros_like(lower))
