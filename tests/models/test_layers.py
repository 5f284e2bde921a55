from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.models import cnn, decoder, encoder, init_dense, vit
from soaa_edu.models.layers import attention, layer_norm, rms_norm, rotate, split_heads

TEXT = {"width": 8, "heads": 2, "depth": 1}
MODELS = {
    "cnn": cnn(4, image_shape=(5, 7, 2), channels=(3, 4), activation=jnp.tanh),
    "vit": vit(4, image_shape=(4, 6, 2), patch=2, width=6, heads=3, depth=2),
    "encoder": encoder(7, length=5, **TEXT),
    "decoder": decoder(7, **TEXT),
}
WIDTHS = {"cnn": 70, "vit": 48}


def inputs_for(name, rng, batch=5):
    """Flat images, or tokens."""
    if name in WIDTHS:
        return rng.normal(size=(batch, WIDTHS[name]))
    return rng.integers(7, size=(batch, 4))


@pytest.mark.parametrize("shape", [(784, 10), (10, 10), (49, 10), (5, 1), (3, 300)])
def test_weights_are_drawn_as_jaxs_own_initializer_draws_them(shape):
    key = jax.random.key(3)
    expected = jax.nn.initializers.lecun_normal()(key, shape)
    np.testing.assert_allclose(init_dense(key, *shape)["weight"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_layer_inputs_and_tap_gradients_give_every_weights_gradient(drawn, rng, name):
    model = MODELS[name]
    params, inputs = drawn(model), inputs_for(name, rng)
    outputs, seen = jax.eval_shape(model.forward, params, inputs, {})
    labels = rng.integers(outputs.shape[-1], size=outputs.shape[:-1])

    def tapped(params, taps):
        outputs, layer_inputs = model.forward(params, inputs, taps)
        return soaa_edu.softmax_cross_entropy(outputs, labels), layer_inputs

    for layer in model.embeddings:
        seen[layer] = jax.eval_shape(lambda ids: ids[..., None], seen[layer])
    taps = {
        layer: np.zeros((*seen[layer].shape[:-1], params[layer]["weight"].shape[1]))
        for layer in model.dense_layers
    }
    differentiate = jax.jit(jax.grad(tapped, argnums=(0, 1), has_aux=True))
    (gradient, signals), layer_inputs = differentiate(params, taps)
    for layer in model.dense_layers:
        width = params[layer]["weight"].shape[0]
        places = layer_inputs[layer]
        if layer in model.embeddings:
            places = np.eye(width)[places]
        places = places.reshape(-1, width)
        signal = signals[layer].reshape(len(places), -1)
        weight, bias = places.T @ signal, signal.sum(axis=0)
        np.testing.assert_allclose(gradient[layer]["weight"], weight, atol=1e-14)
        if "bias" in params[layer]:
            np.testing.assert_allclose(gradient[layer]["bias"], bias, atol=1e-14)


@pytest.mark.parametrize("name", ["cnn", "vit", "decoder"])
def test_examples_may_stand_along_several_axes_or_under_vmap(drawn, rng, name):
    model = MODELS[name]
    params, inputs = drawn(model), inputs_for(name, rng, batch=6)
    forward = jax.jit(lambda inputs: model.forward(params, inputs, {}))
    expected = forward(inputs)
    stacked = jax.tree.map(np.concatenate, forward(inputs.reshape(2, 3, -1)))
    one_by_one = jax.tree.map(np.concatenate, jax.jit(jax.vmap(forward))(inputs[:, None]))
    assert set(expected[1]) == set(model.dense_layers)
    for found in (stacked, one_by_one):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-13), found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_float32_stays_float32(rng, name):
    model = MODELS[name]
    params = jax.eval_shape(model.init, jax.random.key(0))
    inputs = inputs_for(name, rng)
    inputs = inputs.astype(np.float32) if name in WIDTHS else inputs
    outputs, seen = jax.eval_shape(model.forward, params, inputs, {})
    signals = [outputs, *(seen[layer] for layer in seen if layer not in model.embeddings)]
    assert {signal.dtype for signal in signals} == {np.dtype(np.float32)}


def test_a_layer_norm_is_numpys(float64, rng):
    inputs, scale, shift = rng.normal(2, 3, size=(4, 5, 6)), rng.normal(size=6), rng.normal(size=6)
    deviation = np.sqrt(inputs.var(axis=-1, keepdims=True) + 1e-6)
    expected = scale * (inputs - inputs.mean(axis=-1, keepdims=True)) / deviation + shift
    found = layer_norm({"scale": scale, "shift": shift}, jnp.asarray(inputs))
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_an_rms_norm_is_numpys(float64, rng):
    inputs, scale = rng.normal(2, 3, size=(4, 5, 6)), rng.normal(size=6)
    length = np.linalg.norm(inputs, axis=-1, keepdims=True)
    expected = scale * inputs / np.sqrt(length**2 / 6 + 1e-6)
    np.testing.assert_allclose(rms_norm({"scale": scale}, jnp.asarray(inputs)), expected)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_norms_of_short_types_are_computed_in_float32(norm, rng):
    layer = {"scale": np.ones(8, np.float32), "shift": np.zeros(8, np.float32)}
    inputs = jnp.asarray(300 * rng.normal(size=(3, 8)), jnp.float16)
    found = norm(layer, inputs)
    assert found.dtype == jnp.float16
    expected = norm(layer, inputs.astype(jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_jaxs_own(rng, causal):
    qkv = rng.normal(size=(2, 5, 36)).astype(np.float32)

    @jax.jit
    def both(qkv):
        parts = split_heads(qkv, 3)
        expected = jax.nn.dot_product_attention(*parts, is_causal=causal)
        return attention(*parts, causal=causal), expected.reshape(2, 5, 12)

    np.testing.assert_allclose(*both(qkv), atol=1e-6)


def test_rotary_positions_turn_pairs_as_complex_numbers(float64, rng):
    vectors = rng.normal(size=(2, 9, 3, 6))
    angles = np.outer(np.arange(9), 10_000.0 ** (-np.arange(3) / 3))[:, None]
    turned = (vectors[..., :3] + 1j * vectors[..., 3:]) * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(vectors)), expected, atol=1e-14)


def test_scores_of_rotated_vectors_depend_on_their_distance_alone(float64, rng):
    query, key = jnp.asarray(rng.normal(size=(2, 1, 8)))
    everywhere = partial(jnp.broadcast_to, shape=(12, 1, 8))
    queries, keys = rotate(everywhere(query))[:, 0], rotate(everywhere(key))[:, 0]
    scores = np.asarray(queries @ keys.T)
    for distance in range(-11, 12):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-13)
    assert np.ptp(scores[0]) > 0.1
    np.testing.assert_allclose(scores[0, 0], (query @ key.T).item(), atol=1e-14)
