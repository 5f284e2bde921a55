from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from jax.flatten_util import ravel_pytree

from soaa_edu import softmax_cross_entropy, trust_region
from soaa_edu.curvature import dense, hessian_matvec
from soaa_edu.linear_solvers import (
    cg_path,
    conjugate_gradient,
    lanczos_trust_region,
    minimise_in_ball,
    spectral_quadrature,
    steihaug_cg,
)
from soaa_edu.problems import rosenbrock

N = 12
SLOPES = np.random.default_rng(5).normal(size=N)
POSITIVE = np.geomspace(1, 100, N)
INDEFINITE = np.linspace(-3, 5, N)
THREE_LOWEST = np.concatenate([[-3, -3, -3], np.linspace(-2, 5, N - 3)])
SINGULAR = np.concatenate([[0, 0], np.linspace(1, 5, N - 2)])
UNSEEN = np.where(np.arange(N) < 1, 0, SLOPES)
THREE_UNSEEN = np.where(np.arange(N) < 3, 0, SLOPES)
TWO_UNSEEN = np.where(np.arange(N) < 2, 0, SLOPES)
BARELY_SEEN = np.where(np.arange(N) < 1, 1e-10, SLOPES)
NONE_SEEN = np.zeros(N)

CASES = {
    "positive, inside": (POSITIVE, SLOPES, 100.0),
    "positive, on the boundary": (POSITIVE, SLOPES, 0.1),
    "indefinite": (INDEFINITE, SLOPES, 1.0),
    "negative": (-POSITIVE[::-1], SLOPES, 1.0),
    "hard": (INDEFINITE, UNSEEN, 30.0),
    "hard but for a small radius": (INDEFINITE, UNSEEN, 0.1),
    "nearly hard": (INDEFINITE, BARELY_SEEN, 30.0),
    "three lowest": (THREE_LOWEST, SLOPES, 2.0),
    "three lowest, hard": (THREE_LOWEST, THREE_UNSEEN, 30.0),
    "singular, inside": (SINGULAR, TWO_UNSEEN, 30.0),
    "singular, on the boundary": (SINGULAR, SLOPES, 30.0),
    "zero matrix": (NONE_SEEN, SLOPES, 0.5),
    "zero gradient at a saddle": (INDEFINITE, NONE_SEEN, 2.0),
    "zero gradient at a minimum": (POSITIVE, NONE_SEEN, 2.0),
    "tiny radius": (INDEFINITE, SLOPES, 1e-12),
    "huge radius": (POSITIVE, SLOPES, 1e12),
    "huge radius, indefinite": (INDEFINITE, SLOPES, 1e12),
}
INSIDE = {"positive, inside", "singular, inside", "zero gradient at a minimum", "huge radius"}
every_case = pytest.mark.parametrize("case", CASES)


def dense_solution(values, slopes, radius):
    """The minimiser in the basis of the eigenvectors, from all eigenvalues and a scalar root."""
    gaps = values + max(0.0, -values[0])

    def at(log_shift):
        denominators = gaps + np.exp(log_shift)
        return np.divide(-slopes, denominators, where=slopes != 0, out=np.zeros(N))

    with np.errstate(divide="ignore"):
        y = at(-np.inf)
    length = np.linalg.norm(y)
    if length <= radius:
        y[0] += np.sqrt(radius**2 - length**2) if values[0] < 0 else 0
        return y

    def too_short(log_shift):
        return 1 / radius - 1 / np.linalg.norm(at(log_shift))

    highest = np.log(np.linalg.norm(slopes) / radius)
    return at(scipy.optimize.brentq(too_short, highest - 60, highest + 1, xtol=1e-14, rtol=1e-14))


def lowered(values, slopes, y):
    return -(slopes @ y + 0.5 * values @ y**2)


def check_optimal(matrix, gradient, radius, step, tolerance):
    """Moré and Sorensen's conditions, which the minimiser in the ball meets and nothing else."""
    step = np.asarray(step, float)
    length, norm = np.linalg.norm(step), np.linalg.norm(matrix, 2)
    residual = matrix @ step + gradient
    shift = max(0.0, -(step @ residual) / length**2) if length else 0.0
    size = np.linalg.norm(gradient) + norm * length
    assert length <= (1 + tolerance) * radius
    assert np.linalg.norm(residual + shift * step) <= tolerance * size
    assert np.linalg.eigvalsh(matrix)[0] + shift >= -tolerance * norm
    assert length >= (1 - tolerance) * radius or shift * length <= tolerance * size


def rotated(rng, case):
    """The case's matrix and gradient in a random basis, and the basis."""
    values, slopes, _ = CASES[case]
    basis, _ = np.linalg.qr(rng.normal(size=(N, N)))
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2, basis @ slopes, basis


@partial(jax.jit, static_argnames="iterations")
def newton_lanczos(matrix, gradient, radius, iterations=N):
    return lanczos_trust_region(lambda v: matrix @ v, gradient, radius, iterations=iterations)


@partial(jax.jit, static_argnames="iterations")
def steihaug(matrix, gradient, radius, iterations=N, tolerance=1e-5):
    return steihaug_cg(
        lambda v: matrix @ v, gradient, radius, max_iterations=iterations, tolerance=tolerance
    )


SOLVERS = pytest.mark.parametrize("solver", [newton_lanczos, steihaug])


@every_case
def test_newton_lanczos_finds_the_dense_solution(float64, rng, case):
    matrix, gradient, _ = rotated(rng, case)
    values, slopes, radius = CASES[case]
    found = newton_lanczos(matrix, gradient, radius)
    check_optimal(matrix, gradient, radius, found.step, 1e-12)
    best = lowered(values, slopes, dense_solution(values, slopes, radius))
    np.testing.assert_allclose(found.model_decrease, best, rtol=1e-11)
    assert bool(found.on_boundary) is (case not in INSIDE)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "hard" not in case and "at a saddle" not in case]
)
def test_newton_lanczos_takes_the_dense_step_where_there_is_one_alone(float64, rng, case):
    matrix, gradient, basis = rotated(rng, case)
    values, slopes, radius = CASES[case]
    expected = basis @ dense_solution(values, slopes, radius)
    found = newton_lanczos(matrix, gradient, radius).step
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-12 * min(max(1, np.linalg.norm(expected)), radius)
    )


@every_case
def test_float32_solves_the_subproblem_to_float32(rng, case):
    matrix, gradient, _ = map(np.float32, rotated(rng, case))
    values, slopes, radius = CASES[case]
    found = newton_lanczos(matrix, gradient, np.float32(radius))
    check_optimal(matrix, gradient, radius, found.step, 2e-5)
    best = lowered(values, slopes, dense_solution(values, slopes, radius))
    np.testing.assert_allclose(found.model_decrease, best, rtol=2e-5)


solve_in_ball = jax.jit(minimise_in_ball)


@every_case
@pytest.mark.parametrize("precision, tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_the_minimiser_in_a_ball_is_the_dense_one(float64, case, precision, tolerance):
    values, slopes, radius = CASES[case]
    y, on_boundary = solve_in_ball(precision(values), precision(slopes), precision(radius))
    check_optimal(np.diag(values), slopes, radius, y, tolerance)
    assert bool(on_boundary) is (case not in INSIDE)
    expected = dense_solution(values, slopes, radius)
    size = np.linalg.norm(expected)
    np.testing.assert_allclose(np.abs(y), np.abs(expected), rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("share", [0.9, 0.999, 1 - 1e-4, 1 - 1e-5])
def test_in_the_hard_case_the_first_eigenvector_makes_up_whatever_is_missing(share):
    values, slopes = np.float32([-1, 1, 2]), np.float32([0, 2, 0])
    radius = np.float32(1 / share)
    y, on_boundary = solve_in_ball(values, slopes, radius)
    assert on_boundary
    assert y[1] == pytest.approx(-1, rel=1e-6)
    assert abs(y[0]) == pytest.approx(np.sqrt(np.float64(radius) ** 2 - 1), rel=1e-3)


def test_a_null_space_that_the_gradient_misses_gets_no_step(float64, rng):
    for _ in range(5):
        matrix, gradient, _ = rotated(rng, "singular, inside")
        found = newton_lanczos(matrix, gradient, 30.0)
        expected = -np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ gradient
        np.testing.assert_allclose(found.step, expected, rtol=0, atol=1e-12)


@SOLVERS
@pytest.mark.parametrize("case", ["positive, inside", "positive, on the boundary", "indefinite"])
@pytest.mark.parametrize("length", [2.0**-66, 2.0**66])
def test_scaling_the_gradient_and_the_radius_scales_the_step_in_float32(rng, solver, case, length):
    matrix, gradient, _ = map(np.float32, rotated(rng, case))
    length, radius = np.float32(length), np.float32(CASES[case][2])
    found = solver(matrix, length * gradient, length * radius)
    expected = solver(matrix, gradient, radius)
    np.testing.assert_allclose(found.step / length, expected.step, rtol=0, atol=1e-5)
    assert found.on_boundary == expected.on_boundary


@SOLVERS
@pytest.mark.parametrize("length", [1e-18, 1.0])
@pytest.mark.parametrize("radius", [1e-18, 1.0, 1e18])
def test_negative_curvature_leads_to_any_boundary_in_float32(rng, solver, length, radius):
    matrix, gradient, _ = map(np.float32, rotated(rng, "indefinite"))
    found = solver(matrix, np.float32(length) * gradient, np.float32(radius))
    assert found.on_boundary
    assert np.linalg.norm(np.float64(found.step)) / radius == pytest.approx(1, rel=1e-5)


@SOLVERS
@every_case
def test_the_decrease_told_is_the_models(float64, rng, solver, case):
    matrix, gradient, _ = rotated(rng, case)
    found = solver(matrix, gradient, CASES[case][2])
    step = np.asarray(found.step)
    expected = -(gradient @ step + 0.5 * step @ matrix @ step)
    np.testing.assert_allclose(found.model_decrease, expected, rtol=1e-10)
    assert found.model_decrease >= 0


@SOLVERS
@every_case
def test_a_step_on_the_boundary_is_as_long_as_the_radius(float64, rng, solver, case):
    matrix, gradient, _ = rotated(rng, case)
    radius = CASES[case][2]
    found = solver(matrix, gradient, radius)
    length = np.linalg.norm(found.step) / radius
    if found.on_boundary:
        assert length == pytest.approx(1, abs=1e-12)
    else:
        assert length < 1


def test_fewer_lanczos_iterations_solve_it_in_the_krylov_space(float64, rng):
    matrix, gradient, _ = rotated(rng, "indefinite")
    krylov = [gradient]
    for _ in range(2):
        krylov.append(matrix @ krylov[-1])
    basis, _ = np.linalg.qr(np.stack(krylov, axis=1))
    found = newton_lanczos(matrix, gradient, 1.0, iterations=3)
    inside = basis.T @ np.asarray(found.step)
    np.testing.assert_allclose(basis @ inside, found.step, rtol=0, atol=1e-13)
    check_optimal(basis.T @ matrix @ basis, basis.T @ gradient, 1.0, inside, 1e-12)
    assert found.iterations == 3


def test_more_lanczos_iterations_than_unknowns_are_left_out(float64, rng):
    matrix, gradient, _ = rotated(rng, "indefinite")
    found = newton_lanczos(matrix, gradient, 1.0, iterations=50)
    assert found.iterations == N
    check_optimal(matrix, gradient, 1.0, found.step, 1e-12)


def numpy_steihaug(matrix, gradient, radius, iterations, tolerance):
    """Algorithm 7.2 of Nocedal and Wright, its root from NumPy's polynomials."""
    z, r, d = np.zeros(N), gradient, -gradient
    for i in range(iterations):
        if np.linalg.norm(r) <= tolerance * np.linalg.norm(gradient):
            return z, False, i
        curvature = d @ matrix @ d
        alpha = r @ r / curvature if curvature else np.inf
        if curvature <= 0 or np.linalg.norm(z + alpha * d) >= radius:
            return z + np.roots([d @ d, 2 * z @ d, z @ z - radius**2]).max() * d, True, i + 1
        z, r_next = z + alpha * d, r + alpha * matrix @ d
        d, r = r_next @ r_next / (r @ r) * d - r_next, r_next
    return z, False, iterations


@every_case
@pytest.mark.parametrize("iterations", [1, 3, N])
def test_steihaugs_step_is_the_textbooks(float64, rng, case, iterations):
    matrix, gradient, _ = rotated(rng, case)
    radius = CASES[case][2]
    found = steihaug(matrix, gradient, radius, iterations)
    step, on_boundary, taken = numpy_steihaug(matrix, gradient, radius, iterations, 1e-5)
    np.testing.assert_allclose(found.step, step, rtol=0, atol=1e-7 * np.linalg.norm(step))
    assert (bool(found.on_boundary), int(found.iterations)) == (on_boundary, taken)


@pytest.mark.parametrize("iterations", [1, 3])
def test_inside_the_ball_steihaug_is_conjugate_gradients(float64, rng, iterations):
    matrix, gradient, _ = rotated(rng, "positive, inside")
    found = steihaug(matrix, gradient, 100.0, iterations)
    plain = conjugate_gradient(lambda v: matrix @ v, -gradient, max_iterations=iterations)
    np.testing.assert_allclose(found.step, plain.solution, rtol=1e-12)
    assert found.iterations == plain.iterations == iterations
    assert not found.on_boundary


def test_steihaug_stops_at_the_tolerance_relative_to_the_gradient(float64, rng):
    matrix, gradient, _ = rotated(rng, "positive, inside")
    found = steihaug(matrix, gradient, 100.0, N, 0.1)
    before, _, _ = numpy_steihaug(matrix, gradient, 100.0, int(found.iterations) - 1, 0.0)
    sizes = [np.linalg.norm(matrix @ step + gradient) for step in (found.step, before)]
    assert sizes[0] <= 0.1 * np.linalg.norm(gradient) < sizes[1]


@SOLVERS
@every_case
def test_no_step_lowers_the_model_less_than_cauchys(float64, rng, solver, case):
    matrix, gradient, _ = rotated(rng, case)
    radius, length = CASES[case][2], np.linalg.norm(gradient)
    curvature = gradient @ matrix @ gradient
    longest = radius / length if length else 0
    t = longest if curvature <= 0 else min(longest, length**2 / curvature)
    cauchy = t * length**2 - 0.5 * t**2 * curvature
    for iterations in (1, 3):
        found = solver(matrix, gradient, radius, iterations=iterations)
        assert found.model_decrease >= cauchy * (1 - 1e-12)


@SOLVERS
@pytest.mark.parametrize("case", ["positive, inside", "positive, on the boundary", "indefinite"])
def test_every_iteration_lowers_the_model_further(float64, rng, solver, case):
    matrix, gradient, _ = rotated(rng, case)
    steps = [solver(matrix, gradient, CASES[case][2], iterations=i) for i in (1, 3, N)]
    one, three, every = (step.model_decrease for step in steps)
    assert one * (1 - 1e-13) <= three <= every * (1 + 1e-13)
    assert one < every or solver is steihaug


def test_steihaugs_step_grows_with_every_iteration(float64, rng):
    matrix, gradient, _ = rotated(rng, "positive, inside")
    steps = [steihaug(matrix, gradient, 100.0, iterations=i).step for i in (1, 3, N)]
    assert np.all(np.diff([np.linalg.norm(step) for step in steps]) > 0)


@pytest.mark.parametrize("excess", [1e-2, 1e-4, 1e-6])
def test_a_hair_from_the_boundary_float32_still_knows_how_far_it_is(excess):
    matrix = np.float32([[2, 1], [1, 3]])
    radius = np.float32(0.5 * (1 + excess))
    found = steihaug(matrix, np.float32([1, 0]), radius)
    z, d = np.array([-0.5, 0]), np.array([-0.25, 0.5])
    a, b = d @ d, z @ d
    c = (0.5 - np.float64(radius)) * (0.5 + np.float64(radius))
    exact = -c / (b + np.sqrt(b**2 - a * c))
    assert found.on_boundary
    assert found.step[1] / d[1] == pytest.approx(exact, rel=1e-6)


@SOLVERS
def test_the_solvers_take_pytrees(float64, rng, solver):
    matrix, gradient, _ = rotated(rng, "indefinite")
    tree = {"w": jnp.asarray(gradient[:10]).reshape(2, 5), "b": (jnp.asarray(gradient[10:]), None)}
    flat, unravel = ravel_pytree(tree)
    order = jnp.concatenate([jnp.arange(10, 12), jnp.arange(10)])
    permuted = jnp.asarray(matrix)[order][:, order]

    def matvec(v):
        return unravel(permuted @ ravel_pytree(v)[0])

    @jax.jit
    def solve(tree):
        if solver is steihaug:
            return steihaug_cg(matvec, tree, 1.0, max_iterations=N)
        return lanczos_trust_region(matvec, tree, 1.0, iterations=N)

    found = solve(tree)
    assert jax.tree.structure(found.step) == jax.tree.structure(tree)
    expected = solver(permuted, flat, 1.0)
    np.testing.assert_allclose(ravel_pytree(found.step)[0], expected.step, rtol=0, atol=1e-12)


@SOLVERS
def test_under_vmap_every_problem_is_solved_by_itself(float64, rng, solver):
    names = ["positive, inside", "indefinite", "hard", "zero gradient at a minimum"]
    if solver is steihaug:
        solver = partial(steihaug, iterations=3 * N, tolerance=1e-12)
    problems = [(*rotated(rng, name)[:2], CASES[name][2]) for name in names]
    together = jax.vmap(solver)(*map(np.stack, zip(*problems, strict=True)))
    for lane, problem in enumerate(problems):
        alone = solver(*problem)
        np.testing.assert_allclose(together.step[lane], alone.step, rtol=0, atol=1e-8)
        assert together.on_boundary[lane] == alone.on_boundary


@pytest.mark.parametrize(
    "options, message",
    [
        ({"radius": 0.0}, "radius must be a finite number above zero"),
        ({"radius": -1.0}, "radius must be a finite number above zero"),
        ({"radius": np.nan}, "radius must be a finite number above zero"),
        ({"iterations": 0}, "iterations must be a whole number"),
    ],
)
@SOLVERS
def test_the_solvers_refuse_what_makes_no_sense(solver, options, message):
    options = {"radius": 1.0, "iterations": 3} | options
    solve = steihaug_cg if solver is steihaug else lanczos_trust_region
    option = "max_iterations" if solver is steihaug else "iterations"
    limit = {option: options["iterations"]}
    with pytest.raises(ValueError, match=message):
        solve(lambda v: v, jnp.ones(3), options["radius"], **limit)


def test_steihaug_refuses_a_negative_tolerance():
    with pytest.raises(ValueError, match="tolerance must be a finite number, zero or more"):
        steihaug_cg(lambda v: v, jnp.ones(3), 1.0, max_iterations=3, tolerance=-1e-5)


@SOLVERS
def test_a_product_of_nan_ends_the_solve(solver):
    found = solver(np.full((N, N), np.nan, np.float32), np.ones(N, np.float32), np.float32(1))
    assert np.isnan(found.model_decrease)


def logistic_regression(rng):
    """Softmax regression with a ridge, of three classes on four inputs, and where to start."""
    inputs, labels = rng.normal(size=(40, 4)), rng.integers(3, size=40)

    def f(x, batch=None):
        weight, bias = x[:12].reshape(4, 3), x[12:]
        return softmax_cross_entropy(inputs @ weight + bias, labels) + 0.005 * x @ x

    return f, rng.normal(size=15)


def whole_optimisation(name, rng):
    if name == "logistic regression":
        return logistic_regression(rng)
    return rosenbrock, np.array([-1.2, 1.0]) if name == "2" else np.zeros(10)


@pytest.mark.parametrize("subproblem, rival", [("lanczos", "krylov"), ("steihaug", "ncg")])
@pytest.mark.parametrize("name", ["2", "10", "logistic regression"])
def test_whole_optimisations_end_where_scipys_do(float64, rng, name, subproblem, rival):
    f, start = whole_optimisation(name, rng)
    optimizer = trust_region(f, subproblem=subproblem)
    derivatives = jax.jit(lambda x: (f(x), jax.grad(f)(x), jax.hessian(f)(x)))
    theirs = scipy.optimize.minimize(
        lambda x: derivatives(x)[0],
        start,
        jac=lambda x: derivatives(x)[1],
        hess=lambda x: derivatives(x)[2],
        method=f"trust-{rival}",
        options={"gtol": 1e-7, "maxiter": 100},
    )
    assert np.linalg.norm(theirs.jac) < 1e-7

    @jax.jit
    def run(x):
        def step(_, carry):
            return optimizer.step(*carry, (None, None), None)[:2]

        return jax.lax.fori_loop(0, 60, step, (x, optimizer.init(x)))[0]

    ours = run(jnp.asarray(start))
    np.testing.assert_allclose(ours, theirs.x, rtol=0, atol=1e-5)
    assert np.linalg.norm(derivatives(ours)[1]) < 1e-9


@partial(jax.jit, static_argnames=("iterations", "samples"))
def density(matrix, iterations, samples):
    like = jnp.zeros(len(matrix), matrix.dtype)
    return spectral_quadrature(
        lambda v: matrix @ v, like, jax.random.key(0), iterations=iterations, samples=samples
    )


def test_every_start_gives_nodes_and_weights_that_sum_to_one(float64, rng):
    matrix, _, _ = rotated(rng, "indefinite")
    nodes, weights = density(matrix, 3, 2000)
    assert nodes.shape == weights.shape == (2000, 3)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-13)
    assert len(np.unique(np.round(nodes[:, 0], 12))) == 2000


def test_as_many_iterations_as_unknowns_give_the_spectrum_as_nodes(float64, rng):
    matrix, _, _ = rotated(rng, "indefinite")
    nodes, _ = density(matrix, N, 3)
    np.testing.assert_allclose(nodes, np.tile(INDEFINITE, (3, 1)), rtol=0, atol=1e-12)


def test_the_moments_of_the_density_are_the_matrixs_on_average(float64, rng):
    matrix, _, _ = rotated(rng, "indefinite")
    nodes, weights = map(np.asarray, density(matrix, 3, 2000))
    for power in range(1, 6):
        moments = np.sum(weights * nodes**power, axis=1)
        standard_error = moments.std(ddof=1) / np.sqrt(len(moments))
        assert abs(moments.mean() - np.mean(INDEFINITE**power)) < 4 * standard_error
        assert standard_error < 0.05 * np.mean(np.abs(INDEFINITE) ** power)


def test_the_density_of_a_small_networks_hessian_is_the_dense_one(classifier, rng):
    objective, params = classifier((12, 3, 4))
    batch = rng.normal(size=(20, 12)), rng.integers(4, size=20)

    @jax.jit
    def measure(params):
        matvec = hessian_matvec(lambda p: objective(p, batch), params)
        key = jax.random.key(1)
        found = spectral_quadrature(matvec, params, key, iterations=20, samples=400)
        return dense(matvec, params), found

    matrix, (nodes, weights) = measure(params)
    eigenvalues = np.linalg.eigvalsh(matrix)
    apart = scipy.stats.wasserstein_distance(eigenvalues, np.ravel(nodes), None, np.ravel(weights))
    assert apart < 0.005 * np.ptp(eigenvalues)
    assert np.min(nodes) == pytest.approx(eigenvalues[0], rel=1e-3)
    assert np.max(nodes) == pytest.approx(eigenvalues[-1], rel=1e-6)


def test_a_density_needs_a_start():
    with pytest.raises(ValueError, match="samples must be a whole number of one or more"):
        spectral_quadrature(lambda v: v, jnp.ones(3), jax.random.key(0), iterations=2, samples=0)


def numpy_cg_path(matrix, b, x, diagonal, max_iterations, progress):
    """Preconditioned conjugate gradients with Martens' rule: every iterate, from the start on."""
    r = b - matrix @ x
    p = r / diagonal
    path, values = [x], [0.5 * x @ matrix @ x - b @ x]
    for i in range(1, max_iterations + 1):
        z, product = r / diagonal, matrix @ p
        alpha = r @ z / (p @ product)
        x, r_next = x + alpha * p, r - alpha * product
        p = r_next / diagonal + (r_next @ (r_next / diagonal)) / (r @ z) * p
        r = r_next
        path.append(x)
        values.append(0.5 * x @ matrix @ x - b @ x)
        k = max(10, i // 10)
        if i > k and values[i] < 0 and (values[i] - values[i - k]) / values[i] < k * progress:
            break
    return np.array(path)


@partial(jax.jit, static_argnames=("max_iterations", "progress"))
def path_of(matrix, b, x0, diagonal, max_iterations=250, progress=5e-4):
    return cg_path(
        lambda v: matrix @ v,
        b,
        max_iterations=max_iterations,
        x0=x0,
        preconditioner=lambda r: r / diagonal,
        progress=progress,
    )


@pytest.fixture
def system(float64, rng):
    """A matrix of 80 unknowns, a right-hand side, a start and a diagonal preconditioner."""
    basis, _ = np.linalg.qr(rng.normal(size=(80, 80)))
    matrix = (basis * np.geomspace(1, 100, 80)) @ basis.T
    diagonal = np.diag(matrix) * rng.uniform(0.5, 2, size=80)
    return (matrix + matrix.T) / 2, rng.normal(size=80), 0.01 * rng.normal(size=80), diagonal


@pytest.mark.parametrize("warm", [False, True])
def test_the_path_holds_the_iterates_of_conjugate_gradients_at_growing_intervals(system, warm):
    matrix, b, x0, diagonal = system
    found = path_of(matrix, b, warm * x0, diagonal, 30, 0.0)
    expected = numpy_cg_path(matrix, b, warm * x0, diagonal, 30, 0.0)
    marks = [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24]
    scale = np.abs(expected[-1]).max()
    assert (found.kept, found.iterations) == (len(marks), 30)
    np.testing.assert_allclose(found.iterates, expected[marks], rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(found.last, expected[-1], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("progress", [5e-4, 5e-3, 3e-2])
def test_it_stops_at_the_first_iterate_that_brought_too_little(system, warm, progress):
    matrix, b, x0, diagonal = system
    found = path_of(matrix, b, warm * x0, diagonal, progress=progress)
    expected = numpy_cg_path(matrix, b, warm * x0, diagonal, 250, progress)
    assert 10 < found.iterations == len(expected) - 1 < 250
    scale = np.abs(expected[-1]).max()
    np.testing.assert_allclose(found.last, expected[-1], rtol=0, atol=1e-6 * scale)


def test_iterates_that_were_not_reached_do_not_count(system):
    matrix, b, x0, diagonal = system
    found = path_of(matrix, b, 0 * x0, diagonal, progress=3e-2)
    assert found.kept < len(found.iterates)
    assert np.all(np.any(found.iterates[: found.kept] != 0, axis=1))
    assert not np.any(found.iterates[found.kept :])


def test_longer_paths_look_back_over_a_tenth_of_their_iterations(float64):
    chain = 2 * np.eye(300) - np.eye(300, k=1) - np.eye(300, k=-1)
    end, none, ones = np.eye(300)[0], np.zeros(300), np.ones(300)
    found = path_of(chain, end, none, ones, progress=4e-5)
    i = np.arange(1, 251)
    k = np.maximum(10, i // 10)
    brought = k / (i * (np.maximum(i - k, 0) + 1))
    settled = (i > k) & (brought < k * 4e-5)
    assert found.iterations == i[np.argmax(settled)] == 166


def test_a_path_ends_where_the_curvature_is_not_positive(system):
    matrix, b, x0, diagonal = system
    found = path_of(-matrix, b, x0, diagonal)
    np.testing.assert_allclose(found.last, x0, rtol=1e-15)
    assert (found.kept, found.iterations) == (0, 0)


def test_a_path_from_the_solution_stays_there(system):
    matrix, b, _, diagonal = system
    solution = np.linalg.solve(matrix, b)
    found = path_of(matrix, b, solution, diagonal)
    np.testing.assert_allclose(found.last, solution, rtol=0, atol=1e-10)


def test_a_tiny_right_hand_side_has_the_same_path_in_float32(system):
    matrix, b, _, diagonal = map(np.float32, system)
    tiny = np.float32(1e-20)
    found = path_of(matrix, tiny * b, 0 * b, diagonal)
    expected = path_of(matrix, b, 0 * b, diagonal)
    assert found.iterations > 10
    np.testing.assert_allclose(found.iterates[:4] / tiny, expected.iterates[:4], rtol=1e-3)


def test_paths_are_of_pytrees(system):
    matrix, b, x0, diagonal = map(jnp.asarray, system)
    flat, unravel = ravel_pytree({"a": b[:30], "b": b[30:].reshape(5, 10)})

    def matvec(v):
        return unravel(matrix @ ravel_pytree(v)[0])

    divide = partial(jax.tree.map, lambda d, r: r / d, unravel(diagonal))

    @jax.jit
    def path(b, x0):
        return cg_path(matvec, b, max_iterations=5, x0=x0, preconditioner=divide)

    found = path(unravel(flat), unravel(x0))
    expected = path_of(matrix, b, x0, diagonal, 5)
    np.testing.assert_allclose(found.iterates, expected.iterates, rtol=1e-12)


def test_a_path_needs_an_iteration():
    with pytest.raises(ValueError, match="max_iterations must be a whole number"):
        cg_path(
            optax.tree.zeros_like,
            jnp.ones(3),
            max_iterations=0,
            x0=jnp.zeros(3),
            preconditioner=lambda r: r,
        )
