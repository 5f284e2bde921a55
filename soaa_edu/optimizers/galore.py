"""GaLore: Adam on gradients projected to their leading singular vectors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.optimizers.blocks import is_matrix
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.optimizers.transformations import alias, transformation
from soaa_edu.precision import exact_products


class GaloreState(NamedTuple):
    """What GaLore remembers, in float32 at least.

    Attributes:
        steps: how many were taken.
        projections: of a projected matrix its P, ``(min(m, n), rank)``; of other arrays, ().
        first_moment: Adam's, of a projected matrix ``(rank, n)`` or ``(m, rank)``.
        second_moment: likewise.
    """

    steps: jax.Array
    projections: Any
    first_moment: Any
    second_moment: Any


def galore(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    mask: Any = None,
    rank: int = 64,
    refresh_every: int = 200,
    scale: Any = 0.25,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """GaLore with Adam: θ ← θ - α (d + ω θ), d of ``scale_by_galore``, an optax transformation.

    Args:
        learning_rate: α, a number or an optax schedule.
        weight_decay: ω, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        rank: this and the rest as in ``scale_by_galore``.
        refresh_every: likewise.
        scale: likewise.
        b1: likewise.
        b2: likewise.
        eps: likewise.

    Raises:
        ValueError: a number out of its range.
    """
    core = scale_by_galore(
        rank=rank, refresh_every=refresh_every, scale=scale, b1=b1, b2=b2, eps=eps
    )
    return alias(core, learning_rate, weight_decay, mask)


def scale_by_galore(
    *,
    rank: int = 64,
    refresh_every: int = 200,
    scale: Any = 0.25,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """GaLore's direction with Adam, an optax transformation (Zhao et al. 2024, algorithm 2).

    A matrix of parameters (m, n) with gradient G is projected on its shorter side. With P the first
    ``rank`` left singular vectors of a gradient of some steps ago if m ≤ n, and the right ones if
    m > n:

        R = Pᵀ G                           R = G P
        d = scale P Adam(R)                d = scale Adam(R) Pᵀ

    Adam's moments are of R, and are kept as they are when P is refreshed. A singular vector has
    either sign, and the one that points along the vector whose place it takes is chosen; so the
    steps don't depend on the signs. The first P is that of the first gradient that is not zero, and
    a gradient of zero leaves P as it is.

    Kernels are matrices with all axes but the last as rows. Scalars, vectors and matrices with a
    side of ``rank`` or less get Adam itself, without the ``scale``.

    Args:
        rank: of the projections.
        refresh_every: P is computed at the first step, then every so many steps.
        scale: of the projected steps.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: Adam's.

    Raises:
        ValueError: a number out of its range.
    """
    rank = checks.whole("rank", rank)
    refresh_every = checks.whole("refresh_every", refresh_every)
    scale = checks.positive("scale", scale)
    b1 = checks.fraction("b1", b1)
    b2 = checks.fraction("b2", b2)
    eps = checks.positive("eps", eps)

    def init(params: Any) -> GaloreState:
        matrices = optax.tree.zeros_like(jax.tree.map(_as_matrix, params))
        projections = jax.tree.map(lambda p: _before_the_first(p, rank), matrices)
        moment = jax.tree.map(_project, matrices, projections)
        second = optax.tree.zeros_like(moment)
        return GaloreState(jnp.zeros((), jnp.int32), projections, moment, second)

    @exact_products()
    def update(
        gradients: Any, state: GaloreState, params: Any = None, **_: Any
    ) -> tuple[Any, GaloreState]:
        steps = optax.safe_increment(state.steps)
        matrices = jax.tree.map(_as_matrix, gradients)

        def projection(matrix: jax.Array, old: Any) -> Any:
            if isinstance(old, tuple):
                return old
            due = (state.steps % refresh_every == 0) | ~jnp.any(old != 0)
            due &= jnp.any(matrix != 0)
            return refreshed(due, lambda: _leading_singular_vectors(matrix, old), old)

        projections = jax.tree.map(projection, matrices, state.projections)
        projected = jax.tree.map(_project, matrices, projections)
        first_moment = optax.tree.update_moment(projected, state.first_moment, b1, 1)
        second_moment = optax.tree.update_moment(projected, state.second_moment, b2, 2)
        m = optax.tree.bias_correction(first_moment, b1, steps)
        v = optax.tree.bias_correction(second_moment, b2, steps)
        adam = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v)

        unshaped = jax.tree.map(lambda a, p: _project_back(a, p, scale), adam, projections)
        directions = jax.tree.map(
            lambda d, g: d.reshape(g.shape).astype(g.dtype), unshaped, gradients
        )
        return directions, GaloreState(steps, projections, first_moment, second_moment)

    return transformation(init, update)


def _as_matrix(array: jax.Array) -> jax.Array:
    exact = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    return exact.reshape(-1, array.shape[-1]) if is_matrix(array) else exact


def _before_the_first(matrix: jax.Array, rank: int) -> Any:
    """What stands for P before the first step: zeros, or () for good if the array has none."""
    if is_matrix(matrix) and min(matrix.shape) > rank:
        return jnp.zeros((min(matrix.shape), rank), matrix.dtype)
    return ()


def _is_wide(matrix: jax.Array) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _project(matrix: jax.Array, projection: Any) -> jax.Array:
    if isinstance(projection, tuple):
        return matrix
    return projection.T @ matrix if _is_wide(matrix) else matrix @ projection


def _project_back(step: jax.Array, projection: Any, scale: Any) -> jax.Array:
    if isinstance(projection, tuple):
        return step
    return scale * (projection @ step if _is_wide(step) else step @ projection.T)


def _leading_singular_vectors(matrix: jax.Array, old: jax.Array) -> jax.Array:
    """Of the shorter side, ``(min(m, n), rank)``, each pointing along the old one.

    They come from the Gram matrix of that side, which tells singular values apart down to √ε of the
    largest, and costs much less than the SVD of a long matrix.
    """
    g = matrix / jnp.max(jnp.abs(matrix))
    gram = g @ g.T if _is_wide(g) else g.T @ g
    rank = old.shape[1]
    vectors = jnp.linalg.eigh(gram)[1][:, : -rank - 1 : -1]
    return jnp.where(jnp.sum(vectors * old, axis=0) < 0, -vectors, vectors)
