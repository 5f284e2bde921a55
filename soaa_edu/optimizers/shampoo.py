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
from soaa_edu.optimizers.transformations import alias, transformation
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
        roots: of a matrix, (L⁻ᵉ, R⁻ᵉ) of L and R over their largest entries, so that they are in
            range whatever the gradient's scale; of a vector, ().
        scales: of a matrix, those entries to the power -e; of a vector, ().
    """

    steps: jax.Array
    since_refresh: jax.Array
    momentum: Any
    second_moment: Any
    statistics: Any
    roots: Any
    scales: Any


def shampoo(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    mask: Any = None,
    exponent: Any = 0.25,
    b1: Any = 0.9,
    decay: Any = 0.95,
    refresh_every: int | Callable = 10,
    statistics_every: int = 1,
    grafting: str | None = "adam",
    block_size: int = 1024,
    ridge: Any = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo: θ ← θ - α (L⁻ᵉ M R⁻ᵉ + ω θ), an optax transformation.

    Args:
        learning_rate: α, a number or an optax schedule.
        weight_decay: ω, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        exponent: this and the rest as in ``scale_by_shampoo``.
        b1: likewise.
        decay: likewise.
        refresh_every: likewise.
        statistics_every: likewise.
        grafting: likewise.
        block_size: likewise.
        ridge: likewise.

    Raises:
        ValueError: a number out of its range, or an unknown grafting.
    """
    core = scale_by_shampoo(
        exponent=exponent,
        b1=b1,
        decay=decay,
        refresh_every=refresh_every,
        statistics_every=statistics_every,
        grafting=grafting,
        block_size=block_size,
        ridge=ridge,
    )
    return alias(core, learning_rate, weight_decay, mask)


def scale_by_shampoo(
    *,
    exponent: Any = 0.25,
    b1: Any = 0.9,
    decay: Any = 0.95,
    refresh_every: int | Callable = 10,
    statistics_every: int = 1,
    grafting: str | None = "adam",
    block_size: int = 1024,
    ridge: Any = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo's direction, an optax transformation (Gupta, Koren & Singer 2018, algorithm 1).

    The poster's C⁻ᵉ with C = L ⊗ R. For each matrix of parameters with gradient G and debiased
    running averages M of G, L of GGᵀ and R of GᵀG:

        L⁻ᵉ M R⁻ᵉ

    Kernels are matrices with all axes but the last as rows, and long axes are split into blocks. A
    vector has V, the debiased average of G², and the direction M / V²ᵉ. Grafting keeps Shampoo's
    direction of each array and takes the length of another method's step (Anil et al. 2020).

    Args:
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
    if not callable(refresh_every):
        refresh_every = checks.whole("refresh_every", refresh_every)
    if grafting is not None:
        checks.one_of("grafting", grafting, ("adam", "sgd"))
    exponent = checks.positive("exponent", exponent)
    b1 = checks.fraction("b1", b1)
    decay = checks.fraction("decay", decay)
    statistics_every = checks.whole("statistics_every", statistics_every)
    block_size = checks.whole("block_size", block_size)
    ridge = checks.positive("ridge", ridge)

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
            scales=jax.tree.map(lambda stack: jnp.zeros_like(stack[:, :1, :1]), statistics),
        )

    @exact_products()
    def update(
        gradients: Any, state: ShampooState, params: Any = None, **_: Any
    ) -> tuple[Any, ShampooState]:
        steps = optax.safe_increment(state.steps)
        blocks = jax.tree.map(lambda g: to_blocks(g, block_size), gradients)
        momentum = optax.tree.update_moment(blocks, state.momentum, b1, 1)
        second_moment = optax.tree.update_moment(blocks, state.second_moment, decay, 2)

        def updated_statistics() -> Any:
            products = jax.tree.map(second_moments, blocks)
            return optax.tree.update_moment(products, state.statistics, decay, 1)

        def fresh_roots() -> tuple[Any, Any]:
            times_updated = 1 + state.steps // statistics_every
            debiased = optax.tree.bias_correction(statistics, decay, times_updated)
            largest = jax.tree.map(_largest_entry, debiased)
            relative = jax.tree.map(jnp.divide, debiased, largest)
            scales = jax.tree.map(lambda entry: entry**-exponent, largest)
            return inverse_roots(relative, exponent, ridge), scales

        statistics = refreshed(
            state.steps % statistics_every == 0, updated_statistics, state.statistics
        )
        interval = refresh_every(state.steps) if callable(refresh_every) else refresh_every
        due = (state.since_refresh < 0) | (state.since_refresh >= interval)
        roots, scales = refreshed(due, fresh_roots, (state.roots, state.scales))
        since_refresh = optax.safe_increment(jnp.where(due, 0, state.since_refresh))

        def precondition(m: jax.Array, v: jax.Array, roots: tuple, scales: tuple) -> jax.Array:
            if is_matrix(m):
                left, right = roots
                relative, scale = left @ m @ right, scales[0] * scales[1]
            else:
                largest = jnp.max(v, initial=0)
                least = float(jnp.finfo(v.dtype).tiny)
                share = v / jnp.where(largest == 0, 1, largest)
                relative = jnp.where(v == 0, 0, m / jnp.maximum(share ** (2 * exponent), least))
                scale = jnp.where(largest == 0, 1, largest) ** (-2 * exponent)
            return scale * relative if grafting is None else relative

        m = optax.tree.bias_correction(momentum, b1, steps)
        v = optax.tree.bias_correction(second_moment, decay, steps)
        direction = jax.tree.map(precondition, m, v, roots, scales)
        if grafting == "adam":
            adam = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + ADAM_EPS), m, v)
            direction = jax.tree.map(_graft, direction, adam)
        elif grafting == "sgd":
            direction = jax.tree.map(_graft, direction, m)
        return jax.tree.map(from_blocks, direction, gradients), ShampooState(
            steps, since_refresh, momentum, second_moment, statistics, roots, scales
        )

    return transformation(init, update)


def _largest_entry(stack: jax.Array) -> jax.Array:
    """Of each matrix ``(k, 1, 1)``, one where it is zero."""
    largest = jnp.max(jnp.abs(stack), axis=(-2, -1), keepdims=True)
    return jnp.where(largest == 0, 1, largest)


def _graft(direction: jax.Array, donor: jax.Array) -> jax.Array:
    """The direction of one step with the length of another."""
    largest = jnp.max(jnp.abs(direction), initial=0)
    relative = direction / jnp.where(largest == 0, 1, largest)
    length = jnp.linalg.norm(relative)
    return relative * (jnp.linalg.norm(donor) / jnp.where(length == 0, 1, length))
