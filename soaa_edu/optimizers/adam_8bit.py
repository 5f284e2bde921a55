"""Adam with both moments in one byte a number."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soaa_edu import checks
from soaa_edu.optimizers.transformations import alias, transformation

BLOCK = 256


class Quantized(NamedTuple):
    """An array in blocks of 256 numbers, or in one block if it has fewer.

    Attributes:
        codes: positions in a codebook, uint8, ``(blocks, 256)``; the last block ends in zeros.
        scales: the largest absolute value of each block, float32, ``(blocks, 1)``.
    """

    codes: jax.Array
    scales: jax.Array


class Adam8bitState(NamedTuple):
    """What 8-bit Adam remembers.

    Attributes:
        steps: how many were taken.
        first_moment: of each array, ``Quantized`` with the signed codebook.
        second_moment: likewise, with the unsigned one.
    """

    steps: jax.Array
    first_moment: Any
    second_moment: Any


def adam_8bit(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    mask: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """8-bit Adam: θ ← θ - α (m̂ / (√v̂ + eps) + ω θ), an optax transformation.

    Args:
        learning_rate: α, a number or an optax schedule.
        weight_decay: ω, decoupled.
        mask: of the arrays that decay, as optax has it; all by default.
        b1: this and the rest as in ``scale_by_adam_8bit``.
        b2: likewise.
        eps: likewise.

    Raises:
        ValueError: a number out of its range.
    """
    return alias(scale_by_adam_8bit(b1=b1, b2=b2, eps=eps), learning_rate, weight_decay, mask)


def scale_by_adam_8bit(
    *, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """8-bit Adam's direction, an optax transformation (Dettmers et al. 2021).

    Adam in float32, of whatever type the parameters are, whose moments spend the time between two
    steps quantized, block by block:

        m = b1 deq(m₈) + (1 - b1) g        v = b2 deq(v₈) + (1 - b2) g²
        d = m̂ / (√v̂ + eps)                 m₈, v₈ = q(m), q(v)

    For every 256 numbers the state has 2 · (256 + 4) bytes, where Adam's has 2 · 4 · 256. The
    paper's blocks have 2,048 numbers. Every array is quantized, however small.

    A number whose gradient stays thousands of times below the largest of its block moves more
    slowly than Adam would move it, since the codebook can't tell how small its v is.

    Args:
        b1: decay of m.
        b2: decay of v.
        eps: Adam's.

    Raises:
        ValueError: a number out of its range.
    """
    b1 = checks.fraction("b1", b1)
    b2 = checks.fraction("b2", b2)
    eps = checks.positive("eps", eps)

    def init(params: Any) -> Adam8bitState:
        moment = jax.tree.map(_quantized_zeros, params)
        return Adam8bitState(jnp.zeros((), jnp.int32), moment, optax.tree.zeros_like(moment))

    def update(
        gradients: Any, state: Adam8bitState, params: Any = None, **_: Any
    ) -> tuple[Any, Adam8bitState]:
        steps = optax.safe_increment(state.steps)
        blocks = jax.tree.map(_blocks, gradients)
        m = jax.tree.map(lambda _, q: dequantize(q, signed=True), blocks, state.first_moment)
        v = jax.tree.map(lambda _, q: dequantize(q, signed=False), blocks, state.second_moment)
        m = optax.tree.update_moment(blocks, m, b1, 1)
        v = optax.tree.update_moment(blocks, v, b2, 2)
        m_hat = optax.tree.bias_correction(m, b1, steps)
        v_hat = optax.tree.bias_correction(v, b2, steps)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m_hat, v_hat)
        return jax.tree.map(_from_blocks, direction, gradients), Adam8bitState(
            steps,
            jax.tree.map(lambda m: quantize(m, signed=True), m),
            jax.tree.map(lambda v: quantize(v, signed=False), v),
        )

    return transformation(init, update)


def quantize(blocks: jax.Array, signed: bool) -> Quantized:
    """Each number, over the largest of its block, as the nearest value of the codebook.

    The result is off by at most half the gap between the two values around it, times the scale.
    Without signs a positive number, however small, becomes no less than the smallest positive
    value, 3.25e-7 of the largest of its block: a v stored as zero would leave m to be divided by
    little more than eps (Li, Chen & Zhu 2023 call it the zero-point problem).

    Args:
        blocks: ``(blocks, length)``, not negative unless ``signed``.
        signed: which codebook.
    """
    book = codebook(signed)
    blocks = blocks.astype(jnp.float32)
    scales = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    relative = blocks / jnp.where(scales > 0, scales, 1)
    leading_bits = jax.lax.bitcast_convert_type(relative, jnp.uint32) >> 16
    lowest = jnp.asarray(book.lowest)[leading_bits]
    above = relative > jnp.asarray(book.borders)[lowest]
    return Quantized(lowest + above.astype(jnp.uint8), scales)


def dequantize(quantized: Quantized, signed: bool) -> jax.Array:
    """The numbers, float32, ``(blocks, length)``, that the codes stand for."""
    return jnp.asarray(codebook(signed).values)[quantized.codes] * quantized.scales


class Codebook(NamedTuple):
    """What a byte can stand for, and the way from a number to its byte.

    Attributes:
        values: of each code, rising, ``(256,)``.
        borders: the largest number that still gets a code, ``(256,)``.
        lowest: the lowest code of all float32 numbers that share their 16 leading bits,
            ``(65536,)``. Between -1 and 1 such numbers have at most two codes.
    """

    values: np.ndarray
    borders: np.ndarray
    lowest: np.ndarray


@cache
def codebook(signed: bool) -> Codebook:
    """The dynamic data type: a few zeros choose a decade, the bits left divide it evenly.

    After the sign, z zeros and a one, the other bits k are a fraction between 0.1 and 1:

        10⁻ᶻ (0.1 + 0.9 (k + ½) / 2ᵇ),    z = 0, …, 6,    b = 6 - z, or 7 - z without a sign

    The two codes left over are 0 and 1, so that the largest number of a block is kept exactly if it
    is positive. -1 is not there: its place is taken by -0.993.
    """
    bits = 6 if signed else 7
    decades = [
        10.0**-z * (0.1 + 0.9 * (np.arange(2 ** (bits - z)) + 0.5) / 2 ** (bits - z))
        for z in range(7)
    ]
    positive = np.concatenate(decades)
    values = np.sort(np.concatenate([-positive if signed else [], [0], positive, [1]]))
    borders = np.append((values[:-1] + values[1:]) / 2, np.inf).astype(np.float32)
    if not signed:
        borders[0] = 0
    bits_kept = np.arange(2**16, dtype=np.uint32) << 16
    least = np.where(bits_kept < 2**31, bits_kept, bits_kept | 0xFFFF).view(np.float32)
    lowest = np.searchsorted(borders[:-1], least).astype(np.uint8)
    return Codebook(values.astype(np.float32), borders, lowest)


def _blocks(array: jax.Array) -> jax.Array:
    """In float32, ``(blocks, 256)``, or ``(1, size)`` if that is shorter."""
    length = min(BLOCK, array.size) or BLOCK
    flat = array.astype(jnp.float32).reshape(-1)
    return jnp.pad(flat, (0, -array.size % length)).reshape(-1, length)


def _from_blocks(blocks: jax.Array, like: jax.Array) -> jax.Array:
    return blocks.reshape(-1)[: like.size].reshape(like.shape).astype(like.dtype)


def _quantized_zeros(like: jax.Array) -> Quantized:
    blocks = _blocks(like)
    return Quantized(jnp.zeros_like(blocks, jnp.uint8), jnp.zeros_like(blocks[:, :1], jnp.float32))
