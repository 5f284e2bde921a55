from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, newton, softmax_cross_entropy, squared_error
from soaa_edu.models import Model, mlp
from soaa_edu.optimizers.newton import push_through_solve

MODEL = mlp([12, 5, 4], jnp.tanh)
ENTROPY, SQUARE = (Objective(MODEL, loss) for loss in (softmax_cross_entropy, squared_error))
UNDECLARED = Objective(Model(MODEL.init, MODEL.forward, MODEL.dense_layers), softmax_cross_entropy)
every_loss = pytest.mark.parametrize("objective", [ENTROPY, SQUARE], ids=["entropy", "square"])


@pytest.fixture
def draw(classifier, rng):
    """Parameters of a network, 89 in all, and a batch of these places."""
    params = classifier()[1]

    def network(objective, *places):
        labels = rng.integers(4, size=places)
        values = rng.normal(size=(*places, 4))
        targets = values if objective is SQUARE else labels
        return params, (jnp.asarray(rng.normal(size=(*places, 12))), jnp.asarray(targets))

    return network


@partial(jax.jit, static_argnames="objective")
def jacobian_and_output_derivatives(params, batch, objective):
    """J, and the gradient r and the Hessian S of the mean loss in the outputs."""
    flat, unravel = ravel_pytree(params)
    inputs, targets = batch

    def loss(z):
        return objective.loss(z.reshape(*inputs.shape[:-1], 4), targets)

    jacobian = jax.jacobian(lambda x: objective.model(unravel(x), inputs).ravel())(flat)
    z = objective.model(params, inputs).ravel()
    return jacobian, jax.grad(loss)(z), jax.hessian(loss)(z)


def dense_solution(params, batch, damping, objective):
    """(JᵀSJ + λI)⁻¹ Jᵀr."""
    j, r, s = map(np.asarray, jacobian_and_output_derivatives(params, batch, objective))
    return np.linalg.solve(j.T @ s @ j + damping * np.eye(j.shape[1]), j.T @ r)


@partial(jax.jit, static_argnames="objective")
def pushed(params, batch, damping, objective):
    solution = push_through_solve(objective, params, batch, damping)
    return ravel_pytree(solution)[0]


@partial(jax.jit, static_argnames="objective")
def newton_direction(params, batch, damping, objective):
    optimizer = newton(objective, damping=damping, curvature="gauss_newton")
    after, _, info = optimizer.step(params, (), batch, None)
    return ravel_pytree(params)[0] - ravel_pytree(after)[0], info


@every_loss
@pytest.mark.parametrize("places", [(6,), (3, 2)], ids=["flat", "sequences"])
@pytest.mark.parametrize("damping, relative", [(4.0, 1e-13), (1e-2, 1e-11), (1e-6, 1e-6)])
def test_it_is_the_dense_damped_step(draw, objective, places, damping, relative):
    params, batch = draw(objective, *places)
    found = pushed(params, batch, damping, objective)
    expected = dense_solution(params, batch, damping, objective)
    assert np.linalg.norm(found - expected) <= relative * np.linalg.norm(expected)


@every_loss
def test_more_outputs_than_parameters_make_no_difference(draw, objective):
    params, batch = draw(objective, 30)
    found = pushed(params, batch, 1e-2, objective)
    expected = dense_solution(params, batch, 1e-2, objective)
    assert np.linalg.norm(found - expected) <= 1e-11 * np.linalg.norm(expected)


def test_softmaxs_output_hessian_is_singular_and_the_small_damping_limit_still_exists(draw):
    params, batch = draw(ENTROPY, 6)
    j, r, s = map(np.asarray, jacobian_and_output_derivatives(params, batch, ENTROPY))
    assert np.linalg.matrix_rank(s, tol=1e-12) == 18 < len(s)
    found = pushed(params, batch, 1e-9, ENTROPY)
    limit = np.linalg.pinv(j.T @ s @ j, rcond=1e-9, hermitian=True) @ (j.T @ r)
    assert np.linalg.norm(found - limit) <= 1e-4 * np.linalg.norm(limit)


def test_a_huge_damping_gives_the_gradient_over_it(draw):
    params, batch = draw(ENTROPY, 6)
    gradient = ravel_pytree(jax.grad(ENTROPY)(params, batch))[0]
    found = 1e12 * pushed(params, batch, 1e12, ENTROPY)
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-10)


def test_ignored_labels_are_left_out_of_the_step(draw):
    params, (inputs, labels) = draw(ENTROPY, 6)
    labels = labels.at[:2].set(-1)
    found = pushed(params, (inputs, labels), 0.1, ENTROPY)
    expected = dense_solution(params, (inputs[2:], labels[2:]), 0.1, ENTROPY)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "objective, size",
    [(ENTROPY, 12), (ENTROPY, 20), (UNDECLARED, 20)],
    ids=["in the span", "declared", "undeclared"],
)
def test_newton_takes_it_where_outputs_are_fewer_than_unknowns(draw, monkeypatch, objective, size):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(import_module("soaa_edu.optimizers.newton"), "eliminate", never)
    params, batch = draw(objective, size)
    newton_direction.clear_cache()
    found, info = newton_direction(params, batch, 1e-6, objective)
    expected = dense_solution(params, batch, 1e-6, objective)
    assert info["cg_iterations"] == -1
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_newton_eliminates_where_outputs_are_more_than_unknowns(draw, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(import_module("soaa_edu.optimizers.newton"), "push_through_solve", never)
    params, batch = draw(ENTROPY, 30)
    newton_direction.clear_cache()
    found, info = newton_direction(params, batch, 1e-6, ENTROPY)
    expected = dense_solution(params, batch, 1e-6, ENTROPY)
    assert info["cg_iterations"] == -1
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_in_float32_the_step_is_near_the_float64_one(draw):
    params, (inputs, labels) = draw(ENTROPY, 6)
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), (params, inputs))
    found = pushed(rounded[0], (rounded[1], labels), np.float32(0.1), ENTROPY)
    expected = dense_solution(params, (inputs, labels), 0.1, ENTROPY)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
