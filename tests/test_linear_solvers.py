from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from soaa_edu.linear_solvers import conjugate_gradient, lanczos, ritz


def spd(rng, eigenvalues):
    """A random symmetric matrix with the given eigenvalues."""
    vectors, _ = np.linalg.qr(rng.normal(size=2 * (len(eigenvalues),)))
    matrix = (vectors * eigenvalues) @ vectors.T
    return (matrix + matrix.T) / 2


@pytest.fixture
def system(float64, rng):
    return spd(rng, np.geomspace(1, 100, 30)), rng.normal(size=30)


@partial(jax.jit, static_argnames="max_iterations")
def solve(a, b, *, max_iterations, tolerance=1e-5, x0=None, m=None):
    """Conjugate gradients on arrays, compiled; m is the preconditioner."""
    return conjugate_gradient(
        lambda v: a @ v,
        b,
        max_iterations=max_iterations,
        tolerance=tolerance,
        x0=x0,
        preconditioner=None if m is None else lambda v: m @ v,
    )


def numpy_conjugate_gradient(a, b, steps, m):
    x = np.zeros_like(b)
    r = b - a @ x
    p = m @ r
    for _ in range(steps):
        alpha = (r @ m @ r) / (p @ a @ p)
        x, r_next = x + alpha * p, r - alpha * (a @ p)
        p = m @ r_next + (r_next @ m @ r_next) / (r @ m @ r) * p
        r = r_next
    return x


def true_residual(a, b, x):
    return np.linalg.norm(np.float64(b) - np.float64(a) @ np.float64(x))


@pytest.mark.parametrize("max_iterations", [50, 200], ids=["short", "long"])
def test_cg_solves_the_system(system, max_iterations):
    a, b = system
    found = solve(a, b, max_iterations=max_iterations, tolerance=1e-12)
    np.testing.assert_allclose(found.solution, np.linalg.solve(a, b), rtol=1e-9)


def test_cg_finds_what_scipys_finds(system):
    a, b = system
    expected, failed = scipy.sparse.linalg.cg(a, b, rtol=1e-12)
    assert not failed
    found = solve(a, b, max_iterations=200, tolerance=1e-12)
    np.testing.assert_allclose(found.solution, expected, rtol=1e-9)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("steps", [2, 7])
def test_its_iterates_are_the_textbooks(system, steps, preconditioned):
    a, b = system
    m = np.diag(1 / np.diag(a)) if preconditioned else np.eye(30)
    found = solve(a, b, max_iterations=steps, tolerance=0.0, m=m if preconditioned else None)
    expected = numpy_conjugate_gradient(a, b, steps, m)
    np.testing.assert_allclose(found.solution, expected, rtol=1e-10)
    assert found.iterations == steps


def test_correcting_the_residual_does_not_restart_the_iteration(float64, rng):
    a, b = spd(rng, np.geomspace(1, 30, 200)), rng.normal(size=200)
    found = solve(a, b, max_iterations=60, tolerance=0.0)
    textbook = numpy_conjugate_gradient(a, b, 60, np.eye(200))
    to_go = np.linalg.norm(textbook - np.linalg.solve(a, b))
    assert np.linalg.norm(found.solution - textbook) < 0.05 * to_go


def test_cg_solves_on_pytrees(system):
    a, b = system
    tree = {"w": jnp.asarray(b[:10]).reshape(2, 5), "b": (jnp.asarray(b[10:]), None)}

    def flat(v):
        return jnp.concatenate([v["w"].ravel(), v["b"][0]])

    def matvec(v):
        out = jnp.asarray(a) @ flat(v)
        return {"w": out[:10].reshape(2, 5), "b": (out[10:], None)}

    found = conjugate_gradient(matvec, tree, max_iterations=50, tolerance=1e-12).solution
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    np.testing.assert_allclose(flat(found), np.linalg.solve(a, b), rtol=1e-9)


def test_a_start_at_the_solution_needs_no_iteration(system):
    a, b = system
    exact = np.linalg.solve(a, b)
    found = solve(a, b, max_iterations=50, x0=exact)
    assert found.iterations == 0
    np.testing.assert_allclose(found.solution, exact, rtol=1e-14)


def test_a_start_elsewhere_leads_to_the_same_solution(system, rng):
    a, b = system
    found = solve(a, b, max_iterations=50, tolerance=1e-12, x0=rng.normal(size=30))
    np.testing.assert_allclose(found.solution, np.linalg.solve(a, b), rtol=1e-9)


def test_an_exact_preconditioner_needs_one_iteration(system):
    a, b = system
    found = solve(a, b, max_iterations=50, tolerance=1e-10, m=np.linalg.inv(a))
    assert found.iterations == 1
    np.testing.assert_allclose(found.solution, np.linalg.solve(a, b), rtol=1e-10)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("length", [2.0**-30, 1.0, 2.0**30])
def test_it_stops_at_the_first_residual_below_the_tolerance_relative_to_b(
    system, tolerance, length
):
    a, b = system
    b = length * b
    found = solve(a, b, max_iterations=50, tolerance=tolerance)
    target = tolerance * np.linalg.norm(b)
    assert true_residual(a, b, found.solution) <= target
    np.testing.assert_allclose(found.residual_norm, true_residual(a, b, found.solution), rtol=1e-6)
    before = numpy_conjugate_gradient(a, b, int(found.iterations) - 1, np.eye(30))
    assert true_residual(a, b, before) > target


@pytest.mark.parametrize("length", [1e-25, 1e25])
def test_a_tiny_or_huge_right_hand_side_is_solved_in_float32(rng, length):
    a, b = np.float32(spd(rng, np.linspace(1, 10, 20))), np.float32(length * rng.normal(size=20))
    found = solve(a, b, max_iterations=50, tolerance=1e-6)
    expected = np.linalg.solve(np.float64(a), np.float64(b))
    np.testing.assert_allclose(
        found.solution, expected, rtol=0, atol=1e-5 * np.linalg.norm(expected)
    )
    assert 0 < found.residual_norm < 1e-6 * length * 30


@pytest.mark.parametrize("max_iterations", [50, 200], ids=["short", "long"])
def test_at_negative_curvature_it_stops_with_what_it_has(system, rng, max_iterations):
    _, b = system
    a = spd(rng, np.append(np.geomspace(1, 100, 29), -1e-3))
    found = solve(a, b, max_iterations=max_iterations, tolerance=1e-12)
    steps = int(found.iterations)
    assert 0 < steps < 50
    np.testing.assert_allclose(
        found.solution, numpy_conjugate_gradient(a, b, steps, np.eye(30)), rtol=1e-5
    )
    np.testing.assert_allclose(found.residual_norm, true_residual(a, b, found.solution), rtol=1e-6)


@pytest.mark.parametrize("start", [None, 3.0])
@pytest.mark.parametrize("max_iterations", [50, 200], ids=["short", "long"])
@pytest.mark.parametrize("a", [-np.eye(4), np.zeros((4, 4))], ids=["negative", "zero"])
def test_without_positive_curvature_it_stays_where_it_started(a, max_iterations, start):
    x0 = None if start is None else jnp.full(4, start)
    found = solve(a, np.ones(4), max_iterations=max_iterations, x0=x0)
    np.testing.assert_allclose(found.solution, np.full(4, start or 0.0), rtol=1e-6)
    assert found.iterations == 0


@pytest.mark.parametrize("max_iterations", [50, 200], ids=["short", "long"])
def test_a_product_of_nan_stops_it_at_once(max_iterations):
    found = conjugate_gradient(lambda v: v * jnp.nan, jnp.ones(3), max_iterations=max_iterations)
    assert found.iterations == 0
    np.testing.assert_array_equal(found.solution, np.zeros(3))
    assert not found.residual_norm <= 1e-5


def test_a_right_hand_side_of_zero_has_solution_zero(system):
    found = solve(system[0], np.zeros(30), max_iterations=50)
    np.testing.assert_array_equal(found.solution, np.zeros(30))
    assert (found.iterations, found.residual_norm) == (0, 0)


def test_the_residual_reported_is_the_true_one_where_float32_stalls(rng):
    a, b = np.float32(spd(rng, np.geomspace(1, 1e6, 20))), np.float32(rng.normal(size=20))
    found = solve(a, b, max_iterations=400, tolerance=1e-6)
    assert 0.5 < found.residual_norm / true_residual(a, b, found.solution) < 2


@pytest.mark.parametrize("condition, floor", [(1e2, 3e-5), (1e4, 3e-3)])
def test_iterations_after_the_stall_lose_nothing(rng, condition, floor):
    a, b = np.float32(spd(rng, np.geomspace(1, condition, 20))), np.float32(rng.normal(size=20))
    found = solve(a, b, max_iterations=400, tolerance=0.0)
    assert true_residual(a, b, found.solution) < floor * np.linalg.norm(b)


def test_under_vmap_every_system_is_solved_by_itself(system, rng):
    a, _ = system
    sides = rng.normal(size=(3, 30)) * np.array([[1.0], [1e-3], [0.0]])
    starts = np.stack([np.linalg.solve(a, sides[0]), np.zeros(30), np.zeros(30)])

    def run(b, x0):
        return solve(a, b, max_iterations=50, tolerance=1e-12, x0=x0)

    together = jax.vmap(run)(sides, starts)
    np.testing.assert_allclose(together.solution, np.linalg.solve(a, sides.T).T, rtol=1e-8)
    np.testing.assert_array_equal(together.iterations > 0, [False, True, False])


def test_in_a_basis_that_is_not_orthonormal_the_metric_makes_it_the_same_iteration(float64, rng):
    basis, core = rng.normal(size=(12, 5)), rng.normal(size=(5, 5))
    core, gram, beta = core @ core.T, basis.T @ basis, rng.normal(size=5)
    matrix = basis @ core @ basis.T + 0.5 * np.eye(12)
    for iterations in (1, 3, 60):
        options = {"max_iterations": iterations, "tolerance": 1e-12}
        inside = conjugate_gradient(
            lambda a, measured: core @ measured + 0.5 * a,
            beta,
            metric=lambda a: gram @ a,
            **options,
        )
        outside = conjugate_gradient(lambda v: matrix @ v, basis @ beta, **options)
        np.testing.assert_allclose(basis @ inside.solution, outside.solution, atol=1e-10)
        assert inside.iterations == outside.iterations
        np.testing.assert_allclose(
            inside.residual_norm, outside.residual_norm, rtol=1e-6, atol=1e-10
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_iterations": 0}, "max_iterations must be a whole number"),
        ({"max_iterations": 5, "tolerance": -1e-3}, "tolerance must be a finite number"),
        (
            {"max_iterations": 5, "x0": jnp.ones(2)},
            r"x0 has arrays \[\(2,\)\] and b has \[\(3,\)\]",
        ),
    ],
)
def test_cg_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        conjugate_gradient(lambda v: v, jnp.ones(3), **options)


@partial(jax.jit, static_argnums=2)
def compiled_lanczos(a, start, iterations):
    return lanczos(lambda v: a @ v, start, iterations)


def run_lanczos(a, start, iterations):
    """T and V, and the library's result."""
    result = compiled_lanczos(a, start, iterations)
    off = np.asarray(result.off_diagonal)
    return np.diag(result.diagonal) + np.diag(off, 1) + np.diag(off, -1), result.vectors, result


def check_factorisation(a, t, v, atol):
    """V has orthonormal rows, and T is V A Vᵀ."""
    np.testing.assert_allclose(v @ v.T, np.eye(len(v)), rtol=0, atol=atol)
    np.testing.assert_allclose(v @ a @ v.T, t, rtol=0, atol=atol * max(1, np.abs(a).max()))


def test_lanczos_makes_a_tridiagonal_of_the_matrix(float64, rng):
    start = rng.normal(size=30)
    a = spd(rng, rng.normal(size=30))
    t, v, _ = run_lanczos(a, start, 12)
    check_factorisation(a, t, v, 1e-13)
    np.testing.assert_allclose(v[0], start / np.linalg.norm(start), rtol=1e-14)
    assert np.all(np.diag(t, 1) > 1e-3)


def test_lanczos_makes_no_ghost_copies_in_float32(rng):
    eigenvalues = np.append(np.linspace(0, 1, 199), 100.0)
    a = np.float32(spd(rng, eigenvalues))
    t, v, _ = run_lanczos(a, np.float32(rng.normal(size=200)), 60)
    np.testing.assert_allclose(v @ v.T, np.eye(60), rtol=0, atol=1e-5)
    values = np.linalg.eigvalsh(t)
    assert values[-1] == pytest.approx(100, rel=1e-5)
    assert values[-2] < 1.001


def test_extreme_ritz_values_are_the_extreme_eigenvalues(float64, rng):
    a = spd(rng, np.concatenate([[-50], np.linspace(-1, 1, 28), [60]]))
    _, _, result = run_lanczos(a, rng.normal(size=30), 12)
    values, _ = ritz(result)
    expected = scipy.sparse.linalg.eigsh(a, k=2, which="BE", return_eigenvectors=False)
    np.testing.assert_allclose([values[0], values[-1]], np.sort(expected), rtol=1e-12)


def test_as_many_iterations_as_unknowns_give_the_whole_spectrum(system, rng):
    a = system[0]
    t, v, result = run_lanczos(a, rng.normal(size=30), 30)
    check_factorisation(a, t, v, 1e-12)
    np.testing.assert_allclose(ritz(result)[0], np.linalg.eigvalsh(a), rtol=1e-11)


BREAKDOWNS = {
    "low rank": (np.diag([3.0, 2.0, 0, 0, 0, 0, 0, 0]), np.ones(8), [2, 3, 4, 5, 6]),
    "invariant subspace": (np.diag(np.arange(1.0, 9)), np.eye(8)[1] + np.eye(8)[4], [1]),
    "eigenvector": (np.diag(np.arange(1.0, 9)), np.eye(8)[3], [0]),
    "zero start": (np.diag(np.arange(1.0, 9)), np.zeros(8), []),
    "zero matrix": (np.zeros((8, 8)), np.ones(8), [0, 1, 2, 3, 4, 5, 6]),
    "identity": (np.eye(8), np.arange(8.0), [0, 1, 2, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("a, start, ends", BREAKDOWNS.values(), ids=BREAKDOWNS)
def test_where_the_krylov_space_ends_a_random_vector_goes_on_uncoupled(float64, a, start, ends):
    t, v, _ = run_lanczos(a, start, 8)
    check_factorisation(a, t, v, 1e-12)
    np.testing.assert_array_equal(np.flatnonzero(np.diag(t, 1) == 0), ends)


@pytest.mark.parametrize("a, start, ends", BREAKDOWNS.values(), ids=BREAKDOWNS)
def test_float32_breaks_down_in_the_same_places(a, start, ends):
    t, v, _ = run_lanczos(np.float32(a), np.float32(start), 8)
    check_factorisation(a, t, v, 1e-5)
    np.testing.assert_array_equal(np.flatnonzero(np.diag(t, 1) == 0), ends)


def test_the_quadrature_integrates_polynomials_exactly(system):
    a, start = system
    _, _, result = run_lanczos(a, start, 12)
    values, weights = ritz(result)
    moments = [start @ np.linalg.matrix_power(a, k) @ start / (start @ start) for k in range(6)]
    found = [weights @ values**k for k in range(6)]
    np.testing.assert_allclose(found, moments, rtol=1e-12)


def test_lanczos_takes_pytrees_and_forgets_the_starts_length(system):
    a, start = system
    _, v, _ = run_lanczos(a, start, 12)

    def matvec(tree):
        out = jnp.asarray(a) @ jnp.concatenate(tree)
        return [out[:10], out[10:]]

    short = [jnp.asarray(1e-200 * start[:10]), jnp.asarray(1e-200 * start[10:])]
    result = jax.jit(lambda start: lanczos(matvec, start, 12))(short)
    np.testing.assert_allclose(result.vectors, v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [0, 4])
def test_lanczos_takes_from_one_to_n_iterations(iterations):
    with pytest.raises(ValueError, match="iterations"):
        lanczos(lambda v: v, jnp.ones(3), iterations)


def ill_conditioned(rng, size=400, smallest=1e-4):
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    matrix = (q * np.geomspace(smallest, 1, size)) @ q.T
    return matrix.astype(np.float32), rng.normal(size=size).astype(np.float32)


def test_cg_stops_where_rounding_alone_is_left_and_says_how_far_it_came(rng):
    matrix, b = ill_conditioned(rng)
    found = conjugate_gradient(
        lambda v: jnp.asarray(matrix) @ v, jnp.asarray(b), max_iterations=3000
    )
    exact = b - matrix.astype(np.float64) @ np.asarray(found.solution, np.float64)
    assert found.iterations < 1000
    assert 1e-5 * np.linalg.norm(b) < found.residual_norm
    assert found.residual_norm == pytest.approx(np.linalg.norm(exact), rel=0.5)
    assert found.residual_norm < 1e-3 * np.linalg.norm(b)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-12, 1e-20, 1e-30])
def test_cg_with_a_start_tells_the_true_residual_of_any_right_hand_side(size):
    diagonal, b = jnp.array([1.0, 2.0, 3.0]), size * jnp.array([1.0, -2.0, 1.0])
    found = conjugate_gradient(
        lambda v: diagonal * v, b, x0=jnp.ones(3), max_iterations=50, tolerance=1e-5
    )
    exact = np.float64(b) - np.float64(diagonal) * np.float64(found.solution)
    assert np.linalg.norm(exact) < 1e-6
    told = float(found.residual_norm)
    assert np.linalg.norm(exact) <= 2 * told or told <= 1e-5 * np.linalg.norm(np.float64(b))


def test_cg_is_differentiated_in_b_and_in_the_matrix(float64, rng):
    half = rng.normal(size=(6, 6))
    matrix, b = jnp.asarray(half @ half.T + np.eye(6)), jnp.asarray(rng.normal(size=6))

    def by_cg(matrix, b, start=None):
        found = conjugate_gradient(
            lambda v: {"x": matrix @ v["x"]},
            {"x": b},
            max_iterations=60,
            tolerance=1e-14,
            x0=None if start is None else {"x": start},
        )
        return jnp.sum(jnp.sin(found.solution["x"]))

    def exact(matrix, b):
        return jnp.sum(jnp.sin(jnp.linalg.solve(matrix, b)))

    expected = jax.grad(exact, argnums=(0, 1))(matrix, b)
    for start in (None, jnp.ones(6)):
        found = jax.grad(by_cg, argnums=(0, 1))(matrix, b, start)
        symmetric = (found[0] + found[0].T) / 2, found[1]
        wanted = (expected[0] + expected[0].T) / 2, expected[1]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8), symmetric, wanted)


def test_lanczos_finds_the_other_end_behind_an_outlier():
    values = jnp.linspace(0.0, 1.0, 30_000).at[-1].set(1e3).at[0].set(-3.0)
    start = jax.random.normal(jax.random.key(0), values.shape)
    found = jax.jit(lambda s: lanczos(lambda v: values * v, s, 20))(start)
    assert np.count_nonzero(found.off_diagonal == 0) == 0
    assert ritz(found)[0][0] == pytest.approx(-3, rel=1e-3)


def test_lanczos_still_ends_where_the_space_does(rng):
    thin = rng.normal(size=(40, 6)).astype(np.float32)
    matrix = jnp.asarray(thin @ thin.T)
    found = jax.jit(lambda s: lanczos(lambda v: matrix @ v, s, 20))(jnp.ones(40))
    gram = found.vectors @ found.vectors.T
    np.testing.assert_allclose(gram, np.eye(20), atol=1e-5)
    assert np.count_nonzero(found.off_diagonal < 1e-3) >= 10
    np.testing.assert_allclose(ritz(found)[0][-6:], np.linalg.eigvalsh(thin.T @ thin), rtol=1e-4)
