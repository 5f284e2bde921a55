import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.models import decoder, encoder

SIZES = {"width": 8, "heads": 2, "depth": 2}
MODELS = {
    "encoder": encoder(7, length=6, **SIZES),
    "classifier": encoder(7, length=6, classes=3, **SIZES),
    "decoder": decoder(7, **SIZES),
    "tied decoder": decoder(7, tied=True, **SIZES),
}


@pytest.fixture
def tokens(rng):
    return rng.integers(7, size=(3, 5))


def number_of_parameters(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def layer_norm(layer, x):
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return layer["scale"] * (x - x.mean(axis=-1, keepdims=True)) / deviation + layer["shift"]


def rms_norm(layer, x):
    return layer["scale"] * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotated(vectors):
    """Each row turned by its position: a 2 x 2 rotation for each pair of a head of four."""
    turned = np.empty_like(vectors)
    for position, vector in enumerate(vectors):
        for pair, frequency in enumerate((1, 0.01)):
            cos, sin = np.cos(position * frequency), np.sin(position * frequency)
            here = [pair, pair + 2]
            turned[position, here] = [[cos, -sin], [sin, cos]] @ vector[here]
    return turned


def numpy_encoder(params, tokens, classes):
    """The logits for one sequence."""
    p = jax.tree.map(np.asarray, params)
    x = np.eye(7)[tokens] @ p["embedding"]["weight"] + p["tokens"]["positions"][: len(tokens)]

    def dense(name, signal):
        return signal @ p[name]["weight"] + p[name]["bias"]

    for block in ("block_0", "block_1"):
        qkv = dense(f"{block}_qkv", layer_norm(p[f"{block}_norm_1"], x))
        heads = []
        for start in (0, 4):
            q, k, v = (qkv[:, start + 8 * i : start + 8 * i + 4] for i in range(3))
            heads.append(softmax(q @ k.T / 2) @ v)
        x = x + dense(f"{block}_projection", np.hstack(heads))
        hidden = gelu(dense(f"{block}_mlp_1", layer_norm(p[f"{block}_norm_2"], x)))
        x = x + dense(f"{block}_mlp_2", hidden)
    x = layer_norm(p["norm"], x)
    return dense("head", x.mean(axis=0) if classes else x)


def numpy_decoder(params, tokens, tied):
    """The logits for one sequence."""
    p = jax.tree.map(np.asarray, params)
    x = p["embedding"]["weight"][tokens]
    future = np.triu(np.full((len(tokens), len(tokens)), -np.inf), k=1)
    for block in ("block_0", "block_1"):
        qkv = rms_norm(p[f"{block}_norm_1"], x) @ p[f"{block}_qkv"]["weight"]
        heads = []
        for start in (0, 4):
            q, k, v = (qkv[:, start + 8 * i : start + 8 * i + 4] for i in range(3))
            heads.append(softmax(rotated(q) @ rotated(k).T / 2 + future) @ v)
        x = x + np.hstack(heads) @ p[f"{block}_projection"]["weight"]
        normal = rms_norm(p[f"{block}_norm_2"], x)
        gate = normal @ p[f"{block}_gate"]["weight"]
        gated = gate / (1 + np.exp(-gate)) * (normal @ p[f"{block}_up"]["weight"])
        x = x + gated @ p[f"{block}_down"]["weight"]
    head = p["embedding"]["weight"].T if tied else p["head"]["weight"]
    return rms_norm(p["norm"], x) @ head


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_pass_is_numpys(drawn, tokens, name):
    model = MODELS[name]
    params = drawn(model)
    if "decoder" in name:
        expected = [numpy_decoder(params, row, tied=name != "decoder") for row in tokens]
    else:
        expected = [numpy_encoder(params, row, classes=name == "classifier") for row in tokens]
    found = jax.jit(model.__call__)(params, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_later_token_moves_the_encoders_earlier_outputs_and_not_the_decoders(drawn, tokens, name):
    model = MODELS[name]
    params = drawn(model)
    forward = jax.jit(model.__call__)
    tokens[:, 3] = 2
    before = np.asarray(forward(params, tokens))
    tokens[:, 3] = 5
    moved = np.abs(forward(params, tokens) - before).max(axis=(0, 2))
    if name == "encoder":
        assert moved.min() > 1e-3
    else:
        assert (moved[:3] == 0).all()
        assert moved[3:].min() > 1e-3


def test_places_labelled_minus_one_are_ignored(drawn, tokens):
    model = MODELS["decoder"]
    params = drawn(model)
    objective = jax.jit(soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy).__call__)
    labels = np.roll(tokens, -1, axis=1)
    cut = objective(params, (tokens[:, :3], labels[:, :3]))
    labels[:, 3:] = -1
    np.testing.assert_allclose(objective(params, (tokens, labels)), cut, rtol=1e-13)


def test_an_encoder_has_these_layers(shapes_of):
    model = encoder(11, length=6, width=8, heads=2, depth=1, classes=3)
    norm = {"scale": (8,), "shift": (8,)}
    dense_layers = {
        "embedding": {"weight": (11, 8)},
        "block_0_qkv": {"weight": (8, 24), "bias": (24,)},
        "block_0_projection": {"weight": (8, 8), "bias": (8,)},
        "block_0_mlp_1": {"weight": (8, 32), "bias": (32,)},
        "block_0_mlp_2": {"weight": (32, 8), "bias": (8,)},
        "head": {"weight": (8, 3), "bias": (3,)},
    }
    others = {"block_0_norm_1": norm, "block_0_norm_2": norm, "norm": norm}
    others["tokens"] = {"positions": (6, 8)}
    assert shapes_of(model) == dense_layers | others
    assert model.dense_layers == tuple(dense_layers)
    assert model.input_layer is None


def test_a_decoder_has_these_layers(shapes_of):
    model = decoder(11, width=8, heads=2, depth=1)
    norm = {"scale": (8,)}
    dense_layers = {
        "embedding": {"weight": (11, 8)},
        "block_0_qkv": {"weight": (8, 24)},
        "block_0_projection": {"weight": (8, 8)},
        "block_0_gate": {"weight": (8, 24)},
        "block_0_up": {"weight": (8, 24)},
        "block_0_down": {"weight": (24, 8)},
        "head": {"weight": (8, 11)},
    }
    assert shapes_of(model) == dense_layers | dict.fromkeys(
        ("block_0_norm_1", "block_0_norm_2", "norm"), norm
    )
    assert model.dense_layers == tuple(dense_layers)
    assert model.input_layer is None


@pytest.mark.parametrize(
    ("sizes", "about"),
    [
        ({"vocabulary": 30, "width": 24, "heads": 2, "depth": 1}, 1e4),
        ({"vocabulary": 32_000, "width": 768, "heads": 12, "depth": 12}, 1.2e8),
    ],
)
def test_any_size_is_a_matter_of_numbers(sizes, about):
    v, w, depth = sizes["vocabulary"], sizes["width"], sizes["depth"]
    block = 12 * w**2 + (3 + 1 + 4 + 1 + 4) * w
    found = number_of_parameters(encoder(**sizes, length=50))
    assert found == v * w + 50 * w + depth * block + 2 * w + w * v + v
    assert 0.8 * about < found < 1.4 * about
    inner = 8 * -(-w // 3)
    found = number_of_parameters(decoder(**sizes))
    assert found == v * w + depth * (4 * w**2 + 3 * w * inner + 2 * w) + w + w * v
    assert 0.8 * about < found < 1.4 * about
    assert number_of_parameters(decoder(**sizes, tied=True)) == found - v * w


def test_the_hidden_width_is_the_one_given(shapes_of):
    shapes = shapes_of(decoder(7, width=8, heads=2, depth=1, hidden=5))
    assert shapes["block_0_up"]["weight"] == (8, 5)
    assert shapes["block_0_down"]["weight"] == (5, 8)


def test_embeddings_start_with_a_length_of_one_and_tied_logits_too():
    model = decoder(400, width=64, heads=4, depth=1, tied=True)

    @jax.jit
    def start(key, tokens):
        params = model.init(key)
        return params["embedding"]["weight"], model(params, tokens)

    weight, logits = start(jax.random.key(0), np.arange(60).reshape(3, 20))
    np.testing.assert_allclose(np.std(weight), 64**-0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(logits), 1, rtol=0.1)


def test_a_decoder_takes_any_length_and_an_encoder_up_to_its_own():
    tokens = np.zeros((2, 9), np.uint8)
    for name in ("decoder", "encoder"):
        params = jax.eval_shape(MODELS[name].init, jax.random.key(0))
        for length in (1, 6):
            found = jax.eval_shape(MODELS[name], params, tokens[:, :length])
            assert found.shape == (2, length, 7)
    params = jax.eval_shape(MODELS["decoder"].init, jax.random.key(0))
    assert jax.eval_shape(MODELS["decoder"], params, tokens).shape == (2, 9, 7)
    with pytest.raises(ValueError, match=r"9 tokens is too long for this encoder: .*length=9"):
        MODELS["encoder"]({}, tokens)


@pytest.mark.parametrize("token", [7, -1])
def test_a_token_outside_the_vocabulary_gives_nan(drawn, tokens, token):
    model = MODELS["decoder"]
    params = drawn(model)
    tokens[1, 2] = token
    outputs = np.asarray(jax.jit(model.__call__)(params, tokens))
    assert np.isnan(outputs[1, 2:]).all()
    assert np.isfinite(outputs[[0, 2]]).all()


@pytest.mark.parametrize(
    ("build", "options"),
    [(encoder, {"length": 6, "classes": 3}), (decoder, {"tied": True})],
    ids=["classifier", "tied decoder"],
)
def test_activations_of_bfloat16_are_close_and_leave_the_logits_in_float32(
    drawn, tokens, build, options
):
    exact, short = (
        build(7, width=8, heads=2, depth=1, **options, activations=dtype)
        for dtype in (None, jnp.bfloat16)
    )
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), drawn(exact))

    @jax.jit
    def forward(params, tokens):
        return exact(params, tokens), *short.forward(params, tokens, {})

    expected, found, layer_inputs = forward(params, tokens)
    assert found.dtype == np.float32
    assert layer_inputs.pop("embedding").dtype == tokens.dtype
    assert {signal.dtype for signal in layer_inputs.values()} == {np.dtype(jnp.bfloat16)}
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.05


def test_activations_of_their_own_type_change_nothing_and_float64_is_kept(drawn, tokens):
    params = drawn(MODELS["decoder"])
    narrow = decoder(7, **SIZES, activations=jnp.float32)
    assert jax.eval_shape(narrow, params, tokens).dtype == np.float64
    assert jax.eval_shape(MODELS["decoder"], params, tokens).dtype == np.float64
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    found = jax.jit(lambda p, x: (narrow(p, x), MODELS["decoder"](p, x)))(single, tokens)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "model",
    [
        encoder(7, length=6, width=8, heads=1, depth=1),
        decoder(7, width=8, heads=1, depth=1),
    ],
    ids=["encoder", "decoder"],
)
def test_kfac_trains(drawn, rng, model):
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    optimizer = soaa_edu.kfac(
        objective, learning_rate=0.1, damping=0.1, invert_every=1, fisher="empirical"
    )
    tokens = rng.integers(7, size=(64, 6), dtype=np.int32)

    @jax.jit
    def run(params, key):
        def step(carry, key):
            params, state, info = optimizer.step(*carry, (tokens, (tokens + 1) % 7), key)
            return (params, state), info["loss"]

        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(key, 60))[1]

    losses = run(drawn(model), jax.random.key(0))
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 0}, "vocabulary of the encoder must be a whole number"),
        ({"length": 2.5}, "length of the encoder must be a whole number"),
        ({"classes": 0}, "classes of the encoder must be a whole number"),
        ({"depth": 0}, "depth of the encoder must be a whole number"),
        ({"width": 10}, "4 heads don't divide the width 10 of this encoder: take a width of 12"),
        ({"activations": jnp.int32}, "floating type such as jnp.bfloat16"),
    ],
)
def test_an_encoder_needs_sizes_that_fit(options, message):
    with pytest.raises(ValueError, match=message):
        encoder(**{"vocabulary": 7, "length": 6} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 0}, "vocabulary of the decoder must be a whole number"),
        ({"hidden": 0}, "hidden of the decoder must be a whole number"),
        ({"heads": True}, "heads of the decoder must be a whole number"),
        ({"width": 10}, "4 heads don't divide the width 10 of this decoder: take a width of 12"),
        ({"width": 20}, "have 5 entries each: take a width of 24"),
        ({"activations": "int8"}, "floating type such as jnp.bfloat16"),
    ],
)
def test_a_decoder_needs_sizes_that_fit(options, message):
    with pytest.raises(ValueError, match=message):
        decoder(**{"vocabulary": 7} | options)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_must_be_whole_numbers(name):
    with pytest.raises(ValueError, match=r"whole numbers .* got float32 .* as an integer array"):
        MODELS[name]({}, np.ones((2, 3), np.float32))
