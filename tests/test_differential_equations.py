import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from soaa_edu import Objective, squared_error
from soaa_edu import differential_equations as equations
from soaa_edu.models import mlp

NETWORK = mlp([2, 5, 1], jnp.tanh)
EQUATIONS = {
    "poisson": equations.poisson(),
    "three waves": equations.poisson(3),
    "burgers": equations.burgers(),
    "stiff burgers": equations.burgers(0.01 / np.pi),
}
every_equation = pytest.mark.parametrize("name", EQUATIONS)


def inner_points(equation, rng, count=30):
    low, high = np.array(equation.low), np.array(equation.high)
    return jnp.asarray(low + (high - low) * rng.uniform(0.05, 0.95, size=(count, 2)))


def test_derivatives_are_those_of_a_polynomial(float64, rng):
    points = jnp.asarray(rng.normal(size=(7, 2)))
    x, y = points.T

    def field(p):
        return p[:, 0] ** 3 * p[:, 1] ** 2

    for axis, expected in enumerate(
        [(x**3 * y**2, 3 * x**2 * y**2, 6 * x * y**2), (x**3 * y**2, 2 * x**3 * y, 2 * x**3)]
    ):
        found = equations.derivatives(field, points, axis)
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@every_equation
def test_the_solution_satisfies_its_equation(float64, rng, name):
    equation = EQUATIONS[name]
    points = inner_points(equation, rng)
    scale = np.abs(equations.derivatives(equation.solution, points, 0)[1]).max()
    residual = equation.operator(equation.solution, points) - equation.source(points)
    assert np.abs(residual).max() <= 1e-8 * max(scale, 1)


@every_equation
def test_the_solution_has_the_values_that_are_given_on_its_sides(float64, name):
    equation = EQUATIONS[name]
    along = jnp.linspace(0, 1, 9)[:, None]
    for axis, coordinate in equation.sides:
        low, high = jnp.array(equation.low), jnp.array(equation.high)
        points = (low + (high - low) * along).at[:, axis].set(coordinate)
        at_the_start = name.endswith("burgers") and axis == 1
        expected = -jnp.sin(np.pi * points[:, 0]) if at_the_start else 0
        np.testing.assert_allclose(equation.solution(points), expected, atol=1e-14)


def test_burgers_solution_is_the_integral_of_cole_and_hopf(float64):
    viscosity = 0.1 / np.pi
    points = np.array([[0.1, 0.3], [-0.6, 0.8], [0.02, 1.0]])

    def by_quadrature(x, t):
        def weight(eta):
            y = np.pi * (x - eta)
            return np.exp(-np.cos(y) / (2 * np.pi * viscosity) - eta**2 / (4 * viscosity * t))

        top = quad(lambda e: np.sin(np.pi * (x - e)) * weight(e), -3, 3, epsabs=0, limit=500)[0]
        return -top / quad(weight, -3, 3, epsabs=0, limit=500)[0]

    expected = [by_quadrature(*point) for point in points]
    np.testing.assert_allclose(equations.burgers().solution(jnp.asarray(points)), expected, 1e-9)


def test_the_operator_of_burgers_is_not_linear_and_that_of_poisson_is(float64, rng):
    points = inner_points(EQUATIONS["poisson"], rng, 3)

    def field(p):
        return jnp.sin(p[:, 0]) * p[:, 1]

    def doubled(p):
        return 2 * field(p)

    for name, linear in (("poisson", True), ("burgers", False)):
        operator = EQUATIONS[name].operator
        assert np.allclose(operator(doubled, points), 2 * operator(field, points)) == linear


@every_equation
def test_points_lie_one_in_each_cell_and_on_the_sides(float64, name):
    equation = EQUATIONS[name]
    inputs, targets = equations.collocation(equation, jax.random.key(0), interior=4, boundary=5)
    inside = inputs["inside"] > 0
    count = 16 + 5 * len(equation.sides)
    assert targets.shape == (count, 1)
    np.testing.assert_array_equal(inside, inputs["given"] == 0)
    low, high = np.array(equation.low), np.array(equation.high)
    cells = np.floor(4 * (inputs["point"][inside] - low) / (high - low)).astype(int)
    assert sorted(map(tuple, cells.tolist())) == [(i, j) for i in range(4) for j in range(4)]
    for edge, (axis, coordinate) in enumerate(equation.sides):
        side = inputs["point"][16 + 5 * edge : 21 + 5 * edge]
        np.testing.assert_array_equal(side[:, axis], coordinate)
        other = (side[:, 1 - axis] - low[1 - axis]) / (high - low)[1 - axis]
        np.testing.assert_array_equal(np.floor(5 * other), np.arange(5))


@pytest.mark.parametrize("name", ["poisson", "burgers"])
def test_the_objective_is_half_the_mean_squares_with_the_boundarys_weight(float64, name):
    equation = EQUATIONS[name]
    batch = equations.collocation(equation, jax.random.key(0), 4, 5, weight=7.0)
    params = NETWORK.init(jax.random.key(1))
    objective = equations.as_least_squares(equation, NETWORK)
    assert isinstance(objective, Objective)
    assert objective.loss is squared_error

    def field(points):
        return NETWORK(params, points)[:, 0]

    inner, outer = batch[0]["point"][:16], batch[0]["point"][16:]
    residual = equation.operator(field, inner) - equation.source(inner)
    error = field(outer) - equation.solution(outer)
    expected = 0.5 * np.mean(residual**2) + 0.5 * 7 * np.mean(error**2)
    assert float(objective(params, batch)) == pytest.approx(float(expected), rel=1e-13)


def test_the_exact_solution_has_no_loss_and_no_error(float64):
    equation = EQUATIONS["burgers"]

    def network(params, points):
        return equation.solution(points)[:, None]

    inputs, targets = equations.collocation(equation, jax.random.key(0), 4, 5)
    inside = np.asarray(inputs["inside"] > 0)
    kept = jax.tree.map(lambda array: array[inside], (inputs, targets))
    assert equations.as_least_squares(equation, network)((), kept) < 1e-18
    assert equations.relative_error(equation, network, (), size=9) == 0


def test_a_field_of_zeros_has_a_relative_error_of_one(float64):
    def network(params, points):
        return jnp.zeros((len(points), 1))

    assert equations.relative_error(EQUATIONS["poisson"], network, ()) == 1


def test_the_grid_has_the_first_coordinate_slowest(float64):
    found = equations.grid(EQUATIONS["burgers"], 3)
    np.testing.assert_array_equal(found[:, 0], np.repeat([-1, 0, 1], 3))
    np.testing.assert_array_equal(found[:, 1], np.tile([0, 0.5, 1], 3))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: equations.poisson(0), "waves must be a whole number of one or more"),
        (lambda: equations.burgers(0.0), "viscosity must be a finite number above zero"),
        (lambda: _points(interior=0), "interior must be a whole number of one or more"),
        (lambda: _points(boundary=1.5), "boundary must be a whole number of one or more"),
        (lambda: _points(weight=-1.0), "weight must be a finite number above zero"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _points(**numbers):
    options = {"interior": 3, "boundary": 3} | numbers
    return equations.collocation(EQUATIONS["poisson"], jax.random.key(0), **options)
