import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import operations
from scipy.linalg import fractional_matrix_power

from soaa_edu.linear_solvers import coupled_newton, inverse_root, inverse_root_by_products, roots


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


def low_rank(rng, size, rank):
    """Of many parameters a gradient sees few: the rest of the spectrum is the ridge."""
    rows = rng.normal(size=(size, rank))
    return rows @ rows.T


def float64_root(matrix, p, ridge):
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    ridged = np.maximum(values, 0) + ridge * values[-1]
    return (vectors * ridged ** (-1 / p)) @ vectors.T


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_products_give_the_root_in_float64(float64, rng, p, ridge):
    matrix = 7 * definite(rng, 6)
    found = coupled_newton(jnp.asarray(matrix), p, ridge)
    expected = fractional_matrix_power(matrix + 7 * ridge * np.eye(6), -1 / p)
    assert relative_error(found.root, expected) < 1e-11
    assert found.residual < 1e-9


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("condition, most", [(1e2, 10), (1e4, 16), (1e6, 22)])
def test_in_float32_products_lose_no_more_than_the_eigenvalues_do(rng, p, condition, most):
    matrix = jnp.asarray(definite(rng, 64, condition), jnp.float32)
    expected = float64_root(matrix, p, 0)
    found = coupled_newton(matrix, p, 0.0)
    error = relative_error(found.root, expected)
    assert error < condition * np.finfo(np.float32).eps / 8
    assert error < relative_error(inverse_root(matrix, 1 / p, 0.0), expected)
    assert found.iterations <= most


@pytest.mark.parametrize("p", [2, 4])
def test_the_ridge_bounds_what_a_singular_matrix_asks_for(rng, p):
    matrix = jnp.asarray(low_rank(rng, 64, 9), jnp.float32)
    found = coupled_newton(matrix, p, 1e-6)
    assert relative_error(found.root, float64_root(matrix, p, 1e-6)) < 0.02
    assert found.iterations <= 22
    assert found.residual < 0.1


def test_the_largest_eigenvalue_is_found_among_many_near_it(rng):
    near = np.linspace(0.99, 1, 64)
    q, _ = np.linalg.qr(rng.normal(size=(128, 128)))
    matrix = (q * np.concatenate([np.zeros(64), near])) @ q.T
    matrix = jnp.asarray(matrix, jnp.float32)
    found = coupled_newton(matrix, 2, 1e-2).root
    assert relative_error(found, float64_root(matrix, 2, 1e-2)) < 5e-4


def decompositions(monkeypatch):
    """A list that grows by one with every decomposition of an inverse root that runs."""
    ran, plain = [], roots.inverse_root

    def counted(matrix, exponent, ridge):
        jax.debug.callback(lambda _: ran.append(matrix.shape), matrix[0, 0])
        return plain(matrix, exponent, ridge)

    monkeypatch.setattr(roots, "inverse_root", counted)
    return ran


def test_good_bad_and_broken_matrices_go_together_and_the_bad_alone_are_decomposed(
    float64, rng, monkeypatch
):
    good, scaled = low_rank(rng, 12, 30), 1e-20 * low_rank(rng, 12, 5)
    indefinite = definite(rng, 12) - 1e-2 * np.eye(12)
    broken = definite(rng, 12)
    broken[3, 3] = np.nan
    stack = jnp.array([good, indefinite, np.zeros((12, 12)), broken, scaled])
    ran = decompositions(monkeypatch)
    found = jax.block_until_ready(inverse_root_by_products(stack, 4, 1e-5))
    jax.effects_barrier()
    assert ran == [(12, 12)]
    np.testing.assert_array_equal(found[2], np.eye(12))
    assert np.isnan(found[3]).all()
    for i in (0, 1, 4):
        assert relative_error(found[i], inverse_root(stack[i], 0.25, 1e-5)) < 1e-7


def test_a_singular_matrix_without_a_ridge_is_decomposed(float64, rng):
    matrix = np.diag([1.0, 1e-3, 0.0])
    found = inverse_root_by_products(jnp.asarray(matrix), 2, 0.0)
    np.testing.assert_array_equal(found, inverse_root(matrix, 0.5, 0.0))


@pytest.mark.parametrize("axes", [(0, None), (0, 0), (None, 0)])
def test_under_vmap_it_is_the_same_and_no_lane_decomposes(float64, rng, monkeypatch, axes):
    stack = jnp.asarray([[low_rank(rng, 5, 9), low_rank(rng, 5, 2)]] * 3)
    ridges = jnp.array([1e-5, 1e-4, 1e-3])
    matrices, ridge = (a if axis == 0 else a[0] for a, axis in zip((stack, ridges), axes))
    ran = decompositions(monkeypatch)
    root = jax.jit(lambda a, ridge: inverse_root_by_products(a, 4, ridge))
    found = jax.block_until_ready(jax.vmap(root, in_axes=axes)(matrices, ridge))
    jax.effects_barrier()
    assert ran == []
    for i in range(3):
        a, r = (x[i] if axis == 0 else x for x, axis in zip((matrices, ridge), axes))
        np.testing.assert_allclose(found[i], root(a, r), rtol=1e-8, atol=1e-8)


def test_under_two_vmaps_what_is_decomposed_is_still_decided_under_a_cond():
    stack = jnp.ones((2, 3, 4, 4))
    twice = jax.vmap(jax.vmap(lambda a: inverse_root_by_products(a, 4, 1e-6)))
    within = [outer for e, outer in operations(twice, stack) if e.primitive.name == "eigh"]
    assert within
    assert all(outer.count("cond") == 2 for outer in within)


def test_a_single_number_is_a_matrix():
    found = inverse_root_by_products(jnp.full((1, 1), 16.0), 4, 1e-6)
    np.testing.assert_allclose(found, 0.5, rtol=1e-5)


def test_products_refuse_what_they_cannot_take():
    with pytest.raises(ValueError, match="p must be a whole number of one or more"):
        inverse_root_by_products(jnp.eye(2), 0.5, 1e-6)
    with pytest.raises(ValueError, match="ridge must be a finite number, zero or more"):
        inverse_root_by_products(jnp.eye(2), 2, -1.0)


def test_its_derivative_is_that_of_the_exact_root(float64, rng):
    matrix = jnp.asarray(definite(rng, 5, 30))

    def through(root):
        return jax.grad(lambda a: jnp.sum(jnp.sin(root(a))))(matrix)

    found = through(lambda a: inverse_root_by_products(a, 4, 1e-3))
    expected = through(lambda a: inverse_root(a, 0.25, 1e-3))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
