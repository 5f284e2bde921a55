"""EKFAC: K-FAC whose eigenvalues are measured in its eigenbasis."""

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
    factors,
    in_bases,
    no_factors,
    run_forward,
    second_moments,
)
from soaa_edu.optimizers.layer_steps import (
    Reading,
    between,
    damping_of,
    descent,
    eigenvectors,
    moving_part,
    stack,
    take_step,
    teaches,
    turned_back,
)
from soaa_edu.optimizers.parameters import in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.precision import exact_products


class EkfacState(NamedTuple):
    """What EKFAC remembers.

    Attributes:
        steps: taken so far, those on a batch that taught nothing left out.
        factors: running averages of A and G, starting at zero.
        bases: their eigenvectors as columns, name -> (U, V); ``None`` for a factor that is its
            diagonal.
        second_moments: S of each dense layer in its bases and E[g²] of every other array, running
            averages that start at zero.
        velocity: the last step, like the parameters.
        damping: λ.
    """

    steps: jax.Array
    factors: Factors
    bases: dict[str, tuple[Any, Any]]
    second_moments: dict[str, Any]
    velocity: Any
    damping: jax.Array


def ekfac(
    objective: Any,
    *,
    learning_rate: optax.ScalarOrSchedule,
    damping: Any,
    momentum: Any = 0.9,
    decay: Any = 0.95,
    update_every: int = 10,
    refresh_every: int = 10,
    fisher: str = "sampled",
    sharing: str = "expand",
    kl_clip: Any = None,
    weight_decay: Any = 0.0,
    frozen: Sequence[str] = (),
) -> Optimizer:
    """θ ← θ + s, s ← μ s - η C⁻¹ g, C = (U ⊗ V) (diag S + λI) (U ⊗ V)ᵀ (George et al. 2018).

    With W̃ a dense layer's weight ``(in + 1, out)``, its bias the last row, U and V the eigenvectors
    of K-FAC's factors A and G, and h̃, δ the layer's two signals of one example,

        S = E[(Uᵀ h̃ᵀ δ V)²],   C⁻¹ g = U [(Uᵀ ∇W̃ V) / (S + λ)] Vᵀ

    K-FAC has a bᵀ for S, the products of the factors' eigenvalues. S is the diagonal of the layer's
    Fisher block in the same basis, so that no other diagonal there is nearer to the block in
    Frobenius norm. It is exact where an example meets the layer once. Where the layer is shared
    over positions, the square of an example's sum of products is not formed: ``"expand"`` and
    ``"reduce"`` simplify it as they do for K-FAC (see ``soaa_edu.kronecker.second_moments``).

    S is a running average, as the paper's EKFAC-ra has it, debiased, and takes in every batch. When
    the bases turn, from U, V to U', V', it becomes the diagonal of the same matrix in the new ones,

        S' = (R∘R)ᵀ S (Q∘Q),   R = Uᵀ U',   Q = Vᵀ V'

    and the batch that turned them is measured in the new ones.

    Every other array takes the diagonal of its Fisher, g / (diag F + λ). A batch without a target
    that counts, or whose loss or gradient is not finite, changes nothing.

    Args:
        objective: of a model that declares its dense layers. Its gradient is taken from the two
            signals as well, Uᵀ ∇W̃ V = Σ (h̃ U)ᵀ (δ V), so check a declaration of your own with
            ``soaa_edu.kronecker.check_model``.
        learning_rate: η, a number or an optax schedule.
        damping: λ, a number, an optax schedule, or ``levenberg_marquardt(initial=...)``, which
            moves λ at every step and takes back a step that raises the loss. It costs two forward
            passes and a product with the batch's own Fisher more.
        momentum: μ, a number or an optax schedule.
        decay: of the averages of A, G and S.
        update_every: steps from one update of A and G to the next. Only the bases need them, and by
            default they are updated where the bases turn, as in the paper's algorithm 1.
        refresh_every: steps from one decomposition of A and G to the next.
        fisher: targets ``"sampled"`` from the model's distribution, all of them (``"exact"``), or
            the given ones (``"empirical"``).
        sharing: ``"expand"`` or ``"reduce"``, for layers shared over positions.
        kl_clip: c of min(1, √(c / (η² gᵀC⁻¹g))), which shortens C⁻¹g (Ba, Grosse & Martens 2017).
        weight_decay: ω of s ← μ s - η (C⁻¹ g + ω θ), decoupled from the curvature.
        frozen: names of layers that stay as they are and have no factors.

    ``Info`` has ``damping``; with Levenberg-Marquardt ``reduction_ratio`` and ``accepted`` too.

    Raises:
        TypeError: no ``Objective``, no declared dense layers, or a loss without a distribution.
        ValueError: a number out of its range, an unknown name or tied weights; at the first step, a
            dense layer that is used twice or whose tap is left out.
    """
    check_layers(objective)
    check_fisher(objective, fisher)
    checks.one_of("sharing", sharing, SHARINGS)
    update_every = checks.whole("update_every", update_every)
    refresh_every = checks.whole("refresh_every", refresh_every)
    decay = checks.fraction("decay", decay)
    how = descent(learning_rate, damping, momentum, kl_clip, weight_decay)

    def init(params: Any) -> EkfacState:
        of_moving, moving, _ = moving_part(objective, params, frozen)
        zero = no_factors(of_moving.model, moving, sharing)
        scales = {name: stack(moving[name]) for name in zero.inputs} | zero.diagonal
        return EkfacState(
            steps=jnp.zeros((), jnp.int32),
            factors=zero._replace(diagonal={}),
            bases=optax.tree.zeros_like(jax.eval_shape(_bases, zero)),
            second_moments=optax.tree.zeros_like(scales),
            velocity=optax.tree.zeros_like(moving),
            damping=jnp.asarray(how.damping(0), jax.tree.leaves(zero)[0].dtype),
        )

    @exact_products()
    def step(params: Any, state: EkfacState, batch: Any, key: Any) -> tuple[Any, EkfacState, dict]:
        of_moving, params, still = moving_part(objective, params, frozen)
        inputs, targets = batch
        signals = run_forward(of_moving.model, params, inputs)
        loss, residual = jax.value_and_grad(of_moving.loss)(signals.outputs, targets)
        gradient, backward = signals.pull(residual)
        learning = teaches(of_moving, loss, (signals.inputs, backward), targets)
        options = {"fisher": fisher, "sharing": sharing, "key": key}

        def updated() -> Factors:
            found = factors(of_moving, signals, targets, **options)._replace(diagonal={})
            return optax.tree.update_moment(found, state.factors, decay, 1)

        average = refreshed(learning & (state.steps % update_every == 0), updated, state.factors)

        def turned() -> tuple[Any, Any]:
            bases = _bases(average)
            before = state.second_moments
            carried = {n: _carried(before[n], state.bases[n], bases[n]) for n in bases}
            return bases, before | carried

        bases, moments = refreshed(
            learning & (state.steps % refresh_every == 0),
            turned,
            (state.bases, state.second_moments),
        )
        seen = in_bases(signals, bases)

        def measured() -> Any:
            found = second_moments(of_moving, seen, targets, **options)
            return optax.tree.update_moment(found, moments, decay, 1)

        moments = refreshed(learning, measured, moments)
        weight = 1 - decay ** (1 + state.steps)
        strength = damping_of(how, state)
        turned_gradient, _ = seen.pull(residual)
        quotient = jax.tree.map(lambda g, s: g / (s / weight + strength), turned_gradient, moments)
        direction = {
            name: turned_back(layer, bases[name], params[name]) if name in bases else layer
            for name, layer in quotient.items()
        }
        state = state._replace(factors=average, bases=bases, second_moments=moments)
        reading = Reading(loss, gradient, learning)
        moved, state, info = take_step(how, of_moving, params, batch, state, reading, direction)
        return {**moved, **still}, state, info

    return in_float32(Optimizer(init, step, objective))


def _bases(average: Factors) -> dict[str, tuple[Any, Any]]:
    return {name: (u, v) for name, ((_, u), (_, v)) in eigenvectors(average).items()}


def _carried(moments: jax.Array, old: tuple[Any, Any], new: tuple[Any, Any]) -> jax.Array:
    """S in new bases, were the block diagonal in the old ones."""
    squares = [u if u is None else (u.T @ w) ** 2 for u, w in zip(old, new)]
    return between(squares[0], moments, squares[1])
