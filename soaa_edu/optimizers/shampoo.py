"""Shampoo: a gradient matrix multiplied from both sides by roots of its own second moments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.blocks import (
    from_blocks,
    inverse_roots,
    is_matrix,
    second_moments,
    to_blocks,
)
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.precision import exact_products

ADAM_EPS = 1e-8


class ShampooState(NamedTuple):
    """What Shampoo remembers. Matrices are stacks of blocks; averages start at zero.

    Attributes:
        steps: how many were taken.
        since_refresh: steps since the roots were computed, -1 before the first time.
        momentum: the average of G.
        second_moment: the average of G², entry by entry.
        statistics: of a matrix, the averages (L, R) of GGᵀ and GᵀG; of a vector, ().
        roots: of a matrix, (L⁻ᵉ, R⁻ᵉ); of a vector, ().
    """

    steps: jax.Array
    since_refresh: jax.Array
    momentum: Any
    second_moment: Any
    statistics: Any
    roots: Any


def shampoo(
    learning_rate: Any,
    *,
    exponent: Any = 0.25,
    b1: Any = 0.9,
    decay: Any = 0.95,
    refresh_every: int | Callable = 10,
    statistics_every: int = 1,
    grafting: str | None = "adam",
    block_size: int = 1024,
    ridge: Any = 1e-6,
) -> optax.GradientTransformation:
    """Shampoo, an optax transformation (Gupta, Koren & Singer 2018, algorithm 1).

    The poster's C⁻ᵉ with C = L ⊗ R. For each matrix of parameters with gradient G and debiased
    running averages M of G, L of GGᵀ and R of GᵀG:

        θ ← θ - α L⁻ᵉ M R⁻ᵉ

    Kernels are matrices with all axes but the last as rows, and long axes are split into blocks. A
    vector has V, the debiased average of G², and the direction M / V²ᵉ. Grafting keeps Shampoo's
    direction of each array and takes the length of another method's step (Anil et al. 2020).

    Args:
        learning_rate: α, a number or an optax schedule.
        exponent: e; 1/4 is Shampoo's own for matrices.
        b1: decay of M.
        decay: of L, R and V.
        refresh_every: roots are computed at the first step, then as soon as they are this many
            steps old; a number, or a schedule ``steps taken -> interval``.
        statistics_every: L and R take in one gradient out of so many, the first included.
        grafting: ``"adam"`` takes the length of Adam's step with ``b1`` and ``decay``, ``"sgd"``
            that of M; ``None`` keeps Shampoo's own.
        block_size: the longest axis that is not split.
        ridge: added to L and R, relative to their largest eigenvalue.

    Raises:
        ValueError: a number out of its range, or an unknown grafting.
    """
    if not callable(learning_rate):
        checks.positive("learning_rate", learning_rate)
    if not callable(refresh_every):
        checks.whole("refresh_every", refresh_every)
    if grafting is not None:
        checks.one_of("grafting", grafting, ("adam", "sgd"))
    checks.positive("exponent", exponent)
    checks.fraction("b1", b1)
    checks.fraction("decay", decay)
    checks.whole("statistics_every", statistics_every)
    checks.whole("block_size", block_size)
    checks.positive("ridge", ridge)

    def init(params: Any) -> ShampooState:
        zeros = optax.tree.zeros_like(jax.tree.map(lambda p: to_blocks(p, block_size), params))
        statistics = jax.tree.map(second_moments, zeros)
        return ShampooState(
            steps=jnp.zeros((), jnp.int32),
            since_refresh=jnp.full((), -1, jnp.int32),
            momentum=zeros,
            second_moment=optax.tree.zeros_like(zeros),
            statistics=statistics,
            roots=optax.tree.zeros_like(statistics),
        )

    @exact_products()
    def update(gradients: Any, state: ShampooState, params: Any = None) -> tuple[Any, ShampooState]:
        steps = optax.safe_increment(state.steps)
        blocks = jax.tree.map(lambda g: to_blocks(g, block_size), gradients)
        momentum = optax.tree.update_moment(blocks, state.momentum, b1, 1)
        second_moment = optax.tree.update_moment(blocks, state.second_moment, decay, 2)

        def updated_statistics() -> Any:
            products = jax.tree.map(second_moments, blocks)
            return optax.tree.update_moment(products, state.statistics, decay, 1)

        def fresh_roots() -> Any:
            times_updated = 1 + state.steps // statistics_every
            debiased = optax.tree.bias_correction(statistics, decay, times_updated)
            return inverse_roots(debiased, exponent, ridge)

        statistics = refreshed(
            state.steps % statistics_every == 0, updated_statistics, state.statistics
        )
        interval = refresh_every(state.steps) if callable(refresh_every) else refresh_every
        due = (state.since_refresh < 0) | (state.since_refresh >= interval)
        roots = refreshed(due, fresh_roots, state.roots)
        since_refresh = optax.safe_increment(jnp.where(due, 0, state.since_refresh))

        def precondition(m: jax.Array, v: jax.Array, roots: tuple) -> jax.Array:
            if is_matrix(m):
                left, right = roots
                return left @ m @ right
            return jnp.where(v == 0, 0, m / v ** (2 * exponent))

        m = optax.tree.bias_correction(momentum, b1, steps)
        v = optax.tree.bias_correction(second_moment, decay, steps)
        direction = jax.tree.map(precondition, m, v, roots)
        if grafting == "adam":
            adam = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + ADAM_EPS), m, v)
            direction = jax.tree.map(_graft, direction, adam)
        elif grafting == "sgd":
            direction = jax.tree.map(_graft, direction, m)
        return jax.tree.map(from_blocks, direction, gradients), ShampooState(
            steps, since_refresh, momentum, second_moment, statistics, roots
        )

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


def _graft(direction: jax.Array, donor: jax.Array) -> jax.Array:
    """The direction of one step with the length of another."""
    length = jnp.linalg.norm(direction)
    return direction * jnp.where(length == 0, 0, jnp.linalg.norm(donor) / length)
