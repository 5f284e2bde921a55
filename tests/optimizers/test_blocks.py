import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.linear_solvers import inverse_root
from soaa_edu.optimizers.blocks import (
    from_blocks,
    inverse_roots,
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


def definite_stack(rng, length, size):
    rows = rng.normal(size=(length, size, size + 2))
    return jnp.asarray(rows @ rows.swapaxes(1, 2), jnp.float32)


def roots_of(stacks, exponent, ridge=1e-6):
    return jax.jit(lambda stacks: inverse_roots(stacks, exponent, ridge))(stacks)


@pytest.mark.parametrize("exponent", [0.25, 0.3, 0.5, 1.0])
def test_roots_of_a_tree_are_matrix_by_matrix(rng, exponent):
    stacks = {
        "a": (definite_stack(rng, 1, 4), definite_stack(rng, 1, 3)),
        "b": (definite_stack(rng, 2, 3), definite_stack(rng, 2, 4)),
        "vector": (),
    }
    found = roots_of(stacks, exponent)
    assert jax.tree.structure(found) == jax.tree.structure(stacks)
    for roots, stack in zip(jax.tree.leaves(found), jax.tree.leaves(stacks)):
        for root, matrix in zip(roots, stack, strict=True):
            np.testing.assert_allclose(root, inverse_root(matrix, exponent, 1e-6), rtol=1e-4)
    assert roots_of({"vector": ()}, exponent) == {"vector": ()}


def lowered(platform, stacks, exponent):
    traced = jax.jit(lambda stacks: inverse_roots(stacks, exponent, 1e-6)).trace(stacks)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_gpu_takes_products_and_decomposes_only_what_they_fail_on(rng):
    stack = [definite_stack(rng, 2, 20)]
    by_products = lowered("cuda", stack, 0.25)
    assert by_products.index("coupled_newton") < by_products.index("syevd")
    assert by_products.count("syevd_ffi") == 1
    assert "HIGHEST" in by_products
    assert "lapack" not in by_products
    assert "coupled_newton" not in lowered("cuda", stack, 0.3)
    assert "coupled_newton" not in lowered("cpu", stack, 0.25)


def test_a_traced_exponent_may_be_any_number_and_takes_the_exact_form(rng):
    stack = definite_stack(rng, 1, 3)
    found = jax.jit(lambda e: inverse_roots([stack], e, 1e-6))(0.25)
    np.testing.assert_allclose(found[0][0], inverse_root(stack[0], 0.25, 1e-6), rtol=1e-5)
