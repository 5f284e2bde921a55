"""KL-Shampoo: Shampoo whose two factors are estimated through each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.blocks import from_blocks, is_matrix, second_moments, to_blocks
from soaa_edu.optimizers.eigenbases import (
    first_bases,
    renewed,
    rotate,
    rotate_back,
    turned_bases,
)
from soaa_edu.optimizers.parameters import any_nonzero
from soaa_edu.optimizers.transformations import alias, transformation
from soaa_edu.precision import exact_products

ADAM_EPS = 1e-8


class KLShampooState(NamedTuple):
    """What KL-Shampoo remembers. Matrices are stacks of blocks; averages start at zero.

    Attributes:
        steps: how many were taken.
        since_refresh: steps since the bases were turned, -1 before there are any.
        first_moment: the average of G, of a matrix in its bases.
        second_moment: of a vector, the average of G²; of a matrix, ().
        factors: of a matrix, (Q_AᵀS_AQ_A, Q_BᵀS_BQ_B), whose diagonals are the eigenvalues; of a
            vector, ().
        bases: of a matrix, (Q_A, Q_B), eigenvectors as columns, those of the largest eigenvalues
            first; of a vector, ().
    """

    steps: jax.Array
    since_refresh: jax.Array
    first_moment: Any
    second_moment: Any
    factors: Any
    bases: Any


def kl_shampoo(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    mask: Any = None,
    b1: Any = 0.9,
    decay: Any = 0.95,
    refresh_every: int | Callable = 10,
    block_size: int = 1024,
    ridge: Any = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """KL-Shampoo: θ ← θ - α (S_A^-½ M S_B^-½ + ω θ), an optax transformation.

    Args:
        learning_rate: α, a number or an optax schedule; the direction is as large as Adam's.
        weight_decay: ω, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        b1: this and the rest as in ``scale_by_kl_shampoo``.
        decay: likewise.
        refresh_every: likewise.
        block_size: likewise.
        ridge: likewise.

    Raises:
        ValueError: a number out of its range.
    """
    core = scale_by_kl_shampoo(
        b1=b1, decay=decay, refresh_every=refresh_every, block_size=block_size, ridge=ridge
    )
    return alias(core, learning_rate, weight_decay, mask)


def scale_by_kl_shampoo(
    *,
    b1: Any = 0.9,
    decay: Any = 0.95,
    refresh_every: int | Callable = 10,
    block_size: int = 1024,
    ridge: Any = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """KL-Shampoo's direction, an optax transformation (Lin et al. 2026, claim 2).

    Among all Kronecker products, S_A ⊗ S_B is nearest to the second moment of the gradient G,
    (a, b), in the sense of KL(N(0, E[ggᵀ]) ‖ N(0, S_A ⊗ S_B)), where

        S_A = E[G S_B⁻¹ Gᵀ] / b,   S_B = E[Gᵀ S_A⁻¹ G] / a

    Both are running averages, each of which takes the other as it was a step before. The direction
    S_A^-½ M̂ S_B^-½ needs no grafting: whitened gradients have entries of size one.

    In the bases Q_A and Q_B nothing but the eigenvalues λ is ever inverted:

        D = Q_Aᵀ G Q_B,   M ← b1 M + (1 - b1) D
        T_A ← decay T_A + (1 - decay) D diag(λ_B)⁻¹ Dᵀ / b,   λ_A = diag(T_A), and so for B
        d = Q_A (M̂ / √(λ_A λ_Bᵀ)) Q_Bᵀ

    T_A is Q_Aᵀ S_A Q_A, so that λ_A moves at every step while the bases are old. They begin as
    those of the first gradient that is not zero. Each refresh is one power iteration, QR of
    S_A Q_A = Q_A T_A.

    This differs from the authors' code in that S_A and S_B begin as multiples of I as large as the
    first gradient, which makes the direction independent of the gradients' scale, and not with
    eigenvalues of 0.1; the step comes after the averages have taken in G, and the first is not
    skipped; at a refresh λ is read off the new basis instead of kept from the old, and columns are
    sorted by it; M is debiased, and kept in the bases; small eigenvalues are raised to a share of
    the largest, not to a fixed size.

    Kernels are matrices with all axes but the last as rows, and long axes are split into blocks.
    Vectors get Adam with ``b1`` and ``decay``.

    Args:
        b1: decay of M.
        decay: of S_A and S_B.
        refresh_every: bases are turned as soon as they are this many steps old; a number, or a
            schedule ``steps taken -> interval``.
        block_size: the longest axis that is not split.
        ridge: the least eigenvalue that is divided by, as a share of a factor's largest.

    Raises:
        ValueError: a number out of its range.
    """
    if not callable(refresh_every):
        refresh_every = checks.whole("refresh_every", refresh_every)
    b1 = checks.fraction("b1", b1)
    decay = checks.fraction("decay", decay)
    block_size = checks.whole("block_size", block_size)
    ridge = checks.positive("ridge", ridge)

    def init(params: Any) -> KLShampooState:
        zeros = optax.tree.zeros_like(jax.tree.map(lambda p: to_blocks(p, block_size), params))
        factors = jax.tree.map(second_moments, zeros)
        return KLShampooState(
            steps=jnp.zeros((), jnp.int32),
            since_refresh=jnp.full((), -1, jnp.int32),
            first_moment=zeros,
            second_moment=jax.tree.map(lambda z: () if is_matrix(z) else jnp.zeros_like(z), zeros),
            factors=factors,
            bases=optax.tree.zeros_like(factors),
        )

    @exact_products()
    def update(
        gradients: Any, state: KLShampooState, params: Any = None, **_: Any
    ) -> tuple[Any, KLShampooState]:
        steps = optax.safe_increment(state.steps)
        blocks = jax.tree.map(lambda g: to_blocks(g, block_size), gradients)

        def first() -> tuple:
            bases = first_bases(jax.tree.map(second_moments, blocks))
            return bases, state.factors, state.first_moment

        def turned() -> tuple:
            images = jax.tree.map(jnp.matmul, state.bases, state.factors)
            orders = jax.tree.map(lambda t: jnp.argsort(-_diagonal(t), axis=-1), state.factors)
            bases = turned_bases(images, orders)
            turns = jax.tree.map(lambda old, new: old.mT @ new, state.bases, bases)
            factors = jax.tree.map(lambda t, turn: turn.mT @ t @ turn, state.factors, turns)
            return bases, factors, jax.tree.map(rotate, state.first_moment, turns)

        interval = refresh_every(state.steps) if callable(refresh_every) else refresh_every
        old = state.bases, state.factors, state.first_moment
        (bases, factors, first_moment), since_refresh, _begins = renewed(
            state.since_refresh, interval, any_nonzero(blocks), first, turned, old
        )

        def averaged(d: jax.Array, factors: tuple) -> tuple:
            return _through_each_other(d, _begun(factors, d), decay, ridge) if factors else ()

        def averaged_squares(d: jax.Array, v: Any) -> Any:
            return () if is_matrix(d) else decay * v + (1 - decay) * d**2

        def whitened(m: jax.Array, factors: tuple, v: Any) -> jax.Array:
            if not factors:
                return m / (jnp.sqrt(v / (1 - decay**steps)) + ADAM_EPS)
            left, right = (_roots(factor, ridge) for factor in factors)
            return m / left[..., :, None] / right[..., None, :]

        rotated = jax.tree.map(rotate, blocks, bases)
        factors = jax.tree.map(averaged, rotated, factors)
        second_moment = jax.tree.map(averaged_squares, rotated, state.second_moment)
        first_moment = optax.tree.update_moment(rotated, first_moment, b1, 1)
        m = optax.tree.bias_correction(first_moment, b1, steps)
        direction = jax.tree.map(whitened, m, factors, second_moment)
        direction = jax.tree.map(rotate_back, direction, bases)
        return jax.tree.map(from_blocks, direction, gradients), KLShampooState(
            steps, since_refresh, first_moment, second_moment, factors, bases
        )

    return transformation(init, update)


def _begun(factors: tuple, d: jax.Array) -> tuple:
    """The factors, or multiples of I as large as the gradient where there is nothing in them."""
    largest = jnp.max(jnp.abs(d), axis=(-2, -1), keepdims=True)
    relative = d / jnp.where(largest == 0, 1, largest)
    size = largest * jnp.sqrt(jnp.mean(relative**2, axis=(-2, -1), keepdims=True))

    def begun(factor: jax.Array) -> jax.Array:
        nothing = jnp.max(_diagonal(factor), axis=-1)[..., None, None] == 0
        return jnp.where(nothing, size * jnp.eye(factor.shape[-1], dtype=factor.dtype), factor)

    return tuple(begun(factor) for factor in factors)


def _through_each_other(d: jax.Array, factors: tuple, decay: Any, ridge: Any) -> tuple:
    """Both factors after one gradient, in their bases."""
    rows, columns = d.shape[-2:]
    left, right = (_roots(factor, ridge) for factor in factors)
    over_right, over_left = d / right[..., None, :], d / left[..., :, None]
    return (
        decay * factors[0] + (1 - decay) * over_right @ over_right.mT / columns,
        decay * factors[1] + (1 - decay) * over_left.mT @ over_left / rows,
    )


def _roots(factor: jax.Array, ridge: Any) -> jax.Array:
    """√λ of each matrix in a stack, ``(k, n)``, with λ raised to its least share."""
    values = _diagonal(factor)
    largest = jnp.max(values, axis=-1, keepdims=True)
    scale = jnp.where(largest == 0, 1, largest)
    return jnp.sqrt(jnp.maximum(values / scale, ridge)) * jnp.sqrt(scale)


def _diagonal(factor: jax.Array) -> jax.Array:
    return jnp.diagonal(factor, axis1=-2, axis2=-1)
