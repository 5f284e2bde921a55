"""What counts as an example, in everything that divides by their number."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.curvature import (
    dense,
    empirical_fisher_diagonal,
    empirical_fisher_matvec,
    fisher_matvec,
    gauss_newton_matvec,
)
from soaa_edu.kronecker import factors, run_forward
from soaa_edu.models import Model
from soaa_edu.models.layers import init_layers, init_norm, layer_norm, tapped

LOSSES = {"entropy": soaa_edu.softmax_cross_entropy, "square": soaa_edu.squared_error}
FISHERS = ("exact", "sampled", "empirical")
KEY = jax.random.key(3)

every_loss = pytest.mark.parametrize("loss", LOSSES)
every_fisher = pytest.mark.parametrize("fisher", FISHERS)


def with_a_norm():
    """A network on each position alone, with a layer that is not dense."""

    def init(key):
        return init_layers(key, {"in": (4, 5), "out": (5, 3)}) | {"norm": init_norm(5)}

    def forward(params, inputs, taps):
        layer, layer_inputs = tapped(params, taps)
        hidden = layer_norm(params["norm"], jnp.tanh(layer("in", inputs)))
        return layer("out", hidden), layer_inputs

    return Model(init, forward, ("in", "out"))


def problem(loss, rng, places=(6, 2), model=None):
    model = model or soaa_edu.models.mlp([4, 5, 3], jnp.tanh)
    params = jax.tree.map(partial(jnp.asarray, dtype=float), model.init(jax.random.key(0)))
    inputs = jnp.asarray(rng.normal(size=(*places, 4)))
    labels = rng.integers(3, size=places)
    targets = jnp.asarray(labels if loss == "entropy" else np.eye(3)[labels] - 0.3)
    return soaa_edu.Objective(model, LOSSES[loss]), params, (inputs, targets)


def as_rows(batch):
    inputs, targets = batch
    return inputs.reshape(-1, 4), targets.reshape(-1, *targets.shape[2:])


def kfac_step(objective, params, batch, **options):
    optimizer = soaa_edu.kfac(objective, learning_rate=1.0, damping=0.01, momentum=0.0, **options)
    moved, _, info = jax.jit(optimizer.step)(params, optimizer.init(params), batch, KEY)
    return jax.tree.map(jnp.subtract, moved, params), info["loss"]


def same(found, expected, **options):
    compare = partial(np.testing.assert_allclose, **{"rtol": 1e-10, "atol": 1e-12} | options)
    jax.tree.map(compare, found, expected)


def matrices(objective, params, batch):
    made = (
        fisher_matvec(objective, params, batch),
        fisher_matvec(objective, params, batch, KEY),
        gauss_newton_matvec(objective, params, batch),
        empirical_fisher_matvec(objective, params, batch),
    )
    return [dense(matvec, params) for matvec in made]


@every_loss
def test_positions_without_mixing_are_rows(float64, rng, loss):
    objective, params, batch = problem(loss, rng)
    make = jax.jit(partial(matrices, objective))
    same(make(params, batch), make(params, as_rows(batch)))


@every_loss
@every_fisher
def test_the_kfac_step_on_positions_is_that_on_rows(float64, rng, loss, fisher):
    model = with_a_norm() if fisher == "exact" else None
    objective, params, batch = problem(loss, rng, model=model)
    found, rows = (kfac_step(objective, params, b, fisher=fisher) for b in (batch, as_rows(batch)))
    same(found, rows)


@every_fisher
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_rows_that_do_not_count_change_nothing(float64, rng, fisher, sharing):
    objective, params, (inputs, labels) = problem("entropy", rng, model=with_a_norm())
    padding = (jnp.full_like(inputs, 7.0), jnp.full_like(labels, -1))
    padded = tuple(jnp.concatenate(pair) for pair in zip((inputs, labels), padding))
    step = partial(kfac_step, objective, params, sharing=sharing)
    if fisher == "sampled":
        drawn = objective.loss.sample(KEY, objective.model(params, inputs), labels)
        alone, among = (inputs, drawn), (padded[0], jnp.concatenate([drawn, padding[1]]))
        same(step(among, fisher="empirical"), step(alone, fisher="empirical"))
    else:
        same(step(padded, fisher=fisher), step((inputs, labels), fisher=fisher))


def test_positions_that_do_not_count_change_nothing(float64, rng):
    objective, params, (inputs, labels) = problem("entropy", rng, places=(5, 4))
    short, padded = (inputs[:, :3], labels[:, :3]), (inputs, labels.at[:, 3].set(-1))
    same(
        kfac_step(objective, params, padded, fisher="exact"),
        kfac_step(objective, params, short, fisher="exact"),
    )
    make = jax.jit(lambda p, b: matrices(objective, p, b)[2:])
    same(make(params, padded), make(params, short))


@every_loss
@pytest.mark.parametrize("places", [(6,), (3, 4)])
def test_the_diagonal_is_the_diagonal(float64, rng, loss, places):
    objective, params, batch = problem(loss, rng, places, model=with_a_norm())
    if loss == "entropy":
        batch = (batch[0], batch[1].at[0].set(-1))
    whole = dense(empirical_fisher_matvec(objective, params, batch), params)
    diagonal = jax.jit(partial(empirical_fisher_diagonal, objective))(params, batch)
    flat = jax.flatten_util.ravel_pytree(diagonal)[0]
    same(flat, jnp.diag(whole))


def test_kfacs_diagonal_is_the_diagonal_of_the_fisher(float64, rng):
    objective, params, batch = problem("entropy", rng, places=(3, 4), model=with_a_norm())
    signals = run_forward(objective.model, params, batch[0])
    found = factors(objective, signals, batch[1], fisher="exact").diagonal
    whole = jnp.diag(dense(fisher_matvec(objective, params, batch), params))
    expected = jax.flatten_util.ravel_pytree(params)[1](whole)
    same(found["norm"], expected["norm"])


def test_kfac_divides_what_is_not_dense_by_its_debiased_damped_diagonal(float64, rng):
    objective, params, batch = problem("entropy", rng, places=(3, 4), model=with_a_norm())
    optimizer = soaa_edu.kfac(
        objective, learning_rate=1e-9, damping=0.02, momentum=0.0, decay=0.9, fisher="exact"
    )
    state, average = optimizer.init(params), 0.0

    @jax.jit
    def measured(params):
        signals = run_forward(objective.model, params, batch[0])
        found = factors(objective, signals, batch[1], fisher="exact").diagonal["norm"]["scale"]
        return found, jax.grad(objective)(params, batch)["norm"]["scale"]

    step = jax.jit(optimizer.step)
    for i in range(3):
        scale, gradient = measured(params)
        average = 0.9 * average + 0.1 * scale
        moved, state, _ = step(params, state, batch, KEY)
        expected = -1e-9 * gradient / (average / (1 - 0.9 ** (i + 1)) + 0.02)
        change = moved["norm"]["scale"] - params["norm"]["scale"]
        np.testing.assert_allclose(change, expected, rtol=1e-5)
        params = moved


def test_sharing_is_heeded(float64, rng):
    objective, params, batch = problem("entropy", rng)
    steps = [kfac_step(objective, params, batch, sharing=s) for s in ("expand", "reduce")]
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), *steps)
    assert difference[0]["dense_0"]["weight"] > 1e-3


@every_loss
def test_whole_numbers_are_regression_targets_where_the_loss_says_so(float64, rng, loss):
    objective, params, (inputs, _) = problem("square", rng, places=(8,))
    signs = rng.choice([-1, 1], size=(8, 3))
    whole, real = (
        jax.jit(partial(matrices, objective))(params, (inputs, jnp.asarray(signs, dtype)))
        for dtype in (int, float)
    )
    same(whole[2:], real[2:])
    same(whole[0], whole[2])


@every_fisher
def test_one_target_for_all_is_no_trouble(float64, rng, fisher):
    objective, params, (inputs, labels) = problem("entropy", rng)
    change, loss = kfac_step(objective, params, (inputs, jnp.zeros_like(labels)), fisher=fisher)
    assert np.isfinite(loss)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(change))


def test_more_labels_than_a_squared_int32_holds(rng):
    model = soaa_edu.models.mlp([2, 3])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = model.init(jax.random.key(0))
    batch = jnp.asarray(rng.normal(size=(70_000, 2)), jnp.float32), jnp.zeros(70_000, jnp.int32)
    v = jax.tree.map(jnp.ones_like, params)
    found, expected = (
        make(objective, params, batch)(v) for make in (fisher_matvec, gauss_newton_matvec)
    )
    same(found, expected, rtol=1e-4, atol=1e-6)
