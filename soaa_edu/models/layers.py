"""What the networks are made of: dense layers with taps, norms, attention and rotary positions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, dict[str, jax.Array]]
STANDARD_DEVIATION_WITHIN_TWO = 0.87962566103423978
"""Of a standard normal number that is drawn again until it lies between -2 and 2."""


def unchanged(params: Any) -> Any:
    """The parameters as they are."""
    return params


@dataclass(frozen=True)
class Model:
    """A network: ``params = model.init(key)``, ``outputs = model(params, inputs)``.

    Close over a model, don't pass it to ``jit``.

    Attributes:
        init: key -> params, a dict from a layer's name to its arrays. A dense layer has ``weight``
            ``(in, out)`` and, unless it goes without, ``bias`` ``(out,)``.
        forward: ``(params, inputs, taps) -> (outputs, layer_inputs)``. ``taps`` maps names of dense
            layers to what is added to their pre-activations; ``layer_inputs`` maps every dense
            layer's name to what went in. The gradient with respect to a tap of zeros is the layer's
            backward signal.
        dense_layers: the names of the dense layers, from the inputs to the outputs. A name that
            stands twice has its weight tied, used more than once, which K-FAC refuses.
        input_layer: the dense layer that reads the raw inputs, or ``None``.
        embeddings: those of the dense layers whose inputs are rows of zeros with a single one, said
            by whole numbers: what goes in is the place of the one.
        export: params -> the same in the form of what was adapted; without an adapter, as they are.
        adopt: what ``export`` gives -> params, for weights from elsewhere.
    """

    init: Callable[[jax.Array], Params]
    forward: Callable[[Any, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
    dense_layers: tuple[str, ...]
    input_layer: str | None = None
    embeddings: tuple[str, ...] = ()
    export: Callable[[Any], Any] = unchanged
    adopt: Callable[[Any], Any] = unchanged

    def __call__(self, params: Any, inputs: Any) -> Any:
        """The outputs alone."""
        outputs, _ = self.forward(params, inputs, {})
        return outputs


def init_dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A dense layer's arrays: LeCun-normal weight ``(inputs, outputs)``, zero bias."""
    truncated = jax.random.truncated_normal(key, -2, 2, (inputs * outputs,))
    spread = (1 / inputs) ** 0.5 / STANDARD_DEVIATION_WITHIN_TWO
    weight = truncated.reshape(inputs, outputs) * spread
    return {"weight": weight, "bias": jnp.zeros(outputs)}


def init_layers(key: jax.Array, sizes: dict[str, tuple[int, int]], bias: bool = True) -> Params:
    """Dense layers of the given ``(in, out)``, with or without a bias."""
    keys = jax.random.split(key, len(sizes))
    layers = {name: init_dense(key, *size) for key, (name, size) in zip(keys, sizes.items())}
    if bias:
        return layers
    return {name: {"weight": layer["weight"]} for name, layer in layers.items()}


def dense(layer: dict[str, jax.Array], inputs: Any) -> Any:
    """``inputs @ weight``, plus the bias where there is one, ``(..., in)`` to ``(..., out)``."""
    outputs = inputs @ layer["weight"]
    return outputs + layer["bias"] if "bias" in layer else outputs


def tapped(params: Params, taps: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """``layer(name, inputs) -> outputs``, dense with its tap, and the inputs it is given.

    Raises:
        ValueError: by ``layer``, when it is called a second time with a name.
    """
    layer_inputs: dict[str, Any] = {}

    def layer(name: str, inputs: Any) -> Any:
        if name in layer_inputs:
            raise ValueError(
                f"the dense layer {name!r} is used more than once, so that its weight is tied and "
                "its Fisher is no Kronecker product: give each use a layer of its own"
            )
        layer_inputs[name] = inputs
        return dense(params[name], inputs) + taps.get(name, 0)

    return layer, layer_inputs


def init_norm(width: int) -> dict[str, jax.Array]:
    """A layer norm's arrays, ones and zeros of ``(width,)``."""
    return {"scale": jnp.ones(width), "shift": jnp.zeros(width)}


def layer_norm(layer: dict[str, jax.Array], inputs: Any) -> Any:
    """Each token with mean 0 and variance 1, scaled and shifted (Ba, Kiros & Hinton 2016)."""
    wide = at_least_float32(inputs)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + 1e-6)
    return (normal * layer["scale"] + layer["shift"]).astype(inputs.dtype)


def rms_norm(layer: dict[str, jax.Array], inputs: Any) -> Any:
    """Each token with a mean square of 1, scaled (Zhang & Sennrich 2019)."""
    wide = at_least_float32(inputs)
    normal = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    return (normal * layer["scale"]).astype(inputs.dtype)


def check_heads(model: str, width: int, heads: int) -> None:
    """Raise ``ValueError`` unless the heads divide the width."""
    if width % heads:
        raise ValueError(
            f"{heads} heads don't divide the width {width} of this {model}: "
            f"take a width of {width + -width % heads}"
        )


def split_heads(qkv: Any, heads: int) -> tuple[Any, Any, Any]:
    """Queries, keys and values, each ``(..., tokens, heads, size)``, of ``(..., tokens, 3 width)``.

    A head's size is width / heads.
    """
    parts = qkv.reshape(*qkv.shape[:-1], 3, heads, -1)
    return parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :]


def attention(queries: Any, keys: Any, values: Any, *, causal: bool = False) -> Any:
    """softmax(Q Kᵀ / √size) V for each head (Vaswani et al. 2017), with heads side by side again.

    Args:
        queries: ``(..., tokens, heads, size)``, and so ``keys`` and ``values``.
        keys: see ``queries``.
        values: see ``queries``.
        causal: a token sees itself and those before it alone.

    Returns:
        ``(..., tokens, width)``.
    """
    tokens, _, size = queries.shape[-3:]
    scores = at_least_float32(jnp.einsum("...qhd,...khd->...hqk", queries, keys)) / size**0.5
    if causal:
        scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(values.dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, values)
    return mixed.reshape(*mixed.shape[:-2], -1)


def rotate(vectors: Any) -> Any:
    """Rotary positions (Su et al. 2021): pair i of a vector turned by position · 10000^(-2i/size).

    Pair i is made of entries i and i + size/2. A product of two turned vectors depends on the
    distance of their positions alone.

    Args:
        vectors: ``(..., tokens, heads, size)``, the size an even number.
    """
    tokens, _, size = vectors.shape[-3:]
    wide = at_least_float32(vectors)
    frequencies = 10_000 ** (-jnp.arange(0, size, 2, dtype=wide.dtype) / size)
    angles = jnp.arange(tokens, dtype=wide.dtype)[:, None, None] * frequencies
    first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(vectors.dtype)


def at_least_float32(array: Any) -> Any:
    """The array in float32, or in its own type where that is wider."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
