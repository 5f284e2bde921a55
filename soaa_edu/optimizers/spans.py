"""The few directions of a network's parameters that a batch can see.

With the inputs and a one for the bias as rows, X̃ = [X, 1] ``(rows, in + 1)``, a change D of the
input layer's weight and bias acts through X̃ D alone. The gradient and every product with the
curvature lie in the span of the rows, D = X̃ᵀ A, and nothing is lost by staying there. A layer
without a bias has X̃ = X.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from soaa_edu.models.layers import Model
from soaa_edu.objective import Objective

PRODUCTS = 10
"""With the curvature, for which one change of coordinates has to pay."""


class RowSpace(NamedTuple):
    """An objective in the coordinates that a batch can see.

    Attributes:
        objective: like the original, of the coordinates.
        coordinates: where the parameters stand; like them, but for the input layer, which is an
            array ``(size, out)``, zero.
        to_parameters: a direction in the coordinates -> the direction in the parameters.
        metric: v -> K v with K the Gram matrix of the coordinates' basis, v having all of their
            layers or some.
    """

    objective: Callable
    coordinates: Any
    to_parameters: Callable
    metric: Callable = lambda v: v


def row_space(objective: Any, params: Any, batch: Any) -> RowSpace:
    """The objective on an orthonormal basis of the rows' span, where there is an input layer.

    With X̃ = X̃ Q Qᵀ, Q ``(in + 1, r)`` orthonormal, X̃ D = (X̃ Q)(Qᵀ D).
    """
    if not _reads_rows(objective):
        return _everything(objective, params)
    rows = _rows(objective, params, batch)
    if rows.shape[0] >= rows.shape[1]:
        return _everything(objective, params)
    basis, _ = jnp.linalg.qr(rows.T)
    seen_rows = rows @ basis
    return _restricted(objective, params, basis.shape[1], lambda z: seen_rows @ z, basis)


def spanned_by_rows(objective: Any, params: Any, batch: Any) -> RowSpace:
    """The objective on the rows themselves as a basis, D = X̃ᵀ A, where that is less work.

    The basis is not orthonormal: its Gram matrix K = X̃X̃ᵀ is the metric. In these coordinates a
    gradient is the gradient in the pre-activations, and K times a direction is its change of them,
    so that a product with the curvature multiplies with K once, where it would with X̃ and X̃ᵀ. It
    is less work if there are fewer rows than columns and ten products make up for K.
    """
    if not _reads_rows(objective):
        return _everything(objective, params)
    rows = _rows(objective, params, batch)
    count, width = rows.shape
    outputs = params[objective.model.input_layer]["weight"].shape[1]
    saved_by_a_product = count * outputs * (2 * width - count)
    if count >= width or count**2 * width > PRODUCTS * saved_by_a_product:
        return _everything(objective, params)
    gram = rows @ rows.T
    seen_layer = objective.model.input_layer

    def metric(v: Any) -> Any:
        return {name: gram @ part if name == seen_layer else part for name, part in v.items()}

    seen = _restricted(objective, params, count, lambda change: change, rows.T)
    return seen._replace(metric=metric)


def check_layers(params: Any) -> None:
    """Raise ``TypeError`` unless the parameters are a dict of layers."""
    if not isinstance(params, dict) or not params:
        raise TypeError(
            "a block for each layer needs parameters that are a dict, name -> a layer's arrays, "
            f"got {type(params).__name__}: name the layers, or take the whole matrix, blocks=None"
        )


def layer_by_layer(space: RowSpace) -> dict[str, RowSpace]:
    """Each layer's own coordinates, the other layers standing still.

    Their ``to_parameters`` leave the coordinates as they are.

    Raises:
        TypeError: the coordinates are no dict of layers.
    """
    check_layers(space.coordinates)
    return {name: _alone(space, name) for name in space.coordinates}


def _alone(space: RowSpace, name: str) -> RowSpace:
    def complete(layer: Any) -> Any:
        return {**space.coordinates, name: layer}

    return RowSpace(
        _composed(space.objective, complete),
        space.coordinates[name],
        lambda direction: direction,
        lambda v: space.metric({name: v})[name],
    )


def _composed(objective: Any, complete: Callable) -> Callable:
    if isinstance(objective, Objective):
        model = objective.model
        return replace(objective, model=lambda layer, inputs: model(complete(layer), inputs))
    return lambda layer, batch: objective(complete(layer), batch)


def _everything(objective: Any, params: Any) -> RowSpace:
    return RowSpace(objective, params, lambda direction: direction)


def _reads_rows(objective: Any) -> bool:
    model = getattr(objective, "model", None)
    return isinstance(model, Model) and model.input_layer is not None


def _rows(objective: Any, params: Any, batch: Any) -> jax.Array:
    layer = params[objective.model.input_layer]
    weight = layer["weight"]
    rows = jnp.asarray(batch[0], weight.dtype).reshape(-1, weight.shape[0])
    if "bias" not in layer:
        return rows
    return jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)


def _restricted(
    objective: Any, params: Any, size: int, to_change: Callable, basis: jax.Array
) -> RowSpace:
    """Coordinates ``(size, out)`` of the input layer's change, and the other layers as they are."""
    model = objective.model
    name = model.input_layer
    layer = params[name]
    width = layer["weight"].shape[1]

    def restricted_model(coordinates: Any, inputs: Any) -> Any:
        tap = to_change(coordinates[name]).reshape(*inputs.shape[:-1], width)
        return model.forward({**coordinates, name: layer}, inputs, {name: tap})[0]

    def to_parameters(direction: Any) -> Any:
        change = basis @ direction[name]
        of_layer = {"weight": change}
        if "bias" in layer:
            of_layer = {"weight": change[:-1], "bias": change[-1]}
        return {**direction, name: of_layer}

    start = {**params, name: jnp.zeros((size, width), basis.dtype)}
    return RowSpace(Objective(restricted_model, objective.loss), start, to_parameters)
