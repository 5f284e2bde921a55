from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.curvature import dense, empirical_fisher_matvec, fisher_matvec
from soaa_edu.kronecker import check_fisher, check_layers, check_model, factors, run_forward
from soaa_edu.models import Model

POSITIONS = 3


def block(matvec, params, name):
    """The dense block of one layer, [weight; bias] read row by row."""
    layer = params[name]
    rows, columns = layer["weight"].shape

    @jax.jit
    @jax.vmap
    def column(unit):
        stacked = unit.reshape(rows + 1, columns)
        direction = jax.tree.map(jnp.zeros_like, params)
        direction[name] = {"weight": stacked[:-1], "bias": stacked[-1]}
        image = matvec(direction)[name]
        return jnp.concatenate([image["weight"], image["bias"][None]]).ravel()

    return np.array(column(jnp.eye((rows + 1) * columns)))


@partial(jax.jit, static_argnames=("objective", "fisher", "sharing"))
def factors_of(objective, params, batch, fisher="sampled", sharing="expand", key=None):
    signals = run_forward(objective.model, params, batch[0])
    return factors(objective, signals, batch[1], fisher=fisher, sharing=sharing, key=key)


def kronecker_blocks(objective, params, batch, **options):
    found = factors_of(objective, params, batch, **options)
    return {name: np.kron(found.inputs[name], found.outputs[name]) for name in found.inputs}


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def labels_batch(rng, examples, width=12, classes=4):
    return jnp.asarray(rng.normal(size=(examples, width))), jnp.asarray(
        rng.integers(classes, size=examples)
    )


def targets_batch(rng, examples, width=12, outputs=4):
    return jnp.asarray(rng.normal(size=(examples, width))), jnp.asarray(
        rng.normal(size=(examples, outputs))
    )


@pytest.mark.parametrize("loss", [soaa_edu.softmax_cross_entropy, soaa_edu.squared_error])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_one_example_has_the_very_block(classifier, rng, loss, fisher):
    objective, params = classifier(loss=loss)
    make = labels_batch if loss is soaa_edu.softmax_cross_entropy else targets_batch
    batch = make(rng, 1)
    matvec = (fisher_matvec if fisher == "exact" else empirical_fisher_matvec)(
        objective, params, batch
    )
    for name, kronecker in kronecker_blocks(objective, params, batch, fisher=fisher).items():
        np.testing.assert_allclose(kronecker, block(matvec, params, name), atol=1e-13)


def test_one_sampled_example_has_the_block_of_its_draw(classifier, rng):
    objective, params = classifier()
    batch, key = labels_batch(rng, 1), jax.random.key(3)
    matvec = fisher_matvec(objective, params, batch, key)
    found = kronecker_blocks(objective, params, batch, fisher="sampled", key=key)
    for name, kronecker in found.items():
        np.testing.assert_allclose(kronecker, block(matvec, params, name), atol=1e-13)


def test_a_deep_linear_network_with_squared_error_has_the_very_blocks(classifier, rng):
    objective, params = classifier((6, 5, 5, 3), lambda s: s, soaa_edu.squared_error)
    batch = targets_batch(rng, 20, 6, 3)
    matvec = fisher_matvec(objective, params, batch)
    for name, kronecker in kronecker_blocks(objective, params, batch, fisher="exact").items():
        np.testing.assert_allclose(kronecker, block(matvec, params, name), atol=1e-12)


def test_in_general_the_product_is_another_matrix_than_the_block(classifier, rng):
    objective, params = classifier()
    batch = labels_batch(rng, 50)
    matvec = fisher_matvec(objective, params, batch)
    for name, kronecker in kronecker_blocks(objective, params, batch, fisher="exact").items():
        assert 0.02 < relative(kronecker, block(matvec, params, name)) < 0.6


def test_exact_output_factors_are_the_mean_over_every_label_by_its_probability(classifier, rng):
    objective, params = classifier()
    inputs, labels = labels_batch(rng, 5)
    probabilities = np.array(jax.nn.softmax(objective.model(params, inputs)))
    found = factors(objective, run_forward(objective.model, params, inputs), labels, fisher="exact")
    for name in objective.model.dense_layers:
        expected = 0
        for i, row in enumerate(inputs):
            for label in range(4):
                example = row[None], jnp.array([label])
                alone = factors_of(objective, params, example, fisher="empirical")
                expected += probabilities[i, label] * alone.outputs[name] / len(inputs)
        np.testing.assert_allclose(found.outputs[name], expected, atol=1e-13)


def test_factors_come_from_the_loss_of_each_example_not_of_the_mean(classifier, rng):
    objective, params = classifier()
    inputs, labels = labels_batch(rng, 4)
    twice = (jnp.tile(inputs, (2, 1)), jnp.tile(labels, 2))
    for fisher in ("exact", "empirical"):
        once = kronecker_blocks(objective, params, (inputs, labels), fisher=fisher)
        again = kronecker_blocks(objective, params, twice, fisher=fisher)
        for name in once:
            np.testing.assert_allclose(again[name], once[name], atol=1e-13)


def test_sampled_factors_depend_on_the_key_alone(classifier, rng):
    objective, params = classifier()
    inputs, labels = labels_batch(rng, 6)

    def sampled(labels, key):
        found = kronecker_blocks(objective, params, (inputs, labels), key=jax.random.key(key))
        return found["dense_0"]

    np.testing.assert_array_equal(sampled(labels, 0), sampled((labels + 1) % 4, 0))
    assert relative(sampled(labels, 0), sampled(labels, 1)) > 0.01


@pytest.fixture
def shared(float64, rng):
    """A layer shared over positions, scaled by an array of its own, and averaged: a small model."""

    def init(key):
        return {
            "shared": {
                "weight": jnp.asarray(rng.normal(size=(5, 4))),
                "bias": jnp.asarray(rng.normal(size=4)),
            },
            "scale": {"scale": jnp.asarray(rng.normal(size=4))},
            "last": {"weight": jnp.asarray(rng.normal(size=(4, 3)))},
        }

    def forward(params, inputs, taps):
        signal = inputs @ params["shared"]["weight"] + params["shared"]["bias"]
        signal = (signal + taps.get("shared", 0)) * params["scale"]["scale"]
        pooled = signal.mean(axis=1)
        outputs = pooled @ params["last"]["weight"] + taps.get("last", 0)
        return outputs, {"shared": inputs, "last": pooled}

    model = Model(init, forward, ("shared", "last"))
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    inputs = jnp.asarray(rng.normal(size=(6, POSITIONS, 5)))
    return objective, model.init(None), (inputs, jnp.asarray(rng.integers(3, size=6)))


def test_shared_layers_expand_or_reduce_their_positions(shared):
    objective, params, (inputs, labels) = shared
    signals = run_forward(objective.model, params, inputs)
    _, backward = signals.pull(jax.grad(objective.loss)(signals.outputs, labels))
    delta = len(inputs) * np.array(backward["shared"])
    h = np.concatenate([inputs, np.ones((6, POSITIONS, 1))], axis=2)

    expand = factors_of(objective, params, (inputs, labels), fisher="empirical")
    expected = sum(np.outer(h[i, t], h[i, t]) for i in range(6) for t in range(POSITIONS))
    np.testing.assert_allclose(expand.inputs["shared"], expected / (6 * POSITIONS))
    expected = sum(np.outer(delta[i, t], delta[i, t]) for i in range(6) for t in range(POSITIONS))
    np.testing.assert_allclose(expand.outputs["shared"], expected / 6)

    reduce = factors_of(objective, params, (inputs, labels), fisher="empirical", sharing="reduce")
    expected = sum(np.outer(h[i].mean(0), h[i].mean(0)) for i in range(6)) / 6
    np.testing.assert_allclose(reduce.inputs["shared"], expected)
    expected = sum(np.outer(delta[i].sum(0), delta[i].sum(0)) for i in range(6)) / 6
    np.testing.assert_allclose(reduce.outputs["shared"], expected)


def test_reduce_is_exact_where_linear_positions_are_averaged(shared):
    objective, params, (inputs, _) = shared
    squared = soaa_edu.Objective(objective.model, soaa_edu.squared_error)
    batch = (inputs, jnp.zeros((6, 3)))
    matvec = fisher_matvec(squared, params, batch)
    exact = block(matvec, params, "shared")
    found = {
        sharing: kronecker_blocks(squared, params, batch, fisher="exact", sharing=sharing)["shared"]
        for sharing in ("expand", "reduce")
    }
    np.testing.assert_allclose(found["reduce"], exact, atol=1e-12)
    assert relative(found["expand"], exact) > 0.1


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_other_arrays_have_the_diagonal_of_their_fisher(shared, fisher):
    objective, params, batch = shared
    matvec = (fisher_matvec if fisher == "exact" else empirical_fisher_matvec)(
        objective, params, batch
    )
    found = factors_of(objective, params, batch, fisher=fisher)
    unflat = dense(matvec, params)
    layout = jax.flatten_util.ravel_pytree(params)[1](jnp.diag(unflat))
    assert set(found.diagonal) == {"scale"}
    np.testing.assert_allclose(found.diagonal["scale"]["scale"], layout["scale"]["scale"])


def test_a_layer_without_a_bias_has_no_row_for_it(shared):
    objective, params, batch = shared
    found = factors_of(objective, params, batch, fisher="exact")
    assert found.inputs["last"].shape == (4, 4)
    assert found.inputs["shared"].shape == (6, 6)


def test_the_input_factor_of_an_embedding_is_the_frequency_of_each_token(rng):
    tokens = rng.integers(5, size=(3, 6), dtype=np.int32)
    factors_by_type = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = soaa_edu.models.decoder(5, width=8, heads=1, depth=1, activations=dtype)
        objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
        batch = (tokens, (tokens + 1) % 5)
        params = jax.jit(model.init)(jax.random.key(0))
        found = factors_of(objective, params, batch, fisher="empirical")
        frequencies = np.bincount(tokens.ravel(), minlength=5) / tokens.size
        np.testing.assert_allclose(found.inputs["embedding"], frequencies, atol=1e-6)
        factors_by_type[dtype] = found
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    exact = factors_by_type[jnp.float32]
    for name, expected in exact.inputs.items():
        assert relative(found.inputs[name], expected) < 0.02
        assert relative(found.outputs[name], exact.outputs[name]) < 0.05


@pytest.mark.parametrize(
    "model",
    [
        soaa_edu.models.cnn(channels=(3,), stride=4),
        soaa_edu.models.vit(width=4, heads=2, depth=1, patch=14),
    ],
    ids=["cnn", "vit"],
)
def test_the_gradient_is_that_of_autodiff(model, digits):
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = jax.tree.map(lambda array: array[:5], digits.train)

    @jax.jit
    def both(params, batch):
        signals = run_forward(model, params, batch[0])
        gradient, _ = signals.pull(jax.grad(objective.loss)(signals.outputs, batch[1]))
        return gradient, jax.grad(objective)(params, batch)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *both(params, batch))


def test_rows_without_a_label_make_no_factor(classifier, rng):
    objective, params = classifier()
    inputs, labels = labels_batch(rng, 4)
    padded = jnp.concatenate([labels, -jnp.ones(3, labels.dtype)])
    rows = jnp.concatenate([inputs, inputs[:3]])

    @jax.jit
    def of_outputs(params, batch):
        both = (factors_of(objective, params, batch, fisher=f) for f in ("exact", "empirical"))
        return [found.outputs for found in both]

    alone, among = of_outputs(params, (inputs, labels)), of_outputs(params, (rows, padded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), among, alone)


def test_what_has_no_factors_is_refused(classifier):
    objective, _ = classifier()
    plain = soaa_edu.Objective(lambda p, x: x @ p, soaa_edu.softmax_cross_entropy)
    with pytest.raises(TypeError, match="declares its dense layers"):
        check_layers(plain)
    with pytest.raises(TypeError, match="declares its dense layers"):
        check_layers(lambda p, b: 0.0)
    tied = Model(objective.model.init, objective.model.forward, ("dense_0", "dense_0"))
    with pytest.raises(ValueError, match="tied"):
        check_layers(soaa_edu.Objective(tied, soaa_edu.squared_error))
    language = soaa_edu.models.decoder(7, tied=True)
    with pytest.raises(ValueError, match="tied"):
        check_layers(soaa_edu.Objective(language, soaa_edu.softmax_cross_entropy))
    with pytest.raises(ValueError, match="'sampled', 'exact', 'empirical'"):
        check_fisher(objective, "true")
    own_loss = soaa_edu.Objective(objective.model, lambda z, y: jnp.mean((z - y) ** 2))
    with pytest.raises(TypeError, match="wrap the loss"):
        check_fisher(own_loss, "sampled")
    check_fisher(own_loss, "empirical")


def test_sampling_without_a_key_is_refused(classifier, rng):
    objective, params = classifier()
    with pytest.raises(ValueError, match="sampled targets need a key"):
        factors_of(objective, params, labels_batch(rng, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_inputs_of_whole_numbers_are_what_they_are(rng, dtype):
    model = soaa_edu.models.mlp([6, 4])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = model.init(jax.random.key(0))
    inputs, labels = rng.integers(5, size=(8, 6)), rng.integers(4, size=8)
    whole, real = (
        factors_of(objective, params, (jnp.asarray(inputs, of), labels), fisher="empirical")
        for of in (dtype, np.float32)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, real)


def test_rounded_activations_are_declared_rightly():
    model = soaa_edu.models.decoder(7, width=8, heads=2, depth=1, activations=jnp.bfloat16)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    tokens = jnp.arange(12).reshape(2, 6) % 7
    check_model(objective, model.init(jax.random.key(0)), (tokens, (tokens + 1) % 7))
