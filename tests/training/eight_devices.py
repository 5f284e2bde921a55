"""Checks that need eight devices and float64; ``test_mesh.py`` runs them in such a process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from soaa_edu import (
    Objective,
    Optimizer,
    first_order,
    hessian_free,
    kfac,
    shampoo,
    soaa,
    softmax_cross_entropy,
    sweep,
    train,
)
from soaa_edu.models import mlp
from soaa_edu.training import grid

OBJECTIVE = Objective(mlp([3, 4]), softmax_cross_entropy)
MATRIX = np.linspace(-1, 1, 12).reshape(3, 4)
START = {"dense_0": {"weight": MATRIX, "bias": np.zeros(4)}}
KEY = jax.random.key(1)
ROW = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Explicit,))
GRID = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
SETTINGS = {"epochs": 2, "batch_size": 16}


@pytest.fixture
def data(labelled):
    return labelled(32, 5)


def test_there_are_eight():
    assert jax.device_count() == 8
    assert jnp.ones(()).dtype == "float64"


def linear_fit(weight, batch):
    """A loss of a single matrix of parameters, which compiles soon."""
    inputs, labels = batch
    return jnp.mean((inputs @ weight - labels[:, None]) ** 2)


def test_a_mesh_trains_as_one_device_does(data, together):
    first = {
        "sgd": optax.sgd(0.1),
        "adam": optax.adam(0.1),
        "soaa": soaa(0.1, total_steps=4),
        "shampoo": shampoo(0.1, refresh_every=2),
    }
    of_model = {
        "sampled": kfac(OBJECTIVE, learning_rate=0.1, damping=0.1, invert_every=2),
        "empirical": kfac(OBJECTIVE, learning_rate=0.1, damping=0.1, fisher="empirical"),
        "micro_batches": kfac(OBJECTIVE, learning_rate=0.1, damping=0.1, micro_batches=2),
        "hessian_free": hessian_free(OBJECTIVE, damping=0.1, max_iterations=3),
    }
    of_matrix = {name: first_order(linear_fit, method) for name, method in first.items()}
    optimizer = together({**of_matrix, **of_model})
    start = {**dict.fromkeys(of_matrix, MATRIX), **dict.fromkeys(of_model, START)}
    alone, shared = (
        train(optimizer, start, data, key=KEY, progress=False, mesh=mesh, **SETTINGS)
        for mesh in (None, ROW)
    )
    for part in ("loss", "info", "params"):
        jax.tree.map(
            lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-9),
            getattr(shared, part),
            getattr(alone, part),
        )


def test_the_batch_is_split_and_all_else_is_whole_wherever_it_comes_from(data):
    split, whole = [], []

    def step(params, state, batch, key):
        inputs, _ = batch
        jax.debug.inspect_array_sharding(inputs, callback=split.append)
        jax.debug.inspect_array_sharding(params, callback=whole.append)
        return params + jnp.sum(inputs, axis=0), state, {"loss": 0.0}

    optimizer = Optimizer(lambda params: (), step, lambda params, batch: params[0])
    data, start, key = jax.device_put((data, jnp.zeros(3), KEY), jax.devices()[3])
    history = train(optimizer, start, data, key=key, progress=False, mesh=GRID, **SETTINGS)
    np.testing.assert_allclose(history.params, 2 * data.train[0].sum(axis=0))
    np.testing.assert_allclose(history.test_loss[-1], history.params[0])
    assert {sharding.shard_shape((16, 3)) for sharding in split} == {(2, 3)}
    assert {sharding.shard_shape((3,)) for sharding in whole} == {(3,)}


def test_a_batch_that_the_devices_cannot_share_is_refused(data):
    optimizer = first_order(OBJECTIVE, optax.sgd(0.1))
    message = "a batch of 12 cannot be shared evenly by 8 devices: take a batch_size that is a mul"
    with pytest.raises(ValueError, match=message):
        train(optimizer, START, data, key=KEY, epochs=1, batch_size=12, mesh=ROW)


@pytest.mark.parametrize(
    "at_once, mesh, devices", [(1, ROW, np.arange(9) % 8), (4, GRID, np.arange(9) // 2)]
)
def test_a_mesh_sweeps_as_one_device_does(data, monkeypatch, at_once, mesh, devices):
    """Nine runs: chunks of eight, or two side by side on each device; in neither is it full."""

    def build(rate, where=lambda: 0):
        def step(params, state, batch, key):
            moved = params - rate * batch[0][0] * jax.random.normal(key)
            return moved, state, {"loss": jnp.sum(params), "device": where()}

        return Optimizer(lambda params: (), step, lambda params, batch: jnp.prod(params))

    def build_there(rate):
        return build(rate, lambda: jax.lax.axis_index(mesh.axis_names))

    monkeypatch.setattr(grid, "side_by_side", lambda device: at_once)
    data, start, keys = jax.device_put(
        (data, jnp.ones(3), jax.random.split(KEY, 3)), jax.devices()[3]
    )
    axes = {"rate": [0.1, 0.2, 0.3]}
    swept = sweep(build_there, axes, start, data, keys=keys, mesh=mesh, **SETTINGS)
    np.testing.assert_array_equal(swept["device"][..., 0].ravel(), devices)
    optimizer = build(0.3)
    for k, key in enumerate(keys):
        history = train(optimizer, start, data, key=key, progress=False, **SETTINGS)
        for told in ("loss", "test_loss"):
            np.testing.assert_allclose(swept[told][2, k], getattr(history, told), rtol=1e-9)
