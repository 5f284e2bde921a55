"""Differential equations as least squares: a network's residuals at points of a rectangle."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soaa_edu import checks
from soaa_edu.objective import Objective, squared_error
from soaa_edu.precision import exact_products

Field = Callable[[Any], Any]
"""``points (N, 2) -> values (N,)``, each value of its own point."""
QUADRATURE_NODES = 200


class Equation(NamedTuple):
    """L[u] = f in a rectangle, with u given on some of its sides.

    Attributes:
        operator: ``(u, points) -> L[u]``, ``(N,)``, for any field u.
        source: f, a field.
        solution: u itself, a field, exact.
        low: the rectangle's corner of the smallest coordinates.
        high: the opposite corner.
        sides: those on which u is given, each as ``(axis, coordinate)``.
    """

    operator: Callable[[Field, Any], Any]
    source: Field
    solution: Field
    low: tuple[float, float]
    high: tuple[float, float]
    sides: tuple[tuple[int, float], ...]


def derivatives(field: Field, points: Any, axis: int) -> tuple[Any, Any, Any]:
    """u, ∂u and ∂²u along an axis at each point, by forward mode over forward mode."""
    along = jnp.zeros_like(points).at[:, axis].set(1)

    def with_slope(x: Any) -> tuple[Any, Any]:
        return jax.jvp(field, (x,), (along,))

    (value, slope), (_, second) = jax.jvp(with_slope, (points,), (along,))
    return value, slope, second


def poisson(waves: int = 1) -> Equation:
    """-Δu = f on the unit square, u = 0 on its boundary; u = sin(kπx) sin(kπy), k ``waves``.

    Raises:
        ValueError: ``waves`` is no whole number of one or more.
    """
    frequency = np.pi * checks.whole("waves", waves)

    def operator(field: Field, points: Any) -> Any:
        return -sum(derivatives(field, points, axis)[2] for axis in (0, 1))

    def solution(points: Any) -> Any:
        return jnp.prod(jnp.sin(frequency * points), axis=-1)

    def source(points: Any) -> Any:
        return 2 * frequency**2 * solution(points)

    sides = ((0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0))
    return Equation(operator, source, solution, (0.0, 0.0), (1.0, 1.0), sides)


def burgers(viscosity: float = 0.1 / np.pi) -> Equation:
    """u_t + u u_x = ν u_xx for x in [-1, 1] and t in [0, 1], points being (x, t).

    It starts from u = -sin(πx), and u = 0 at both ends. The solution is Cole's and Hopf's
    (Basdevant et al. 1986), u = -∫ sin(π(x-η)) w dη / ∫ w dη with
    w = exp(-cos(π(x-η)) / (2πν) - η² / (4νt)), by Gauss-Hermite quadrature.

    Args:
        viscosity: ν. The front that forms at x = 0 is about 2ν wide.

    Raises:
        ValueError: the viscosity is no finite number above zero.
    """
    viscosity = checks.positive("viscosity", viscosity)
    nodes, weights = np.polynomial.hermite.hermgauss(QUADRATURE_NODES)
    kept = weights > 0
    nodes, log_weights = nodes[kept], np.log(weights[kept])

    def operator(field: Field, points: Any) -> Any:
        value, slope, second = derivatives(field, points, 0)
        return derivatives(field, points, 1)[1] + value * slope - viscosity * second

    def solution(points: Any) -> Any:
        x, t = points[:, :1], points[:, 1:]
        y = np.pi * (x - jnp.sqrt(4 * viscosity * t) * nodes)
        share = jax.nn.softmax(log_weights - jnp.cos(y) / (2 * np.pi * viscosity), axis=-1)
        return -jnp.sum(share * jnp.sin(y), axis=-1)

    def source(points: Any) -> Any:
        return jnp.zeros_like(points[:, 0])

    sides = ((0, -1.0), (0, 1.0), (1, 0.0))
    return Equation(operator, source, solution, (-1.0, 0.0), (1.0, 1.0), sides)


def collocation(
    equation: Equation,
    key: jax.Array,
    interior: int,
    boundary: int,
    weight: float = 100.0,
) -> tuple[dict[str, Any], Any]:
    """A batch of points for ``as_least_squares``: one in each cell of a grid, drawn within it.

    Args:
        equation: to be solved.
        key: of the points' places in their cells.
        interior: cells along each axis, ``interior²`` points.
        boundary: points on each side on which u is given.
        weight: of the mean square on the boundary, the interior's being one.

    Returns:
        ``({"point", "inside", "given"}, targets)``: the points ``(N, 2)``, what L[u] and what u
        count there ``(N,)``, and the targets ``(N, 1)``.

    Raises:
        ValueError: a number out of its range.
    """
    checks.whole("interior", interior)
    checks.whole("boundary", boundary)
    weight = checks.positive("weight", weight)
    low, high = jnp.asarray(equation.low, float), jnp.asarray(equation.high, float)
    inner_key, *side_keys = jax.random.split(key, 1 + len(equation.sides))
    cells = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(interior)], indexing="ij"), -1).reshape(-1, 2)
    inner = low + (high - low) * (cells + jax.random.uniform(inner_key, cells.shape)) / interior
    edges = []
    for (axis, coordinate), side_key in zip(equation.sides, side_keys, strict=True):
        share = (jnp.arange(boundary) + jax.random.uniform(side_key, (boundary,))) / boundary
        along = low + (high - low) * share[:, None]
        edges.append(along.at[:, axis].set(coordinate))
    outer = jnp.concatenate(edges)
    count = len(inner) + len(outer)
    inside = jnp.concatenate([jnp.ones(len(inner)), jnp.zeros(len(outer))])
    points = jnp.concatenate([inner, outer])
    inputs = {
        "point": points,
        "inside": (count / len(inner)) ** 0.5 * inside,
        "given": (weight * count / len(outer)) ** 0.5 * (1 - inside),
    }
    targets = inputs["inside"] * equation.source(points)
    targets = targets + inputs["given"] * equation.solution(points)
    return inputs, targets[:, None]


def as_least_squares(equation: Equation, network: Callable) -> Objective:
    """½ mean r² over the points of ``collocation``, r being a network's residuals there.

    The objective's model takes the N points to √(N / N_inside) L[u] or √(w N / N_given) u, w being
    the boundary's weight, so that the loss is half the mean square of L[u] - f inside and half w
    times that of u on the boundary.

    Args:
        equation: to be solved.
        network: ``(params, points (N, 2)) -> (N, 1)``.
    """

    def model(params: Any, inputs: dict[str, Any]) -> Any:
        def field(points: Any) -> Any:
            return network(params, points)[:, 0]

        points = inputs["point"]
        inside = inputs["inside"] * equation.operator(field, points)
        return (inside + inputs["given"] * field(points))[:, None]

    return Objective(model, squared_error)


@exact_products()
def relative_error(equation: Equation, network: Callable, params: Any, size: int = 101) -> Any:
    """‖u - solution‖ / ‖solution‖ in L², on a grid of ``size²`` points of the rectangle."""
    points = grid(equation, size)
    exact = equation.solution(points)
    return jnp.linalg.norm(network(params, points)[:, 0] - exact) / jnp.linalg.norm(exact)


def grid(equation: Equation, size: int = 101) -> Any:
    """Points ``(size², 2)`` of an even grid on the rectangle, the first coordinate slowest."""
    axes = [jnp.linspace(a, b, size) for a, b in zip(equation.low, equation.high, strict=True)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
