from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import (
    Objective,
    levenberg_marquardt,
    martens_hessian_free,
    softmax_cross_entropy,
    squared_error,
)
from soaa_edu.linear_solvers import CGPath
from soaa_edu.models import mlp
from soaa_edu.optimizers.martens import MartensState, step_back
from soaa_edu.problems import random_quadratic, rosenbrock

MODEL = mlp([4, 3, 3], jnp.tanh)
OBJECTIVE = Objective(MODEL, softmax_cross_entropy)
MARKS = (1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 31, 40, 52, 67, 87)


@pytest.fixture
def network(classifier, rng):
    """Parameters of a network, 27 in all, and a batch."""
    params = classifier((4, 3, 3))[1]
    return params, (jnp.asarray(rng.normal(size=(40, 4))), jnp.asarray(rng.integers(3, size=40)))


@jax.jit
def dense_derivatives(params, batch):
    """The loss, its raveled gradient, Gauss-Newton, and the mean squares of examples' gradients."""
    flat, unravel = ravel_pytree(params)
    inputs, labels = batch

    def outputs(x):
        return MODEL(unravel(x), inputs)

    def loss(z):
        return softmax_cross_entropy(z, labels)

    def one(x, y):
        return jax.grad(lambda v: OBJECTIVE(unravel(v), (x[None], y[None])))(flat)

    value, gradient = jax.value_and_grad(lambda x: loss(outputs(x)))(flat)
    z = outputs(flat)
    jacobian = jax.jacobian(outputs)(flat).reshape(z.size, -1)
    output_hessian = jax.hessian(loss)(z).reshape(z.size, z.size)
    squares = jnp.mean(jax.vmap(one)(inputs, labels) ** 2, axis=0)
    return value, gradient, jacobian.T @ output_hessian @ jacobian, squares


def preconditioned_path(matrix, b, x, diagonal, max_iterations):
    """Every iterate of conjugate gradients, until ten or more brought too little."""
    r = b - matrix @ x
    p = r / diagonal
    path, values = [x], [0.5 * x @ matrix @ x - b @ x]
    for i in range(1, max_iterations + 1):
        product, rz = matrix @ p, r @ (r / diagonal)
        alpha = rz / (p @ product)
        x, r = x + alpha * p, r - alpha * product
        p = r / diagonal + r @ (r / diagonal) / rz * p
        path.append(x)
        values.append(0.5 * x @ matrix @ x - b @ x)
        k = max(10, i // 10)
        if i > k and values[i] < 0 and (values[i] - values[i - k]) / values[i] < k * 5e-4:
            break
    return path


def numpy_martens(params, x, solution, damping, batch):
    """One step of Martens' method: parameters, solution, damping, ratio and iterations."""
    _, unravel = ravel_pytree(params)
    loss, gradient, matrix, squares = map(np.asarray, dense_derivatives(unravel(x), batch))

    def loss_after(step):
        return float(dense_derivatives(unravel(x - step), batch)[0])

    path = preconditioned_path(
        matrix + damping * np.eye(len(x)),
        gradient,
        0.95 * solution,
        (squares + damping) ** 0.75,
        250,
    )
    chosen = path[-1]
    for mark in reversed([mark for mark in MARKS if mark < len(path) - 1]):
        if not loss_after(path[mark]) < loss_after(chosen):
            break
        chosen = path[mark]
    predicted = gradient @ chosen - 0.5 * chosen @ matrix @ chosen
    ratio = float((loss - loss_after(chosen)) / predicted)
    following = damping * (1.5 if ratio < 0.25 else 2 / 3 if ratio > 0.75 else 1)
    return x - chosen if ratio >= 0 else x, path[-1], following, ratio, len(path) - 1


@partial(jax.jit, static_argnums=(0, 3))
def run(optimizer, params, batch, steps):
    """The parameters, states and infos of some steps."""

    def step(carry, _):
        params, state, info = optimizer.step(*carry, batch, None)
        return (params, state), (ravel_pytree(params)[0], ravel_pytree(state.solution)[0], info)

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[1]


@pytest.mark.parametrize("damping, rounding", [(1.0, 1e-9), (0.1, 1e-3)])
def test_each_of_10_steps_is_the_written_method(network, damping, rounding):
    params, batch = network
    optimizer = martens_hessian_free(OBJECTIVE, damping=levenberg_marquardt(damping))
    found, states, info = run(optimizer, params, batch, 10)
    assert set(info) == {"loss", "cg_iterations", "damping", "reduction_ratio", "accepted"}
    x, solution = ravel_pytree(params)[0], np.zeros(27)
    for i in range(10):
        assert info["damping"][i] == pytest.approx(damping, rel=1e-12)
        after, last, damping, ratio, iterations = numpy_martens(params, x, solution, damping, batch)
        assert info["cg_iterations"][i] == iterations
        assert info["reduction_ratio"][i] == pytest.approx(ratio, abs=rounding)
        assert info["accepted"][i] == (ratio >= 0)
        np.testing.assert_allclose(states[i], last, rtol=0, atol=rounding)
        np.testing.assert_allclose(found[i], after, rtol=0, atol=rounding)
        x, solution = found[i], states[i]


def one_iteration(network, solution, damping=0.1):
    """The state after a step of one iteration of conjugate gradients."""
    params, batch = network
    optimizer = martens_hessian_free(
        OBJECTIVE, damping=levenberg_marquardt(damping), max_iterations=1
    )
    _, unravel = ravel_pytree(params)
    state = MartensState(jnp.asarray(damping), unravel(jnp.asarray(solution)))
    _, state, info = jax.jit(optimizer.step)(params, state, batch, None)
    assert info["cg_iterations"] == 1
    return ravel_pytree(state.solution)[0]


def test_conjugate_gradients_start_from_most_of_the_last_solution(network, rng):
    _, gradient, matrix, squares = dense_derivatives(*network)
    solution = rng.normal(size=27)
    path = preconditioned_path(
        matrix + 0.1 * np.eye(27), gradient, 0.95 * solution, (squares + 0.1) ** 0.75, 1
    )
    found = one_iteration(network, solution)
    np.testing.assert_allclose(found, path[1], rtol=0, atol=1e-12)


def test_the_preconditioner_is_the_dense_empirical_fishers_diagonal(network):
    _, gradient, _, squares = dense_derivatives(*network)
    direction = gradient / (squares + 0.1) ** 0.75
    found = one_iteration(network, np.zeros(27))
    np.testing.assert_allclose(
        found / np.linalg.norm(found), direction / np.linalg.norm(direction), rtol=1e-9
    )


def test_one_step_solves_a_quadratic(float64):
    problem = random_quadratic(jax.random.key(0), [1.0, 2.0, 5.0, 9.0])
    optimizer = martens_hessian_free(
        problem, damping=levenberg_marquardt(1e-13), curvature="hessian"
    )
    x = jnp.ones(4)
    x, _, info = jax.jit(optimizer.step)(x, optimizer.init(x), (jnp.ones(1), jnp.ones(1)), None)
    np.testing.assert_allclose(x, problem.solution, rtol=0, atol=1e-10)
    assert info["reduction_ratio"] == pytest.approx(1, rel=1e-10)
    assert info["accepted"]


def test_one_step_solves_least_squares(float64, rng):
    inputs, targets = rng.normal(size=(20, 4)), rng.normal(size=(20, 2))
    objective = Objective(lambda weight, x: x @ weight, squared_error)
    optimizer = martens_hessian_free(objective, damping=levenberg_marquardt(1e-13))
    weight = jnp.zeros((4, 2))
    weight, state, _ = jax.jit(optimizer.step)(
        weight, optimizer.init(weight), (inputs, targets), None
    )
    expected = np.linalg.lstsq(inputs, targets)[0]
    np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(state.solution, -expected, rtol=0, atol=1e-9)


def test_the_first_damping_is_one_by_default():
    state = martens_hessian_free(OBJECTIVE).init({"a": jnp.ones(2)})
    assert state.damping == 1.0
    np.testing.assert_array_equal(state.solution["a"], [0, 0])


@partial(jax.jit, static_argnames="kept")
def chosen(losses, kept=4):
    """Where stepping back ends along a path whose iterates 0, 1, ... have these losses."""
    places = jnp.arange(len(losses) - 1.0)[:, None]
    path = CGPath(places, kept, jnp.array([len(losses) - 1.0]), 100)
    return step_back(lambda x: losses[jnp.int32(-x[0])], jnp.zeros(1), path)[0]


@pytest.mark.parametrize(
    "losses, end",
    [
        ([4.0, 3.0, 2.0, 1.0, 0.0], 4),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 0),
        ([4.0, 3.0, 1.0, 2.0, 3.0], 2),
        ([0.0, 5.0, 1.0, 2.0, 3.0], 2),
        ([0.0, 1.0, 2.0, 3.0, 2.0], 4),
        ([4.0, 3.0, 1.0, 2.0, np.nan], 2),
        ([4.0, 3.0, 1.0, 2.0, np.inf], 2),
        ([1.0, 3.0, np.nan, np.nan, np.nan], 0),
        ([0.0, 1.0, 2.0, np.nan, 3.0], 4),
    ],
)
def test_stepping_back_ends_where_the_loss_stops_falling(losses, end):
    assert chosen(jnp.array(losses)) == end


def test_stepping_back_leaves_out_what_was_not_reached():
    assert chosen(jnp.array([0.0, 1.0, 0.0, 0.0, 2.0]), kept=2) == 0
    assert chosen(jnp.array([0.0, 0.0, 0.0, 0.0, 1.0]), kept=0) == 4


def test_stepping_back_starts_from_the_iterate_before_where_the_last_one_was_kept_too():
    path = CGPath(jnp.array([[1.0], [2.0], [3.0]]), 3, jnp.array([3.0]), 3)
    found = step_back(lambda x: (x[0] + 1) ** 2, jnp.zeros(1), path)
    np.testing.assert_array_equal(found, [1.0])


def test_stepping_back_gives_the_form_of_the_parameters():
    params = {"a": jnp.zeros(1), "b": jnp.zeros((1, 2))}
    path = CGPath(jnp.array([[1.0, 2.0, 3.0]]), 1, jnp.array([2.0, 4.0, 6.0]), 2)
    found = step_back(lambda p: -p["a"][0] - jnp.sum(p["b"]), params, path)
    assert jax.tree.map(jnp.shape, found) == {"a": (1,), "b": (1, 2)}
    np.testing.assert_array_equal(found["b"], [[2, 3]])


def test_a_fixed_damping_is_refused_with_where_to_go():
    with pytest.raises(TypeError, match="hessian_free takes a fixed damping"):
        martens_hessian_free(OBJECTIVE, damping=1.0)


def test_gauss_newton_needs_the_model_apart_from_the_loss():
    with pytest.raises(TypeError, match="Gauss-Newton needs soaa_edu"):
        martens_hessian_free(rosenbrock)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"curvature": "fisher"}, "curvature must be one of 'hessian', 'gauss_newton'"),
        ({"max_iterations": 0}, "max_iterations must be a whole number of one or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        martens_hessian_free(OBJECTIVE, **options)
