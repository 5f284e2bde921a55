"""Any optax transformation as an optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from soaa_edu.optimizers.protocol import Optimizer


def first_order(objective: Callable, transformation: optax.GradientTransformation) -> Optimizer:
    """Train with an optax transformation: θ ← θ + u(g, state, θ), g the gradient on the batch.

    A transformation that takes extra arguments, ``optax.MultiSteps`` included, gets ``value``,
    ``grad`` and ``value_fn``, as ``optax.lbfgs`` wants them. Scalars that its state keeps in a
    field ``info`` join ``Info``.

    Args:
        objective: ``(params, batch) -> scalar``.
        transformation: for example ``optax.sgd(0.1)``.
    """
    takes_extra = isinstance(
        transformation, optax.GradientTransformationExtraArgs | optax.MultiSteps
    )

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        def value_fn(p: Any) -> Any:
            return objective(p, batch)

        loss, gradient = jax.value_and_grad(value_fn)(params)
        extra = {"value": loss, "grad": gradient, "value_fn": value_fn} if takes_extra else {}
        updates, state = transformation.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state, {**_info_in(state), "loss": loss}

    return Optimizer(transformation.init, step, objective)


def _info_in(state: Any) -> dict[str, Any]:
    """The scalars in every ``info`` field within an optax state."""
    found: dict[str, Any] = {}
    info = getattr(state, "info", {})
    found.update(info if isinstance(info, dict) else getattr(info, "_asdict", dict)())
    parts = state.values() if isinstance(state, dict) else state
    if isinstance(state, dict | list | tuple):
        for part in parts:
            found.update(_info_in(part))
    return found
