"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's statistics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.blocks import from_blocks, second_moments, to_blocks
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


class SoapState(NamedTuple):
    """What SOAP remembers. Matrices are stacks of blocks; averages start at zero.

    Attributes:
        steps: how many were taken.
        since_refresh: steps since the bases were turned, -1 before there are any.
        first_moment: Adam's, of a matrix in its bases.
        second_moment: likewise.
        statistics: of a matrix, the averages (L, R) of GGᵀ and GᵀG; of a vector, ().
        bases: of a matrix, their eigenvectors (Q_L, Q_R) as columns, those of the largest
            eigenvalues first; of a vector, ().
    """

    steps: jax.Array
    since_refresh: jax.Array
    first_moment: Any
    second_moment: Any
    statistics: Any
    bases: Any


def soap(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    mask: Any = None,
    b1: Any = 0.95,
    b2: Any = 0.95,
    decay: Any = 0.95,
    eps: Any = 1e-8,
    refresh_every: int | Callable = 10,
    block_size: int = 1024,
) -> optax.GradientTransformationExtraArgs:
    """SOAP: θ ← θ - α (d + ω θ), d of ``scale_by_soap``, an optax transformation.

    Args:
        learning_rate: α, a number or an optax schedule.
        weight_decay: ω, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        b1: this and the rest as in ``scale_by_soap``.
        b2: likewise.
        decay: likewise.
        eps: likewise.
        refresh_every: likewise.
        block_size: likewise.

    Raises:
        ValueError: a number out of its range.
    """
    core = scale_by_soap(
        b1=b1, b2=b2, decay=decay, eps=eps, refresh_every=refresh_every, block_size=block_size
    )
    return alias(core, learning_rate, weight_decay, mask)


def scale_by_soap(
    *,
    b1: Any = 0.95,
    b2: Any = 0.95,
    decay: Any = 0.95,
    eps: Any = 1e-8,
    refresh_every: int | Callable = 10,
    block_size: int = 1024,
) -> optax.GradientTransformationExtraArgs:
    """SOAP's direction, an optax transformation (Vyas et al. 2024, algorithm 3).

    For each matrix of parameters with gradient G, and running averages L of GGᵀ and R of GᵀG with
    eigenvectors Q_L and Q_R, Adam runs on the rotated gradient, its second moment V at every step:

        G' = Q_Lᵀ G Q_R,   M ← b1 M + (1 - b1) G',   V ← b2 V + (1 - b2) G'²
        d = Q_L (M̂ / (√V̂ + eps)) Q_Rᵀ

    The first bases are exact, of the first gradient that is not zero, and the first step, which the
    paper skips, is taken: in its own bases G is diagonal, so that θ moves by -α U Wᵀ, G = U Σ Wᵀ.
    What rounding leaves beside the diagonal counts as zero there, since Adam would take it for as
    much as the rest.

    Later each refresh is one power iteration (algorithm 4): the columns of L Q, sorted by their
    estimated eigenvalues, are made orthogonal by QR. V's rows and columns follow their
    eigenvectors, and M is turned into the new bases. L and R are those that the step before left,
    as in the paper, which refreshes behind a step. Bases that had taken in G itself would make it
    more diagonal than the gradients in V, and Adam would divide what is left beside the diagonal
    by too little.

    Kernels are matrices with all axes but the last as rows, and long axes are split into blocks.
    Vectors get Adam.

    Args:
        b1: decay of M.
        b2: decay of V.
        decay: of L and R.
        eps: Adam's.
        refresh_every: bases are turned as soon as they are this many steps old; a number, or a
            schedule ``steps taken -> interval``.
        block_size: the longest axis that is not split.

    Raises:
        ValueError: a number out of its range.
    """
    if not callable(refresh_every):
        refresh_every = checks.whole("refresh_every", refresh_every)
    b1 = checks.fraction("b1", b1)
    b2 = checks.fraction("b2", b2)
    decay = checks.fraction("decay", decay)
    eps = checks.positive("eps", eps)
    block_size = checks.whole("block_size", block_size)

    def init(params: Any) -> SoapState:
        zeros = optax.tree.zeros_like(jax.tree.map(lambda p: to_blocks(p, block_size), params))
        statistics = jax.tree.map(second_moments, zeros)
        return SoapState(
            steps=jnp.zeros((), jnp.int32),
            since_refresh=jnp.full((), -1, jnp.int32),
            first_moment=zeros,
            second_moment=optax.tree.zeros_like(zeros),
            statistics=statistics,
            bases=optax.tree.zeros_like(statistics),
        )

    @exact_products()
    def update(
        gradients: Any, state: SoapState, params: Any = None, **_: Any
    ) -> tuple[Any, SoapState]:
        steps = optax.safe_increment(state.steps)
        blocks = jax.tree.map(lambda g: to_blocks(g, block_size), gradients)
        products = jax.tree.map(second_moments, blocks)
        statistics = optax.tree.update_moment(products, state.statistics, decay, 1)

        def first() -> tuple:
            return first_bases(statistics), state.first_moment, state.second_moment

        def turned() -> tuple:
            images = jax.tree.map(jnp.matmul, state.statistics, state.bases)
            orders = jax.tree.map(_largest_first, state.bases, images)
            bases = turned_bases(images, orders)
            first_moment = jax.tree.map(rotate_back, state.first_moment, state.bases)
            second_moment = jax.tree.map(_reorder, state.second_moment, orders)
            return bases, jax.tree.map(rotate, first_moment, bases), second_moment

        interval = refresh_every(state.steps) if callable(refresh_every) else refresh_every
        old = state.bases, state.first_moment, state.second_moment
        (bases, first_moment, second_moment), since_refresh, begins = renewed(
            state.since_refresh, interval, any_nonzero(blocks), first, turned, old
        )

        rotated = jax.tree.map(rotate, blocks, bases)
        rotated = optax.tree.where(begins, jax.tree.map(_resolved, rotated, bases), rotated)
        first_moment = optax.tree.update_moment(rotated, first_moment, b1, 1)
        second_moment = optax.tree.update_moment(rotated, second_moment, b2, 2)
        m = optax.tree.bias_correction(first_moment, b1, steps)
        v = optax.tree.bias_correction(second_moment, b2, steps)
        adam = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v)
        direction = jax.tree.map(rotate_back, adam, bases)
        return jax.tree.map(from_blocks, direction, gradients), SoapState(
            steps, since_refresh, first_moment, second_moment, statistics, bases
        )

    return transformation(init, update)


def _resolved(rotated: jax.Array, bases: tuple) -> jax.Array:
    """A gradient in its own eigenbasis, down to the √ε of its largest entry that GGᵀ resolves."""
    if not bases:
        return rotated
    size = jnp.abs(rotated)
    least = jnp.sqrt(jnp.finfo(size.dtype).eps) * jnp.max(size, axis=(-2, -1), keepdims=True)
    return jnp.where(size < least, 0, rotated)


def _largest_first(basis: jax.Array, image: jax.Array) -> jax.Array:
    """The order of the columns q by qᵀLq, given L Q."""
    return jnp.argsort(-jnp.sum(basis * image, axis=-2), axis=-1)


def _reorder(moment: jax.Array, orders: tuple) -> jax.Array:
    for axis, order in zip((-2, -1), orders):
        moment = jnp.take_along_axis(moment, jnp.expand_dims(order, -3 - axis), axis=axis)
    return moment
