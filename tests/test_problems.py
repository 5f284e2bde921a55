import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from soaa_edu.problems import quadratic, random_quadratic, rosenbrock, saddle

A = np.array([[2.0, 1.0], [1.0, 3.0]])
B = np.array([1.0, -2.0])


def test_a_quadratic_is_half_x_a_x_less_b_x(float64, rng):
    x = rng.normal(size=2)
    np.testing.assert_allclose(quadratic(A, B)(x), 0.5 * x @ A @ x - B @ x, rtol=1e-14)


def test_the_solution_of_a_quadratic_solves_its_linear_system(float64):
    np.testing.assert_allclose(quadratic(A, B).solution, np.linalg.solve(A, B), rtol=1e-14)


@pytest.mark.parametrize("eigenvalues", [(-1.0, 2.0), (0.0, 2.0), (-1.0, -2.0), (0.0, 0.0)])
def test_a_quadratic_that_is_not_positive_definite_has_no_solution(eigenvalues):
    assert quadratic(np.diag(eigenvalues), B).solution is None


def test_a_quadratic_takes_whole_numbers():
    problem = quadratic([[2, 0], [0, 4]], [2, 4])
    np.testing.assert_array_equal(problem.solution, [1, 1])
    np.testing.assert_array_equal(jax.grad(problem)(jnp.zeros(2)), [-2, -4])


@pytest.mark.parametrize(
    "matrix, b, message",
    [
        (np.ones((2, 3)), B, "needs a matrix"),
        (np.ones(2), B, "needs a matrix"),
        (A, np.ones(3), "needs a matrix"),
        (A, np.ones((2, 1)), "needs a matrix"),
        ([[1.0, 2.0], [0.0, 1.0]], B, "not symmetric"),
    ],
)
def test_a_quadratic_refuses_what_is_not_one(matrix, b, message):
    with pytest.raises(ValueError, match=message):
        quadratic(matrix, b)


def test_a_quadratic_takes_a_matrix_symmetric_to_float32_rounding(rng):
    vectors, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    rounded = np.float32(vectors * np.linspace(1, 2, 40)) @ np.float32(vectors.T)
    assert not np.array_equal(rounded, rounded.T)
    assert quadratic(rounded, np.ones(40)).solution is not None


def test_a_random_quadratic_has_the_given_eigenvalues(float64):
    eigenvalues = [1e-2, 1.0, 1e2]
    problem = random_quadratic(jax.random.key(0), eigenvalues)
    hessian = jax.jit(jax.hessian(problem))(jnp.zeros(3))
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), eigenvalues, rtol=1e-11)
    np.testing.assert_allclose(jax.jit(jax.grad(problem))(problem.solution), 0, atol=1e-12)


def test_random_quadratics_differ_with_the_key():
    first, second = (random_quadratic(jax.random.key(seed), [1.0, 2.0, 4.0]) for seed in (0, 1))
    e1, zero = jnp.eye(3)[0], jnp.zeros(3)
    curvatures = [problem(e1) + problem(-e1) - 2 * problem(zero) for problem in (first, second)]
    slopes = [problem(e1) - problem(-e1) for problem in (first, second)]
    assert not np.isclose(*curvatures)
    assert not np.isclose(*slopes)


@pytest.mark.parametrize("dtype, size", [("float32", 3), ("float64", 100)])
def test_a_zero_eigenvalue_leaves_no_solution_even_where_rounding_lifts_it(
    float64, rng, dtype, size
):
    for _ in range(30):
        vectors, _ = np.linalg.qr(rng.normal(size=(size, size)))
        matrix = (vectors * np.linspace(0, 2, size)) @ vectors.T
        matrix = ((matrix + matrix.T) / 2).astype(dtype)
        assert quadratic(matrix, np.ones(size, dtype)).solution is None


@pytest.mark.parametrize("dimensions", [2, 5])
def test_rosenbrock_is_scipys_and_ones_solve_it(float64, rng, dimensions):
    x = rng.normal(size=dimensions)
    np.testing.assert_allclose(rosenbrock(x), scipy.optimize.rosen(x), rtol=1e-13)
    assert rosenbrock(np.ones(dimensions)) == 0


def test_rosenbrocks_declared_solution_is_its_minimum():
    np.testing.assert_array_equal(rosenbrock.solution, [1, 1])


def test_the_saddle_is_one_between_two_minima():
    points = np.array([[0.0, 0.0], saddle.solution, -saddle.solution])
    look = jax.jit(jax.vmap(lambda x: (saddle(x), jax.grad(saddle)(x), jax.hessian(saddle)(x))))
    values, gradients, hessians = look(points)
    np.testing.assert_array_equal(values, [0, -0.25, -0.25])
    assert not np.any(gradients)
    np.testing.assert_array_equal(np.linalg.eigvalsh(hessians), [[-1, 1], [1, 2], [1, 2]])


@pytest.mark.parametrize("problem", [quadratic(A, B), rosenbrock, saddle])
def test_a_problem_ignores_its_batch(problem):
    x = np.array([0.5, 2.0])
    assert problem(x, (np.ones(3), np.ones(3))) == problem(x)
