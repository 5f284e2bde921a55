from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, newton, softmax_cross_entropy
from soaa_edu.models import Model, mlp
from soaa_edu.problems import quadratic, rosenbrock

MODEL = mlp([12, 5, 4], jnp.tanh)
OBJECTIVE = Objective(MODEL, softmax_cross_entropy)
UNDECLARED = Objective(Model(MODEL.init, MODEL.forward, MODEL.dense_layers), softmax_cross_entropy)
BATCHES = {"small": (6, 12), "large": (20, 12), "one": (1, 12), "sequences": (3, 2, 12)}
CASES = pytest.mark.parametrize(
    "batch, curvature",
    [
        *((name, "hessian") for name in [*BATCHES, "repeated small"]),
        *((name, "gauss_newton") for name in ["small", "large", "repeated small"]),
    ],
    indirect=["batch"],
)
small_batch = pytest.mark.parametrize("batch", ["small"], indirect=True)


@pytest.fixture
def params(classifier):
    return classifier()[1]


@pytest.fixture
def batch(float64, request):
    """A random batch of the shape that the test names."""
    rng = np.random.default_rng(1)
    shape = BATCHES[request.param.removeprefix("repeated ")]
    inputs, labels = rng.normal(size=shape), rng.integers(4, size=shape[:-1])
    if "repeated" in request.param:
        inputs[1:4] = inputs[0]
    return jnp.asarray(inputs), jnp.asarray(labels)


@partial(jax.jit, static_argnames="curvature")
def dense_derivatives(params, batch, curvature):
    """The gradient and the curvature on raveled parameters."""
    flat, unravel = ravel_pytree(params)
    inputs, labels = batch

    def outputs(x):
        return MODEL(unravel(x), inputs).reshape(-1, 4)

    def loss(z):
        return softmax_cross_entropy(z, labels.ravel())

    gradient = jax.grad(lambda x: loss(outputs(x)))(flat)
    if curvature == "hessian":
        return gradient, jax.hessian(lambda x: loss(outputs(x)))(flat)
    z = outputs(flat)
    jacobian = jax.jacobian(outputs)(flat).reshape(z.size, -1)
    return gradient, jacobian.T @ jax.hessian(loss)(z).reshape(2 * (z.size,)) @ jacobian


def direction(optimizer, params, batch):
    """What one step takes away from the parameters, raveled, and its info."""
    after, _, info = optimizer.step(params, (), batch, None)
    return ravel_pytree(params)[0] - ravel_pytree(after)[0], info


@partial(jax.jit, static_argnames=("curvature", "objective"))
def damped(params, batch, damping, rate=1.0, curvature="hessian", objective=OBJECTIVE):
    optimizer = newton(objective, learning_rate=rate, damping=damping, curvature=curvature)
    return direction(optimizer, params, batch)


@partial(jax.jit, static_argnames=("curvature", "objective"))
def undamped(params, batch, cutoff=None, rate=1.0, curvature="hessian", objective=OBJECTIVE):
    optimizer = newton(objective, learning_rate=rate, curvature=curvature, cutoff=cutoff)
    return direction(optimizer, params, batch)


def assert_same(found, expected, relative=1e-8):
    assert np.linalg.norm(found - expected) < relative * np.linalg.norm(expected)


@CASES
@pytest.mark.parametrize("damping", [32.0, 1e-6])
def test_a_damped_step_is_the_dense_one(params, batch, curvature, damping):
    gradient, matrix = dense_derivatives(params, batch, curvature)
    expected = 0.5 * np.linalg.solve(matrix + damping * np.eye(89), gradient)
    found, _ = damped(params, batch, damping, 0.5, curvature)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "batch, curvature",
    [("small", "hessian"), ("large", "gauss_newton")],
    indirect=["batch"],
)
def test_strong_damping_leaves_it_to_conjugate_gradients_and_weak_to_elimination(
    params, batch, curvature
):
    _, strong = damped(params, batch, 32.0, 0.5, curvature)
    _, weak = damped(params, batch, 1e-6, 0.5, curvature)
    assert 0 < strong["cg_iterations"] < 20
    assert weak["cg_iterations"] == -1


def cutoff_in_a_gap(eigenvalues):
    """The middle of the widest gap that leaves out some of the nonzero eigenvalues."""
    sizes = np.sort(np.abs(eigenvalues))
    sizes = sizes[sizes > 1e-4 * sizes[-1]] / sizes[-1]
    widest = np.argmax(sizes[1:] / sizes[:-1])
    return np.sqrt(sizes[widest] * sizes[widest + 1])


@CASES
def test_an_undamped_step_is_the_dense_pseudo_inverse(params, batch, curvature):
    gradient, matrix = dense_derivatives(params, batch, curvature)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    cutoff = cutoff_in_a_gap(eigenvalues)
    kept = np.abs(eigenvalues) > cutoff * np.abs(eigenvalues).max()
    expected = 0.5 * vectors[:, kept] @ (vectors[:, kept].T @ gradient / eigenvalues[kept])
    found, info = undamped(params, batch, cutoff, 0.5, curvature)
    assert_same(found, expected)
    assert info["rank"] == kept.sum() < np.sum(np.abs(eigenvalues) > 1e-12)
    assert info["largest_eigenvalue"] == pytest.approx(float(eigenvalues[-1]), rel=1e-10)
    assert info["smallest_eigenvalue"] == pytest.approx(eigenvalues[0], rel=1e-10, abs=1e-12)


@small_batch
def test_without_a_cutoff_rounding_decides_what_is_zero(params, batch):
    gradient, matrix = dense_derivatives(params, batch, "gauss_newton")
    found, info = undamped(params, batch, curvature="gauss_newton")
    assert_same(found, np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ gradient)
    assert info["rank"] == np.linalg.matrix_rank(matrix, tol=1e-10)


@small_batch
def test_a_model_that_declares_no_input_layer_takes_the_same_step(params, batch):
    for step, option in ((damped, 32.0), (damped, 1e-6), (undamped, 0.01)):
        expected, _ = step(params, batch, option, 0.5)
        found, _ = step(params, batch, option, 0.5, objective=UNDECLARED)
        assert_same(found, expected)


@pytest.mark.parametrize("damping", [0.0, 0.5, 1e4])
def test_any_function_is_an_objective_for_the_hessian(float64, damping):
    x = jnp.array([-1.2, 1.0, 0.7])
    step = jax.jit(newton(rosenbrock, damping=damping).step)
    after, _, info = step(x, (), (None, None), None)
    gradient, matrix = jax.jit(lambda x: (jax.grad(rosenbrock)(x), jax.hessian(rosenbrock)(x)))(x)
    assert_same(x - after, np.linalg.solve(matrix + damping * np.eye(3), gradient))
    assert info["loss"] == pytest.approx(float(rosenbrock(x)), rel=1e-14)


@pytest.mark.parametrize("eigenvalues", [(1.0, 50.0, 1e6), (-3.0, 1.0, 7.0)])
def test_one_undamped_step_lands_on_the_stationary_point_of_a_quadratic(float64, rng, eigenvalues):
    vectors, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix, b = (vectors * eigenvalues) @ vectors.T, rng.normal(size=3)
    step = jax.jit(newton(quadratic((matrix + matrix.T) / 2, b)).step)
    after, _, _ = step(jnp.asarray(rng.normal(size=3)), (), (None, None), None)
    np.testing.assert_allclose(after, np.linalg.solve(matrix, b), rtol=1e-8)


@small_batch
def test_under_a_huge_damping_the_step_is_the_gradient_over_it(params, batch):
    gradient, _ = dense_derivatives(params, batch, "hessian")
    found, _ = damped(params, batch, 1e9, 0.5)
    assert_same(2e9 * found, gradient, 1e-6)


@small_batch
def test_a_float32_step_is_near_the_float64_one(params, batch):
    gradient, matrix = dense_derivatives(params, batch, "gauss_newton")
    rounded = jax.tree.map(np.float32, (params, batch[0]))
    for damping in np.float32([32.0, 0.1]):
        found, _ = damped(
            rounded[0], (rounded[1], batch[1]), damping, np.float32(1), "gauss_newton"
        )
        assert found.dtype == np.float32
        assert_same(found, np.linalg.solve(matrix + damping * np.eye(89), gradient), 1e-4)


@small_batch
def test_under_vmap_every_run_takes_its_own_step(params, batch):
    rates, dampings = jnp.array([1.0, 0.5, 1.0]), jnp.array([32.0, 8.0, 1e-6])
    lanes = jax.vmap(damped, in_axes=(None, None, 0, 0))
    together, info = lanes(params, batch, dampings, rates)
    for found, damping, rate in zip(together, dampings, rates, strict=True):
        assert_same(found, damped(params, batch, damping, rate)[0])
    np.testing.assert_array_equal(info["cg_iterations"] > 0, [True, True, False])


def test_a_system_too_large_to_form_is_refused_with_its_size():
    step = newton(rosenbrock).step
    with pytest.raises(ValueError, match=r"20,001 x 20,001: 3 GB in float64 and about 8e\+12"):
        jax.eval_shape(step, jnp.zeros(20_001), (), (None, None), None)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above zero"),
        ({"damping": -1.0}, "damping must be a finite number, zero or more"),
        ({"cutoff": -1e-3}, "cutoff must be a finite number, zero or more"),
        ({"curvature": "fisher"}, "curvature must be one of 'hessian', 'gauss_newton'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        newton(rosenbrock, **options)


def test_gauss_newton_needs_the_model_apart_from_the_loss():
    with pytest.raises(TypeError, match="Gauss-Newton needs soaa_edu"):
        newton(rosenbrock, curvature="gauss_newton")
