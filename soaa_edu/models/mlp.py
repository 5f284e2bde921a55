"""A multilayer perceptron."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax

from soaa_edu import checks
from soaa_edu.models.layers import Model, Params, init_layers, tapped


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
        return init_layers(key, dict(zip(names, pairwise(sizes))))

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if inputs.shape[-1] != sizes[0]:
            raise ValueError(
                f"inputs of width {inputs.shape[-1]} don't fit this mlp, built for {sizes[0]}: "
                f"build it with mlp([{inputs.shape[-1]}, ...])"
            )
        layer, layer_inputs = tapped(params, taps)
        signal = inputs
        for name in names:
            signal = layer(name, signal)
            if name != names[-1]:
                signal = activation(signal)
        return signal, layer_inputs

    return Model(init, forward, names, input_layer=names[0])
