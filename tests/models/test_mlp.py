import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.models import mlp


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
