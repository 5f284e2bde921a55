from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, hessian_free, levenberg_marquardt, newton, softmax_cross_entropy
from soaa_edu.models import Model, mlp
from soaa_edu.models.layers import tapped
from soaa_edu.problems import quadratic, random_quadratic, rosenbrock, saddle

NOTHING = (None, None)
both_curvatures = pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])


MODEL = mlp([4, 3, 3], jnp.tanh)
OBJECTIVE = Objective(MODEL, softmax_cross_entropy)


@pytest.fixture
def network(classifier, rng):
    """Parameters of a network, 27 in all, and a batch."""
    params = classifier((4, 3, 3))[1]
    return params, (jnp.asarray(rng.normal(size=(40, 4))), jnp.asarray(rng.integers(3, size=40)))


@partial(jax.jit, static_argnames="curvature")
def dense_derivatives(params, batch, curvature):
    """The loss, its raveled gradient and the curvature matrix."""
    flat, unravel = ravel_pytree(params)
    inputs, labels = batch

    def outputs(x):
        return MODEL(unravel(x), inputs)

    def loss(z):
        return softmax_cross_entropy(z, labels)

    value, gradient = jax.value_and_grad(lambda x: loss(outputs(x)))(flat)
    if curvature == "hessian":
        return value, gradient, jax.hessian(lambda x: loss(outputs(x)))(flat)
    z = outputs(flat)
    jacobian = jax.jacobian(outputs)(flat).reshape(z.size, -1)
    output_hessian = jax.hessian(loss)(z).reshape(z.size, z.size)
    return value, gradient, jacobian.T @ output_hessian @ jacobian


def one_step(optimizer, params, batch):
    """The change of the parameters, raveled, and the info."""
    after, _, info = jax.jit(optimizer.step)(params, optimizer.init(params), batch, None)
    return ravel_pytree(after)[0] - ravel_pytree(params)[0], info


@partial(jax.jit, static_argnums=(0, 3))
def run(optimizer, params, batch, steps):
    """All parameters and infos along some steps; the parameters before each."""

    def step(carry, _):
        params, state = carry
        after, state, info = optimizer.step(params, state, batch, None)
        return (after, state), (ravel_pytree(params)[0], info)

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[1]


@both_curvatures
@pytest.mark.parametrize("damping", [4.0, 0.5])
def test_a_step_solves_the_damped_dense_system(network, curvature, damping):
    params, batch = network
    optimizer = hessian_free(
        OBJECTIVE, learning_rate=0.5, damping=damping, curvature=curvature, tolerance=1e-10
    )
    found, info = one_step(optimizer, params, batch)
    loss, gradient, matrix = dense_derivatives(params, batch, curvature)
    expected = -0.5 * np.linalg.solve(matrix + damping * np.eye(27), gradient)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.linalg.norm(expected))
    assert set(info) == {"loss", "cg_iterations"}
    assert info["loss"] == pytest.approx(float(loss), rel=1e-14)
    assert 0 < info["cg_iterations"] <= 27


def test_the_step_is_newtons_to_the_tolerance(network):
    params, batch = network

    @jax.jit
    def change(tolerance):
        after = hessian_free(OBJECTIVE, damping=2.0, tolerance=tolerance).step(
            params, (), batch, None
        )[0]
        return ravel_pytree(after)[0] - ravel_pytree(params)[0]

    exact, _ = one_step(newton(OBJECTIVE, damping=2.0), params, batch)
    _, gradient, matrix = dense_derivatives(params, batch, "hessian")
    for tolerance in (1e-2, 1e-5):
        left = (matrix + 2 * np.eye(27)) @ (change(tolerance) - exact)
        assert np.linalg.norm(left) <= tolerance * np.linalg.norm(gradient)
        assert np.linalg.norm(left) > 1e-4 * tolerance * np.linalg.norm(gradient)


@both_curvatures
def test_under_a_huge_damping_the_step_is_the_gradient_over_it(network, curvature):
    params, batch = network
    optimizer = hessian_free(OBJECTIVE, damping=1e8, curvature=curvature)
    found, info = one_step(optimizer, params, batch)
    gradient = ravel_pytree(jax.grad(OBJECTIVE)(params, batch))[0]
    np.testing.assert_allclose(-1e8 * found, gradient, rtol=0, atol=1e-7)
    assert info["cg_iterations"] == 1


def test_as_many_iterations_as_unknowns_solve_an_undamped_quadratic(float64):
    problem = random_quadratic(jax.random.key(0), [1.0, 2.0, 5.0, 9.0])
    optimizer = hessian_free(problem, damping=0.0, max_iterations=4, tolerance=0.0)
    found, info = one_step(optimizer, jnp.ones(4), NOTHING)
    np.testing.assert_allclose(1 + found, problem.solution, rtol=1e-10)
    assert info["cg_iterations"] == 4


def test_the_number_of_iterations_is_bounded(network):
    params, batch = network
    optimizer = hessian_free(
        OBJECTIVE, damping=0.01, curvature="gauss_newton", max_iterations=3, tolerance=0.0
    )
    assert one_step(optimizer, params, batch)[1]["cg_iterations"] == 3


def test_the_state_of_a_fixed_damping_is_empty():
    assert hessian_free(rosenbrock, damping=1.0).init(jnp.ones(2)) == ()


def test_traced_numbers_make_the_same_step(network):
    params, batch = network

    @jax.jit
    def step(rate, damping):
        optimizer = hessian_free(OBJECTIVE, learning_rate=rate, damping=damping)
        return ravel_pytree(optimizer.step(params, (), batch, None)[0])[0]

    expected = one_step(hessian_free(OBJECTIVE, learning_rate=0.5, damping=4.0), params, batch)[0]
    found = step(0.5, 4.0) - ravel_pytree(params)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


def numpy_conjugate_gradient(matrix, b, tolerance):
    """Until the residual is small, or the curvature no longer positive."""
    x, r, p = np.zeros_like(b), b, b
    while np.linalg.norm(r) > tolerance * np.linalg.norm(b) and p @ matrix @ p > 0:
        alpha = r @ r / (p @ matrix @ p)
        x, r_next = x + alpha * p, r - alpha * matrix @ p
        p, r = r_next + r_next @ r_next / (r @ r) * p, r_next
    return x


def numpy_levenberg_marquardt(derivatives, x, damping, rate, steps):
    """The rule: parameters, damping and reduction ratio at each step."""
    told = []
    for _ in range(steps):
        loss, gradient, matrix = map(np.asarray, derivatives(x))
        damped = matrix + damping * np.eye(len(x))
        step = -rate * numpy_conjugate_gradient(damped, gradient, 1e-12)
        predicted = -(gradient @ step + 0.5 * step @ matrix @ step)
        ratio = (loss - derivatives(x + step)[0]) / predicted if predicted > 0 else -np.inf
        told.append((x, damping, ratio))
        x = x + step if ratio >= 0 else x
        damping *= 1.5 if ratio < 0.25 else 2 / 3 if ratio > 0.75 else 1
    return map(np.array, zip(*told, strict=True))


@both_curvatures
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_levenberg_marquardt_is_the_written_rule_over_30_steps(network, curvature, rate):
    params, batch = network
    start = 1e-3 if curvature == "gauss_newton" else 1.0
    optimizer = hessian_free(
        OBJECTIVE,
        learning_rate=rate,
        damping=levenberg_marquardt(start),
        curvature=curvature,
        max_iterations=200,
        tolerance=1e-12,
    )
    found, info = run(optimizer, params, batch, 30)
    flat, unravel = ravel_pytree(params)
    x, damping, ratio = numpy_levenberg_marquardt(
        lambda x: dense_derivatives(unravel(x), batch, curvature), flat, start, rate, 30
    )
    assert set(info) == {"loss", "cg_iterations", "damping", "reduction_ratio", "accepted"}
    np.testing.assert_allclose(info["damping"], damping, rtol=1e-12)
    np.testing.assert_allclose(info["reduction_ratio"], ratio, rtol=1e-6)
    np.testing.assert_array_equal(info["accepted"], ratio >= 0)
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-6 * np.abs(x).max())


def test_the_predicted_decrease_leaves_the_damping_out_and_takes_the_step_as_it_was_taken(float64):
    matrix, b = np.diag([1.0, 4.0]), np.array([1.0, 2.0])
    optimizer = hessian_free(
        quadratic(matrix, b), learning_rate=0.5, damping=levenberg_marquardt(7.0), tolerance=0.0
    )
    _, info = one_step(optimizer, jnp.array([3.0, -2.0]), NOTHING)
    assert info["reduction_ratio"] == pytest.approx(1, rel=1e-12)
    assert info["accepted"]


def valley(x, batch):
    return jnp.sum(jnp.sqrt(1 + x**2))


def test_a_step_that_raises_the_loss_is_taken_back_and_raises_the_damping(float64):
    optimizer = hessian_free(valley, damping=levenberg_marquardt(1e-3))
    x, info = run(optimizer, jnp.array([3.0, 2.0]), NOTHING, 40)
    rejected = ~np.asarray(info["accepted"])
    assert rejected[0] and np.all(np.asarray(info["reduction_ratio"])[rejected] < 0)
    growth = info["damping"][1:] / info["damping"][:-1]
    np.testing.assert_allclose(growth[rejected[:-1]], 1.5, rtol=1e-12)
    np.testing.assert_array_equal(x[1:][rejected[:-1]], x[:-1][rejected[:-1]])
    assert np.all(np.diff(info["loss"]) <= 0)
    np.testing.assert_allclose(x[-1], 0, atol=1e-6)


def test_a_step_to_nan_is_taken_back(float64):
    def logarithm(x, batch):
        return jnp.sum(x - jnp.log(x))

    optimizer = hessian_free(logarithm, damping=levenberg_marquardt(1e-3))
    x, info = run(optimizer, jnp.array([3.0]), NOTHING, 40)
    assert not info["accepted"][0]
    np.testing.assert_allclose(x[-1], 1, rtol=1e-6)


def test_damping_grows_where_there_is_negative_curvature_at_once(float64):
    optimizer = hessian_free(saddle, damping=levenberg_marquardt(0.1))
    x, info = run(optimizer, jnp.array([0.0, 0.1]), NOTHING, 60)
    stuck = np.asarray(info["cg_iterations"]) == 0
    first = np.argmin(stuck)
    assert first == np.ceil(np.log(9.7) / np.log(1.5))
    np.testing.assert_array_equal(info["reduction_ratio"][:first], -np.inf)
    np.testing.assert_allclose(info["damping"][: first + 1], 0.1 * 1.5 ** np.arange(first + 1))
    np.testing.assert_array_equal(x[: first + 1], np.tile([0, 0.1], (first + 1, 1)))
    np.testing.assert_allclose(x[-1], [0, 1], atol=1e-6)


def test_damping_stays_above_zero_after_many_successes():
    problem = quadratic(np.diag(np.geomspace(1e-4, 1, 30)), np.zeros(30))
    optimizer = hessian_free(problem, damping=levenberg_marquardt(1e-31), max_iterations=1)
    _, info = run(optimizer, jnp.ones(30), NOTHING, 40)
    assert np.all(info["reduction_ratio"][:20] > 0.9)
    assert np.all(info["damping"] > 0)
    assert info["damping"][20] < 1e-31


def test_the_damping_has_the_type_of_the_parameters(network):
    params, _ = network
    optimizer = hessian_free(OBJECTIVE, damping=levenberg_marquardt(2.0))
    half = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    assert [optimizer.init(p).dtype for p in (params, half)] == [np.float64, np.float32]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above zero"),
        ({"damping": -1.0}, "damping must be a finite number, zero or more"),
        ({"damping": np.nan}, "damping must be a finite number, zero or more"),
        ({"curvature": "fisher"}, "curvature must be one of 'hessian', 'gauss_newton'"),
        ({"max_iterations": 0}, "max_iterations must be a whole number of one or more"),
        ({"tolerance": -1.0}, "tolerance must be a finite number, zero or more"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        hessian_free(rosenbrock, **({"damping": 1.0} | options))


def test_gauss_newton_needs_the_model_apart_from_the_loss():
    with pytest.raises(TypeError, match="Gauss-Newton needs soaa_edu"):
        hessian_free(rosenbrock, damping=1.0, curvature="gauss_newton")


def test_at_a_saddle_a_fixed_damping_goes_down_the_gradient(float64):
    optimizer = hessian_free(saddle, damping=0.1, learning_rate=0.5)
    start = jnp.array([0.0, 0.1])
    moved, _, info = optimizer.step(start, optimizer.init(start), NOTHING, None)
    assert info["cg_iterations"] == 0
    np.testing.assert_allclose(moved, start - 0.5 * jax.grad(saddle)(start, NOTHING))


def without_bias(float64_params):
    """A model whose input layer has no bias, and which is wider than a batch."""

    def forward(params, inputs, taps):
        layer, seen = tapped(params, taps)
        return layer("out", jnp.tanh(layer("in", inputs))), seen

    return Model(lambda key: float64_params, forward, ("in", "out"), "in")


def test_an_input_layer_without_a_bias_is_no_trouble(float64, rng):
    params = {
        "in": {"weight": jnp.asarray(rng.normal(size=(40, 5)))},
        "out": {"weight": jnp.asarray(rng.normal(size=(5, 3))), "bias": jnp.zeros(3)},
    }
    objective = Objective(without_bias(params), softmax_cross_entropy)
    plain = Objective(lambda p, x: objective.model(p, x), softmax_cross_entropy)
    batch = jnp.asarray(rng.normal(size=(4, 40))), jnp.arange(4) % 3
    for build in (
        partial(hessian_free, damping=1.0, tolerance=1e-12),
        partial(newton, damping=1.0),
        partial(newton, curvature="gauss_newton", cutoff=1e-9),
    ):
        steps = [build(o).step(params, (), batch, None)[0] for o in (objective, plain)]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-8), *steps)
