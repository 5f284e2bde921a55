from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu.kronecker import factors, run_forward
from soaa_edu.micro_batches import in_micro_batches, split_rows
from soaa_edu.models import Model
from soaa_edu.models.layers import init_layers, tapped

KEY = jax.random.key(0)
RULE = soaa_edu.levenberg_marquardt(0.1)


def summarised():
    """Each position reads itself and, through a layer on their mean, the whole row."""

    def forward(params, inputs, taps):
        layer, layer_inputs = tapped(params, taps)
        whole = layer("row", jnp.mean(inputs, axis=1))
        hidden = params["norm"]["scale"] * jnp.tanh(layer("position", inputs) + whole[:, None])
        return layer("head", hidden), layer_inputs

    def init(key):
        dense = init_layers(key, {"row": (3, 4), "position": (3, 4), "head": (4, 5)})
        return {**dense, "norm": {"scale": jnp.ones(4)}}

    return Model(init, forward, ("row", "position", "head"))


MODELS = {
    "summarised": summarised(),
    "decoder": soaa_edu.models.decoder(5, width=4, heads=1, depth=1),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _float64(float64):
    """So that what is the same is so to rounding."""


def padded(name, rng):
    """An objective and a batch of twelve rows of six: some padded, two of them all padding."""
    model = MODELS[name]
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    ids = rng.integers(5, size=(12, 6))
    inputs = ids if name == "decoder" else rng.normal(size=(12, 6, 3))
    labels = rng.integers(5, size=(12, 6))
    for row, length in enumerate([6, 1, 0, 4, 6, 2, 0, 3, 6, 5, 1, 6]):
        labels[row, length:] = -1
    params = jax.tree.map(lambda p: p.astype(float), model.init(KEY))
    return objective, params, (jnp.asarray(inputs), jnp.asarray(labels))


def run(optimizer, params, batch, steps=3):
    state, step = optimizer.init(params), jax.jit(optimizer.step)
    for i in range(steps):
        params, state, info = step(params, state, batch, jax.random.key(i))
    return params, state, info


def parameters_factors_and_told(optimizer, params, batch):
    """Without the eigenvectors, which rounding turns where an eigenvalue is zero."""
    params, state, info = run(optimizer, params, batch)
    return params, state.factors, info


def same(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected
    )


@every_model
@pytest.mark.parametrize("damping", [0.1, RULE], ids=["fixed", "adapted"])
@pytest.mark.parametrize(("fisher", "sharing"), [("exact", "expand"), ("empirical", "reduce")])
def test_kfac_takes_the_steps_of_the_whole_batch(rng, name, damping, fisher, sharing):
    objective, params, batch = padded(name, rng)
    build = partial(
        soaa_edu.kfac,
        objective,
        learning_rate=0.3,
        damping=damping,
        update_every=2,
        fisher=fisher,
        sharing=sharing,
    )
    expected = parameters_factors_and_told(build(), params, batch)
    for count in (2, 6, 12):
        same(parameters_factors_and_told(build(micro_batches=count), params, batch), expected)


def test_a_micro_batch_of_padding_alone_counts_for_nothing(rng):
    objective, params, (inputs, labels) = padded("summarised", rng)
    labels = labels.at[1::2].set(-1)
    build = partial(soaa_edu.kfac, objective, learning_rate=0.3, damping=0.1, fisher="exact")
    expected = run(build(), params, (inputs[::2], labels[::2]))
    same(run(build(micro_batches=2), params, (inputs, labels)), expected)


def test_a_nan_in_one_micro_batch_leaves_everything_as_it_was(rng):
    objective, params, (inputs, labels) = padded("summarised", rng)
    optimizer = soaa_edu.kfac(objective, learning_rate=0.3, damping=0.1, micro_batches=3)
    params, state, _ = run(optimizer, params, (inputs, labels))
    broken = inputs.at[4, 0, 0].set(jnp.nan), labels
    moved, following, _ = jax.jit(optimizer.step)(params, state, broken, KEY)
    jax.tree.map(np.testing.assert_array_equal, (moved, following), (params, state))


def test_sampled_factors_are_those_of_all_draws_together(rng):
    objective, params, (inputs, labels) = padded("summarised", rng)
    options = {"learning_rate": 0.3, "damping": 0.1, "decay": 0.0}
    optimizer = soaa_edu.kfac(objective, **options, micro_batches=3)
    _, state, _ = jax.jit(optimizer.step)(params, optimizer.init(params), (inputs, labels), KEY)
    parts = list(map(split_rows((inputs, labels), 3), range(3)))
    draws = [
        objective.loss.sample(key, objective.model(params, x), y)
        for key, (x, y) in zip(jax.random.split(KEY, 3), parts)
    ]
    signals = run_forward(objective.model, params, jnp.concatenate([x for x, _ in parts]))
    drawn = factors(objective, signals, jnp.concatenate(draws), fisher="empirical")
    same(state.factors, drawn)


METHODS = {
    "newton": partial(soaa_edu.newton, damping=0.1, curvature="gauss_newton"),
    "hessian_free": partial(soaa_edu.hessian_free, damping=RULE, curvature="gauss_newton"),
    "trust_region": soaa_edu.trust_region,
    "adam": lambda objective: soaa_edu.first_order(objective, optax.adam(0.1)),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_steps_of_the_whole_batch(rng, method):
    objective, params, batch = padded("summarised", rng)
    build = METHODS[method]
    found, expected = (
        run(build(o), params, batch) for o in (in_micro_batches(objective, 4), objective)
    )
    same(found[::2], expected[::2])


def temporary_bytes(optimizer, params, batch):
    state = jax.eval_shape(optimizer.init, params)
    program = jax.jit(optimizer.step).lower(params, state, batch, KEY).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("damping", [0.1, RULE], ids=["fixed", "adapted"])
def test_kfac_needs_less_memory(damping):
    model = soaa_edu.models.mlp([16, 32, 32, 4])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    batch = jnp.zeros((16_384, 16)), jnp.zeros(16_384, int)
    params = jax.eval_shape(model.init, KEY)
    build = partial(soaa_edu.kfac, objective, learning_rate=0.1, damping=damping)
    whole, parted = (
        temporary_bytes(build(micro_batches=count), params, batch) for count in (1, 16)
    )
    assert parted < whole / 3


@pytest.mark.parametrize("method", ["hessian_free", "adam"])
def test_other_methods_need_less_memory(method):
    model = soaa_edu.models.mlp([16, 32, 32, 4])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    batch = jnp.zeros((16_384, 16)), jnp.zeros(16_384, int)
    params = jax.eval_shape(model.init, KEY)
    whole, parted = (
        temporary_bytes(METHODS[method](in_micro_batches(objective, count)), params, batch)
        for count in (1, 16)
    )
    assert parted < whole / 3


def test_what_does_not_fit_is_named(rng):
    objective, params, batch = padded("summarised", rng)
    build = partial(soaa_edu.kfac, objective, learning_rate=0.3, damping=0.1)
    optimizer = build(micro_batches=5)
    with pytest.raises(ValueError, match=r"batch of 12 can't be split into 5 .* micro_batches=4"):
        optimizer.step(params, optimizer.init(params), batch, KEY)
    with pytest.raises(ValueError, match="micro_batches must be a whole number"):
        build(micro_batches=0)
    with pytest.raises(ValueError, match="micro_batches must be a whole number"):
        in_micro_batches(objective, 2.5)
    with pytest.raises(TypeError, match=r"needs soaa_edu\.Objective"):
        in_micro_batches(lambda params, batch: 0.0, 2)
    with pytest.raises(ValueError, match="batch of 12 can't be split into 24"):
        in_micro_batches(objective, 24)(params, batch)
