import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import squared_error
from soaa_edu.curvature import (
    CURVATURES,
    check_curvature,
    curvature_matvec,
    damped,
    dense,
    empirical_fisher_diagonal,
    empirical_fisher_matvec,
    gauss_newton_matvec,
    hessian_matvec,
    hutchinson_diagonal,
    jacobian,
)
from soaa_edu.problems import rosenbrock


@pytest.mark.parametrize("curvature", CURVATURES)
def test_an_objective_has_either_curvature(classifier, curvature):
    assert check_curvature(classifier()[0], curvature) is None


def test_any_function_has_a_hessian():
    assert check_curvature(rosenbrock, "hessian") is None


def test_an_unknown_curvature_is_refused(classifier):
    with pytest.raises(ValueError, match="must be one of 'hessian', 'gauss_newton', got 'fisher'"):
        check_curvature(classifier()[0], "fisher")


def test_gauss_newton_of_a_function_is_refused_with_what_to_give_instead():
    with pytest.raises(TypeError, match=r"Gauss-Newton needs soaa_edu.Objective\(model, loss\)"):
        check_curvature(rosenbrock, "gauss_newton")


@pytest.mark.parametrize("places", [(6,), (3, 2)], ids=["flat", "sequences"])
def test_the_jacobian_has_a_row_for_each_output_and_parameters_in_their_order(
    classifier, rng, places
):
    objective, params = classifier((4, 3, 3))
    inputs = rng.normal(size=(*places, 4))
    flat, unravel = ravel_pytree(params)
    expected = jax.jit(jax.jacfwd(lambda x: objective.model(unravel(x), inputs).ravel()))(flat)
    found = jax.jit(lambda p: jacobian(objective.model, p, inputs))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_curvature_is_found_by_its_name(classifier, rng, curvature):
    objective, params = classifier((4, 3, 3))
    batch = rng.normal(size=(6, 4)), rng.integers(3, size=6)

    @jax.jit
    def matrices(params):
        if curvature == "hessian":
            expected = hessian_matvec(lambda p: objective(p, batch), params)
        else:
            expected = gauss_newton_matvec(objective, params, batch)
        found = curvature_matvec(objective, params, batch, curvature)
        return dense(found, params), dense(expected, params)

    np.testing.assert_array_equal(*matrices(params))


def test_damping_adds_a_multiple_of_the_identity(float64, rng):
    matrix = jnp.asarray(rng.normal(size=(5, 5)))
    _, unravel = ravel_pytree({"a": jnp.zeros(2), "b": jnp.zeros(3)})

    def matvec(v):
        return unravel(matrix @ ravel_pytree(v)[0])

    found = dense(damped(matvec, 0.3), unravel(jnp.zeros(5)))
    np.testing.assert_allclose(found, matrix + 0.3 * np.eye(5), rtol=1e-15)


@pytest.mark.parametrize("size", [1, 7, 33, 64])
def test_the_empirical_fishers_diagonal_is_the_dense_ones(classifier, rng, size):
    objective, params = classifier((4, 3, 3))
    batch = rng.normal(size=(size, 4)), rng.integers(3, size=size)

    @jax.jit
    def diagonals(params):
        found = empirical_fisher_diagonal(objective, params, batch)
        matrix = dense(empirical_fisher_matvec(objective, params, batch), params)
        return found, jnp.diag(matrix)

    found, expected = diagonals(params)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-12)


def test_the_diagonal_takes_each_position_as_an_example(classifier, rng):
    objective, params = classifier((4, 3), loss=squared_error)
    inputs, targets = rng.normal(size=(5, 2, 4)), rng.normal(size=(5, 2, 3))
    found = jax.jit(lambda p, b: empirical_fisher_diagonal(objective, p, b))(
        params, (inputs, targets)
    )
    weight, bias = params["dense_0"]["weight"], params["dense_0"]["bias"]
    residual = inputs @ weight + bias - targets
    gradients = np.einsum("btn,btm->btnm", inputs, residual)
    of_weight = (gradients**2).mean(axis=(0, 1))
    np.testing.assert_allclose(found["dense_0"]["weight"], of_weight, rtol=1e-12)
    of_bias = (residual**2).mean(axis=(0, 1))
    np.testing.assert_allclose(found["dense_0"]["bias"], of_bias, rtol=1e-12)


def test_hutchinsons_estimate_is_exact_where_the_hessian_is_diagonal(float64, rng):
    params = {"a": jnp.asarray(rng.normal(size=3)), "b": jnp.asarray(rng.normal())}
    found = hutchinson_diagonal(
        lambda p: jnp.sum(jnp.cosh(p["a"])) + p["b"] ** 3, params, jax.random.key(0)
    )
    np.testing.assert_allclose(found["a"], np.cosh(params["a"]))
    np.testing.assert_allclose(found["b"], 6 * params["b"])


def test_hutchinsons_estimate_has_the_mean_and_the_variance_that_it_says(float64, rng):
    hessian = rng.normal(size=(5, 5))
    hessian = jnp.asarray(hessian + hessian.T)
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(
        lambda key: hutchinson_diagonal(lambda x: x @ hessian @ x / 2, jnp.ones(5), key, probes=2)
    )(keys)
    diagonal = np.diag(hessian)
    variance = (np.sum(np.square(hessian), axis=1) - diagonal**2) / 2
    np.testing.assert_allclose(found.mean(axis=0), diagonal, atol=0.2)
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.15)
    with pytest.raises(ValueError, match="probes must be a whole number of one or more"):
        hutchinson_diagonal(lambda x: x @ x, jnp.ones(2), keys[0], probes=0)
