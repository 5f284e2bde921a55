"""Iterations of a trust region on the classic test functions, beside SciPy's trust-exact.

Sums of squares from their standard starts (Moré, Garbow & Hillstrom 1981), in float64. SciPy goes
on until the gradient is shorter than 1e-6, ours until it is as low as SciPy's, to eight digits, or
its gradient as short, or for 2,000 iterations. Both begin with a radius of one.

Biggs' function is the exception. From its start a valley leads down towards 0.2427, along which the
amplitudes run to infinity and the Hessian's smallest eigenvalues to zero. Our steps follow it; an
early step of SciPy's ends beyond its rim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import soaa_edu

SHORT, MOST = 1e-6, 2_000


def rosenbrock(x: Any) -> list:
    return [10 * (x[1] - x[0] ** 2), 1 - x[0]]


def freudenstein_roth(x: Any) -> list:
    return [
        -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
        -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1],
    ]


def beale(x: Any) -> list:
    return [y - x[0] * (1 - x[1] ** i) for i, y in enumerate((1.5, 2.25, 2.625), 1)]


def jennrich_sampson(x: Any) -> list:
    return [2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1])) for i in range(1, 11)]


def helical_valley(x: Any) -> list:
    angle = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    return [10 * (x[2] - 10 * angle), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]]


def bard(x: Any) -> list:
    y = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39)
    return [y[u - 1] - (x[0] + u / ((16 - u) * x[1] + min(u, 16 - u) * x[2])) for u in range(1, 16)]


def gaussian(x: Any) -> list:
    y = (9e-4, 44e-4, 175e-4, 54e-3, 1295e-4, 242e-3, 3521e-4, 3989e-4)
    y = (*y, *y[-2::-1])
    return [x[0] * jnp.exp(-x[1] * ((8 - i) / 2 - x[2]) ** 2 / 2) - y[i - 1] for i in range(1, 16)]


def meyer(x: Any) -> list:
    y = (34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427)
    y = (*y, 3820, 3307, 2872)
    return [x[0] * jnp.exp(x[1] / (45 + 5 * i + x[2])) - y[i - 1] for i in range(1, 17)]


def box(x: Any) -> list:
    t = [i / 10 for i in range(1, 11)]
    return [
        jnp.exp(-s * x[0]) - jnp.exp(-s * x[1]) - x[2] * (np.exp(-s) - np.exp(-10 * s)) for s in t
    ]


def powell_singular(x: Any) -> list:
    return [
        x[0] + 10 * x[1],
        5**0.5 * (x[2] - x[3]),
        (x[1] - 2 * x[2]) ** 2,
        10**0.5 * (x[0] - x[3]) ** 2,
    ]


def wood(x: Any) -> list:
    return [
        10 * (x[1] - x[0] ** 2),
        1 - x[0],
        90**0.5 * (x[3] - x[2] ** 2),
        1 - x[2],
        10**0.5 * (x[1] + x[3] - 2),
        10**-0.5 * (x[1] - x[3]),
    ]


def kowalik_osborne(x: Any) -> list:
    y = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
    u = (4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
    return [
        b - x[0] * (a**2 + a * x[1]) / (a**2 + a * x[2] + x[3]) for a, b in zip(u, y, strict=True)
    ]


def brown_dennis(x: Any) -> list:
    return [
        (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2
        for t in (i / 5 for i in range(1, 21))
    ]


def biggs_exp6(x: Any) -> list:
    return [
        x[2] * jnp.exp(-t * x[0])
        - x[3] * jnp.exp(-t * x[1])
        + x[5] * jnp.exp(-t * x[4])
        - (np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t))
        for t in (i / 10 for i in range(1, 14))
    ]


FUNCTIONS = {
    rosenbrock: (-1.2, 1.0),
    freudenstein_roth: (0.5, -2.0),
    beale: (1.0, 1.0),
    jennrich_sampson: (0.3, 0.4),
    helical_valley: (-1.0, 0.0, 0.0),
    bard: (1.0, 1.0, 1.0),
    gaussian: (0.4, 1.0, 0.0),
    meyer: (0.02, 4000.0, 250.0),
    box: (0.0, 10.0, 20.0),
    powell_singular: (3.0, -1.0, 0.0, 1.0),
    wood: (-3.0, -1.0, -3.0, -1.0),
    kowalik_osborne: (0.25, 0.39, 0.415, 0.39),
    brown_dennis: (25.0, 5.0, -5.0, -1.0),
    biggs_exp6: (1.0, 2.0, 1.0, 1.0, 1.0, 1.0),
}


def by_trust_region(f: Callable, start: Any, low: float) -> tuple[float, int]:
    """The value and the iterations at the end."""
    optimizer = soaa_edu.trust_region(lambda x, _: f(x), radius=1.0)

    def unfinished(carry: tuple) -> Any:
        x, _, i = carry
        steep = jnp.linalg.norm(jax.grad(f)(x)) >= SHORT
        return (i < MOST) & steep & (f(x) > (1 + 1e-8) * low)

    def advance(carry: tuple) -> tuple:
        x, state, i = carry
        x, state, _ = optimizer.step(x, state, None, None)
        return x, state, i + 1

    begin = (start, optimizer.init(start), jnp.int32(0))
    x, _, count = jax.jit(lambda c: jax.lax.while_loop(unfinished, advance, c))(begin)
    return float(f(x)), int(count)


def by_scipy(f: Callable, start: Any) -> tuple[float, int]:
    """The same of ``scipy.optimize.minimize``."""
    found = minimize(
        jax.jit(f),
        np.asarray(start),
        jac=jax.jit(jax.grad(f)),
        hess=jax.jit(jax.hessian(f)),
        method="trust-exact",
        options={"gtol": SHORT, "maxiter": MOST, "initial_trust_radius": 1.0},
    )
    return float(found.fun), int(found.nit)


def main() -> None:
    """Print a line for each function."""
    print("function            SciPy's value  iterations   ours  iterations  ratio (at most 1.5)")
    with jax.enable_x64(True):
        for residuals, at in FUNCTIONS.items():
            start = jnp.asarray(at)

            def f(x: Any, residuals: Callable = residuals) -> Any:
                return jnp.sum(jnp.square(jnp.array(residuals(x))))

            theirs, their_count = by_scipy(f, start)
            ours, our_count = by_trust_region(f, start, theirs)
            print(
                f"{residuals.__name__:18} {theirs:14.6g} {their_count:11} {ours:14.6g}"
                f" {our_count:6} {our_count / their_count:9.2f}"
            )
