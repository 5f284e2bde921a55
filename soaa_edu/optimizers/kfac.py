"""K-FAC: natural gradient with a Kronecker product for each dense layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.curvature import fisher_matvec
from soaa_edu.kronecker import (
    SHARINGS,
    Factors,
    check_fisher,
    check_layers,
    factors,
    no_factors,
    run_forward,
)
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.refreshes import refreshed
from soaa_edu.optimizers.trials import DampingRule, adapt, predicted_decrease, try_step
from soaa_edu.precision import exact_products


class KfacState(NamedTuple):
    """What K-FAC remembers.

    Attributes:
        steps: taken so far.
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
) -> Optimizer:
    """θ ← θ + s, s ← μ s - η C⁻¹ g, C = A ⊗ B + λI a dense layer (Martens & Grosse 2015).

    With W̃ a layer's weight ``(in + 1, out)``, its bias the last row, and A, B the means of the
    products of its signals over the batch (see ``soaa_edu.kronecker``), averaged along training,

        C⁻¹ g = (A + π√λ I)⁻¹ ∇W̃ (B + √λ/π I)⁻¹,    π² = (tr A / dim A) / (tr B / dim B)

    is the factored damping of their section 6.3. With ``exact_damping`` it is C⁻¹ g itself: for
    A = U diag(a) Uᵀ and B = V diag(b) Vᵀ, U [(Uᵀ ∇W̃ V) / (a bᵀ + λ)] Vᵀ.

    Every other array takes the diagonal of its Fisher, g / (diag F + λ).

    Args:
        objective: of a model that declares its dense layers.
        learning_rate: η, a number or an optax schedule.
        damping: λ, or ``levenberg_marquardt(initial=...)``, which moves λ at every step, damps
            exactly, and takes back a step that raises the loss. It costs two forward passes and
            a product with the batch's own Fisher more.
        momentum: μ.
        decay: of the averages of A and B, which are debiased.
        update_every: steps from one update of A and B to the next.
        invert_every: steps from one inversion to the next.
        fisher: targets ``"sampled"`` from the model's distribution, all of them (``"exact"``), or
            the given ones (``"empirical"``).
        sharing: ``"expand"`` or ``"reduce"``, for layers shared over positions.
        exact_damping: damp the product instead of each factor.
        kl_clip: c of min(1, √(c / (η² gᵀC⁻¹g))), which shortens C⁻¹g (Ba, Grosse & Martens 2017).

    ``Info`` tells ``damping``; with Levenberg-Marquardt ``reduction_ratio`` and ``accepted`` too.

    Raises:
        TypeError: no ``Objective``, no declared dense layers, or a loss without a distribution.
        ValueError: a number out of its range, an unknown name or tied weights.
    """
    rule = damping if isinstance(damping, DampingRule) else None
    by_eigenvectors = exact_damping or rule is not None
    check_layers(objective)
    check_fisher(objective, fisher)
    checks.one_of("sharing", sharing, SHARINGS)
    checks.fraction("momentum", momentum)
    checks.fraction("decay", decay)
    checks.whole("update_every", update_every)
    checks.whole("invert_every", invert_every)
    if not callable(learning_rate):
        checks.positive("learning_rate", learning_rate)
    if rule is None:
        checks.positive("damping", damping)
    if kl_clip is not None:
        checks.positive("kl_clip", kl_clip)
    prepare, solve = (
        (_eigenvectors, _divide_by_product) if by_eigenvectors else (_invert, _divide_by_factors)
    )

    def init(params: Any) -> KfacState:
        zero = no_factors(objective.model, params)
        dtype = jax.tree.leaves(zero)[0].dtype
        first = jnp.asarray(damping if rule is None else rule.initial, dtype)
        return KfacState(
            steps=jnp.zeros((), jnp.int32),
            factors=zero,
            inverses=optax.tree.zeros_like(jax.eval_shape(prepare, zero, first)),
            velocity=optax.tree.zeros_like(params),
            damping=first,
        )

    @exact_products()
    def step(params: Any, state: KfacState, batch: Any, key: Any) -> tuple[Any, KfacState, dict]:
        inputs, targets = batch
        signals = run_forward(objective.model, params, inputs)
        loss, residual = jax.value_and_grad(objective.loss)(signals.outputs, targets)
        gradient, _ = signals.pull(residual)

        def updated() -> Factors:
            found = factors(objective, signals, targets, fisher=fisher, sharing=sharing, key=key)
            return optax.tree.update_moment(found, state.factors, decay, 1)

        average = _every(update_every, state.steps, updated, state.factors)
        weight = 1 - decay ** (1 + state.steps // update_every)
        inverses = _every(
            invert_every,
            state.steps,
            lambda: prepare(jax.tree.map(lambda leaf: leaf / weight, average), state.damping),
            state.inverses,
        )

        def divide(name: str, layer: Any) -> Any:
            if name in inverses:
                return solve(inverses[name], layer, state.damping)
            diagonal = average.diagonal[name]
            return jax.tree.map(lambda g, d: g / (d / weight + state.damping), layer, diagonal)

        direction = {name: divide(name, layer) for name, layer in gradient.items()}
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        if kl_clip is not None:
            divergence = rate**2 * optax.tree.vdot(gradient, direction)
            rate = rate * jnp.minimum(1, jnp.sqrt(kl_clip / divergence))
        update = jax.tree.map(
            lambda v, d: (momentum * v - rate * d).astype(v.dtype), state.velocity, direction
        )
        info = {"loss": loss, "damping": state.damping}
        state = state._replace(steps=state.steps + 1, factors=average, inverses=inverses)
        if rule is None:
            return optax.apply_updates(params, update), state._replace(velocity=update), info
        matvec = fisher_matvec(objective, params, batch)
        predicted = predicted_decrease(matvec, gradient, update)
        trial = try_step(objective, params, batch, loss, update, predicted)
        info |= {"reduction_ratio": trial.reduction_ratio, "accepted": trial.accepted}
        state = state._replace(
            velocity=jax.tree.map(lambda u: jnp.where(trial.accepted, u, 0), update),
            damping=adapt(rule, state.damping, trial.reduction_ratio),
        )
        return trial.params, state, info

    return Optimizer(init, step, objective)


def _every(interval: int, steps: jax.Array, function: Callable, otherwise: Any) -> Any:
    """What ``function`` gives at every ``interval``-th step, and what there was at the others."""
    if interval == 1:
        return function()
    return refreshed(steps % interval == 0, function, otherwise)


def _invert(average: Factors, damping: jax.Array) -> dict[str, tuple]:
    """(A + π√λ I)⁻¹ and (B + √λ/π I)⁻¹ of each dense layer."""
    return {
        name: _inverse_pair(average.inputs[name], average.outputs[name], damping)
        for name in average.inputs
    }


def _inverse_pair(a: jax.Array, b: jax.Array, damping: jax.Array) -> tuple[jax.Array, jax.Array]:
    of_a, of_b = jnp.trace(a) / len(a), jnp.trace(b) / len(b)
    pi = jnp.where((of_a > 0) & (of_b > 0), jnp.sqrt(of_a / of_b), 1)
    root = jnp.sqrt(damping)
    return _inverse(a, pi * root), _inverse(b, root / pi)


def _inverse(matrix: jax.Array, damping: jax.Array) -> jax.Array:
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    triangle = jax.scipy.linalg.cho_factor(matrix + damping * identity)
    return jax.scipy.linalg.cho_solve(triangle, identity)


def _divide_by_factors(inverses: tuple, layer: Any, damping: jax.Array) -> Any:
    of_inputs, of_outputs = inverses
    return _split(of_inputs.T @ _stack(layer) @ of_outputs.T, layer)


def _eigenvectors(average: Factors, damping: jax.Array) -> dict[str, tuple]:
    """Both factors' eigenvalues and eigenvectors, rounding's negative eigenvalues as zeros."""

    def decompose(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, vectors = jnp.linalg.eigh(matrix)
        return jnp.maximum(values, 0), vectors

    return {
        name: (decompose(average.inputs[name]), decompose(average.outputs[name]))
        for name in average.inputs
    }


def _divide_by_product(eigenvectors: tuple, layer: Any, damping: jax.Array) -> Any:
    (a, u), (b, v) = eigenvectors
    return _split(u @ ((u.T @ _stack(layer) @ v) / (jnp.outer(a, b) + damping)) @ v.T, layer)


def _stack(layer: Any) -> jax.Array:
    """W̃: the weight, and the bias as its last row where there is one."""
    if "bias" not in layer:
        return layer["weight"]
    return jnp.concatenate([layer["weight"], layer["bias"][None]])


def _split(stacked: jax.Array, layer: Any) -> Any:
    if "bias" not in layer:
        return {"weight": stacked}
    return {"weight": stacked[:-1], "bias": stacked[-1]}
