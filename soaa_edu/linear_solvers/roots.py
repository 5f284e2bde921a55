"""Inverse roots of symmetric matrices: from their eigenvalues, and by products alone."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from soaa_edu import checks
from soaa_edu.precision import exact_products

MOST_ITERATIONS = 60


@exact_products()
def inverse_root(matrix: jax.Array, exponent: Any, ridge: Any) -> jax.Array:
    """A⁻ᵉ of a symmetric positive semidefinite matrix, from its eigenvalues.

        V diag(max(λᵢ, 0) + ridge · λ_max)⁻ᵉ Vᵀ,   A = V diag(λ) Vᵀ

    The ridge is relative to the largest eigenvalue, so that the root of c A is c⁻ᵉ times that of A
    however small c is. The zero matrix gives the identity.

    Args:
        matrix: ``(..., n, n)``, one matrix or a stack of them.
        exponent: e, above zero.
        ridge: zero or more; for a singular matrix above the rounding unit of its type.

    Raises:
        ValueError: an exponent or a ridge out of its range.
    """
    checks.positive("exponent", exponent)
    checks.not_negative("ridge", ridge)
    values, vectors = jnp.linalg.eigh(matrix)
    largest = jnp.maximum(values[..., -1:], 0)
    scale = jnp.where(largest == 0, 1, largest)
    relative = jnp.where(largest == 0, 1, jnp.maximum(values, 0) / scale + ridge)
    return (vectors * (relative**-exponent * scale**-exponent)[..., None, :]) @ vectors.mT


class RootByProducts(NamedTuple):
    """What the coupled Newton iteration made of each matrix of a stack.

    Attributes:
        root: X, ``(..., n, n)``.
        residual: the largest entry, in size, of Xᵖ A - I, the powers of X on both sides of A,
            ``(...)``.
        iterations: until it settled, ``(...)``.
    """

    root: jax.Array
    residual: jax.Array
    iterations: jax.Array


class _NewtonState(NamedTuple):
    root: jax.Array
    image: jax.Array
    distance: jax.Array
    iterations: jax.Array


@partial(jax.jit, static_argnames="p")
@exact_products()
def coupled_newton(matrix: jax.Array, p: int, ridge: Any) -> RootByProducts:
    """The root of ``inverse_root`` at the exponent 1/p, by products alone (Guo & Higham 2006).

    From X = I and M = A / λ_max + ridge · I, with eigenvalues above 0 and hardly above 1,

        S = I + (I - M) / p,   X ← X S,   M ← Sᵖ M

    keeps M = Xᵖ M₀ and takes M to I, quadratically in the end, so that X becomes the root. A matrix
    has settled after the step that began within √ε of I, and then stands still. λ_max is the
    Rayleigh quotient of A over A¹⁰²⁴.

    Args:
        matrix: ``(..., n, n)``, symmetric and positive semidefinite.
        p: a whole number of one or more.
        ridge: relative to λ_max, a number or one for each matrix ``(...)``.
    """
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    peak = _largest_entry(matrix)
    nothing = peak == 0
    scaled = _symmetric(matrix / jnp.where(nothing, 1, peak))
    largest = _largest_eigenvalue(jnp.where(nothing, identity, scaled))
    added = jnp.asarray(ridge, matrix.dtype)[..., None, None] * identity
    start = jnp.where(nothing, identity, scaled / largest + added)
    settled = jnp.sqrt(jnp.finfo(matrix.dtype).eps)

    def moving(s: _NewtonState) -> jax.Array:
        return (s.distance > settled) & (s.iterations < MOST_ITERATIONS)

    def advance(s: _NewtonState) -> _NewtonState:
        step = identity + (identity - s.image) / p
        following = _NewtonState(
            root=_symmetric(s.root @ step),
            image=_symmetric(jnp.linalg.matrix_power(step, p) @ s.image),
            distance=_largest_entry(s.image - identity),
            iterations=s.iterations + 1,
        )
        return jax.tree.map(partial(jnp.where, moving(s)), following, s)

    begin = _NewtonState(
        root=jnp.broadcast_to(identity, matrix.shape),
        image=start,
        distance=jnp.full_like(peak, jnp.inf),
        iterations=jnp.zeros_like(peak, jnp.int32),
    )
    end = jax.lax.while_loop(lambda s: jnp.any(moving(s)), advance, begin)
    left, right = (jnp.linalg.matrix_power(end.root, q) for q in (p - p // 2, p // 2))
    scale = largest ** (-1 / p) * jnp.where(nothing, 1, peak) ** (-1 / p)
    return RootByProducts(
        root=scale * end.root,
        residual=_largest_entry(left @ start @ right - identity)[..., 0, 0],
        iterations=end.iterations[..., 0, 0],
    )


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def inverse_root_by_products(matrix: jax.Array, p: int, ridge: Any) -> jax.Array:
    """``inverse_root`` at the exponent 1/p by ``coupled_newton``, for an accelerator.

    A GPU decomposes slowly, and one matrix after the other, where it multiplies a whole stack at
    once. Only a matrix whose residual is above 8 ε / ridge, or above ½, is decomposed after all.
    (Changing A in its last digit moves an eigenvalue as small as the ridge by ε / ridge, so that
    ``inverse_root`` knows it no better.) One that is not finite gives ``nan`` and is left at that.

    Under ``vmap`` the mapped axis joins the stack, so that what is decomposed is decided matrix by
    matrix there too. Its derivative is that of ``inverse_root``.

    Args:
        matrix: ``(..., n, n)``, one matrix or a stack of them.
        p: a whole number of one or more.
        ridge: zero or more, a number or one for each matrix ``(...)``.

    Raises:
        ValueError: a number out of its range.
    """
    checks.whole("p", p)
    checks.not_negative("ridge", ridge)
    ridges = jnp.broadcast_to(jnp.asarray(ridge, matrix.dtype), matrix.shape[:-2])
    return _checked(p)(matrix, ridges)


@inverse_root_by_products.defjvp
def _derivative(p: int, at: tuple, along: tuple) -> tuple[jax.Array, jax.Array]:
    def exact(matrix: jax.Array, ridge: Any) -> jax.Array:
        return inverse_root(matrix, 1 / p, ridge)

    return inverse_root_by_products(at[0], p, at[1]), jax.jvp(exact, at, along)[1]


@lru_cache
def _checked(p: int) -> custom_vmap:
    @custom_vmap
    def root(matrix: jax.Array, ridge: jax.Array) -> jax.Array:
        found = coupled_newton(matrix, p, ridge)
        bound = jnp.minimum(8 * jnp.finfo(matrix.dtype).eps / ridge, 0.5)
        finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1))
        failed = finite & ~(found.residual <= bound)

        def repair(one: tuple) -> jax.Array:
            failed, found, matrix, ridge = one
            return jax.lax.cond(failed, lambda: inverse_root(matrix, 1 / p, ridge), lambda: found)

        def repaired() -> jax.Array:
            one_axis = (failed.ravel(), *map(_in_a_row, (found.root, matrix)), ridge.ravel())
            return jax.lax.map(repair, one_axis).reshape(matrix.shape)

        return jax.lax.cond(jnp.any(failed), repaired, lambda: found.root)

    @root.def_vmap
    def joined(size: int, mapped: list[bool], *arguments: jax.Array) -> tuple[jax.Array, bool]:
        whole = [
            array if has_axis else jnp.broadcast_to(array, (size, *array.shape))
            for array, has_axis in zip(arguments, mapped)
        ]
        return root(*whole), True

    return root


@exact_products()
def _largest_eigenvalue(matrix: jax.Array) -> jax.Array:
    """The mean of the eigenvalues, weighted by their 2048th powers, ``(..., 1, 1)``."""

    def square(_: int, power: jax.Array) -> jax.Array:
        power = power / jnp.trace(power, axis1=-2, axis2=-1)[..., None, None]
        return power @ power

    power = jax.lax.fori_loop(0, 10, square, matrix)
    power = power / _largest_entry(power)
    weighted = jnp.sum(power * (matrix @ power), axis=(-2, -1), keepdims=True)
    return weighted / jnp.sum(power**2, axis=(-2, -1), keepdims=True)


def _symmetric(matrix: jax.Array) -> jax.Array:
    return (matrix + matrix.mT) / 2


def _largest_entry(matrix: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)


def _in_a_row(matrices: jax.Array) -> jax.Array:
    return matrices.reshape(-1, *matrices.shape[-2:])
