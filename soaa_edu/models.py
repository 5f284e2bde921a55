"""Networks as (init, forward) pairs that show where their dense layers are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
        dense_layers: the names of the dense layers, from the inputs to the outputs. A name that
            stands twice has its weight tied, used more than once, which K-FAC refuses.
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
        return _init_layers(key, dict(zip(names, pairwise(sizes))))

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if inputs.shape[-1] != sizes[0]:
            raise ValueError(
                f"inputs of width {inputs.shape[-1]} don't fit this mlp, built for {sizes[0]}: "
                f"build it with mlp([{inputs.shape[-1]}, ...])"
            )
        layer, layer_inputs = _tapped(params, taps)
        signal = inputs
        for name in names:
            signal = layer(name, signal)
            if name != names[-1]:
                signal = activation(signal)
        return signal, layer_inputs

    return Model(init, forward, names, input_layer=names[0])


def cnn(
    outputs: int = 10,
    *,
    image_shape: Sequence[int] = (28, 28, 1),
    channels: Sequence[int] = (16, 16, 16),
    kernel: int = 3,
    stride: int = 2,
    activation: Callable = jax.nn.relu,
) -> Model:
    """A convolutional network on images given as flat rows, ``(..., 784)`` as MNIST has them.

    Convolutions, then a dense layer on the flattened last feature map. A convolution is a dense
    layer on zero-padded patches, its inputs ``(..., positions, kernel² channels)``. Weights start
    LeCun-normal, biases at zero.

    Args:
        outputs: the width of the outputs.
        image_shape: height, width and channels of an image.
        channels: the channels out of each convolution.
        kernel: height and width of a patch.
        stride: from one patch to the next.
        activation: applied after each convolution.

    Raises:
        ValueError: no convolution, a size that is no whole number, or inputs of another width.
    """
    height, width, depth = _image_shape("cnn", image_shape)
    for name, size in {"outputs": outputs, "kernel": kernel, "stride": stride}.items():
        checks.whole(f"{name} of a cnn", size)
    if len(channels) == 0:
        raise ValueError("cnn needs one convolution at least: give channels such as (16, 16, 16)")
    sizes = {}
    for i, filters in enumerate(channels):
        checks.whole("every number of channels of a cnn", filters)
        sizes[f"conv_{i}"] = (kernel**2 * depth, filters)
        height, width, depth = -(-height // stride), -(-width // stride), filters
    sizes["head"] = (height * width * depth, outputs)

    def init(key: jax.Array) -> Params:
        return _init_layers(key, sizes)

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        layer, layer_inputs = _tapped(params, taps)
        images = _images("cnn", inputs, image_shape)
        for i in range(len(channels)):
            patches = _patches(images, kernel, stride)
            signal = layer(f"conv_{i}", _flat(patches, -3, -1))
            images = activation(signal).reshape(*patches.shape[:-1], -1)
        return layer("head", _flat(images, -3)), layer_inputs

    return Model(init, forward, tuple(sizes))


def vit(
    outputs: int = 10,
    *,
    image_shape: Sequence[int] = (28, 28, 1),
    patch: int = 7,
    width: int = 32,
    heads: int = 4,
    depth: int = 2,
) -> Model:
    """A vision transformer on images given as flat rows, ``(..., 784)`` as MNIST has them.

    A class token and the patches' embeddings, with learned positions; pre-norm blocks of softmax
    attention and a GELU network twice as wide; a dense layer on the class token. Dense weights
    start LeCun-normal, biases and the class token at zero, positions normal with a deviation
    of 0.5.

    Args:
        outputs: the width of the outputs.
        image_shape: height, width and channels of an image.
        patch: height and width of a patch.
        width: of a token.
        heads: of the attention.
        depth: the number of blocks.

    Raises:
        ValueError: patches that don't tile the image, heads that don't divide the width, a size
            that is no whole number, or inputs of another width.
    """
    rows, columns, channels = _image_shape("vit", image_shape)
    given = {"outputs": outputs, "patch": patch, "width": width, "heads": heads, "depth": depth}
    for name, size in given.items():
        checks.whole(f"{name} of a vit", size)
    if rows % patch or columns % patch:
        raise ValueError(
            f"patches of {patch} x {patch} don't tile the {rows} x {columns} images of this vit: "
            "take a patch that divides both"
        )
    if width % heads:
        raise ValueError(
            f"{heads} heads don't divide the width {width} of this vit: "
            f"take a width of {width + -width % heads}"
        )
    tokens = 1 + (rows // patch) * (columns // patch)
    sizes = {"embedding": (patch**2 * channels, width)}
    for i in range(depth):
        sizes[f"block_{i}_qkv"] = (width, 3 * width)
        sizes[f"block_{i}_projection"] = (width, width)
        sizes[f"block_{i}_mlp_1"] = (width, 2 * width)
        sizes[f"block_{i}_mlp_2"] = (2 * width, width)
    sizes["head"] = (width, outputs)

    def init(key: jax.Array) -> Params:
        layer_key, position_key = jax.random.split(key)
        params = _init_layers(layer_key, sizes)
        positions = 0.5 * jax.random.normal(position_key, (tokens, width))
        params["tokens"] = {"class": jnp.zeros(width), "positions": positions}
        for i in range(depth):
            params[f"block_{i}_norm_1"] = _init_norm(width)
            params[f"block_{i}_norm_2"] = _init_norm(width)
        params["norm"] = _init_norm(width)
        return params

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        layer, layer_inputs = _tapped(params, taps)
        patches = _patches(_images("vit", inputs, image_shape), patch, patch)
        embedded = layer("embedding", _flat(patches, -3, -1))
        first = jnp.broadcast_to(params["tokens"]["class"], (*inputs.shape[:-1], 1, width))
        signal = jnp.concatenate([first, embedded], axis=-2) + params["tokens"]["positions"]
        for i in range(depth):
            qkv = layer(f"block_{i}_qkv", _norm(params[f"block_{i}_norm_1"], signal))
            signal += layer(f"block_{i}_projection", _attention(qkv, heads))
            hidden = layer(f"block_{i}_mlp_1", _norm(params[f"block_{i}_norm_2"], signal))
            signal += layer(f"block_{i}_mlp_2", jax.nn.gelu(hidden))
        return layer("head", _norm(params["norm"], signal[..., 0, :])), layer_inputs

    return Model(init, forward, tuple(sizes))


def init_dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A dense layer's arrays: LeCun-normal weight ``(inputs, outputs)``, zero bias."""
    truncated = jax.random.truncated_normal(key, -2, 2, (inputs * outputs,))
    spread = (1 / inputs) ** 0.5 / STANDARD_DEVIATION_WITHIN_TWO
    weight = truncated.reshape(inputs, outputs) * spread
    return {"weight": weight, "bias": jnp.zeros(outputs)}


def dense(layer: dict[str, jax.Array], inputs: Any) -> Any:
    """``inputs @ weight + bias``, ``(..., in)`` to ``(..., out)``."""
    return inputs @ layer["weight"] + layer["bias"]


def _init_layers(key: jax.Array, sizes: dict[str, tuple[int, int]]) -> Params:
    keys = jax.random.split(key, len(sizes))
    return {name: init_dense(key, *size) for key, (name, size) in zip(keys, sizes.items())}


def _tapped(params: Params, taps: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """``layer(name, inputs) -> outputs``, dense with its tap, and the inputs it is given."""
    layer_inputs = {}

    def layer(name: str, inputs: Any) -> Any:
        layer_inputs[name] = inputs
        return dense(params[name], inputs) + taps.get(name, 0)

    return layer, layer_inputs


def _image_shape(model: str, image_shape: Sequence[int]) -> Sequence[int]:
    if len(image_shape) != 3:
        raise ValueError(
            f"image_shape of a {model} is (height, width, channels), got {tuple(image_shape)}"
        )
    for size in image_shape:
        checks.whole(f"every number in the image_shape of a {model}", size)
    return image_shape


def _images(model: str, rows: Any, image_shape: Sequence[int]) -> Any:
    """Flat rows ``(..., height width channels)`` as images ``(..., height, width, channels)``."""
    if rows.shape[-1] != math.prod(image_shape):
        raise ValueError(
            f"inputs of width {rows.shape[-1]} don't fit this {model}, built for "
            f"{math.prod(image_shape)}: build it with the image_shape of your inputs, now "
            f"{tuple(image_shape)}"
        )
    return rows.reshape(*rows.shape[:-1], *image_shape)


def _patches(images: Any, size: int, stride: int) -> Any:
    """``(..., rows, columns, size² channels)``, one patch every ``stride``, zeros at the border."""
    height, width = (-(-length // stride) for length in images.shape[-3:-1])
    borders = []
    for length, count in zip(images.shape[-3:-1], (height, width)):
        missing = max((count - 1) * stride + size - length, 0)
        borders.append((missing // 2, missing - missing // 2))
    around = [(0, 0)] * (images.ndim - 3)
    padded = jnp.pad(images, [*around, *borders, (0, 0)])
    rows = [slice(i, i + (height - 1) * stride + 1, stride) for i in range(size)]
    columns = [slice(j, j + (width - 1) * stride + 1, stride) for j in range(size)]
    return jnp.concatenate([padded[..., i, j, :] for i in rows for j in columns], axis=-1)


def _flat(array: Any, start: int, stop: int | None = None) -> Any:
    """The axes from ``start`` to before ``stop`` made one."""
    after = () if stop is None else array.shape[stop:]
    return array.reshape(*array.shape[:start], -1, *after)


def _attention(qkv: Any, heads: int) -> Any:
    """Softmax attention, ``(..., tokens, 3 width)`` to ``(..., tokens, width)``."""
    parts = qkv.reshape(*qkv.shape[:-1], 3, heads, -1)
    queries, keys, values = jnp.moveaxis(parts, -3, 0)
    scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys) / queries.shape[-1] ** 0.5
    mixed = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), values)
    return mixed.reshape(*qkv.shape[:-1], -1)


def _init_norm(width: int) -> dict[str, jax.Array]:
    return {"scale": jnp.ones(width), "shift": jnp.zeros(width)}


def _norm(layer: dict[str, jax.Array], inputs: Any) -> Any:
    """Each token with mean 0 and variance 1, scaled and shifted."""
    centred = inputs - jnp.mean(inputs, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-6) * layer["scale"] + layer["shift"]
