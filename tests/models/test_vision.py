import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.models import cnn, vit

VIT = {"image_shape": (4, 6, 2), "patch": 2, "width": 6, "heads": 3, "depth": 2}


def test_a_cnn_has_convolutions_and_a_head(shapes_of):
    model = cnn(image_shape=(28, 20, 3), channels=(8, 16), kernel=5, stride=3)
    assert shapes_of(model) == {
        "conv_0": {"weight": (75, 8), "bias": (8,)},
        "conv_1": {"weight": (200, 16), "bias": (16,)},
        "head": {"weight": (4 * 3 * 16, 10), "bias": (10,)},
    }
    assert model.dense_layers == ("conv_0", "conv_1", "head")
    assert model.input_layer is None


def test_a_vit_has_blocks_between_its_embedding_and_its_head(shapes_of):
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
def test_a_cnn_convolves_as_jax_does(drawn, rng, kernel, stride):
    shape, channels = (5, 7, 2), (3, 4)
    model = cnn(
        4,
        image_shape=shape,
        channels=channels,
        kernel=kernel,
        stride=stride,
        activation=jnp.tanh,
    )
    params, inputs = drawn(model), rng.normal(size=(6, 70))
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


def test_a_vit_is_numpys(drawn, rng):
    model = vit(4, **VIT)
    params, inputs = drawn(model), rng.normal(size=(5, 48))
    expected = [numpy_vit(params, row.reshape(4, 6, 2)) for row in inputs]
    np.testing.assert_allclose(jax.jit(model.__call__)(params, inputs), expected, atol=1e-13)


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


@pytest.mark.parametrize("build", [cnn, vit])
def test_images_of_another_shape_are_refused(build):
    message = f"width 9 don't fit this {build.__name__}, built for .*image_shape"
    with pytest.raises(ValueError, match=message):
        build()({}, np.ones((2, 9)))
