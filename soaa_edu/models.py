"""Networks as (init, forward) pairs that show where their dense layers are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from soaa_edu import checks

Params = dict[str, dict[str, jax.Array]]
STANDARD_DEVIATION_WITHIN_TWO = 0.87962566103423978
"""Of a standard normal number that is drawn again until it lies between -2 and 2."""


@dataclass(frozen=True)
class Model:
    """A network: ``params = model.init(key)``, ``outputs = model(params, inputs)``.

    Close over a model, don't pass it to ``jit``.

    Attributes:
        init: key -> params, a dict from a layer's name to its arrays. A dense layer has ``weight``
            ``(in, out)`` and ``bias`` ``(out,)``.
        forward: ``(params, inputs, taps) -> (outputs, layer_inputs)``. ``taps`` maps names of dense
            layers to what is added to their pre-activations; ``layer_inputs`` maps every dense
            layer's name to what went in. The gradient with respect to a tap of zeros is the layer's
            backward signal.
        dense_layers: the names of the dense layers, from the inputs to the outputs.
        input_layer: the dense layer that reads the raw inputs, or ``None``.
    """

    init: Callable[[jax.Array], Params]
    forward: Callable[[Any, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
    dense_layers: tuple[str, ...]
    input_layer: str | None = None

    def __call__(self, params: Any, inputs: Any) -> Any:
        """The outputs alone."""
        outputs, _ = self.forward(params, inputs, {})
        return outputs


def mlp(sizes: Sequence[int], activation: Callable = jax.nn.relu) -> Model:
    """A multilayer perceptron, ``mlp([784, 10, 10])`` being the slides' network.

    Weights start LeCun-normal, biases at zero; the last layer has no activation.

    Args:
        sizes: the width of the inputs, of each hidden layer and of the outputs.
        activation: applied between layers.

    Raises:
        ValueError: fewer than two sizes, a size below one, or inputs of another width.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp needs the input and the output size at least, got {list(sizes)}")
    for size in sizes:
        checks.whole("every size of an mlp", size)
    names = tuple(f"dense_{i}" for i in range(len(sizes) - 1))

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(names))
        return {
            name: init_dense(layer_key, inputs, outputs)
            for name, layer_key, inputs, outputs in zip(names, keys, sizes, sizes[1:], strict=False)
        }

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if inputs.shape[-1] != sizes[0]:
            raise ValueError(
                f"inputs of width {inputs.shape[-1]} don't fit this mlp, built for {sizes[0]}: "
                f"build it with mlp([{inputs.shape[-1]}, ...])"
            )
        layer_inputs = {}
        signal = inputs
        for name in names:
            layer_inputs[name] = signal
            signal = dense(params[name], signal) + taps.get(name, 0)
            if name != names[-1]:
                signal = activation(signal)
        return signal, layer_inputs

    return Model(init, forward, names, input_layer=names[0])


def init_dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A dense layer's arrays: LeCun-normal weight ``(inputs, outputs)``, zero bias."""
    truncated = jax.random.truncated_normal(key, -2, 2, (inputs * outputs,))
    spread = (1 / inputs) ** 0.5 / STANDARD_DEVIATION_WITHIN_TWO
    weight = truncated.reshape(inputs, outputs) * spread
    return {"weight": weight, "bias": jnp.zeros(outputs)}


def dense(layer: dict[str, jax.Array], inputs: Any) -> Any:
    """``inputs @ weight + bias``, ``(..., in)`` to ``(..., out)``."""
    return inputs @ layer["weight"] + layer["bias"]
