from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.models import cnn, init_dense, mlp, vit

CNN = {"image_shape": (5, 7, 2), "channels": (3, 4)}
VIT = {"image_shape": (4, 6, 2), "patch": 2, "width": 6, "heads": 3, "depth": 2}
IMAGE_MODELS = {"cnn": cnn(4, **CNN, activation=jnp.tanh), "vit": vit(4, **VIT)}


def relu(x):
    return np.maximum(x, 0)


def numpy_layers(params, inputs, activation):
    """The inputs of every layer, and the outputs last."""
    signals, layers = [inputs], list(params.values())
    for layer in layers:
        signal = signals[-1] @ np.asarray(layer["weight"]) + np.asarray(layer["bias"])
        signals.append(signal if layer is layers[-1] else activation(signal))
    return signals


def test_an_mlp_has_a_weight_and_a_bias_for_each_layer():
    model = mlp([7, 5, 3])
    shapes = jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    assert shapes == {
        "dense_0": {"weight": (7, 5), "bias": (5,)},
        "dense_1": {"weight": (5, 3), "bias": (3,)},
    }
    assert model.dense_layers == tuple(shapes)
    assert model.input_layer == "dense_0"


def test_weights_start_lecun_normal_and_biases_at_zero():
    params = mlp([400, 300, 200]).init(jax.random.key(0))
    for layer, inputs in zip(params.values(), (400, 300), strict=True):
        weight = np.asarray(layer["weight"]) * np.sqrt(inputs)
        np.testing.assert_allclose([weight.mean(), weight.std()], [0, 1], atol=0.01)
        assert 2.2 < np.abs(weight).max() <= 2 / 0.8796
        assert not np.any(layer["bias"])


@pytest.mark.parametrize("shape", [(784, 10), (10, 10), (49, 10), (5, 1), (3, 300)])
def test_weights_are_drawn_as_jaxs_own_initializer_draws_them(shape):
    key = jax.random.key(3)
    expected = jax.nn.initializers.lecun_normal()(key, shape)
    np.testing.assert_allclose(init_dense(key, *shape)["weight"], expected, rtol=1e-6)


def test_layers_of_one_shape_start_apart():
    params = mlp([4, 4, 4]).init(jax.random.key(0))
    assert not np.allclose(params["dense_0"]["weight"], params["dense_1"]["weight"])


@pytest.mark.parametrize("sizes", [(12, 4), (12, 5, 4), (12, 5, 6, 4)])
def test_the_forward_pass_is_numpys(classifier, rng, sizes):
    objective, params = classifier(sizes)
    inputs = rng.normal(size=(6, 12))
    *layer_inputs, outputs = numpy_layers(params, inputs, np.tanh)
    found, seen = jax.jit(objective.model.forward)(params, inputs, {})
    np.testing.assert_allclose(found, outputs, atol=1e-14)
    assert tuple(seen) == objective.model.dense_layers
    for name, expected in zip(seen, layer_inputs, strict=True):
        np.testing.assert_allclose(seen[name], expected, atol=1e-14)


def test_the_activation_is_relu_unless_another_is_given(classifier, rng):
    _, params = classifier()
    inputs = rng.normal(size=(6, 12))
    expected = numpy_layers(params, inputs, relu)[-1]
    np.testing.assert_allclose(mlp([12, 5, 4])(params, inputs), expected, atol=1e-14)


def test_examples_may_stand_along_several_axes(classifier, rng):
    objective, params = classifier()
    inputs = rng.normal(size=(2, 3, 12))
    flat = objective.model(params, inputs.reshape(6, 12))
    np.testing.assert_allclose(objective.model(params, inputs).reshape(6, 4), flat, atol=1e-15)


def test_the_gradient_in_zero_taps_is_the_backward_signal(classifier, rng):
    objective, params = classifier((12, 5, 6, 4))
    model = objective.model
    inputs, labels = rng.normal(size=(7, 12)), rng.integers(4, size=7)

    def tapped(params, taps):
        outputs, layer_inputs = model.forward(params, inputs, taps)
        return objective.loss(outputs, labels), layer_inputs

    taps = {f"dense_{i}": np.zeros((7, width)) for i, width in enumerate((5, 6, 4))}
    differentiate = jax.jit(jax.grad(tapped, argnums=(0, 1), has_aux=True))
    (gradient, signals), layer_inputs = differentiate(params, taps)
    for name in model.dense_layers:
        weight, bias = layer_inputs[name].T @ signals[name], signals[name].sum(axis=0)
        np.testing.assert_allclose(gradient[name]["weight"], weight, atol=1e-15)
        np.testing.assert_allclose(gradient[name]["bias"], bias, atol=1e-15)


def test_a_tap_is_added_before_the_activation(classifier, rng):
    objective, params = classifier()
    inputs, tap = rng.normal(size=(6, 12)), rng.normal(size=(6, 5))
    shifted = params | {"dense_0": {**params["dense_0"], "bias": params["dense_0"]["bias"] + tap}}
    found, _ = objective.model.forward(params, inputs, {"dense_0": tap})
    np.testing.assert_allclose(found, objective.model(shifted, inputs), atol=1e-15)


@pytest.mark.parametrize("sizes", [[], [784], [784, 0], [784, -1, 10], [784, 2.5, 10]])
def test_an_mlp_needs_two_whole_sizes(sizes):
    with pytest.raises(ValueError, match="mlp"):
        mlp(sizes)


def test_inputs_of_another_width_are_refused(classifier):
    objective, params = classifier()
    with pytest.raises(ValueError, match="inputs of width 9 don't fit this mlp, built for 12"):
        objective.model(params, np.ones((2, 9)))


def shapes_of(model):
    return jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0)))


def drawn(model, rng):
    """Parameters of a model in float64, none of them zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape) / np.sqrt(x.shape[0]), shapes)


def images_for(name, rng, batch=5):
    shape = (CNN if name == "cnn" else VIT)["image_shape"]
    return rng.normal(size=(batch, np.prod(shape)))


def test_a_cnn_has_convolutions_and_a_head():
    model = cnn(image_shape=(28, 20, 3), channels=(8, 16), kernel=5, stride=3)
    assert shapes_of(model) == {
        "conv_0": {"weight": (75, 8), "bias": (8,)},
        "conv_1": {"weight": (200, 16), "bias": (16,)},
        "head": {"weight": (4 * 3 * 16, 10), "bias": (10,)},
    }
    assert model.dense_layers == ("conv_0", "conv_1", "head")
    assert model.input_layer is None


def test_a_vit_has_blocks_between_its_embedding_and_its_head():
    model = vit(width=8, heads=2, depth=1)
    norm = {"scale": (8,), "shift": (8,)}
    dense_layers = {
        "embedding": {"weight": (49, 8), "bias": (8,)},
        "block_0_qkv": {"weight": (8, 24), "bias": (24,)},
        "block_0_projection": {"weight": (8, 8), "bias": (8,)},
        "block_0_mlp_1": {"weight": (8, 16), "bias": (16,)},
        "block_0_mlp_2": {"weight": (16, 8), "bias": (8,)},
        "head": {"weight": (8, 10), "bias": (10,)},
    }
    others = {
        "tokens": {"class": (8,), "positions": (17, 8)},
        "block_0_norm_1": norm,
        "block_0_norm_2": norm,
        "norm": norm,
    }
    assert shapes_of(model) == dense_layers | others
    assert model.dense_layers == tuple(dense_layers)
    assert model.input_layer is None


@pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 3), (2, 3), (9, 2)]
)
def test_a_cnn_convolves_as_jax_does(float64, rng, kernel, stride):
    shape, channels = (5, 7, 2), (3, 4)
    model = cnn(
        4,
        image_shape=shape,
        channels=channels,
        kernel=kernel,
        stride=stride,
        activation=jnp.tanh,
    )
    params, inputs = drawn(model, rng), rng.normal(size=(6, 70))
    images = jnp.asarray(inputs.reshape(6, *shape))
    for name in model.dense_layers[:-1]:
        layer = params[name]
        convolved = jax.lax.conv_general_dilated(
            images,
            layer["weight"].reshape(kernel, kernel, images.shape[-1], -1),
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        images = jnp.tanh(convolved + layer["bias"])
    expected = images.reshape(6, -1) @ params["head"]["weight"] + params["head"]["bias"]
    found = jax.jit(model.__call__)(params, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def normalised(layer, signal):
    centred = signal - signal.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(signal.var(axis=-1, keepdims=True) + 1e-6)
    return layer["scale"] * centred / deviation + layer["shift"]


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_vit(params, image):
    """The outputs for one image, head by head and patch by patch."""
    p = jax.tree.map(np.asarray, params)

    def dense(name, signal):
        return signal @ p[name]["weight"] + p[name]["bias"]

    rows, columns = range(0, image.shape[0], 2), range(0, image.shape[1], 2)
    patches = [image[i : i + 2, j : j + 2].ravel() for i in rows for j in columns]
    tokens = [p["tokens"]["class"]] + [dense("embedding", patch) for patch in patches]
    signal = np.stack(tokens) + p["tokens"]["positions"]
    for block in ("block_0", "block_1"):
        qkv = dense(f"{block}_qkv", normalised(p[f"{block}_norm_1"], signal))
        heads = []
        for start in range(0, 6, 2):
            q, k, v = (qkv[:, start + 6 * i : start + 6 * i + 2] for i in range(3))
            weights = np.exp(q @ k.T / np.sqrt(2))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        signal = signal + dense(f"{block}_projection", np.hstack(heads))
        hidden = dense(f"{block}_mlp_1", normalised(p[f"{block}_norm_2"], signal))
        signal = signal + dense(f"{block}_mlp_2", gelu(hidden))
    return dense("head", normalised(p["norm"], signal[0]))


def test_a_vit_is_numpys(float64, rng):
    model = IMAGE_MODELS["vit"]
    params, inputs = drawn(model, rng), images_for("vit", rng)
    expected = [numpy_vit(params, row.reshape(4, 6, 2)) for row in inputs]
    np.testing.assert_allclose(jax.jit(model.__call__)(params, inputs), expected, atol=1e-13)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_layer_inputs_and_tap_gradients_give_every_weights_gradient(float64, rng, name):
    model = IMAGE_MODELS[name]
    params, inputs, labels = drawn(model, rng), images_for(name, rng), rng.integers(4, size=5)

    def tapped(params, taps):
        outputs, layer_inputs = model.forward(params, inputs, taps)
        return soaa_edu.softmax_cross_entropy(outputs, labels), layer_inputs

    _, seen = jax.eval_shape(model.forward, params, inputs, {})
    taps = {
        layer: np.zeros((*seen[layer].shape[:-1], params[layer]["bias"].size))
        for layer in model.dense_layers
    }
    differentiate = jax.jit(jax.grad(tapped, argnums=(0, 1), has_aux=True))
    (gradient, signals), layer_inputs = differentiate(params, taps)
    for layer in model.dense_layers:
        places = layer_inputs[layer].reshape(-1, params[layer]["weight"].shape[0])
        signal = signals[layer].reshape(len(places), -1)
        weight, bias = places.T @ signal, signal.sum(axis=0)
        np.testing.assert_allclose(gradient[layer]["weight"], weight, atol=1e-14)
        np.testing.assert_allclose(gradient[layer]["bias"], bias, atol=1e-14)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_may_stand_along_several_axes_or_under_vmap(float64, rng, name):
    model = IMAGE_MODELS[name]
    params, inputs = drawn(model, rng), images_for(name, rng, batch=6)
    forward = jax.jit(lambda inputs: model.forward(params, inputs, {}))
    expected = forward(inputs)
    stacked = jax.tree.map(np.concatenate, forward(inputs.reshape(2, 3, -1)))
    one_by_one = jax.tree.map(np.concatenate, jax.jit(jax.vmap(forward))(inputs[:, None]))
    assert set(expected[1]) == set(model.dense_layers)
    for found in (stacked, one_by_one):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-13), found, expected)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_float32_stays_float32(rng, name):
    model = IMAGE_MODELS[name]
    params = jax.eval_shape(model.init, jax.random.key(0))
    inputs = images_for(name, rng).astype(np.float32)
    signals = jax.tree.leaves(jax.eval_shape(model.forward, params, inputs, {}))
    assert {signal.dtype for signal in signals} == {np.dtype(np.float32)}


@pytest.mark.parametrize("build", [cnn, vit])
def test_image_models_start_with_small_outputs_on_digits(digits, build):
    model = build()

    @jax.jit
    def start(key, inputs):
        return model(model.init(key), inputs)

    outputs = start(jax.random.key(0), digits.test[0][:50])
    assert outputs.shape == (50, 10)
    assert 0.1 < np.std(outputs) < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, "one convolution at least: give channels"),
        ({"channels": (8, 0)}, "channels of a cnn must be a whole number"),
        ({"kernel": 0}, "kernel of a cnn must be a whole number"),
        ({"stride": 1.5}, "stride of a cnn must be a whole number"),
        ({"outputs": -1}, "outputs of a cnn must be a whole number"),
        ({"image_shape": (28, 28)}, r"\(height, width, channels\), got \(28, 28\)"),
        ({"image_shape": (28, 28, 0)}, "image_shape of a cnn must be a whole number"),
    ],
)
def test_a_cnn_needs_whole_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        cnn(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 5}, "patches of 5 x 5 don't tile the 28 x 28 images"),
        ({"width": 30}, "4 heads don't divide the width 30 of this vit: take a width of 32"),
        ({"heads": 0}, "heads of a vit must be a whole number"),
        ({"depth": 0}, "depth of a vit must be a whole number"),
        ({"image_shape": (28,)}, r"\(height, width, channels\), got \(28,\)"),
    ],
)
def test_a_vit_needs_patches_and_heads_that_fit(options, message):
    with pytest.raises(ValueError, match=message):
        vit(**options)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_of_another_shape_are_refused(rng, name):
    model = IMAGE_MODELS[name]
    with pytest.raises(ValueError, match=f"width 9 don't fit this {name}, built for .*image_shape"):
        model({}, np.ones((2, 9)))
