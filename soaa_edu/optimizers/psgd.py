"""PSGD: a preconditioner learned by descent on what it should be."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.linear_solvers.triangles import solve_lower
from soaa_edu.optimizers.blocks import from_blocks, is_matrix, one_at_a_time, to_blocks
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.optimizers.transformations import alias, transformation
from soaa_edu.precision import exact_products

NORM_ITERATIONS = 2


class PsgdState(NamedTuple):
    """What PSGD remembers, in float32 at least; matrices are stacks of blocks.

    Attributes:
        steps: taken so far.
        key: for the probes, and for the choice of steps at which P moves.
        momentum: the running average of G.
        factors: of each array its Q, (Q₁, Q₂) for a matrix and (q,) for a vector.
        preconditioners: of each array QᵀQ, factor by factor.
        info: ``criterion``, c(P) on the gradient and the probe by which P last moved; at a
            step that leaves P alone it is that old reading.
    """

    steps: jax.Array
    key: jax.Array
    momentum: Any
    factors: Any
    preconditioners: Any
    info: dict[str, jax.Array]


def often_at_first(steps: Any) -> Any:
    """The probability of moving P at a step: one for 500 steps, then exponentially down to 0.03.

    The schedule is that of the public Kron optimizers for JAX and PyTorch; Li's own code moves P
    at every step by default.
    """
    return jnp.clip(jnp.exp(-0.001 * (steps - 500.0)), 0.03, 1.0)


def psgd(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    mask: Any = None,
    b1: Any = 0.9,
    update_probability: Any = often_at_first,
    step_size: Any = 0.1,
    block_size: int = 1024,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """PSGD Kron: θ ← θ - α (P M + ω θ), an optax transformation (Li 2018).

    Args:
        learning_rate: α, a number or an optax schedule.
        weight_decay: ω, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        b1: this and the rest as in ``scale_by_psgd``.
        update_probability: likewise.
        step_size: likewise.
        block_size: likewise.
        seed: likewise.

    Raises:
        ValueError: a number out of its range.
    """
    core = scale_by_psgd(
        b1=b1,
        update_probability=update_probability,
        step_size=step_size,
        block_size=block_size,
        seed=seed,
    )
    return alias(core, learning_rate, weight_decay, mask)


def scale_by_psgd(
    *,
    b1: Any = 0.9,
    update_probability: Any = often_at_first,
    step_size: Any = 0.1,
    block_size: int = 1024,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """PSGD's direction P M, whitening by the gradient, an optax transformation (Li 2018).

    For each matrix of parameters with gradient G and its debiased running average M:

        P M = Q₁ᵀQ₁ M Q₂ᵀQ₂

    P = QᵀQ with Q = Q₁ ⊗ Q₂, both upper triangular, descends on the criterion

        c(P) = E[gᵀ P g + vᵀ P⁻¹ v],    v standard normal, g the gradient

    (Li 2015, with the gradient and a probe for its pair δg, δθ), whose minimum over all
    P is E[g gᵀ]^(-1/2). A vector has a diagonal Q. The first step scales Q such that both
    halves of c are alike, and moves it; later steps move it with some probability.
    An array whose gradient is zero leaves its Q as it is.

    Kernels are matrices with all axes but the last as rows, and long axes are split into blocks.

    Args:
        b1: decay of M.
        update_probability: of moving P at a step, a number or a schedule ``steps -> probability``;
            by default always for 500 steps, then ever more rarely.
        step_size: of the descent on c(P).
        block_size: the longest axis that is not split.
        seed: of the probes and of the choice of steps.

    Raises:
        ValueError: a number out of its range.
    """
    if not callable(update_probability):
        update_probability = checks.positive("update_probability", update_probability)
    b1 = checks.fraction("b1", b1)
    step_size = checks.positive("step_size", step_size)
    block_size = checks.whole("block_size", block_size)
    in_blocks = partial(to_blocks, block_size=block_size)

    def init(params: Any) -> PsgdState:
        momentum = optax.tree.zeros_like(jax.tree.map(in_blocks, params))
        factors = jax.tree.map(identity_factors, momentum)
        return PsgdState(
            steps=jnp.zeros((), jnp.int32),
            key=jax.random.key(seed),
            momentum=momentum,
            factors=factors,
            preconditioners=jax.tree.map(jnp.array, factors),
            info={"criterion": jnp.zeros(())},
        )

    @exact_products()
    def update(
        gradients: Any, state: PsgdState, params: Any = None, **_: Any
    ) -> tuple[Any, PsgdState]:
        key, choice_key, probe_key = jax.random.split(state.key, 3)
        blocks = jax.tree.map(in_blocks, gradients)
        momentum = optax.tree.update_moment(blocks, state.momentum, b1, 1)

        def moved() -> tuple[Any, Any, Any]:
            probes = jax.tree.map(in_blocks, normal_like(gradients, probe_key))

            def of_array(h: jax.Array, v: jax.Array, q: tuple) -> tuple[tuple, jax.Array]:
                scale = jnp.where(state.steps == 0, _whitening_scale(h, v), 1) ** (1 / len(q))
                moved, c = fit(tuple(scale * factor for factor in q), v, h, step_size)
                return optax.tree.where(jnp.any(h != 0), moved, q), c

            fitted = jax.tree.map(of_array, blocks, probes, state.factors)
            factors, criteria = (
                jax.tree.map(lambda _, pair, i=i: pair[i], blocks, fitted) for i in (0, 1)
            )
            criterion = sum(jax.tree.leaves(criteria), jnp.zeros(()))
            return factors, jax.tree.map(_square, factors), {"criterion": criterion}

        chance = update_probability
        if callable(update_probability):
            chance = update_probability(state.steps)
        due = (state.steps == 0) | (jax.random.uniform(choice_key) < chance)
        factors, preconditioners, info = refreshed(
            due, moved, (state.factors, state.preconditioners, state.info)
        )
        steps = optax.safe_increment(state.steps)
        debiased = optax.tree.bias_correction(momentum, b1, steps)
        directions = jax.tree.map(
            lambda gradient, m, p: from_blocks(precondition(p, m), gradient),
            gradients,
            debiased,
            preconditioners,
        )
        return directions, PsgdState(steps, key, momentum, factors, preconditioners, info)

    return transformation(init, update)


def fit(factors: tuple, v: jax.Array, h: jax.Array, step_size: Any) -> tuple[tuple, jax.Array]:
    """One step of Q down c = hᵀPh + vᵀP⁻¹v, P = QᵀQ, and c before it (Li 2018).

    With a = Q h and b = Q⁻ᵀ v, moving Q by E Q changes c by 2 tr(E (a aᵀ - b bᵀ)) to first order.
    For matrices A = Q₁ H Q₂ᵀ and B = Q₁⁻ᵀ V Q₂⁻¹, and each factor steps by

        Q₁ ← Q₁ - μ triu(AAᵀ - BBᵀ) Q₁ / ‖AAᵀ + BBᵀ‖,    Q₂ by AᵀA and BᵀB

    Args:
        factors: (Q₁, Q₂), ``(k, rows, rows)`` and ``(k, columns, columns)``, or (q,), the
            diagonal of Q.
        v: the probe, ``(k, rows, columns)``, or like q.
        h: the response to it, or a gradient; like ``v``.
        step_size: μ.
    """
    if len(factors) == 1:
        (q,) = factors
        a, b = q * h, v / q
        c = jnp.sum(a**2 + b**2)
        a, b = _scaled(a, b)
        slope, size = a**2 - b**2, jnp.max(a**2 + b**2, initial=0)
        return (q - step_size * _ratio(slope, size) * q,), c
    left, right = factors
    a = left @ h @ right.mT
    b = one_at_a_time(_divided_by_transpose, left, v)
    b = one_at_a_time(_divided_by_transpose, right, b.mT).mT
    c = jnp.sum(a**2 + b**2)
    a, b = _scaled(a, b)
    moved = (
        _moved(left, a @ a.mT, b @ b.mT, step_size),
        _moved(right, a.mT @ a, b.mT @ b, step_size),
    )
    return _balanced(*moved), c


def criterion(factors: tuple, v: jax.Array, h: jax.Array) -> jax.Array:
    """c = hᵀPh + vᵀP⁻¹v of one array, as ``fit`` takes it."""
    return fit(factors, v, h, 0.0)[1]


def normal_like(tree: Any, key: jax.Array) -> Any:
    """Standard normal numbers in the shape of a tree, drawn in one go, which compiles sooner."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def precondition(preconditioner: tuple, m: jax.Array) -> jax.Array:
    """P m of one array, ``preconditioner`` being (P₁, P₂), or (p,) for a vector."""
    if len(preconditioner) == 1:
        return preconditioner[0] * m
    left, right = preconditioner
    return left @ m @ right


def identity_factors(array: jax.Array) -> tuple:
    """Q = I for a vector, or for a stack of matrices ``(k, rows, columns)``."""
    if not is_matrix(array):
        return (jnp.ones_like(array),)
    return tuple(
        jnp.broadcast_to(jnp.eye(size, dtype=array.dtype), (len(array), size, size))
        for size in array.shape[1:]
    )


def _scaled(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both over the larger of their largest entries, so that squares of squares stay in range."""
    largest = jnp.maximum(_largest(a), _largest(b))
    return _ratio(a, largest), _ratio(b, largest)


def _largest(array: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(array), initial=0)


def _divided_by_transpose(q: jax.Array, v: jax.Array) -> jax.Array:
    """Q⁻ᵀ v."""
    return solve_lower(q.T, v)


def _moved(q: jax.Array, aa: jax.Array, bb: jax.Array, step_size: Any) -> jax.Array:
    size = _spectral_norm(aa + bb)[..., None, None]
    return q - step_size * _ratio(jnp.triu(aa - bb), size) @ q


def _spectral_norm(matrix: jax.Array) -> jax.Array:
    """A little below the largest eigenvalue: the power method from the longest column."""
    lengths = jnp.linalg.norm(matrix, axis=-2, keepdims=True)
    x = jnp.take_along_axis(matrix, jnp.argmax(lengths, axis=-1, keepdims=True), axis=-1)
    for _ in range(NORM_ITERATIONS):
        x = matrix @ _ratio(x, jnp.linalg.norm(x, axis=-2, keepdims=True))
    return jnp.linalg.norm(x, axis=(-2, -1))


def _balanced(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same Q₁ ⊗ Q₂ with the largest entries of both factors alike."""
    of_left, of_right = (jnp.max(jnp.abs(q), axis=(-2, -1), keepdims=True) for q in (left, right))
    ratio = jnp.sqrt(of_right / of_left)
    return left * ratio, right / ratio


def _whitening_scale(h: jax.Array, v: jax.Array) -> jax.Array:
    """The multiple of Q = I at which hᵀPh = vᵀP⁻¹v."""
    of_h, of_v = (_largest(x) * jnp.linalg.norm(_ratio(x, _largest(x))) for x in (h, v))
    return jnp.sqrt(jnp.where((of_h > 0) & (of_v > 0), _ratio(of_v, of_h), 1))


def _square(q: jax.Array) -> jax.Array:
    return q.mT @ q if q.ndim > 2 else q**2


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / jnp.where(denominator > 0, denominator, 1)
