import sys
from functools import lru_cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import (
    Objective,
    Optimizer,
    first_order,
    galore,
    kfac,
    psgd,
    shampoo,
    soaa,
    soap,
    softmax_cross_entropy,
    sweep,
    train,
)
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.training import grid

MODEL = mlp([3, 4])
OBJECTIVE = Objective(MODEL, softmax_cross_entropy)
KEYS = jax.random.split(jax.random.key(1), 2)
STEPS = 6
TWO_EPOCHS = {"epochs": 2, "batch_size": 4}


@pytest.fixture
def data(labelled):
    return labelled(12, 4)


@pytest.fixture
def small(data):
    """``sweep`` of six steps."""
    return partial(sweep, params=jnp.zeros(()), data=data, keys=KEYS, **TWO_EPOCHS)


@pytest.fixture
def vmapped(monkeypatch):
    """Runs go side by side, as many as there are."""
    monkeypatch.setattr(grid, "side_by_side", lambda device: 256)


@pytest.fixture(params=["one after the other", "side by side"])
def both_ways(request):
    if request.param == "side by side":
        request.getfixturevalue("vmapped")


def telling(step, objective=None):
    """A method without a state: ``step(params, batch)`` gives the next parameters and info."""

    def whole_step(params, state, batch, key):
        params, info = step(params, batch)
        return params, state, info

    return Optimizer(lambda params: (), whole_step, objective)


def counting_up(rate):
    """Adds the rate to the parameter and tells it as the loss."""
    return telling(lambda params, batch: (params + rate, {"loss": params}))


def same_as_alone(swept, history, **tolerance):
    """Whether one run of a sweep tells what ``train`` tells of it."""
    told = {"loss": history.loss, **history.info}
    told |= {"test_loss": history.test_loss, "test_accuracy": history.test_accuracy}
    assert set(swept) == set(told)
    for name, values in told.items():
        np.testing.assert_allclose(swept[name], values, err_msg=name, **tolerance)


def pick(swept, *where):
    return {name: told[where] for name, told in swept.items()}


def linear_fit(weight, batch):
    """A loss of a single matrix or vector of parameters, which compiles soon."""
    inputs, labels = batch
    return jnp.mean((inputs @ weight - labels.reshape(-1, *[1] * (weight.ndim - 1))) ** 2)


def test_axes_come_in_the_grids_order_then_keys_then_steps(data):
    def build(first, second):
        def step(params, batch):
            inputs, _ = batch
            info = {"first": first, "second": second, "weight": params["dense_0"]["weight"][0, 0]}
            return params, {"loss": jnp.sum(inputs[0]), **info}

        return telling(step, OBJECTIVE)

    axes = {"second": [0.5, 2.0, 1.5], "first": [3.0, 0.25]}
    swept = sweep(build, axes, MODEL.init, data, keys=KEYS, **TWO_EPOCHS)
    assert {type(told) for told in swept.values()} == {np.ndarray}
    per_epoch = [swept.pop(name).shape for name in ("test_loss", "test_accuracy")]
    assert per_epoch == [(3, 2, 2, 2)] * 2
    assert [told.shape for told in swept.values()] == [(3, 2, 2, STEPS)] * 4
    assert (swept["second"] == np.reshape(axes["second"], (3, 1, 1, 1))).all()
    assert (swept["first"] == np.reshape(axes["first"], (1, 2, 1, 1))).all()
    assert len(np.unique(swept["weight"])) == 2
    assert (swept["weight"] == swept["weight"][:1, :1, :, :1]).all()


TRANSFORMATIONS = {
    "sgd": partial(optax.sgd, momentum=0.9),
    "soaa": partial(soaa, total_steps=STEPS),
    "shampoo": partial(shampoo, refresh_every=3),
    "soap": partial(soap, refresh_every=3),
    "galore": partial(galore, rank=1, refresh_every=3),
    "psgd": partial(psgd, update_probability=0.5),
}
REFRESHED = {"kfac": 2, "shampoo": 2, "soap": 2, "galore": 1}
"""Matrices that each method decomposes at a refresh."""


@pytest.fixture
def decomposed(monkeypatch):
    """How often a program decomposed a matrix, or PSGD fitted its own, for each method."""
    seen = SimpleNamespace(times={}, method="")

    def count(_, method):
        seen.times[method] = seen.times.get(method, 0) + 1

    def watched(function):
        def watch(matrix, *others, **options):
            entry = jax.tree.leaves(matrix)[0].ravel()[0]
            jax.debug.callback(partial(count, method=seen.method), entry)
            return function(matrix, *others, **options)

        return watch

    for module, name in [
        (jnp.linalg, "eigh"),
        (jnp.linalg, "qr"),
        (sys.modules[kfac.__module__], "inverse_of_definite"),
        (sys.modules[psgd.__module__], "fit"),
    ]:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return seen


def test_side_by_side_all_methods_train_and_refresh_as_they_do_alone(
    float64, data, vmapped, together, decomposed
):
    def marked(name, optimizer):
        def step(*arguments):
            decomposed.method = name
            return optimizer.step(*arguments)

        return optimizer._replace(step=step)

    def build(learning_rate):
        optimizers = {
            name: first_order(linear_fit, transformation(learning_rate))
            for name, transformation in TRANSFORMATIONS.items()
        }
        optimizers["kfac"] = kfac(
            OBJECTIVE, learning_rate=learning_rate, damping=0.1, update_every=2, invert_every=3
        )
        return together({name: marked(name, one) for name, one in optimizers.items()})

    matrix = np.linspace(-1, 1, 6).reshape(3, 2)
    start = {**dict.fromkeys(TRANSFORMATIONS, matrix), "psgd": matrix[:, 0]}
    start["kfac"] = {"dense_0": {"weight": np.linspace(-1, 1, 12).reshape(3, 4)}}
    start["kfac"]["dense_0"]["bias"] = np.zeros(4)
    swept = sweep(build, {"learning_rate": [0.1, 0.01]}, start, data, keys=KEYS, **TWO_EPOCHS)
    jax.effects_barrier()
    side_by_side, decomposed.times = decomposed.times, {}
    optimizer = build(0.01)
    for k, key in enumerate(KEYS):
        history = train(optimizer, start, data, key=key, progress=False, **TWO_EPOCHS)
        same_as_alone(pick(swept, 1, k), history, rtol=1e-8)
    jax.effects_barrier()
    alone = {name: times / 2 for name, times in decomposed.times.items()}
    assert {name: times / 4 for name, times in side_by_side.items()} == alone
    assert 1 < alone.pop("psgd") < STEPS
    assert alone == {name: 2 * matrices for name, matrices in REFRESHED.items()}


def test_one_after_the_other_each_run_is_what_it_is_alone(float64, data):
    def build(learning_rate):
        adam = first_order(linear_fit, optax.adam(learning_rate))

        def step(params, state, batch, key):
            params, state, info = adam.step(params, state, batch, key)
            return params, state, {**info, "draw": jax.random.uniform(key)}

        return adam._replace(step=step)

    def draw_start(key):
        return jax.random.normal(key, (3, 2))

    axes = {"learning_rate": [0.3, 0.1]}
    swept = sweep(build, axes, draw_start, data, keys=KEYS, **TWO_EPOCHS)
    optimizer = build(0.1)
    for k, key in enumerate(KEYS):
        start_key, key = jax.random.split(key)
        start = draw_start(start_key)
        history = train(optimizer, start, data, key=key, progress=False, **TWO_EPOCHS)
        same_as_alone(pick(swept, 1, k), history, rtol=1e-10)


def test_a_run_that_diverges_is_nan_and_stands_still_from_there(data, both_ways):
    seen = []

    def explode(params, batch):
        """Gradient descent at rate r multiplies the parameter by 1 - 1e5 r at every step."""
        return 0.5e5 * params**2

    def build(rate):
        def step(params, batch):
            jax.debug.callback(lambda params: seen.append(float(params)), params)
            loss, gradient = jax.value_and_grad(explode)(params, batch)
            return params - rate * gradient, {"loss": loss, "half": loss / 2}

        return telling(step, explode)

    rates = np.array([1e-6, 1.0, 2e-6])
    swept = sweep(build, {"rate": rates}, jnp.ones(()), data, epochs=4, batch_size=4, keys=KEYS[:1])
    jax.effects_barrier()
    params = (1 - 1e5 * rates[:, None]) ** np.arange(12)
    params[1, 4:] = params[1, 4]
    np.testing.assert_allclose(np.sort(seen), np.sort(params.ravel()), rtol=1e-5)
    losses = 0.5e5 * params**2
    losses[1, 4:] = np.nan
    np.testing.assert_allclose(swept["loss"][:, 0], losses, rtol=1e-5)
    np.testing.assert_allclose(swept["half"][:, 0], losses / 2, rtol=1e-5)
    alive = np.isfinite(swept["test_loss"][:, 0])
    np.testing.assert_array_equal(alive, [[True] * 4, [True, False, False, False], [True] * 4])


def test_the_same_build_and_shapes_are_compiled_once(small):
    traced = []

    def build(rate):
        def step(params, batch):
            traced.append(rate)
            return params + rate, {"loss": params}

        return telling(step)

    small(build, {"rate": [0.1, 0.2]})
    once = len(traced)
    small(build, {"rate": (0.3, 0.4, np.float32(0.5), jnp.float32(0.6))}, keys=KEYS[::-1])
    assert len(traced) == once
    small(build, {"rate": [0.1]}, batch_size=2)
    assert len(traced) == 2 * once


def test_zero_whole_numbers_and_names_reach_build_as_they_are(small):
    """In a program of their own each, which may tell of more than the others do."""
    numbers = {"five": 5.0}

    def build(rate):
        built.append(rate)
        named = {"named": numbers[rate]} if isinstance(rate, str) else {}
        rate = numbers.get(rate, rate) if isinstance(rate, str) else rate
        return telling(lambda params, batch: (params + rate, {"loss": params, **named}))

    built = []
    swept = small(build, {"rate": [0.5, 0.0, np.int64(2), "five", np.float64(0.25)]})
    np.testing.assert_array_equal(
        swept["loss"], [[np.arange(STEPS) * rate] * 2 for rate in (0.5, 0, 2, 5, 0.25)]
    )
    np.testing.assert_array_equal(swept["named"][3], 5)
    assert np.isnan(np.delete(swept["named"], 3, axis=0)).all()
    points, traced = built[:5], built[5:]
    assert points == [0.5, 0.0, 2, "five", 0.25]
    assert len(traced) == 4
    assert [type(rate) for rate in traced[1:]] == [float, int, str]
    assert isinstance(traced[0], jax.core.Tracer)


@pytest.mark.parametrize("dtype, way", [("bfloat16", 1), ("float32", 256)])
def test_traced_numbers_keep_the_type_of_the_parameters(float64, small, monkeypatch, dtype, way):
    """As Python's numbers do."""
    monkeypatch.setattr(grid, "side_by_side", lambda device: way)
    swept = small(counting_up, {"rate": [0.5, 0.25]}, params=jnp.zeros((), dtype))
    assert swept["loss"].dtype == dtype
    expected = [[np.arange(STEPS) * rate] * 2 for rate in (0.5, 0.25)]
    np.testing.assert_array_equal(swept["loss"].astype(float), expected)


def test_where_nothing_is_measured_the_test_results_are_nan(small, data):
    def build():
        return telling(lambda params, batch: (params, {"loss": params}), lambda params, batch: 0.0)

    for options in ({"evaluate": False}, {"data": Dataset(train=data.train)}):
        swept = small(build, {}, **options)
        assert swept["loss"].shape == (2, STEPS)
        assert swept["test_loss"].shape == swept["test_accuracy"].shape == (2, 2)
        assert np.isnan([swept["test_loss"], swept["test_accuracy"]]).all()


def test_what_memory_does_not_hold_is_halved_until_it_fits(small, vmapped, monkeypatch):
    """Five runs at once, or three, two, one; of three and two the last chunk is not full."""
    traced, rates = [], [0.5, 1.0, 1.5, 2.0, 2.5]

    def build(rate):
        traced.append(rate)
        return counting_up(rate)

    for halvings, programs in ((0, 1), (1, 2), (2, 3), (99, 4)):
        free = iter([0] * halvings + [np.inf])
        monkeypatch.setattr(grid, "free_memory", lambda device, free=free: next(free))
        swept = small(build, {"rate": rates}, keys=KEYS[:1])
        np.testing.assert_array_equal(swept["loss"][:, 0], np.outer(rates, range(STEPS)))
        assert sum(isinstance(rate, jax.core.Tracer) for rate in traced) == programs


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"grid": {"damping": [0.1, -1.0]}}, "damping must be a finite number above zero, got -1"),
        ({"grid": {"damping": [0.1, np.nan]}}, "damping must be a finite number above zero"),
        ({"grid": {"damping": []}}, "the grid has no values of damping: give at least one"),
        ({"keys": KEYS[0]}, r"keys must be a row of keys, got key<fry> of shape \(\)"),
        ({"keys": KEYS[:0]}, r"keys must be a row of keys, got key<fry> of shape \(0,\)"),
        ({"keys": np.arange(2)}, r"keys must be a row of keys, got int\d\d of shape \(2,\)"),
        ({"batch_size": 13}, "a batch of 13 is larger than the 12 training examples"),
        ({"epochs": 0}, "epochs must be a whole number of one or more, got 0"),
        (
            {"data": Dataset(train=(np.ones((12, 3)), np.zeros(5, int)))},
            "12 inputs need as many targets, got 5",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_traced(small, changed, message):
    traced = []

    def build(damping):
        optimizer = kfac(OBJECTIVE, learning_rate=0.1, damping=damping)
        return optimizer._replace(step=lambda *arguments: traced.append(arguments))

    with pytest.raises(ValueError, match=message):
        small(build, **({"grid": {"damping": [0.1]}} | changed))
    assert not traced


@pytest.fixture
def compilations(monkeypatch):
    """Numbers of runs of the programs that a sweep compiled."""
    compiled, original = [], grid._compile.__wrapped__

    def compile(plan, structure, leaves, precision):
        _, begun, _ = jax.tree.unflatten(structure, leaves)
        compiled.append(len(begun.keys))
        return original(plan, structure, leaves, precision)

    monkeypatch.setattr(grid, "_compile", lru_cache(compile))
    return compiled


def test_a_larger_program_that_is_there_serves_fewer_runs(small, vmapped, compilations):
    nine = small(counting_up, {"rate": [0.5, 1.0, 1.5]})
    assert compilations == [6]
    few = small(counting_up, {"rate": [1.0]})
    assert compilations == [6]
    np.testing.assert_array_equal(few["loss"][0], nine["loss"][1])
    small(counting_up, {"rate": [0.5, 1.0, 1.5, 2.0]})
    assert compilations == [6, 8]


class TooLarge(jax.errors.JaxRuntimeError):
    pass


@pytest.fixture
def little_memory(monkeypatch):
    """A device whose memory holds some runs at once, found out as they are run."""

    def hold(most):
        original = grid._compile.__wrapped__

        def compile(plan, structure, leaves, precision):
            _, begun, _ = jax.tree.unflatten(structure, leaves)
            program = original(plan, structure, leaves, precision)
            if len(begun.keys) <= most:
                return program

            def exhausted(*arguments):
                raise TooLarge("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

            exhausted.memory_analysis = program.memory_analysis
            return exhausted

        monkeypatch.setattr(grid, "_compile", compile)

    return hold


def test_a_sweep_that_runs_out_of_memory_goes_on_with_fewer_runs_at_once(
    small, vmapped, little_memory
):
    expected = small(counting_up, {"rate": [0.5, 1.0, 1.5]})
    little_memory(2)
    found = small(lambda rate: counting_up(rate), {"rate": [0.5, 1.0, 1.5]})
    np.testing.assert_array_equal(found["loss"], expected["loss"])


def test_a_single_run_that_does_not_fit_names_the_remedy(small, vmapped, little_memory):
    little_memory(0)
    with pytest.raises(MemoryError, match=r"too little memory for a run .* a smaller batch_size"):
        small(lambda rate: counting_up(rate), {"rate": [0.5]})


def test_other_troubles_of_the_device_are_told_as_they_are(small, monkeypatch):
    def broken(*arguments):
        raise TooLarge("INTERNAL: a bolt is loose")

    monkeypatch.setattr(grid, "_compile", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bolt is loose"):
        small(counting_up, {"rate": [0.5]})
