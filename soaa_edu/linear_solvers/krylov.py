"""Lanczos' tridiagonal matrix, and the spectrum that it shows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.precision import exact_products


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
    space ends, a random orthogonal vector continues, coupled to nothing. It ends where βᵢ is
    rounding beside ‖A qᵢ‖: beside ‖A‖ it would seem to end wherever one eigenvalue is large.

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
    rounding = 10 * jnp.finfo(first.dtype).eps

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
        basis, diagonal, off_diagonal = carry
        q = basis[i]
        product = ravel_pytree(matvec(unravel(q)))[0]
        alpha = q @ product
        remainder = orthogonal(product, basis)
        beta = jnp.linalg.norm(remainder)
        ended = beta <= rounding * jnp.linalg.norm(product)
        following = jax.lax.cond(
            ended, lambda: restart(basis, i), lambda: remainder / jnp.where(ended, 1, beta)
        )
        return (
            basis.at[i + 1].set(following, mode="drop"),
            diagonal.at[i].set(alpha),
            off_diagonal.at[i].set(jnp.where(ended, 0, beta)),
        )

    empty = jnp.zeros((iterations, size), first.dtype)
    row = jnp.zeros(iterations, first.dtype)
    begin = jax.lax.cond(
        jnp.any(first != 0), lambda: unit(first), lambda: restart(empty, iterations)
    )
    carry = (empty.at[0].set(begin), row, row)
    basis, diagonal, off_diagonal = jax.lax.fori_loop(0, iterations, advance, carry)
    return LanczosResult(diagonal, off_diagonal[:-1], basis)


def ritz(result: LanczosResult) -> tuple[jax.Array, jax.Array]:
    """The eigenvalues of T, ascending ``(k,)``, and their weights ``(k,)``, which sum to one.

    The outermost ones approach A's extreme eigenvalues. The weights are the squared first
    components of T's eigenvectors: those of Gauss quadrature for the spectrum seen from the start.
    """
    values, vectors = jnp.linalg.eigh(tridiagonal(result))
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


def tridiagonal(krylov: LanczosResult) -> jax.Array:
    """T itself, ``(k, k)``."""
    above = jnp.diag(krylov.off_diagonal, 1)
    return jnp.diag(krylov.diagonal) + above + above.T
