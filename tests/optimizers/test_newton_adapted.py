from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, levenberg_marquardt, newton, softmax_cross_entropy, squared_error
from soaa_edu.models import mlp
from soaa_edu.problems import quadratic, rosenbrock

MODEL = mlp([3, 4, 2], jnp.tanh)
ENTROPY, SQUARE = (Objective(MODEL, loss) for loss in (softmax_cross_entropy, squared_error))
every_loss = pytest.mark.parametrize("objective", [ENTROPY, SQUARE], ids=["entropy", "square"])


@pytest.fixture
def draw(float64, rng):
    """Parameters of a network, 26 in all, and a batch of these places."""
    params = MODEL.init(jax.random.key(0))

    def network(objective, *places):
        labels = rng.integers(2, size=places)
        values = rng.normal(size=(*places, 2))
        targets = values if objective is SQUARE else labels
        return params, (jnp.asarray(rng.normal(size=(*places, 3))), jnp.asarray(targets))

    return network


@partial(jax.jit, static_argnames=("objective", "curvature"))
def step(params, damping, batch, objective, rate=1.0, curvature="gauss_newton"):
    rule = levenberg_marquardt(1.0, decrease=0.5, increase=4.0)
    optimizer = newton(objective, learning_rate=rate, damping=rule, curvature=curvature)
    return optimizer.step(params, damping, batch, None)


@partial(jax.jit, static_argnames="objective")
def dense_derivatives(params, batch, objective):
    """J, and the gradient r and the Hessian S of the mean loss in the outputs."""
    flat, unravel = ravel_pytree(params)
    inputs, targets = batch

    def outputs(x):
        return MODEL(unravel(x), inputs)

    def loss(z):
        return objective.loss(z.reshape(outputs(flat).shape), targets)

    z = outputs(flat).ravel()
    jacobian = jax.jacobian(lambda x: outputs(x).ravel())(flat)
    return jacobian, jax.grad(loss)(z), jax.hessian(loss)(z)


def by_hand(params, damping, batch, objective, rate):
    """The step of Levenberg and Marquardt, its promise, and what became of the loss, in NumPy."""
    flat, unravel = ravel_pytree(params)
    J, r, S = map(np.asarray, dense_derivatives(params, batch, objective))
    g, G = J.T @ r, J.T @ S @ J
    s = -rate * np.linalg.solve(G + damping * np.eye(len(g)), g)
    promise = -(g @ s + 0.5 * s @ G @ s)
    fall = float(objective(params, batch) - objective(unravel(flat + s), batch))
    return np.asarray(flat) + s, fall / promise


@every_loss
@pytest.mark.parametrize("places", [(40,), (5,), (6, 5)], ids=["tall", "wide", "sequences"])
@pytest.mark.parametrize("damping, rate", [(0.5, 1.0), (1e-3, 0.3)])
def test_a_step_and_its_ratio_are_those_of_dense_algebra(draw, objective, places, damping, rate):
    params, batch = draw(objective, *places)
    expected, ratio = by_hand(params, damping, batch, objective, rate)
    after, following, info = step(params, jnp.float64(damping), batch, objective, rate)
    assert info["accepted"] == (ratio >= 0)
    if info["accepted"]:
        np.testing.assert_allclose(ravel_pytree(after)[0], expected, rtol=1e-8, atol=1e-10)
    assert info["reduction_ratio"] == pytest.approx(ratio, rel=1e-6)
    factor = 4.0 if ratio < 0.25 else 0.5 if ratio > 0.75 else 1.0
    assert float(following) == pytest.approx(factor * damping)
    assert info["damping"] == damping
    assert float(info["loss"]) == pytest.approx(float(objective(params, batch)), rel=1e-13)


def test_a_step_that_raises_the_loss_is_taken_back_and_the_damping_grows(float64):
    objective = Objective(lambda x, inputs: jnp.arctan(inputs * x), squared_error)
    batch = (jnp.ones((1, 1)), jnp.zeros((1, 1)))
    start = jnp.array([2.0])
    after, following, info = step(start, jnp.float64(1e-6), batch, objective)
    assert not info["accepted"]
    np.testing.assert_array_equal(after, start)
    assert float(following) == pytest.approx(4e-6)


def test_one_step_with_hardly_any_damping_solves_linear_least_squares(float64, rng):
    matrix, targets = rng.normal(size=(9, 4)), rng.normal(size=(9, 1))
    objective = Objective(lambda x, rows: (rows @ x)[:, None], squared_error)
    after, _, info = step(jnp.zeros(4), jnp.float64(1e-13), (matrix, targets), objective)
    expected = np.linalg.lstsq(matrix, targets[:, 0], rcond=None)[0]
    np.testing.assert_allclose(after, expected, rtol=1e-10)
    assert float(info["reduction_ratio"]) == pytest.approx(1, rel=1e-10)


def test_with_few_outputs_no_matrix_of_the_parameters_is_formed(draw):
    params, batch = draw(SQUARE, 2)
    program = jax.make_jaxpr(partial(step.__wrapped__, objective=SQUARE))(
        params, jnp.float64(1.0), batch
    )
    assert "26,26" not in str(program)
    assert "4,26" in str(program)


def test_the_hessian_takes_it_too_and_an_indefinite_one_makes_the_damping_grow(float64):
    saddle = quadratic(np.diag([1.0, -2.0]), np.zeros(2))
    start = jnp.array([0.1, 1.0])
    damping = jnp.float64(0.5)
    while not (outcome := step(start, damping, (None, None), saddle, curvature="hessian"))[2][
        "accepted"
    ]:
        np.testing.assert_array_equal(outcome[0], start)
        damping = outcome[1]
    assert damping > 2
    expected = start - np.array([0.1, -2.0]) / (np.array([1.0, -2.0]) + damping)
    np.testing.assert_allclose(outcome[0], expected, rtol=1e-12)


def test_rosenbrocks_valley_is_walked_to_its_end_without_a_rise(float64):
    optimizer = newton(rosenbrock, damping=levenberg_marquardt(1.0, decrease=1 / 3, increase=3.0))
    walk = jax.jit(lambda c: optimizer.step(*c, (None, None), None))
    params, losses = jnp.array([-1.2, 1.0]), []
    state = optimizer.init(params)
    for _ in range(40):
        params, state, info = walk((params, state))
        losses.append(float(info["loss"]))
    assert np.all(np.diff(losses) <= 0)
    np.testing.assert_allclose(params, 1, rtol=1e-7)


def test_the_first_damping_has_the_type_of_the_parameters(float64):
    optimizer = newton(rosenbrock, damping=levenberg_marquardt(2.0))
    for dtype, held in ((jnp.bfloat16, "float32"), (jnp.float32, "float32"), (float, "float64")):
        state = optimizer.init(jnp.ones(2, dtype))
        assert (state.dtype, float(state)) == (held, 2)


def test_a_system_too_large_to_form_is_refused_with_its_size():
    objective = Objective(lambda x, rows: x[:1] * rows, squared_error)
    optimizer = newton(objective, curvature="gauss_newton", damping=levenberg_marquardt(1.0))
    batch = (jnp.ones((20_001, 1)), jnp.ones((20_001, 1)))
    with pytest.raises(ValueError, match=r"20,001 x 20,001: 3 GB"):
        jax.eval_shape(optimizer.step, jnp.zeros(30_000), jnp.ones(()), batch, None)
