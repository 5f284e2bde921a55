import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power

from soaa_edu.matrix_roots import inverse_root


def definite(rng, size, condition=1e3):
    """A symmetric positive definite matrix with the given condition number."""
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (q * np.geomspace(1 / condition, 1, size)) @ q.T


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_the_root_is_scipys_of_the_matrix_with_its_ridge(float64, rng, exponent, ridge):
    matrix = 7 * definite(rng, 6)
    expected = fractional_matrix_power(matrix + 7 * ridge * np.eye(6), -exponent)
    found = jax.jit(inverse_root)(matrix, exponent, ridge)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_float32_keeps_its_type_and_is_close(rng):
    matrix = definite(rng, 6, 100)
    found = inverse_root(jnp.asarray(matrix, jnp.float32), 0.25, 1e-6)
    expected = fractional_matrix_power(matrix + 1e-6 * np.eye(6), -0.25)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_stack_is_matrix_by_matrix(float64, rng):
    stack = np.array([[definite(rng, 4), 1e-3 * definite(rng, 4)]])
    found = inverse_root(stack, 0.25, 1e-6)
    expected = [[inverse_root(matrix, 0.25, 1e-6) for matrix in row] for row in stack]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_a_scaled_matrix_has_a_scaled_root(rng, factor):
    matrix = jnp.asarray(definite(rng, 5), jnp.float32).at[0].set(0).at[:, 0].set(0)
    found = inverse_root(jnp.float32(factor) * matrix, 0.25, 1e-6) * factor**0.25
    expected = inverse_root(matrix, 0.25, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_a_singular_matrix_in_float32_is_as_large_as_the_ridge_lets_it(rng):
    low_rank = jnp.asarray(rng.normal(size=(50, 3)), jnp.float32)
    largest = np.linalg.norm(low_rank, 2) ** 2
    found = inverse_root(low_rank @ low_rank.T, 0.25, 1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, 2), (1e-6 * largest) ** -0.25, rtol=0.1)


def test_the_zero_matrix_gives_the_identity():
    stack = jnp.stack([jnp.zeros((3, 3)), 16 * jnp.eye(3)])
    found = jax.jit(inverse_root)(stack, 0.25, 1e-6)
    np.testing.assert_allclose(found, np.array([1, 0.5])[:, None, None] * np.eye(3), rtol=1e-5)


def test_negative_eigenvalues_count_as_zero(float64):
    found = inverse_root(jnp.diag(jnp.array([1.0, -1e-9])), 0.5, 1e-4)
    np.testing.assert_allclose(found, np.diag([1, 100]), rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_comes_out_as_nan(bad):
    found = jax.jit(inverse_root)(jnp.eye(40).at[3, 3].set(bad), 0.25, 1e-6)
    assert np.isnan(found).any()


def test_numbers_out_of_their_range_are_refused():
    with pytest.raises(ValueError, match="exponent must be a finite number above zero"):
        inverse_root(jnp.eye(2), 0.0, 1e-6)
    with pytest.raises(ValueError, match="ridge must be a finite number, zero or more"):
        inverse_root(jnp.eye(2), 0.25, -1.0)
