"""Our CG and Lanczos beside JAX's, lineax's and SciPy's, the same system to the same tolerance."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import scipy.sparse.linalg

from benchmarks.timing import in_turn, table
from soaa_edu.linear_solvers import conjugate_gradient, lanczos, ritz

SIZE = 2000
TOLERANCE = 1e-5


def main() -> None:
    """Print milliseconds of a solve with 40 iterations or so, and of the largest eigenvalue."""
    eigenvalues = jnp.geomspace(1, 100, SIZE)
    vectors, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (SIZE, SIZE)))
    matrix = (vectors * eigenvalues) @ vectors.T
    b = jax.random.normal(jax.random.key(1), (SIZE,))
    matrix_on_host, b_on_host = np.asarray(matrix), np.asarray(b)

    ours = jax.jit(
        lambda a, b: conjugate_gradient(lambda v: a @ v, b, max_iterations=500, tolerance=TOLERANCE)
    )
    of_jax = jax.jit(
        lambda a, b: jax.scipy.sparse.linalg.cg(lambda v: a @ v, b, tol=TOLERANCE, maxiter=500)[0]
    )
    of_lineax = jax.jit(
        lambda a, b: (
            lineax.linear_solve(
                lineax.MatrixLinearOperator(a, lineax.positive_semidefinite_tag),
                b,
                lineax.CG(rtol=TOLERANCE, atol=0.0, max_steps=500),
                throw=False,
            ).value
        )
    )
    result = ours(matrix, b)
    true_residual = jnp.linalg.norm(b - matrix @ result.solution) / jnp.linalg.norm(b)
    print(f"CG, {SIZE} unknowns: {result.iterations} iterations, residual {true_residual:.1e}")
    table(
        in_turn(
            {
                "soaa_edu": lambda: ours(matrix, b),
                "jax.scipy": lambda: of_jax(matrix, b),
                "lineax": lambda: of_lineax(matrix, b),
                "scipy": lambda: scipy.sparse.linalg.cg(
                    matrix_on_host, b_on_host, rtol=TOLERANCE, maxiter=500
                ),
            },
            rounds=10,
        )
    )
    our_lanczos = jax.jit(lambda a, b: ritz(lanczos(lambda v: a @ v, b, 60)))
    print("the largest eigenvalue from 60 Lanczos vectors")
    table(
        in_turn(
            {
                "soaa_edu": lambda: our_lanczos(matrix, b),
                "scipy eigsh": lambda: scipy.sparse.linalg.eigsh(
                    matrix_on_host, k=1, ncv=60, which="LA", v0=b_on_host
                ),
            },
            rounds=10,
        )
    )
