"""Transformers on text: a bidirectional encoder and a causal decoder.

The embedding of tokens is the first dense layer, without a bias, of one-hot inputs. Its forward
pass gathers rows, which trains faster than the product; the inputs that it records are one-hot.
Its weight starts normal with a deviation of width**-0.5, so that the rows have a length of about
one and a head tied to it gives logits of about one.
"""

from functools import partial
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
    rms_norm,
    rotate,
    split_heads,
    tapped,
)


def encoder(
    vocabulary: int,
    *,
    length: int,
    width: int = 64,
    heads: int = 4,
    depth: int = 2,
    classes: int | None = None,
    activations: Any = None,
) -> Model:
    """A bidirectional transformer on tokens, in the manner of BERT (Devlin et al. 2019).

    Token embeddings plus learned positions; blocks of softmax attention and a GELU network four
    times as wide, each behind a layer norm (pre-norm, where BERT's own norms come after); a last
    norm; a dense head. Dense weights start LeCun-normal, biases at zero, embeddings and positions
    normal with a deviation of width**-0.5.

    Inputs are whole numbers ``(B, T)`` from 0 to vocabulary - 1; others give ``nan``. Every token
    sees every other, so that all sequences of a batch fill their T places. Outputs are logits in
    the parameters' type: ``(B, T, vocabulary)``, a guess at each place, for masked tokens (labels
    of -1 elsewhere), or ``(B, classes)`` from the mean over places.

    Args:
        vocabulary: the number of different tokens.
        length: of the longest sequence.
        width: of a token's vector.
        heads: of the attention.
        depth: the number of blocks.
        classes: of whole sequences; ``None`` guesses tokens.
        activations: the type of the signals and of the products, such as ``jnp.bfloat16``;
            ``None`` is the parameters' own. Norms and softmax take float32 at least.

    Raises:
        ValueError: a size that is no whole number, heads that don't divide the width, activations
            of no floating type, inputs that are no whole numbers, or a sequence too long.
    """
    outputs = vocabulary if classes is None else classes
    given = {"vocabulary": vocabulary, "length": length, "classes": outputs}
    _check_sizes("encoder", given | {"width": width, "heads": heads, "depth": depth})
    check_heads("encoder", width, heads)
    _check_activations(activations)
    sizes = {}
    for i in range(depth):
        sizes[f"block_{i}_qkv"] = (width, 3 * width)
        sizes[f"block_{i}_projection"] = (width, width)
        sizes[f"block_{i}_mlp_1"] = (width, 4 * width)
        sizes[f"block_{i}_mlp_2"] = (4 * width, width)
    sizes["head"] = (width, outputs)

    def init(key: jax.Array) -> Params:
        token_key, position_key, layer_key = jax.random.split(key, 3)
        params = {"embedding": {"weight": _init_rows(token_key, vocabulary, width)}}
        params["tokens"] = {"positions": _init_rows(position_key, length, width)}
        for i in range(depth):
            params[f"block_{i}_norm_1"] = init_norm(width)
            params[f"block_{i}_norm_2"] = init_norm(width)
        return params | init_layers(layer_key, sizes) | {"norm": init_norm(width)}

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = _ids("encoder", inputs)
        if ids.shape[-1] > length:
            raise ValueError(
                f"a sequence of {ids.shape[-1]} tokens is too long for this encoder: "
                f"build it with length={ids.shape[-1]}, now {length}, or cut the sequence"
            )
        layer, layer_inputs, signal = _embed(params, ids, taps, sizes, activations)
        signal += params["tokens"]["positions"][: ids.shape[-1]].astype(signal.dtype)
        for i in range(depth):
            qkv = layer(f"block_{i}_qkv", layer_norm(params[f"block_{i}_norm_1"], signal))
            signal += layer(f"block_{i}_projection", attention(*split_heads(qkv, heads)))
            hidden = layer(f"block_{i}_mlp_1", layer_norm(params[f"block_{i}_norm_2"], signal))
            signal += layer(f"block_{i}_mlp_2", jax.nn.gelu(hidden))
        signal = layer_norm(params["norm"], signal)
        logits = layer("head", signal if classes is None else signal.mean(axis=-2))
        return logits.astype(params["head"]["weight"].dtype), layer_inputs

    return Model(init, forward, ("embedding", *sizes), embeddings=("embedding",))


def decoder(
    vocabulary: int,
    *,
    width: int = 64,
    heads: int = 4,
    depth: int = 2,
    hidden: int | None = None,
    tied: bool = False,
    activations: Any = None,
) -> Model:
    """A causal transformer on tokens, in the manner of Llama (Touvron et al. 2023).

    Token embeddings; blocks of softmax attention, with rotary positions and no token seeing those
    after it, and a SwiGLU network (silu(x W_gate) · x W_up) W_down (Shazeer 2020), each behind an
    RMS norm; a last norm; a dense head. No layer has a bias. Dense weights start LeCun-normal,
    embeddings normal with a deviation of width**-0.5.

    Inputs are whole numbers ``(B, T)`` from 0 to vocabulary - 1, others give ``nan``, of any length
    T. Outputs are the logits of the next token, ``(B, T, vocabulary)``, in the parameters' type.

    Args:
        vocabulary: the number of different tokens.
        width: of a token's vector.
        heads: of the attention; their width must be even.
        depth: the number of blocks.
        hidden: the width of the SwiGLU network; ``None`` is 8/3 of ``width``, up to a multiple of
            eight, which makes it as large as a GELU network four times as wide.
        tied: the embedding's weight is the head's too, and stands twice in ``dense_layers``. Its
            tap is that of the embedding.
        activations: the type of the signals and of the products, such as ``jnp.bfloat16``;
            ``None`` is the parameters' own. Norms, softmax and rotations take float32 at least.

    Raises:
        ValueError: a size that is no whole number, heads that don't divide the width or are of an
            odd width, activations of no floating type, or inputs that are no whole numbers.
    """
    given = {"vocabulary": vocabulary, "width": width, "heads": heads, "depth": depth}
    _check_sizes("decoder", given | ({} if hidden is None else {"hidden": hidden}))
    check_heads("decoder", width, heads)
    if width // heads % 2:
        raise ValueError(
            f"rotary positions turn pairs, and {heads} heads of the width {width} of this decoder "
            f"have {width // heads} entries each: take a width of {width + heads}"
        )
    _check_activations(activations)
    inner = 8 * -(-width // 3) if hidden is None else hidden
    sizes = {}
    for i in range(depth):
        sizes[f"block_{i}_qkv"] = (width, 3 * width)
        sizes[f"block_{i}_projection"] = (width, width)
        sizes[f"block_{i}_gate"] = (width, inner)
        sizes[f"block_{i}_up"] = (width, inner)
        sizes[f"block_{i}_down"] = (inner, width)
    if not tied:
        sizes["head"] = (width, vocabulary)

    def init(key: jax.Array) -> Params:
        token_key, layer_key = jax.random.split(key)
        params = {"embedding": {"weight": _init_rows(token_key, vocabulary, width)}}
        for i in range(depth):
            params[f"block_{i}_norm_1"] = {"scale": jnp.ones(width)}
            params[f"block_{i}_norm_2"] = {"scale": jnp.ones(width)}
        params |= init_layers(layer_key, sizes, bias=False)
        return params | {"norm": {"scale": jnp.ones(width)}}

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = _ids("decoder", inputs)
        layer, layer_inputs, signal = _embed(params, ids, taps, sizes, activations)
        for i in range(depth):
            qkv = layer(f"block_{i}_qkv", rms_norm(params[f"block_{i}_norm_1"], signal))
            queries, keys, values = split_heads(qkv, heads)
            mixed = attention(rotate(queries), rotate(keys), values, causal=True)
            signal += layer(f"block_{i}_projection", mixed)
            normal = rms_norm(params[f"block_{i}_norm_2"], signal)
            gate = jax.nn.silu(layer(f"block_{i}_gate", normal))
            signal += layer(f"block_{i}_down", gate * layer(f"block_{i}_up", normal))
        signal = rms_norm(params["norm"], signal)
        table = params["embedding"]["weight"]
        logits = signal @ table.T.astype(signal.dtype) if tied else layer("head", signal)
        return logits.astype(table.dtype), layer_inputs

    names = ("embedding", *sizes, *(["embedding"] if tied else []))
    return Model(init, forward, names, embeddings=("embedding",))


def _check_sizes(model: str, sizes: dict[str, Any]) -> None:
    for name, size in sizes.items():
        checks.whole(f"{name} of the {model}", size)


def _check_activations(activations: Any) -> None:
    if activations is not None and not jnp.issubdtype(activations, jnp.floating):
        raise ValueError(
            f"activations must be of a floating type such as jnp.bfloat16, or None for the "
            f"parameters' own, got {activations}"
        )


def _init_rows(key: jax.Array, rows: int, width: int) -> jax.Array:
    return jax.random.normal(key, (rows, width)) * width**-0.5


def _ids(model: str, inputs: Any) -> jax.Array:
    ids = jnp.asarray(inputs)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"inputs of the {model} are tokens, whole numbers (B, T), got {ids.dtype} of shape "
            f"{ids.shape}: number the tokens from zero, as an integer array"
        )
    return ids


def _embed(params: Params, ids: Any, taps: dict, names: Any, activations: Any) -> tuple:
    """Tapped dense layers in the activations' type, their inputs, and the tokens' embeddings."""
    table = jnp.asarray(params["embedding"]["weight"])
    dtype = table.dtype if activations is None else activations
    cast = partial(jax.tree.map, partial(jnp.asarray, dtype=dtype))
    taps = cast(taps)
    layer, layer_inputs = tapped(cast({name: params[name] for name in names}), taps)
    layer_inputs["embedding"] = ids
    rows = table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return layer, layer_inputs, rows.astype(dtype) + taps.get("embedding", 0)
