"""Things to minimise on paper: functions of a vector, with their solutions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soaa_edu.precision import exact_products


@dataclass(frozen=True, eq=False)
class Problem:
    """A function to minimise, callable as ``problem(params)``.

    It takes and ignores a batch, so that it trains like any objective.

    Attributes:
        function: maps ``params`` ``(d,)`` to a scalar.
        solution: the minimiser ``(d,)``, or ``None`` where there is none.
    """

    function: Callable[[Any], Any]
    solution: Any

    def __call__(self, params: Any, batch: Any = None) -> Any:
        """The function's value at ``params``."""
        return self.function(params)


def quadratic(matrix: Any, b: Any) -> Problem:
    """f(x) = ½ xᵀ A x - bᵀ x.

    Its solution is A⁻¹ b where A is positive definite; otherwise f has no single minimiser.

    Args:
        matrix: A, symmetric ``(d, d)``.
        b: ``(d,)``.

    Raises:
        ValueError: A is not square, not symmetric, or does not fit ``b``.
    """
    matrix, b = jnp.asarray(matrix) * 1.0, jnp.asarray(b) * 1.0
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or b.shape != matrix.shape[:1]:
        raise ValueError(
            f"a quadratic needs a matrix (d, d) and b (d,), got {matrix.shape} and {b.shape}"
        )
    exact = np.asarray(matrix, np.float64)
    if not np.allclose(exact, exact.T, rtol=1e-5, atol=1e-6 * np.abs(exact).max()):
        raise ValueError("the matrix is not symmetric: pass (A + A.T) / 2, the same quadratic")
    eigenvalues = np.linalg.eigvalsh(exact)
    relative = max(2 * float(jnp.finfo(matrix.dtype).eps), len(exact) * np.finfo(float).eps)
    rounding = relative * np.abs(eigenvalues).max()
    solution = None
    if eigenvalues.min() > rounding:
        solution = jnp.asarray(np.linalg.solve(exact, np.asarray(b, np.float64)), b.dtype)

    @exact_products()
    def function(x: Any) -> Any:
        return 0.5 * x @ matrix @ x - b @ x

    return Problem(function, solution)


@exact_products()
def random_quadratic(key: jax.Array, eigenvalues: Sequence[float] | jax.Array) -> Problem:
    """A quadratic with the given eigenvalues ``(d,)``, random eigenvectors and a random b."""
    eigenvalues = jnp.asarray(eigenvalues, float)
    matrix_key, b_key = jax.random.split(key)
    size = len(eigenvalues)
    vectors, _ = jnp.linalg.qr(jax.random.normal(matrix_key, (size, size)))
    matrix = (vectors * eigenvalues) @ vectors.T
    return quadratic((matrix + matrix.T) / 2, jax.random.normal(b_key, (size,)))


def _rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def _saddle(x: Any) -> Any:
    return 0.5 * x[0] ** 2 - 0.5 * x[1] ** 2 + 0.25 * x[1] ** 4


rosenbrock = Problem(_rosenbrock, np.ones(2))
"""Rosenbrock's valley, Σ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)², in any dimension; all ones solve it."""

saddle = Problem(_saddle, np.array([0.0, 1.0]))
"""f(x, y) = ½ x² - ½ y² + ¼ y⁴: a saddle at the origin between minima at (0, 1) and (0, -1)."""
