"""K-FAC: natural gradient with a Kronecker product for each dense layer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.curvature import fisher_matvec, gauss_newton_matvec
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
from soaa_edu.objective import Loss, Objective, weights_of
from soaa_edu.optimizers.parameters import all_finite, in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.optimizers.trials import (
    DampingRule,
    next_damping,
    predicted_decrease,
    try_step,
)
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
    rule = damping if isinstance(damping, DampingRule) else None
    by_eigenvectors = exact_damping or rule is not None
    check_layers(objective)
    check_fisher(objective, fisher)
    checks.one_of("sharing", sharing, SHARINGS)
    update_every = checks.whole("update_every", update_every)
    invert_every = checks.whole("invert_every", invert_every)
    micro_batches = checks.whole("micro_batches", micro_batches)
    decay = checks.fraction("decay", decay)
    weight_decay = checks.not_negative("weight_decay", weight_decay)
    momentum_at = schedule("momentum", momentum, checks.fraction)
    rate_at = schedule("learning_rate", learning_rate, checks.positive)
    damping_at = schedule("damping", 1.0 if rule else damping, checks.positive)
    if kl_clip is not None:
        kl_clip = checks.positive("kl_clip", kl_clip)
    fisher_product: Callable = (
        fisher_matvec if isinstance(objective.loss, Loss) else gauss_newton_matvec
    )
    prepare, solve = (
        (_eigenvectors, _divide_by_product) if by_eigenvectors else (_invert, _divide_by_factors)
    )

    def moving_part(params: Any) -> tuple[Any, Any, Any]:
        """The objective of the layers that move, and those and the others' arrays."""
        unknown = set(frozen) - set(params)
        if unknown:
            raise ValueError(f"there is no layer {min(unknown)!r} to freeze: take {list(params)}")
        still = {name: params[name] for name in frozen}
        moving = {name: layer for name, layer in params.items() if name not in still}
        return with_constants(objective, still), moving, still

    def init(params: Any) -> KfacState:
        of_moving, moving, _ = moving_part(params)
        zero = no_factors(of_moving.model, moving, sharing)
        dtype = jax.tree.leaves(zero)[0].dtype
        first = jnp.asarray(damping_at(0) if rule is None else rule.initial, dtype)
        return KfacState(
            steps=jnp.zeros((), jnp.int32),
            factors=zero,
            inverses=optax.tree.zeros_like(jax.eval_shape(prepare, zero, first)),
            velocity=optax.tree.zeros_like(moving),
            damping=first,
        )

    @exact_products()
    def step(params: Any, state: KfacState, batch: Any, key: Any) -> tuple[Any, KfacState, dict]:
        objective, params, still = moving_part(params)
        updates = state.steps % update_every == 0

        def read(part: Any, key: Any) -> tuple[Any, Any]:
            """Loss, gradient and the factors that are due, and over how many each is a mean."""
            inputs, targets = part
            signals = run_forward(objective.model, params, inputs)
            loss, residual = jax.value_and_grad(objective.loss)(signals.outputs, targets)
            gradient, _ = signals.pull(residual)
            options = {"fisher": fisher, "sharing": sharing, "key": key}
            found = refreshed(
                updates, lambda: factors(objective, signals, targets, **options), state.factors
            )
            counts = factor_counts(objective.loss, signals, targets, sharing)
            return (loss, gradient, found), (counts.diagonal, counts.diagonal, counts)

        loss, gradient, found = mean_over_micro_batches(read, batch, key, micro_batches)
        learning = jnp.isfinite(loss) & all_finite(gradient)
        learning &= jnp.any(weights_of(objective.loss, batch[1]) > 0)
        average = refreshed(
            learning & updates,
            lambda: optax.tree.update_moment(found, state.factors, decay, 1),
            state.factors,
        )
        weight = 1 - decay ** (1 + state.steps // update_every)
        strength = state.damping
        if rule is None:
            strength = jnp.asarray(damping_at(state.steps), state.damping.dtype)
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
        rate, momentum = rate_at(state.steps), momentum_at(state.steps)
        if kl_clip is not None:
            divergence = rate**2 * optax.tree.vdot(gradient, direction)
            rate = rate * jnp.minimum(1, jnp.sqrt(kl_clip / divergence))
        if checks.concrete(weight_decay) != 0:
            direction = jax.tree.map(lambda d, p: d + weight_decay * p, direction, params)
        update = jax.tree.map(
            lambda v, d: jnp.where(learning, momentum * v - rate * d, 0).astype(v.dtype),
            state.velocity,
            direction,
        )
        info = {"loss": loss, "damping": strength}
        state = state._replace(
            steps=state.steps + learning, factors=average, inverses=inverses, damping=strength
        )
        if rule is None:
            velocity = optax.tree.where(learning, update, state.velocity)
            moved = optax.apply_updates(params, update)
            return {**moved, **still}, state._replace(velocity=velocity), info
        objective = in_micro_batches(objective, micro_batches)
        matvec = fisher_product(objective, params, batch)
        predicted = predicted_decrease(matvec, gradient, update)
        trial = try_step(objective, params, batch, loss, gradient, update, predicted)
        info |= {"reduction_ratio": trial.reduction_ratio, "accepted": trial.accepted}
        following = next_damping(rule, strength, trial)
        state = state._replace(
            velocity=jax.tree.map(lambda u: jnp.where(trial.accepted, u, 0), update),
            damping=jnp.where(learning, following, strength),
        )
        return {**trial.params, **still}, state, info

    return in_float32(Optimizer(init, step, objective))


def schedule(name: str, value: Any, check: Callable) -> Callable:
    """``steps taken -> value``, of an optax schedule or a number."""
    if callable(value):
        return value
    number = check(name, value)
    return lambda steps: number


def with_constants(objective: Any, still: Any) -> Any:
    """The objective of the layers that are not in ``still``."""
    if not still:
        return objective
    model = objective.model

    def forward(params: Any, inputs: Any, taps: Any) -> tuple[Any, Any]:
        return model.forward({**params, **still}, inputs, taps)

    names = tuple(name for name in model.dense_layers if name not in still)
    restricted = replace(model, forward=forward, dense_layers=names)
    return Objective(restricted, objective.loss)


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
    return _split(_between(of_inputs, _stack(layer), of_outputs), layer)


def _between(left: Any, matrix: jax.Array, right: Any) -> jax.Array:
    """Lᵀ M R, a vector standing for a diagonal and ``None`` for the identity."""
    if left is not None:
        matrix = left.T @ matrix if left.ndim > 1 else left[:, None] * matrix
    if right is not None:
        matrix = matrix @ right if right.ndim > 1 else matrix * right
    return matrix


def _eigenvectors(average: Factors, damping: jax.Array) -> dict[str, tuple]:
    """Both factors' eigenvalues and eigenvectors, rounding's negative eigenvalues as zeros."""

    def decompose(factor: jax.Array) -> tuple[jax.Array, Any]:
        if factor.ndim == 1:
            return factor, None
        values, vectors = jnp.linalg.eigh(factor)
        return jnp.maximum(values, 0), vectors

    return {
        name: (decompose(average.inputs[name]), decompose(average.outputs[name]))
        for name in average.inputs
    }


def _divide_by_product(eigenvectors: tuple, layer: Any, damping: jax.Array) -> Any:
    (a, u), (g, v) = eigenvectors
    quotient = _between(u, _stack(layer), v) / (jnp.outer(a, g) + damping)
    back = [None if basis is None else basis.T for basis in (u, v)]
    return _split(_between(back[0], quotient, back[1]), layer)


def _stack(layer: Any) -> jax.Array:
    """W̃: the weight, and the bias as its last row where there is one."""
    if "bias" not in layer:
        return layer["weight"]
    return jnp.concatenate([layer["weight"], layer["bias"][None]])


def _split(stacked: jax.Array, layer: Any) -> Any:
    if "bias" not in layer:
        return {"weight": stacked}
    return {"weight": stacked[:-1], "bias": stacked[-1]}
