from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, softmax_cross_entropy, trust_region
from soaa_edu.curvature import gauss_newton_matvec
from soaa_edu.linear_solvers import lanczos_trust_region
from soaa_edu.models import mlp
from soaa_edu.problems import random_quadratic, rosenbrock, saddle
from soaa_edu.studies.slides.adaptive_damping import dense_trust_region

OBJECTIVE = Objective(mlp([4, 3, 3], jnp.tanh), softmax_cross_entropy)
both_subproblems = pytest.mark.parametrize("subproblem", ["lanczos", "steihaug"])
both_updates = pytest.mark.parametrize("update", ["classical", "cat"])


def valley(x):
    return jnp.sum(jnp.sqrt(1 + x**2))


def logarithm(x):
    return jnp.sum(x - jnp.log(x))


def bend(x):
    return jnp.sum(0.99 * jnp.abs(x) - x)


def bowl(x):
    return 0.5 * x[0] ** 2 + x[1] ** 2 - x[0]


def slope(x):
    return jnp.sum(x)


def deceptive(x):
    """Its gradient points uphill."""
    return 2 * jax.lax.stop_gradient(jnp.sum(x)) - jnp.sum(x)


LANDSCAPES = (rosenbrock, saddle, valley, logarithm, bend, bowl, slope, deceptive)


def landscape(x, batch):
    """The function of two numbers that the batch names, so that one program serves them all."""
    return jax.lax.switch(batch, LANDSCAPES, x)


@partial(jax.jit, static_argnames=("update", "subproblem"))
def sixty_steps(start, radius, batch, update, subproblem):
    first = None if update == "cat" else 1.0
    optimizer = trust_region(landscape, radius=first, update=update, subproblem=subproblem)

    def step(carry, _):
        params, state, info = optimizer.step(*carry, batch, None)
        return (params, state), (*carry, info)

    return jax.lax.scan(step, (start, radius), None, length=60)[1]


def travel(problem, start, radius, update="classical", subproblem="lanczos"):
    """The parameters and the radius before each of sixty steps, and the infos."""
    start = jnp.asarray(start, float)
    first = jnp.asarray(0.0 if radius is None else radius, start.dtype)
    batch = jnp.int32(LANDSCAPES.index(problem))
    return sixty_steps(start, first, batch, update, subproblem)


def exact_step(gradient, hessian, radius):
    """The minimiser in the ball, and whether it is on the boundary."""
    if np.linalg.eigvalsh(hessian)[0] > 0:
        step = -np.linalg.solve(hessian, gradient)
        if np.linalg.norm(step) <= radius:
            return step, False
    return dense_trust_region(hessian, gradient, radius), True


def numpy_trust_region(x, radius, update, steps):
    """Rosenbrock's path by one of the two rules: iterates, radii, ratios and acceptances."""
    f, derivative = scipy.optimize.rosen, scipy.optimize.rosen_der
    told = []
    for _ in range(steps):
        g, h = derivative(x), scipy.optimize.rosen_hess(x)
        if radius is None:
            radius = 10 * np.linalg.norm(g) / np.linalg.norm(h, 2)
        s, on_boundary = exact_step(g, h, radius)
        length, decrease = np.linalg.norm(s), f(x) - f(x + s)
        predicted = -(g @ s + 0.5 * s @ h @ s)
        before = radius
        if update == "classical":
            ratio = decrease / predicted
            if ratio < 1 / 4:
                radius = length / 4
            elif ratio > 3 / 4 and on_boundary:
                radius = 2 * radius
        else:
            slopes = min(np.linalg.norm(g), np.linalg.norm(derivative(x + s)))
            ratio = decrease / (predicted + 0.05 * slopes * length)
            radius = radius / 8 if ratio < 0.1 else max(16 * length, radius)
        told.append((x, before, ratio, decrease >= 0, on_boundary))
        x = x + s if decrease >= 0 else x
    return map(np.array, zip(*told, strict=True))


@pytest.mark.parametrize(
    "update, radius", [("classical", 0.05), ("classical", 50.0), ("cat", 0.05), ("cat", None)]
)
def test_both_rules_are_the_written_ones_over_40_steps(float64, update, radius):
    start = np.array([-4.0, 12.0])
    found, radii, info = jax.tree.map(
        lambda told: told[:40], travel(rosenbrock, start, radius, update)
    )
    x, expected, ratios, accepted, on_boundary = numpy_trust_region(start, radius, update, 40)
    assert set(info) == {
        "loss",
        "radius",
        "reduction_ratio",
        "accepted",
        "on_boundary",
        "iterations",
    }
    np.testing.assert_allclose(found, x, rtol=1e-6)
    np.testing.assert_allclose(info["radius"], expected, rtol=1e-6)
    np.testing.assert_array_equal(radii[1:], info["radius"][1:])
    np.testing.assert_allclose(info["reduction_ratio"], ratios, rtol=1e-5)
    np.testing.assert_array_equal(info["accepted"], accepted)
    np.testing.assert_array_equal(info["on_boundary"], on_boundary)
    assert 0 < np.sum(accepted) < 40


@both_subproblems
@pytest.mark.parametrize("update, radius", [("classical", 1.0), ("cat", None)])
def test_it_converges_on_rosenbrock(float64, subproblem, update, radius):
    x, _, info = travel(rosenbrock, [-1.2, 1.0], radius, update, subproblem)
    np.testing.assert_allclose(x[-1], 1, rtol=0, atol=1e-9)
    assert np.all(np.diff(info["loss"]) <= 0)


@both_subproblems
@both_updates
def test_one_step_solves_a_convex_quadratic_where_the_radius_allows(float64, update, subproblem):
    x, _, info = travel(bowl, [3.0, -2.0], 100.0, update, subproblem)
    np.testing.assert_allclose(x[1], [1, 0], rtol=0, atol=1e-12)
    assert (info["on_boundary"][0], info["accepted"][0], info["iterations"][0]) == (False, True, 2)
    assert info["reduction_ratio"][0] == pytest.approx(1, rel=1e-12)


def test_cats_first_radius_is_ten_gradients_over_the_curvatures_norm(float64):
    problem = random_quadratic(jax.random.key(0), [-7.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
    x = jnp.arange(7.0)
    optimizer = trust_region(problem, radius=None, update="cat")
    step = jax.jit(optimizer.step)
    _, state, info = step(x, optimizer.init(x), (None, None), None)
    first = 10 * np.linalg.norm(jax.grad(problem)(x)) / 7
    assert info["radius"] == pytest.approx(first, rel=1e-12)
    assert step(x, state, (None, None), None)[2]["radius"] == state


@pytest.mark.parametrize("update, radius", [("classical", 1.0), ("cat", 1.0), ("cat", None)])
@pytest.mark.parametrize("start", [(1.0, 0.0), (1.0, 1e-8), (0.0, 0.0)])
def test_newton_lanczos_leaves_a_saddle_and_the_ridge_above_it(float64, update, radius, start):
    x, _, _ = travel(saddle, start, radius, update)
    np.testing.assert_allclose(np.abs(x[-1]), [0, 1], atol=1e-8)


@both_updates
def test_steihaug_leaves_a_saddle_once_it_is_beside_the_ridge(float64, update):
    x, _, _ = travel(saddle, [1.0, 1e-8], 1.0, update, "steihaug")
    np.testing.assert_allclose(np.abs(x[-1]), [0, 1], atol=1e-8)


@both_subproblems
@pytest.mark.parametrize("update, after", [("classical", np.hypot(30, 10) / 4), ("cat", 100 / 8)])
def test_a_step_that_raises_the_loss_is_taken_back_and_shrinks_the_radius(
    float64, update, after, subproblem
):
    x, radius, info = travel(valley, [3.0, 2.0], 100.0, update, subproblem)
    np.testing.assert_array_equal(x[1], [3, 2])
    assert not info["accepted"][0]
    assert info["reduction_ratio"][0] < 0
    assert radius[1] == pytest.approx(after, rel=1e-9)
    np.testing.assert_allclose(x[-1], 0, atol=1e-6)


def test_cat_keeps_a_step_that_lowers_the_loss_less_than_it_asks(float64):
    x, radius, info = travel(bend, [-0.01, -0.01], np.sqrt(2), "cat")
    np.testing.assert_allclose(x[1], 0.99, rtol=1e-12)
    expected = 2 * (0.0199 + 0.0099) / (2 * 1.99 + 0.05 * 2 * 0.01)
    assert info["accepted"][0]
    assert info["reduction_ratio"][0] == pytest.approx(expected, rel=1e-12)
    assert expected < 0.1
    assert radius[1] == pytest.approx(np.sqrt(2) / 8, rel=1e-12)


@both_updates
def test_a_step_to_nan_is_taken_back_and_shrinks_the_radius(float64, update):
    x, radius, info = travel(logarithm, [3.0, 3.0], 100.0, update)
    np.testing.assert_array_equal(x[1], [3, 3])
    assert (info["accepted"][0], info["reduction_ratio"][0]) == (False, -np.inf)
    assert 0 < radius[1] < 100
    np.testing.assert_allclose(x[-1], 1, rtol=1e-8)


@both_updates
def test_a_minimum_is_left_as_it_is_with_a_radius_to_go_on_with(float64, update):
    x, radius, info = travel(bowl, [1.0, 0.0], 0.5, update)
    np.testing.assert_array_equal(x, np.tile([1, 0], (60, 1)))
    assert np.all(radius > 0)
    np.testing.assert_array_equal(info["reduction_ratio"], -np.inf)


@both_updates
@both_subproblems
def test_the_radius_can_grow_again_after_any_number_of_rejections(update, subproblem):
    x, radius, info = travel(deceptive, [0.0, 0.0], 1e-10, update, subproblem)
    assert not np.any(info["accepted"])
    np.testing.assert_array_equal(x[-1], [0, 0])
    assert 0 < radius[-1] < 1e-17
    _, grown, info = travel(slope, [0.0, 0.0], radius[-1], update, subproblem)
    assert np.all(info["accepted"][:5])
    assert np.all(np.diff(grown)[:5] > 0)


@pytest.fixture
def network(classifier, rng):
    """Parameters of a network, 27 in all, and how to draw a batch of a size."""
    params = classifier((4, 3, 3))[1]

    def batch(size):
        return jnp.asarray(rng.normal(size=(size, 4))), jnp.asarray(rng.integers(3, size=size))

    return params, batch


@jax.jit
def dense_gauss_newton(params, batch):
    """The raveled gradient and JᵀSJ."""
    flat, unravel = ravel_pytree(params)
    inputs, labels = batch

    def outputs(x):
        return OBJECTIVE.model(unravel(x), inputs)

    def loss(z):
        return softmax_cross_entropy(z, labels)

    z = outputs(flat)
    jacobian = jax.jacobian(outputs)(flat).reshape(z.size, -1)
    output_hessian = jax.hessian(loss)(z).reshape(z.size, z.size)
    return jax.grad(lambda x: loss(outputs(x)))(flat), jacobian.T @ output_hessian @ jacobian


GAUSS_NEWTON = trust_region(OBJECTIVE, curvature="gauss_newton")
gauss_newton_step = jax.jit(GAUSS_NEWTON.step)


@pytest.mark.parametrize("radius", [0.1, 2.0])
def test_gauss_newton_may_be_the_curvature(network, radius):
    params, draw = network
    batch = draw(40)
    after, _, info = gauss_newton_step(params, jnp.asarray(radius), batch, None)
    gradient, matrix = map(np.asarray, dense_gauss_newton(params, batch))
    step = ravel_pytree(after)[0] - ravel_pytree(params)[0]
    expected = dense_trust_region(matrix, gradient, radius)
    assert info["accepted"]
    np.testing.assert_allclose(step, expected, rtol=0, atol=1e-9)
    predicted = -(gradient @ expected + 0.5 * expected @ matrix @ expected)
    ratio = (OBJECTIVE(params, batch) - OBJECTIVE(after, batch)) / predicted
    assert info["reduction_ratio"] == pytest.approx(float(ratio), rel=1e-8)


def test_a_batch_that_sees_few_directions_leaves_the_others_alone(network):
    params, draw = network
    inputs, labels = draw(2)
    gradient, matrix = map(np.asarray, dense_gauss_newton(params, (inputs, labels)))
    values, vectors = np.linalg.eigh(matrix)
    unseen = vectors[:, values < 1e-10]
    assert unseen.shape == (27, 23)
    params, inputs = jax.tree.map(np.float32, (params, inputs))

    @jax.jit
    def solve(params, inputs):
        batch = (inputs, labels)
        matvec = gauss_newton_matvec(OBJECTIVE, params, batch)
        return lanczos_trust_region(matvec, jax.grad(OBJECTIVE)(params, batch), 1e4, iterations=50)

    found = solve(params, inputs)
    step = np.asarray(ravel_pytree(found.step)[0])
    newton = -np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ gradient
    assert not found.on_boundary
    assert np.linalg.norm(step - newton) <= 1e-3 * np.linalg.norm(newton)
    assert np.linalg.norm(unseen.T @ step) <= 1e-3 * np.linalg.norm(newton)


def test_the_radius_starts_as_it_is_given_in_the_type_of_the_parameters(float64):
    for update in ("classical", "cat"):
        optimizer = trust_region(rosenbrock, radius=0.5, update=update)
        for precision in (np.float32, np.float64):
            radius = optimizer.init(jnp.ones(2, precision))
            assert (radius, radius.dtype) == (0.5, precision)


@both_subproblems
def test_no_step_takes_more_products_than_allowed(float64, subproblem):
    optimizer = trust_region(rosenbrock, radius=1e3, subproblem=subproblem, iterations=2)
    x = jnp.full(6, 0.3)
    _, _, info = jax.jit(optimizer.step)(x, optimizer.init(x), (None, None), None)
    assert info["iterations"] == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"radius": 0.0}, "radius must be a finite number above zero"),
        ({"radius": np.inf}, "radius must be a finite number above zero"),
        ({"radius": None}, 'give a radius, or update="cat"'),
        ({"subproblem": "dogleg"}, "subproblem must be one of 'lanczos', 'steihaug'"),
        ({"update": "fast"}, "update must be one of 'classical', 'cat'"),
        ({"curvature": "fisher"}, "curvature must be one of 'hessian', 'gauss_newton'"),
        ({"iterations": 0}, "iterations must be a whole number of one or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trust_region(rosenbrock, **options)


def test_gauss_newton_needs_the_model_apart_from_the_loss():
    with pytest.raises(TypeError, match="Gauss-Newton needs soaa_edu"):
        trust_region(rosenbrock, curvature="gauss_newton")
