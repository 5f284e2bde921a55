"""K-FAC: natural gradient with a Kronecker product for each dense layer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.kronecker import (
    SHARINGS,
    Factors,
    check_fisher,
    check_layers,
    factor_counts,
    factors,
    no_factors,
    run_forward,
)
from soaa_edu.linear_solvers.triangles import inverse_of_definite
from soaa_edu.micro_batches import in_micro_batches, mean_over_micro_batches
from soaa_edu.optimizers.layer_steps import (
    Reading,
    between,
    damping_of,
    descent,
    eigenvectors,
    moving_part,
    split,
    stack,
    take_step,
    teaches,
    turned_back,
)
from soaa_edu.optimizers.parameters import in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.precision import exact_products


class KfacState(NamedTuple):
    """What K-FAC remembers.

    Attributes:
        steps: taken so far, those on a batch that taught nothing left out.
        factors: running averages, starting at zero.
        inverses: of both damped factors, name -> a pair; with exact damping, both factors'
            eigenvalues and eigenvectors.
        velocity: the last step, like the parameters.
        damping: λ.
    """

    steps: jax.Array
    factors: Factors
    inverses: Any
    velocity: Any
    damping: jax.Array


def kfac(
    objective: Any,
    *,
    learning_rate: optax.ScalarOrSchedule,
    damping: Any,
    momentum: Any = 0.9,
    decay: Any = 0.95,
    update_every: int = 1,
    invert_every: int = 10,
    fisher: str = "sampled",
    sharing: str = "expand",
    exact_damping: bool = False,
    kl_clip: Any = None,
    weight_decay: Any = 0.0,
    frozen: Sequence[str] = (),
    micro_batches: int = 1,
) -> Optimizer:
    """θ ← θ + s, s ← μ s - η C⁻¹ g, C = A ⊗ G + λI a dense layer (Martens & Grosse 2015).

    With W̃ a layer's weight ``(in + 1, out)``, its bias the last row, and A, G the means of the
    products of its signals over the batch (see ``soaa_edu.kronecker``), averaged along training,

        C⁻¹ g = (A + π√λ I)⁻¹ ∇W̃ (G + √λ/π I)⁻¹,    π² = (tr A / dim A) / (tr G / dim G)

    is the factored damping of their section 6.3. With ``exact_damping`` it is C⁻¹ g itself: for
    A = U diag(a) Uᵀ and G = V diag(b) Vᵀ, U [(Uᵀ ∇W̃ V) / (a bᵀ + λ)] Vᵀ.

    η and μ are yours, as in later implementations. Martens & Grosse set both at every step from
    the quadratic model of the exact Fisher (their sections 6.4 and 7).

    Every other array takes the diagonal of its Fisher, g / (diag F + λ). A batch without a target
    that counts, or whose loss or gradient is not finite, changes nothing.

    Args:
        objective: of a model that declares its dense layers. Check the declaration of a model of
            your own with ``soaa_edu.kronecker.check_model``.
        learning_rate: η, a number or an optax schedule.
        damping: λ, a number, an optax schedule, or ``levenberg_marquardt(initial=...)``, which
            moves λ at every step, damps exactly, and takes back a step that raises the loss. It
            costs two forward passes and a product with the batch's own Fisher more.
        momentum: μ, a number or an optax schedule.
        decay: of the averages of A and G, which are debiased.
        update_every: steps from one update of A and G to the next.
        invert_every: steps from one inversion to the next.
        fisher: targets ``"sampled"`` from the model's distribution, all of them (``"exact"``), or
            the given ones (``"empirical"``).
        sharing: ``"expand"`` or ``"reduce"``, for layers shared over positions.
        exact_damping: damp the product instead of each factor.
        kl_clip: c of min(1, √(c / (η² gᵀC⁻¹g))), which shortens C⁻¹g (Ba, Grosse & Martens 2017).
        weight_decay: ω of s ← μ s - η (C⁻¹ g + ω θ), decoupled from the curvature.
        frozen: names of layers that stay as they are and have no factors.
        micro_batches: of one size, in which a batch is taken that needs too much memory all at
            once. Loss, gradient and factors are those of the whole; with ``"sampled"`` targets the
            draws are others.

    ``Info`` has ``damping``; with Levenberg-Marquardt ``reduction_ratio`` and ``accepted`` too.

    Raises:
        TypeError: no ``Objective``, no declared dense layers, or a loss without a distribution.
        ValueError: a number out of its range, an unknown name or tied weights; at the first step, a
            dense layer that is used twice or whose tap is left out, or a batch that can't be split
            into so many micro-batches.
    """
    check_layers(objective)
    check_fisher(objective, fisher)
    checks.one_of("sharing", sharing, SHARINGS)
    update_every = checks.whole("update_every", update_every)
    invert_every = checks.whole("invert_every", invert_every)
    micro_batches = checks.whole("micro_batches", micro_batches)
    decay = checks.fraction("decay", decay)
    how = descent(learning_rate, damping, momentum, kl_clip, weight_decay)
    prepare, solve = (
        (_eigenvectors, _divide_by_product)
        if exact_damping or how.rule is not None
        else (_invert, _divide_by_factors)
    )

    def init(params: Any) -> KfacState:
        of_moving, moving, _ = moving_part(objective, params, frozen)
        zero = no_factors(of_moving.model, moving, sharing)
        first = jnp.asarray(how.damping(0), jax.tree.leaves(zero)[0].dtype)
        return KfacState(
            steps=jnp.zeros((), jnp.int32),
            factors=zero,
            inverses=optax.tree.zeros_like(jax.eval_shape(prepare, zero, first)),
            velocity=optax.tree.zeros_like(moving),
            damping=first,
        )

    @exact_products()
    def step(params: Any, state: KfacState, batch: Any, key: Any) -> tuple[Any, KfacState, dict]:
        of_moving, params, still = moving_part(objective, params, frozen)
        updates = state.steps % update_every == 0

        def read(part: Any, key: Any) -> tuple[Any, Any]:
            """Loss, gradient and the factors that are due, and over how many each is a mean."""
            inputs, targets = part
            signals = run_forward(of_moving.model, params, inputs)
            loss, residual = jax.value_and_grad(of_moving.loss)(signals.outputs, targets)
            gradient, _ = signals.pull(residual)
            options = {"fisher": fisher, "sharing": sharing, "key": key}
            found = refreshed(
                updates, lambda: factors(of_moving, signals, targets, **options), state.factors
            )
            counts = factor_counts(of_moving.loss, signals, targets, sharing)
            return (loss, gradient, found), (counts.diagonal, counts.diagonal, counts)

        loss, gradient, found = mean_over_micro_batches(read, batch, key, micro_batches)
        learning = teaches(of_moving, loss, gradient, batch[1])
        average = refreshed(
            learning & updates,
            lambda: optax.tree.update_moment(found, state.factors, decay, 1),
            state.factors,
        )
        weight = 1 - decay ** (1 + state.steps // update_every)
        strength = damping_of(how, state)
        inverses = refreshed(
            learning & (state.steps % invert_every == 0),
            lambda: prepare(jax.tree.map(lambda leaf: leaf / weight, average), strength),
            state.inverses,
        )

        def divide(name: str, layer: Any) -> Any:
            if name in inverses:
                return solve(inverses[name], layer, strength)
            diagonal = average.diagonal[name]
            return jax.tree.map(lambda g, d: g / (d / weight + strength), layer, diagonal)

        direction = {name: divide(name, layer) for name, layer in gradient.items()}
        state = state._replace(factors=average, inverses=inverses)
        whole = in_micro_batches(of_moving, micro_batches)
        reading = Reading(loss, gradient, learning)
        moved, state, info = take_step(how, whole, params, batch, state, reading, direction)
        return {**moved, **still}, state, info

    return in_float32(Optimizer(init, step, objective))


def _invert(average: Factors, damping: jax.Array) -> dict[str, tuple]:
    """(A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹ of each dense layer."""
    return {
        name: _inverse_pair(average.inputs[name], average.outputs[name], damping)
        for name in average.inputs
    }


def _inverse_pair(a: jax.Array, g: jax.Array, damping: jax.Array) -> tuple[jax.Array, jax.Array]:
    of_a, of_g = _mean_eigenvalue(a), _mean_eigenvalue(g)
    pi = jnp.where((of_a > 0) & (of_g > 0), jnp.sqrt(of_a / jnp.where(of_g > 0, of_g, 1)), 1)
    root = jnp.sqrt(damping)
    return _inverse(a, pi * root), _inverse(g, root / pi)


def _mean_eigenvalue(factor: jax.Array) -> jax.Array:
    return (jnp.trace(factor) if factor.ndim > 1 else jnp.sum(factor)) / len(factor)


def _inverse(factor: jax.Array, damping: jax.Array) -> jax.Array:
    """Of a matrix, or of a diagonal."""
    if factor.ndim == 1:
        return 1 / (factor + damping)
    return inverse_of_definite(factor + damping * jnp.eye(len(factor), dtype=factor.dtype))


def _divide_by_factors(inverses: tuple, layer: Any, damping: jax.Array) -> Any:
    of_inputs, of_outputs = inverses
    return split(between(of_inputs, stack(layer), of_outputs), layer)


def _eigenvectors(average: Factors, damping: jax.Array) -> dict[str, tuple]:
    return eigenvectors(average)


def _divide_by_product(decomposed: tuple, layer: Any, damping: jax.Array) -> Any:
    (a, u), (g, v) = decomposed
    quotient = between(u, stack(layer), v) / (jnp.outer(a, g) + damping)
    return turned_back(quotient, (u, v), layer)
