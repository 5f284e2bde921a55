import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.optimizers.blocks import (
    from_blocks,
    is_matrix,
    one_at_a_time,
    second_moments,
    to_blocks,
)

SHAPES = [(), (5,), (0,), (3, 0), (4, 6), (1, 7), (7, 1), (9, 10), (3, 3, 2, 5), (2, 1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 100])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_blocks_put_together_again_are_the_array_exactly(rng, shape, block_size, dtype):
    leaf = jnp.asarray(rng.normal(size=shape), dtype)
    blocks = to_blocks(leaf, block_size)
    back = from_blocks(blocks, leaf)
    assert blocks.dtype == np.float32
    assert back.dtype == leaf.dtype
    np.testing.assert_array_equal(back, leaf)


@pytest.mark.parametrize(
    "shape, block_size, expected",
    [
        ((784, 256), 1024, (1, 784, 256)),
        ((784, 256), 256, (4, 196, 256)),
        ((10, 7), 4, (6, 4, 4)),
        ((3, 3, 2, 5), 100, (1, 18, 5)),
        ((5,), 2, (5,)),
        ((), 2, ()),
    ],
)
def test_axes_are_merged_and_split_into_the_fewest_equal_parts(shape, block_size, expected):
    assert to_blocks(jnp.zeros(shape), block_size).shape == expected


def test_a_block_is_a_part_of_the_matrix_and_padding_is_zero(rng):
    matrix = rng.normal(size=(2, 5, 7)).astype(np.float32)
    padded = np.zeros((12, 8), np.float32)
    padded[:10, :7] = matrix.reshape(10, 7)
    expected = [padded[i : i + 4, j : j + 4] for i in (0, 4, 8) for j in (0, 4)]
    np.testing.assert_array_equal(to_blocks(jnp.asarray(matrix), 4), expected)


def test_float64_stays_float64(float64):
    assert to_blocks(jnp.ones((2, 2)), 8).dtype == np.float64


def test_matrices_have_two_axes_and_something_in_them():
    found = [is_matrix(jnp.zeros(shape)) for shape in SHAPES]
    assert found == [False, False, False, False, True, True, True, True, True, True]


def test_second_moments_are_products_of_each_block_and_nothing_for_a_vector(rng):
    blocks = rng.normal(size=(2, 3, 4)).astype(np.float32)
    left, right = second_moments(jnp.asarray(blocks))
    np.testing.assert_allclose(left, [g @ g.T for g in blocks], rtol=1e-5)
    np.testing.assert_allclose(right, [g.T @ g for g in blocks], rtol=1e-5)
    assert second_moments(jnp.ones(3)) == ()


def test_cutting_works_compiled_and_batched(rng):
    leaves = jnp.asarray(rng.normal(size=(3, 5, 7)), jnp.float32)

    @jax.jit
    @jax.vmap
    def there_and_back(leaf):
        return from_blocks(to_blocks(leaf, 4), leaf)

    np.testing.assert_array_equal(there_and_back(leaves), leaves)


@pytest.mark.parametrize("length", [1, 3])
def test_matrices_are_decomposed_one_at_a_time(rng, length):
    stack = rng.normal(size=(length, 4, 4)).astype("float32")
    symmetric = jnp.asarray(stack @ stack.swapaxes(1, 2))

    def both(matrix):
        assert matrix.shape == (4, 4)
        return jnp.linalg.eigh(matrix)

    values, vectors = one_at_a_time(both, symmetric)
    expected = np.linalg.eigvalsh(np.asarray(symmetric))
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
    assert vectors.shape == symmetric.shape
