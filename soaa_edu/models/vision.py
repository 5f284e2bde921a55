"""Networks on images: a convolutional network and a vision transformer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from soaa_edu import checks
from soaa_edu.models.layers import (
    Model,
    Params,
    attention,
    check_heads,
    init_layers,
    init_norm,
    layer_norm,
    split_heads,
    tapped,
)


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
        return init_layers(key, sizes)

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        layer, layer_inputs = tapped(params, taps)
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
    check_heads("vit", width, heads)
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
        params = init_layers(layer_key, sizes)
        positions = 0.5 * jax.random.normal(position_key, (tokens, width))
        params["tokens"] = {"class": jnp.zeros(width), "positions": positions}
        for i in range(depth):
            params[f"block_{i}_norm_1"] = init_norm(width)
            params[f"block_{i}_norm_2"] = init_norm(width)
        params["norm"] = init_norm(width)
        return params

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        layer, layer_inputs = tapped(params, taps)
        patches = _patches(_images("vit", inputs, image_shape), patch, patch)
        embedded = layer("embedding", _flat(patches, -3, -1))
        first = jnp.broadcast_to(params["tokens"]["class"], (*inputs.shape[:-1], 1, width))
        signal = jnp.concatenate([first, embedded], axis=-2) + params["tokens"]["positions"]
        for i in range(depth):
            qkv = layer(f"block_{i}_qkv", layer_norm(params[f"block_{i}_norm_1"], signal))
            signal += layer(f"block_{i}_projection", attention(*split_heads(qkv, heads)))
            hidden = layer(f"block_{i}_mlp_1", layer_norm(params[f"block_{i}_norm_2"], signal))
            signal += layer(f"block_{i}_mlp_2", jax.nn.gelu(hidden))
        return layer("head", layer_norm(params["norm"], signal[..., 0, :])), layer_inputs

    return Model(init, forward, tuple(sizes))


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
