"""The two signals of each dense layer, and the Kronecker factors of the Fisher that they make.

A dense layer's pre-activations are s = h̃ W̃ with h̃ = [h, 1] what goes in and W̃ the weight with the
bias as its last row. One example's gradient is h̃ᵀ δ with δ the gradient of its loss in s, and the
layer's Fisher block, W̃ read row by row, is E[h̃ᵀh̃ ⊗ δᵀδ] (Martens & Grosse 2015, section 3).

An example is one target that counts, as the loss says: a row with a label, or each position of a
sequence with a label of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from soaa_edu import checks
from soaa_edu.models.layers import Model
from soaa_edu.objective import Loss, Objective, count_examples, weights_of
from soaa_edu.precision import exact_products

FISHERS = ("sampled", "exact", "empirical")
SHARINGS = ("expand", "reduce")
LARGEST_FACTOR = 10_000
"""The longest axis with a whole matrix for a factor; a vocabulary may be longer."""
ROUNDED_SIGNALS = 0.03
"""How far a gradient may be from that of its signals where these are rounded to bfloat16."""


class Signals(NamedTuple):
    """A model run forward on a batch, ready to be run backward from its outputs.

    Attributes:
        outputs: ``(B, ..., C)``.
        inputs: h̃ of each dense layer, name -> ``(B, ..., in + 1)``, without the one where the
            layer has no bias. In the weight's own type. Of an embedding the whole numbers
            ``(B, ...)`` for which one-hot rows stand.
        dense: the arrays of each dense layer.
        pull: a cotangent of the outputs -> ``(gradient, signals)``: the gradient like the
            parameters, and the same before the sum over examples: name -> ``(B, ..., out)`` for a
            dense layer, ``(B, *shape)`` for every array of the others.
    """

    outputs: Any
    inputs: dict[str, Any]
    dense: dict[str, Any]
    pull: Callable[[Any], tuple[Any, Any]]


class Factors(NamedTuple):
    """The Fisher of a model, a Kronecker product for each dense layer and a diagonal for the rest.

    A factor whose axis is longer than ``LARGEST_FACTOR`` is its diagonal alone, and so is A of an
    embedding with ``"expand"``, where nothing stands beside the diagonal.

    Attributes:
        inputs: A = E[h̃ᵀh̃], name -> ``(in + 1, in + 1)`` or ``(in + 1,)``.
        outputs: G = E[δᵀδ], name -> ``(out, out)`` or ``(out,)``.
        diagonal: E[g²] of every other array, like those parameters.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    diagonal: Any


def no_factors(model: Model, params: Any, sharing: str = "expand") -> Factors:
    """Factors of zeros."""
    dense = {name: params[name] for name in model.dense_layers}

    def zeros(size: int, like: jax.Array, diagonal: bool = False) -> jax.Array:
        alone = diagonal or size > LARGEST_FACTOR
        return jnp.zeros((size,) if alone else (size, size), like.dtype)

    return Factors(
        {
            name: zeros(
                len(layer["weight"]) + ("bias" in layer),
                layer["weight"],
                diagonal=name in model.embeddings and sharing == "expand",
            )
            for name, layer in dense.items()
        },
        {n: zeros(v["weight"].shape[1], v["weight"]) for n, v in dense.items()},
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
    size = len(jax.tree.leaves(inputs)[0])
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), others)
    taps = _zero_taps(model, params, inputs)

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

    rows = {
        name: layer_inputs[name]
        if name in model.embeddings
        else _with_one(layer_inputs[name], layer)
        for name, layer in dense.items()
    }
    return Signals(outputs, rows, dense, pull)


def _zero_taps(model: Model, params: Any, inputs: Any) -> dict[str, jax.Array]:
    """A tap for each dense layer.

    Raises:
        ValueError: the model leaves one of them out.
    """
    _, shapes = jax.eval_shape(lambda: model.forward(params, inputs, {}))
    taps = {}
    for name in model.dense_layers:
        if name not in shapes:
            raise ValueError(
                f"the model declares the dense layer {name!r} and does not say what goes into it: "
                "put its inputs into layer_inputs"
            )
        positions = shapes[name].shape[: None if name in model.embeddings else -1]
        weight = params[name]["weight"]
        taps[name] = jnp.zeros((*positions, weight.shape[1]), weight.dtype)
    outputs_of_taps = jax.make_jaxpr(lambda taps: model.forward(params, inputs, taps)[0])(taps)
    used = {id(v) for eqn in outputs_of_taps.jaxpr.eqns for v in eqn.invars}
    for name, tap in zip(sorted(taps), outputs_of_taps.jaxpr.invars):
        if id(tap) not in used:
            raise ValueError(
                f"the tap of the dense layer {name!r} changes nothing, so that its backward signal "
                "would be zero: add taps.get(name, 0) to its pre-activations"
            )
    return taps


def check_model(objective: Any, params: Any, batch: Any) -> None:
    """Check that the two signals of each dense layer make its gradient: ∇W̃ = Σ h̃ᵀδ.

    Do it once, on a small batch, with a model of your own: ``kfac`` can't see in a compiled step
    that a layer's declaration is wrong.

    Raises:
        TypeError: there is no ``Objective``, or its model declares no dense layers.
        ValueError: a layer's signals make another gradient, which names it: it is used twice, or
            what it says goes in is not what does.
    """
    check_layers(objective)
    inputs, targets = batch
    signals = run_forward(objective.model, params, inputs)
    gradient, backward = signals.pull(jax.grad(objective.loss)(signals.outputs, targets))
    for name in objective.model.dense_layers:
        rows, signal = _one_hot(signals.inputs[name], params[name]["weight"]), backward[name]
        made = rows.reshape(-1, rows.shape[-1]).T @ signal.reshape(-1, signal.shape[-1])
        right = gradient[name]["weight"]
        if "bias" in gradient[name]:
            right = jnp.concatenate([right, gradient[name]["bias"][None]])
        error, size = jnp.linalg.norm(made - right), jnp.linalg.norm(right)
        if not error <= ROUNDED_SIGNALS * size:
            raise ValueError(
                f"the signals of the dense layer {name!r} don't make its gradient (off by "
                f"{float(error / size):.0%}): it is used more than once, its tap is not added to "
                "its pre-activations, or layer_inputs holds something else than what it multiplies"
            )


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
    """The Kronecker factors, means over the examples of signals of the *per-example* loss.

    The output signals start from a target drawn for each example (``"sampled"``), from all of them
    by their probabilities (``"exact"``, with one backward pass for each output), or from the given
    ones (``"empirical"``).

    Where a layer is shared over positions (Eschenhagen et al. 2023), ``"expand"`` takes A as the
    mean of h̃ᵀh̃ over the positions that count, and G as Σ δᵀδ over positions, divided by the number
    of examples, δ being the gradient of the sum of the examples' losses; ``"reduce"`` takes the
    mean of h̃ and the sum of δ over a row's positions first. Where a layer's positions are not those
    of the targets, a row's positions count if one of its targets does.

    Raises:
        ValueError: ``"sampled"`` without a key.
    """
    loss = objective.loss
    weights = weights_of(loss, targets)
    names = objective.model.dense_layers

    def of_outputs(left: Any, right: Any) -> tuple[Any, Any]:
        """What makes G, and what stands on the diagonal."""
        dense = {n: _product(left[n], right[n], sharing) for n in names}
        return dense, _squares_of_others(left, right, names)

    of_dense, of_others = _mean_over_targets(of_outputs, objective, signals, targets, fisher, key)
    of_inputs = {}
    for name, layer in signals.dense.items():
        rows, at = _rows_that_count(signals.inputs[name], layer["weight"], weights, sharing)
        of_inputs[name] = _input_factor(rows, at, layer["weight"])
    return Factors(of_inputs, of_dense, of_others)


@exact_products()
def second_moments(
    objective: Any,
    signals: Signals,
    targets: Any,
    *,
    fisher: str = "sampled",
    sharing: str = "expand",
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """S = E[(h̃ᵀδ)²] of each dense layer, ``(in + 1, out)``, and E[g²] of every other array.

    With the signals ``in_bases``, S is the diagonal of a layer's Fisher block in the basis of the
    products of U's and V's columns, W̃ read row by row, where an example's gradient is one product
    h̃ᵀδ. A layer shared over positions has Σ h̃ᵀδ instead, whose square is not formed: as in
    ``factors``, ``"expand"`` takes every position's product for itself, and ``"reduce"`` the mean
    of h̃ and the sum of δ over a row's positions.

    The arguments are those of ``factors``.

    Raises:
        ValueError: ``"sampled"`` without a key.
    """
    weights = weights_of(objective.loss, targets)
    names = objective.model.dense_layers
    rows = {
        name: _rows_that_count(signals.inputs[name], layer["weight"], weights, sharing)[0]
        for name, layer in signals.dense.items()
    }

    def of_outputs(left: Any, right: Any) -> dict[str, Any]:
        dense = {}
        for name, h in rows.items():
            squares = _over_positions(left[name], sharing) * _over_positions(right[name], sharing)
            dense[name] = _products(h if _are_ids(h) else h**2, squares, signals.dense[name])
        return dense | _squares_of_others(left, right, names)

    means = _mean_over_targets(of_outputs, objective, signals, targets, fisher, key)
    return jax.tree.map(lambda mean: jnp.maximum(mean, 0), means)


@exact_products()
def in_bases(signals: Signals, bases: dict[str, tuple[Any, Any]]) -> Signals:
    """The signals of dense layers Uᵀ W̃ V: h̃ U goes in and δ V comes back.

    Where ``pull`` gave a dense layer's gradient it gives Uᵀ ∇W̃ V = Σ (h̃ U)ᵀ (δ V), a matrix.

    Args:
        signals: of a model's own layers.
        bases: of each dense layer U ``(in + 1, in + 1)`` and V ``(out, out)``, orthonormal columns;
            ``None`` for the identity.
    """

    def inputs_in(basis: Any, inputs: Any) -> Any:
        if basis is None:
            return inputs
        return basis[inputs] if _are_ids(inputs) else inputs @ basis

    inputs = {name: inputs_in(u, signals.inputs[name]) for name, (u, _) in bases.items()}

    @exact_products()
    def pull(cotangent: Any) -> tuple[Any, Any]:
        gradient, backward = signals.pull(cotangent)
        turned = {n: backward[n] if v is None else backward[n] @ v for n, (_, v) in bases.items()}
        of_dense = {n: _products(inputs[n], turned[n], signals.dense[n]) for n in bases}
        return {**gradient, **of_dense}, {**backward, **turned}

    return signals._replace(inputs=inputs, pull=pull)


def _mean_over_targets(
    products: Callable, objective: Any, signals: Signals, targets: Any, fisher: str, key: Any
) -> Any:
    """The mean over the examples of ``products(left, right)``, a sum over the batch.

    The backward signals left and right start from residuals of the mean loss, so that the products
    of both, summed over all pairs, have the covariance of the gradients for their mean.
    """
    loss = objective.loss
    if fisher == "sampled" and key is None:
        raise ValueError('sampled targets need a key: give one, or take fisher="exact"')
    examples = count_examples(loss, targets).astype(signals.outputs.dtype)

    def of_unit(unit: Any) -> Any:
        unit = jnp.broadcast_to(unit, signals.outputs.shape)
        _, left = signals.pull(unit)
        _, right = signals.pull(loss.gradient_covariance(signals.outputs, targets, unit))
        return products(left, right)

    if fisher == "exact":
        one = signals.outputs[0]
        total = _sum_over(of_unit, jnp.eye(one.size, dtype=one.dtype).reshape(-1, *one.shape))
    else:
        if fisher == "sampled":
            targets = loss.sample(key, signals.outputs, targets)
        _, backward = signals.pull(jax.grad(loss)(signals.outputs, targets))
        total = products(backward, backward)
    return jax.tree.map(lambda leaf: examples * leaf, total)


def _squares_of_others(left: Any, right: Any, dense_layers: tuple[str, ...]) -> dict[str, Any]:
    """Σ g² over the examples, of every array outside the dense layers."""
    return {
        name: jax.tree.map(lambda a, b: jnp.sum(a * b, axis=0), left[name], right[name])
        for name in left
        if name not in dense_layers
    }


def factor_counts(loss: Any, signals: Signals, targets: Any, sharing: str = "expand") -> Factors:
    """Over how many rows each A of ``factors`` is a mean, and over how many examples G and g².

    A number for each A and G, and one for all of the diagonal.
    """
    weights = weights_of(loss, targets)
    examples = jnp.sum(weights)
    of_inputs = {}
    for name, layer in signals.dense.items():
        _, at = _rows_that_count(signals.inputs[name], layer["weight"], weights, sharing)
        of_inputs[name] = jnp.sum(at)
    return Factors(of_inputs, dict.fromkeys(of_inputs, examples), examples)


def _sum_over(function: Callable, items: jax.Array) -> Any:
    zero = optax.tree.zeros_like(jax.eval_shape(function, items[0]))

    def add(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(item)), None

    return jax.lax.scan(add, zero, items)[0]


def _are_ids(inputs: Any) -> bool:
    return bool(jnp.issubdtype(inputs.dtype, jnp.integer))


def _with_one(inputs: Any, layer: Any) -> Any:
    """h̃ in the weight's type."""
    rows = inputs.astype(layer["weight"].dtype)
    if "bias" not in layer:
        return rows
    return jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)


def _one_hot(inputs: Any, weight: jax.Array) -> jax.Array:
    return jax.nn.one_hot(inputs, len(weight), dtype=weight.dtype) if _are_ids(inputs) else inputs


def _at_positions(weights: jax.Array, positions: tuple[int, ...]) -> jax.Array:
    """The weights of a layer's positions ``(B, ...)``, from those of the targets."""
    if weights.shape == positions:
        return weights
    rows = jnp.max(weights.reshape(len(weights), -1), axis=1)
    return jnp.broadcast_to(rows.reshape(-1, *[1] * (len(positions) - 1)), positions)


def _rows_that_count(
    inputs: Any, weight: jax.Array, weights: jax.Array, sharing: str
) -> tuple[jax.Array, jax.Array]:
    """The rows over which A is a mean, ``(N, in + 1)``, and a one for each that counts, ``(N,)``.

    They are the positions, or each example's mean over its positions that count. Of an embedding's
    positions they are the places of the ones, ``(N,)``.
    """
    ids = _are_ids(inputs)
    at = _at_positions(weights, inputs.shape if ids else inputs.shape[:-1]).astype(weight.dtype)
    if ids and sharing == "expand":
        return inputs.ravel(), at.ravel()
    rows = _one_hot(inputs, weight)
    if sharing == "reduce" and rows.ndim > 2:
        positions = tuple(range(1, rows.ndim - 1))
        in_row = jnp.sum(at, axis=positions)
        total = jnp.sum(at[..., None] * rows, axis=positions)
        rows, at = total / jnp.maximum(in_row, 1)[:, None], jnp.where(in_row > 0, 1.0, 0.0)
        at = at.astype(weight.dtype)
    return rows.reshape(-1, rows.shape[-1]), at.reshape(-1)


def _input_factor(rows: jax.Array, at: jax.Array, weight: jax.Array) -> jax.Array:
    """A, the mean of h̃ᵀh̃ over the rows that count."""
    count = jnp.maximum(jnp.sum(at), 1)
    if _are_ids(rows):
        return jnp.zeros(len(weight), weight.dtype).at[rows].add(at) / count
    return _gram(at[:, None] * rows, rows) / count


def _product(left: Any, right: Any, sharing: str) -> Any:
    """Σ δᵀδ over examples and positions, or over examples of the positions' sum."""
    return _gram(_over_positions(left, sharing), _over_positions(right, sharing))


def _over_positions(signal: Any, sharing: str) -> Any:
    """Backward signals ``(N, out)`` of all positions, or of each row their sum."""
    if sharing == "reduce":
        signal = signal.sum(axis=tuple(range(1, signal.ndim - 1)))
    return signal.reshape(-1, signal.shape[-1])


def _products(inputs: Any, outputs: Any, layer: Any) -> jax.Array:
    """Σ hᵀδ over all positions."""
    outputs = outputs.reshape(-1, outputs.shape[-1])
    if _are_ids(inputs):
        empty = jnp.zeros(layer["weight"].shape, outputs.dtype)
        return empty.at[inputs.ravel()].add(outputs)
    return inputs.reshape(-1, inputs.shape[-1]).T @ outputs


def _gram(left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ of the products of rows, or its diagonal where it would be too large."""
    if left.shape[1] > LARGEST_FACTOR:
        return jnp.sum(left * right, axis=0)
    return left.T @ right
