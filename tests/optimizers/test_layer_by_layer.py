"""Hessian-free optimization with one system for each layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import soaa_edu
from soaa_edu import Objective, hessian_free, kfac, levenberg_marquardt, softmax_cross_entropy
from soaa_edu.curvature import dense, gauss_newton_matvec
from soaa_edu.problems import rosenbrock

CLASSES = 3
exactly = partial(
    hessian_free,
    curvature="gauss_newton",
    blocks="layers",
    max_iterations=50,
    tolerance=1e-12,
)


def rows_of(rng, count, width):
    return jnp.asarray(rng.normal(size=(count, width))), jnp.asarray(
        rng.integers(CLASSES, size=count)
    )


def tokens_of(rng, labels_in):
    tokens = jnp.asarray(rng.integers(1, 5, size=(3, 4)))
    return tokens, jnp.asarray(rng.integers(labels_in, size=(3, 4))).at[0, 1].set(-1)


MODELS = {
    "more rows than inputs": (
        soaa_edu.models.mlp([4, 3, CLASSES], jnp.tanh),
        partial(rows_of, count=30, width=4),
    ),
    "fewer rows than inputs": (
        soaa_edu.models.mlp([20, 4, 3, CLASSES], jnp.tanh),
        partial(rows_of, count=4, width=20),
    ),
    "decoder": (
        soaa_edu.models.decoder(5, width=4, heads=1, depth=1),
        partial(tokens_of, labels_in=5),
    ),
}


def step_of(optimizer, params, batch):
    """The change of the parameters, and the info."""
    after, _, info = jax.jit(optimizer.step)(params, optimizer.init(params), batch, None)
    return jax.tree.map(lambda a, b: np.asarray(a - b), after, params), info


def places(params, name):
    """Where a layer's entries stand among all parameters."""
    mask = {other: jax.tree.map(jnp.zeros_like, layer) for other, layer in params.items()}
    mask[name] = jax.tree.map(jnp.ones_like, params[name])
    return np.flatnonzero(ravel_pytree(mask)[0])


def block_diagonal(objective, params, batch):
    """The dense Gauss-Newton matrix without what stands between layers, and the gradient."""
    whole = np.asarray(
        jax.jit(lambda p: dense(gauss_newton_matvec(objective, p, batch), p))(params)
    )
    kept = np.zeros_like(whole)
    for name in params:
        at = np.ix_(*[places(params, name)] * 2)
        kept[at] = whole[at]
    return kept, ravel_pytree(jax.grad(objective)(params, batch))[0]


@pytest.fixture
def network(float64, rng):
    """Builds an objective, moved parameters in float64 and a batch."""

    def build(name):
        model, draw = MODELS[name]
        params = jax.tree.map(
            lambda p: jnp.asarray(p + 0.2 * rng.normal(size=p.shape)),
            model.init(jax.random.key(0)),
        )
        return Objective(model, softmax_cross_entropy), params, draw(rng)

    return build


@pytest.mark.parametrize("name", MODELS)
def test_a_step_solves_each_layers_own_system(network, name):
    objective, params, batch = network(name)
    update, info = step_of(exactly(objective, damping=0.3, learning_rate=0.5), params, batch)
    blocks, gradient = block_diagonal(objective, params, batch)
    expected = -0.5 * np.linalg.solve(blocks + 0.3 * np.eye(len(blocks)), gradient)
    found = ravel_pytree(update)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert set(info) == {"loss", "cg_iterations"}


def test_it_is_another_step_than_that_of_the_whole_matrix(network):
    objective, params, batch = network("more rows than inputs")
    found, expected = (
        ravel_pytree(step_of(exactly(objective, damping=0.01, blocks=b), params, batch)[0])[0]
        for b in ("layers", None)
    )
    assert np.linalg.norm(found - expected) > 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("damping", [0.1, levenberg_marquardt(0.1)])
def test_of_a_single_layer_it_is_the_whole(float64, rng, damping):
    model = soaa_edu.models.mlp([5, CLASSES])
    objective = Objective(model, softmax_cross_entropy)
    params = jax.tree.map(lambda p: jnp.asarray(p, float), model.init(jax.random.key(0)))
    batch = rows_of(rng, 12, 5)
    outcomes = [
        step_of(
            hessian_free(
                objective, damping=damping, curvature="gauss_newton", blocks=b, max_iterations=5
            ),
            params,
            batch,
        )
        for b in ("layers", None)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), *outcomes)


def test_where_kfac_is_exact_both_take_the_same_step(classifier, rng):
    linear = classifier((5, 4, 3), lambda s: s, soaa_edu.squared_error)
    cases = [
        (classifier((5, 4, CLASSES)), rows_of(rng, 1, 5)),
        (linear, (jnp.asarray(rng.normal(size=(9, 5))), jnp.asarray(rng.normal(size=(9, 3))))),
    ]
    for (objective, params), batch in cases:
        found, _ = step_of(exactly(objective, damping=0.05), params, batch)
        of_factors = kfac(
            objective, learning_rate=1.0, damping=0.05, fisher="exact", exact_damping=True
        )
        expected, _ = step_of(of_factors, params, batch)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12), found, expected
        )


def test_the_reduction_ratio_is_that_of_the_block_diagonal_model(network):
    objective, params, batch = network("more rows than inputs")
    optimizer = exactly(objective, damping=levenberg_marquardt(0.3), learning_rate=0.5)
    update, info = step_of(optimizer, params, batch)
    blocks, gradient = block_diagonal(objective, params, batch)
    flat = ravel_pytree(update)[0]
    predicted = -(gradient @ flat + 0.5 * flat @ blocks @ flat)
    moved = jax.tree.map(jnp.add, params, update)
    actual = objective(params, batch) - objective(moved, batch)
    assert info["reduction_ratio"] == pytest.approx(float(actual / predicted), rel=1e-9)
    assert info["accepted"]
    assert info["damping"] == 0.3


def bowls(params, batch):
    """Curvatures 2 and 2 in one layer and 1, 4 and 9 in the other, with a product between them."""
    ((a,), (b,)) = ([layer["weight"]] for layer in (params["first"], params["second"]))
    own = jnp.sum(a**2) + jnp.sum(jnp.array([1.0, 4.0, 9.0]) * b**2) / 2
    return own + jnp.sum(a) * jnp.sum(b)


def test_each_layer_ends_on_its_own_and_the_longest_is_told(float64):
    params = {
        "first": {"weight": jnp.array([1.0, -3.0])},
        "second": {"weight": jnp.array([1.0, 2.0, 3.0])},
    }
    optimizer = hessian_free(bowls, damping=0.0, blocks="layers", tolerance=1e-10)
    update, info = step_of(optimizer, params, None)
    gradient = jax.grad(bowls)(params, None)
    np.testing.assert_allclose(
        update["first"]["weight"], -gradient["first"]["weight"] / 2, rtol=1e-10
    )
    np.testing.assert_allclose(
        update["second"]["weight"],
        -gradient["second"]["weight"] / np.array([1.0, 4.0, 9.0]),
        rtol=1e-9,
    )
    assert info["cg_iterations"] == 3
    fewer = hessian_free(bowls, damping=0.0, blocks="layers", tolerance=1e-10, max_iterations=1)
    only_first, _ = step_of(fewer, params, None)
    np.testing.assert_allclose(only_first["first"]["weight"], update["first"]["weight"])
    assert not np.allclose(only_first["second"]["weight"], update["second"]["weight"], rtol=0.1)


def test_a_layer_of_negative_curvature_goes_down_its_gradient(float64):
    def function(params, batch):
        return jnp.sum(params["bowl"] ** 2) - jnp.sum(params["dome"] ** 2)

    params = {"bowl": jnp.array([3.0]), "dome": jnp.array([0.1, 0.2])}
    optimizer = hessian_free(function, damping=0.1, blocks="layers")
    update, info = step_of(optimizer, params, None)
    np.testing.assert_allclose(update["bowl"], [-6 / 2.1])
    np.testing.assert_allclose(update["dome"], [0.2, 0.4])
    assert info["cg_iterations"] == 1


def test_what_has_no_layers_is_refused():
    with pytest.raises(TypeError, match=r"parameters that are a dict, .*, got ArrayImpl: name"):
        hessian_free(rosenbrock, damping=1.0, blocks="layers").init(jnp.ones(2))
    with pytest.raises(TypeError, match="got tuple: name the layers"):
        hessian_free(rosenbrock, damping=1.0, blocks="layers").init((jnp.ones(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="blocks must be one of 'layers', got 'rows'"):
        hessian_free(rosenbrock, damping=1.0, blocks="rows")
