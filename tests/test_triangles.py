import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.linear_solvers.triangles import inverse_of_definite, solve_lower

FACTOR = re.compile(r"potrf[^\n]*tensor<(\d+)x")


def definite(rng, size, condition):
    vectors, _ = np.linalg.qr(rng.normal(size=(size, size)))
    matrix = (vectors * np.geomspace(1, 1 / condition, size)) @ vectors.T
    return (matrix + matrix.T) / 2


def lowered(platform, function, *arguments):
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("size", [1, 60, 61, 245])
def test_the_inverse_is_the_inverse(float64, rng, size):
    matrix = definite(rng, size, 1e3)
    found = jax.jit(inverse_of_definite)(matrix)
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("condition", [1e2, 1e5])
def test_the_inverse_loses_no_more_digits_than_lapacks(rng, condition):
    matrix = jnp.asarray(definite(rng, 200, condition), jnp.float32)
    exact = np.linalg.inv(np.asarray(matrix, np.float64))
    lapacks = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), jnp.eye(200))
    error, usual = (
        np.linalg.norm(found - exact) for found in (jax.jit(inverse_of_definite)(matrix), lapacks)
    )
    assert error < 2 * usual


def test_a_matrix_that_is_not_definite_has_no_inverse(rng):
    matrix = jnp.asarray(definite(rng, 130, 10)).at[100, 100].set(-1)
    assert not np.any(np.isfinite(jax.jit(inverse_of_definite)(matrix)))


@pytest.mark.parametrize("size", [1, 60, 61, 245])
def test_a_triangle_solves(float64, rng, size):
    lower = np.tril(rng.normal(size=(size, size)) / size) + np.diag(rng.uniform(1, 2, size))
    right = rng.normal(size=(size, 3))
    found = jax.jit(solve_lower)(lower, right)
    np.testing.assert_allclose(lower @ found, right, atol=1e-12)


def test_what_stands_above_the_diagonal_is_not_read(rng):
    matrix, right = rng.normal(size=(70, 70)) + 9 * np.eye(70), rng.normal(size=(70, 2))
    both = [jax.jit(solve_lower)(lower, right) for lower in (matrix, np.tril(matrix))]
    np.testing.assert_array_equal(*both)


def test_on_a_cpu_lapack_sees_only_what_it_does_without_threads():
    whole, right = jax.ShapeDtypeStruct((300, 300), "float32"), jnp.ones((300, 5))
    inverse, solved = (
        lowered("cpu", *call)
        for call in ((inverse_of_definite, whole), (solve_lower, whole, right))
    )
    sizes = [int(size) for size in FACTOR.findall(inverse)]
    assert sizes
    assert max(sizes) < 64
    assert "trsm" not in inverse + solved
    assert "lapack" not in solved


def test_elsewhere_the_usual_solver_takes_the_whole_matrix():
    text = lowered("cuda", inverse_of_definite, jax.ShapeDtypeStruct((300, 300), "float32"))
    assert text.count("potrf") == 1


def test_numpy_arrays_do_without_a_compiler(float64, rng):
    lower, v = np.tril(rng.normal(size=(5, 5))) + 3 * np.eye(5), rng.normal(size=(5, 2))
    np.testing.assert_allclose(solve_lower(lower, v), np.linalg.solve(lower, v), rtol=1e-12)
    matrix = definite(rng, 5, 10.0)
    np.testing.assert_allclose(inverse_of_definite(matrix), np.linalg.inv(matrix), rtol=1e-10)
