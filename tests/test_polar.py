from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import polar

from soaa_edu.linear_solvers import CUBIC, QUINTIC, newton_schulz, polar_factor

SHAPES = [(6, 6), (9, 4), (4, 9)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def with_singular_values(rng, shape, values):
    """A matrix, and its singular vectors as orthonormal columns."""
    left, right = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in shape)
    return (left * values) @ right.T, left, right


def of_scalars(values, iterations, coefficients):
    """What the polynomial makes of singular values over their norm."""
    x = values / np.linalg.norm(values)
    for _ in range(iterations):
        x = sum(c * x ** (2 * k + 1) for k, c in enumerate(coefficients))
    return x


@every_shape
def test_the_polar_factor_is_scipys(float64, rng, shape):
    matrix = rng.normal(size=shape)
    side = "right" if shape[0] >= shape[1] else "left"
    np.testing.assert_allclose(
        polar_factor(jnp.asarray(matrix)), polar(matrix, side)[0], atol=1e-13
    )


def test_no_matrix_of_spectral_norm_one_has_a_larger_inner_product(float64, rng):
    matrix = rng.normal(size=(5, 3))
    others = rng.normal(size=(1000, 5, 3))
    others /= np.linalg.norm(others, 2, axis=(1, 2))[:, None, None]
    nuclear = np.linalg.norm(matrix, "nuc")
    np.testing.assert_allclose(np.sum(matrix * polar_factor(jnp.asarray(matrix))), nuclear)
    assert np.max(np.sum(matrix * others, axis=(1, 2))) < nuclear


def test_directions_of_rounding_have_no_part_in_the_polar_factor(rng):
    column, row = rng.normal(size=(6, 1)), rng.normal(size=(1, 4))
    expected = column @ row / np.linalg.norm(column) / np.linalg.norm(row)
    found = polar_factor(jnp.asarray(column @ row, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@every_shape
@pytest.mark.parametrize("coefficients", [CUBIC, QUINTIC, (1.9, -1.3, 0.5, -0.1)])
@pytest.mark.parametrize("iterations", [1, 5])
def test_singular_values_follow_the_polynomial(float64, rng, shape, coefficients, iterations):
    values = np.geomspace(1, 1e-3, 4)
    matrix, left, right = with_singular_values(rng, shape, values)
    found = newton_schulz(jnp.asarray(matrix), iterations, coefficients)
    moved = of_scalars(values, iterations, coefficients)
    np.testing.assert_allclose(found, (left * moved) @ right.T, atol=1e-12)


@every_shape
def test_the_cubic_converges_to_the_polar_factor(float64, rng, shape):
    matrix, left, right = with_singular_values(rng, shape, np.geomspace(1, 1e-4, 4))
    found = newton_schulz(jnp.asarray(matrix), 40, CUBIC)
    np.testing.assert_allclose(found, left @ right.T, atol=1e-11)


def test_near_the_end_the_cubic_converges_quadratically(float64, rng):
    matrix = jnp.asarray(rng.normal(size=(5, 5)))
    exact = polar_factor(matrix)
    errors = [np.linalg.norm(newton_schulz(matrix, k, CUBIC) - exact, 2) for k in range(1, 30)]
    pairs = [(e, f) for e, f in pairwise(errors) if 1e-6 < e < 1e-2]
    assert pairs
    for error, following in pairs:
        np.testing.assert_allclose(following, 1.5 * error**2, rtol=0.02)


@every_shape
def test_muons_quintic_leaves_singular_values_between_two_thirds_and_five_quarters(rng, shape):
    values = np.geomspace(1, 1e-2, 4)
    matrix, *_ = with_singular_values(rng, shape, values)
    found = np.linalg.svd(newton_schulz(jnp.asarray(matrix, jnp.float32)), compute_uv=False)
    assert found[0] < 1.25
    assert found[3] > 0.66


@every_shape
def test_it_is_the_orthogonalisation_of_optax(rng, shape):
    gradient = jnp.asarray(rng.normal(size=shape), jnp.float32)
    muon = optax.contrib.muon(1.0, beta=0.0, nesterov=False)
    update, _ = muon.update({"w": gradient}, muon.init({"w": gradient}), {"w": gradient})
    scale = np.sqrt(max(1, shape[1] / shape[0]))
    np.testing.assert_allclose(-update["w"] / scale, newton_schulz(gradient), atol=2e-5)


@pytest.mark.parametrize("function", [polar_factor, newton_schulz])
def test_a_stack_is_matrix_by_matrix(float64, rng, function):
    stack = jnp.asarray(rng.normal(size=(2, 3, 5, 4))) * jnp.array([1.0, 0.0, 1e-3])[:, None, None]
    expected = [[function(matrix) for matrix in row] for row in stack]
    np.testing.assert_allclose(jax.jit(function)(stack), expected, atol=1e-13)


@pytest.mark.parametrize("function", [polar_factor, newton_schulz])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 0.1), (jnp.float32, 1e-5)])
def test_types_are_kept_and_the_scale_does_not_matter(rng, function, dtype, tolerance):
    matrix = rng.normal(size=(6, 4))
    exact = np.asarray(function(jnp.asarray(matrix, jnp.float32)), float)
    for scale in (1e-30, 1.0, 1e30):
        found = function(jnp.asarray(scale * matrix, dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, float), exact, atol=tolerance)
    assert not np.any(np.asarray(function(jnp.zeros((6, 4), dtype)), float))


def test_numbers_out_of_their_range_are_refused():
    with pytest.raises(ValueError, match="iterations must be a whole number of one or more"):
        newton_schulz(jnp.eye(2), 0)
    with pytest.raises(ValueError, match="coefficients are empty"):
        newton_schulz(jnp.eye(2), 5, ())
