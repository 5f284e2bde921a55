"""The two signals of each dense layer, and the Kronecker factors of the Fisher that they make.

A dense layer's pre-activations are s = h̃ W̃ with h̃ = [h, 1] what goes in and W̃ the weight with the
bias as its last row. One example's gradient is h̃ᵀ δ with δ the gradient of its loss in s, and the
layer's Fisher block, W̃ read row by row, is E[h̃ᵀh̃ ⊗ δᵀδ] (Martens & Grosse 2015, section 3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.curvature import count_examples
from soaa_edu.models import Model
from soaa_edu.objective import Loss, Objective
from soaa_edu.precision import exact_products

FISHERS = ("sampled", "exact", "empirical")
SHARINGS = ("expand", "reduce")


class Signals(NamedTuple):
    """A model run forward on a batch, ready to be run backward from its outputs.

    Attributes:
        outputs: ``(B, ..., C)``.
        inputs: h̃ of each dense layer, name -> ``(B, ..., in + 1)``, without the one where the
            layer has no bias. In the weight's own type.
        pull: a cotangent of the outputs -> ``(gradient, signals)``: the gradient like the
            parameters, and the same before the sum over examples: name -> ``(B, ..., out)`` for a
            dense layer, ``(B, *shape)`` for every array of the others.
    """

    outputs: Any
    inputs: dict[str, Any]
    pull: Callable[[Any], tuple[Any, Any]]


class Factors(NamedTuple):
    """The Fisher of a model, a Kronecker product for each dense layer and a diagonal for the rest.

    Attributes:
        inputs: A = E[h̃ᵀh̃], name -> ``(in + 1, in + 1)``.
        outputs: B = E[δᵀδ], name -> ``(out, out)``.
        diagonal: E[g²] of every other array, like those parameters.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    diagonal: Any


def no_factors(model: Model, params: Any) -> Factors:
    """Factors of zeros."""
    dense = {name: params[name] for name in model.dense_layers}

    def square(size: int, like: jax.Array) -> jax.Array:
        return jnp.zeros((size, size), like.dtype)

    return Factors(
        {n: square(len(v["weight"]) + ("bias" in v), v["weight"]) for n, v in dense.items()},
        {n: square(v["weight"].shape[1], v["weight"]) for n, v in dense.items()},
        optax.tree.zeros_like({n: v for n, v in params.items() if n not in dense}),
    )


def check_layers(objective: Any) -> None:
    """Raise unless the objective's model declares dense layers, each used once.

    Raises:
        TypeError: there is no ``Objective``, or its model declares no dense layers.
        ValueError: a weight is tied.
    """
    model = objective.model if isinstance(objective, Objective) else None
    if not isinstance(model, Model) or not model.dense_layers:
        raise TypeError(
            "Kronecker factors need soaa_edu.Objective(model, loss) with a model that declares its "
            "dense layers: take one of soaa_edu.models, or fill in Model.dense_layers"
        )
    if len(set(model.dense_layers)) < len(model.dense_layers):
        raise ValueError(
            "a dense layer that is used twice has tied weights, whose Fisher is no Kronecker "
            "product: untie them"
        )


def check_fisher(objective: Any, fisher: str) -> None:
    """Raise unless ``fisher`` is one of ``FISHERS`` and the loss can say what it needs.

    Raises:
        ValueError: an unknown name.
        TypeError: the loss does not say how its targets are distributed.
    """
    checks.one_of("fisher", fisher, FISHERS)
    if fisher != "empirical" and not isinstance(objective.loss, Loss):
        raise TypeError(
            'the Fisher needs targets from the model\'s own distribution: take fisher="empirical", '
            "or wrap the loss as soaa_edu.Loss(mean, sample, gradient_covariance)"
        )


@exact_products()
def run_forward(model: Model, params: Any, inputs: Any) -> Signals:
    """The outputs and every dense layer's inputs, from one pass with taps of zeros.

    Arrays outside the dense layers are copied for each example, so that running backward gives
    their gradients one by one.
    """
    dense = {name: params[name] for name in model.dense_layers}
    others = {name: layer for name, layer in params.items() if name not in dense}
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(inputs), *leaf.shape)), others)
    _, shapes = jax.eval_shape(lambda: model.forward(params, inputs, {}))
    taps = {
        name: jnp.zeros((*shapes[name].shape[:-1], layer["weight"].shape[1]), layer["weight"].dtype)
        for name, layer in dense.items()
    }

    def example(dense: Any, copy: Any, tap: Any, row: Any) -> tuple[Any, Any]:
        alone = jax.tree.map(lambda leaf: leaf[None], (row, tap))
        found = model.forward({**dense, **copy}, *alone)
        return jax.tree.map(lambda leaf: leaf[0], found)

    def forward(dense: Any, copies: Any, taps: Any) -> tuple[Any, Any]:
        if not others:
            return model.forward(dense, inputs, taps)
        return jax.vmap(example, in_axes=(None, 0, 0, 0))(dense, copies, taps, inputs)

    outputs, transpose, layer_inputs = jax.vjp(forward, dense, copies, taps, has_aux=True)

    @exact_products()
    def pull(cotangent: Any) -> tuple[Any, Any]:
        of_dense, of_copies, of_taps = transpose(cotangent)
        of_others = jax.tree.map(lambda leaf: leaf.sum(axis=0), of_copies)
        return {**of_dense, **of_others}, {**of_taps, **of_copies}

    rows = {name: layer_inputs[name].astype(layer["weight"].dtype) for name, layer in dense.items()}
    with_ones = {n: _with_one(row) if "bias" in dense[n] else row for n, row in rows.items()}
    return Signals(outputs, with_ones, pull)


@exact_products()
def factors(
    objective: Any,
    signals: Signals,
    targets: Any,
    *,
    fisher: str = "sampled",
    sharing: str = "expand",
    key: jax.Array | None = None,
) -> Factors:
    """The Kronecker factors, means over the batch of signals of the *per-example* loss.

    The output signals start from a target drawn for each example (``"sampled"``), from all of them
    by their probabilities (``"exact"``, with one backward pass for each output), or from the given
    ones (``"empirical"``).

    Where a layer is shared over T positions (Eschenhagen et al. 2023), ``"expand"`` sums over
    positions, A = Σ h̃ᵀh̃ / (B T) and B = Σ δᵀδ / B; ``"reduce"`` takes the mean of h̃ and the sum of
    δ over them first.

    Raises:
        ValueError: ``"sampled"`` without a key.
    """
    if fisher == "sampled" and key is None:
        raise ValueError('sampled targets need a key: give one, or take fisher="exact"')
    model, loss = objective.model, objective.loss
    examples = count_examples(targets)
    names = model.dense_layers

    def of_outputs(left: Any, right: Any) -> tuple[Any, Any]:
        """Σ over examples of the products that make B, and of those on the diagonal."""
        dense = {n: _product(left[n], right[n], sharing) for n in names}
        others = {
            n: jax.tree.map(lambda a, b: jnp.sum(a * b, axis=0), left[n], right[n])
            for n in left
            if n not in names
        }
        return dense, others

    def of_unit(unit: Any) -> tuple[Any, Any]:
        unit = jnp.broadcast_to(unit, signals.outputs.shape)
        _, left = signals.pull(unit)
        _, right = signals.pull(loss.gradient_covariance(signals.outputs, targets, unit))
        return of_outputs(left, right)

    if fisher == "exact":
        one = signals.outputs[0]
        total = _sum_over(of_unit, jnp.eye(one.size, dtype=one.dtype).reshape(-1, *one.shape))
    else:
        if fisher == "sampled":
            targets = loss.sample(key, signals.outputs, targets)
        _, backward = signals.pull(jax.grad(loss)(signals.outputs, targets))
        total = of_outputs(backward, backward)
    of_dense, of_others = jax.tree.map(lambda leaf: examples * leaf, total)
    of_inputs = {n: _mean_product(signals.inputs[n], sharing) for n in names}
    return Factors(of_inputs, of_dense, of_others)


def _sum_over(function: Callable, items: jax.Array) -> Any:
    zero = optax.tree.zeros_like(jax.eval_shape(function, items[0]))

    def add(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(item)), None

    return jax.lax.scan(add, zero, items)[0]


def _with_one(inputs: Any) -> Any:
    return jnp.concatenate([inputs, jnp.ones_like(inputs[..., :1])], axis=-1)


def _mean_product(inputs: Any, sharing: str) -> Any:
    """A = mean of h̃ᵀh̃ over examples and positions, or over examples of the positions' mean."""
    positions = tuple(range(1, inputs.ndim - 1))
    rows = inputs.mean(axis=positions) if sharing == "reduce" else inputs
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows / len(rows)


def _product(left: Any, right: Any, sharing: str) -> Any:
    """Σ δᵀδ over examples and positions, or over examples of the positions' sum."""
    positions = tuple(range(1, left.ndim - 1))
    if sharing == "reduce":
        left, right = left.sum(axis=positions), right.sum(axis=positions)
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
