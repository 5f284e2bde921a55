import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from soaa_edu import Loss, Objective, softmax_cross_entropy, squared_error

SHAPES = [(6, 4), (3, 2, 4)]


def numpy_cross_entropy(logits, labels):
    surprise = -scipy.special.log_softmax(logits, axis=-1)
    kept = labels != -1
    return surprise[kept, labels[kept]].mean()


@pytest.fixture
def labelled(float64, rng):
    """Random logits and labels, a third of the labels ignored."""

    def draw(shape):
        logits = 3 * rng.normal(size=shape)
        labels = rng.integers(shape[-1], size=shape[:-1])
        labels.flat[::3] = -1
        return logits, labels

    return draw


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_the_mean_surprise_of_the_labels_that_count(labelled, shape):
    logits, labels = labelled(shape)
    expected = numpy_cross_entropy(logits, labels)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), expected, rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradient_is_softmax_less_one_hot_over_the_count(labelled, shape):
    logits, labels = labelled(shape)
    counts = (labels != -1)[..., None]
    expected = counts * (scipy.special.softmax(logits, axis=-1) - np.eye(4)[labels]) / counts.sum()
    gradient = jax.jit(jax.grad(softmax_cross_entropy))(logits, labels)
    np.testing.assert_allclose(gradient, expected, atol=1e-16)


def test_huge_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0.0], [3e38, -3e38, 0.0]], np.float32)
    assert softmax_cross_entropy(logits, np.array([2, 0])) == 1e4 / 2


def test_labels_that_are_all_ignored_cost_nothing(labelled):
    logits, labels = labelled((6, 4))
    ignored = np.full_like(labels, -1)
    loss, gradient = jax.jit(jax.value_and_grad(softmax_cross_entropy))(logits, ignored)
    assert loss == 0
    assert not np.any(gradient)


def test_a_label_of_255_in_bytes_is_out_of_range_and_not_ignored():
    logits = np.zeros((2, 3), np.float32)
    assert np.isnan(softmax_cross_entropy(logits, np.array([1, 255], np.uint8)))


@pytest.mark.parametrize("label", [4, -2, 100])
def test_a_label_out_of_range_gives_nan(labelled, label):
    logits, labels = labelled((6, 4))
    labels[2] = label
    assert np.isnan(softmax_cross_entropy(logits, labels))


@pytest.mark.parametrize(
    "labels",
    [np.zeros(6), np.eye(4)[[0, 1, 2, 3, 0, 1]], np.zeros((6, 1), int), np.zeros(5, int)],
    ids=["floats", "one-hot", "column", "too few"],
)
def test_labels_of_another_type_or_shape_are_refused(labels):
    with pytest.raises(ValueError, match=r"logits \(6, 4\) need whole-number labels of shape"):
        softmax_cross_entropy(np.zeros((6, 4)), labels)


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_error_is_half_the_mean_squared_norm(float64, rng, shape):
    outputs, targets = rng.normal(size=(2, *shape))
    expected = 0.5 * (np.linalg.norm(outputs - targets, axis=-1) ** 2).mean()
    np.testing.assert_allclose(squared_error(outputs, targets), expected, rtol=1e-14)


def test_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"outputs \(6, 1\) and targets \(6,\) must have one"):
        squared_error(np.ones((6, 1)), np.ones(6))


def test_an_objective_is_the_loss_of_the_models_outputs(float64, rng):
    def model(params, inputs):
        return inputs @ params

    params, inputs, targets = rng.normal(size=(3, 2)), rng.normal(size=(5, 3)), np.ones((5, 2))
    found = Objective(model, squared_error)(params, (inputs, targets))
    np.testing.assert_allclose(found, squared_error(inputs @ params, targets), rtol=1e-14)


def test_sampled_labels_follow_the_softmax_and_keep_what_is_ignored():
    draws = 40_000
    logits = np.array([[0.0, 1.0, 2.0], [0.0, 0.0, -50.0], [0.0, 0.0, 0.0]])
    labels = np.tile(np.array([2, 0, -1], np.int32), (draws, 1))
    sampled = softmax_cross_entropy.sample(
        jax.random.key(0), jnp.broadcast_to(logits, (draws, 3, 3)), labels
    )
    assert sampled.dtype == labels.dtype
    frequencies = [np.bincount(column, minlength=3) / draws for column in sampled.T[:2]]
    expected = scipy.special.softmax(logits[:2], axis=-1)
    np.testing.assert_allclose(frequencies, expected, atol=5 * 0.5 / np.sqrt(draws))
    assert np.all(sampled[:, 2] == -1)


def test_sampled_outputs_are_unit_gaussians_around_the_outputs():
    outputs = np.tile(np.array([[3.0, -7.0]]), (40_000, 1))
    sampled = squared_error.sample(jax.random.key(0), jnp.asarray(outputs), jnp.zeros_like(outputs))
    noise = np.asarray(sampled) - outputs
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / np.sqrt(40_000))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=5 * np.sqrt(2 / 40_000))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_softmax_covariance_is_the_expectation_over_all_classes(labelled, rng, shape):
    logits, labels = labelled(shape)
    p, v = scipy.special.softmax(logits, axis=-1), rng.normal(size=shape)
    expected, gradient = np.zeros(shape), jax.jit(jax.grad(softmax_cross_entropy))
    for label in range(shape[-1]):
        drawn = np.where(labels == -1, -1, label)
        residual = np.asarray(gradient(logits, drawn))
        along = (residual * v).sum(axis=-1, keepdims=True)
        expected += p[..., label : label + 1] * residual * along
    found = softmax_cross_entropy.gradient_covariance(logits, labels, v)
    np.testing.assert_allclose(found, expected, atol=1e-16)


@pytest.mark.parametrize("shape, count", [((6, 4), 6), ((3, 2, 4), 6)])
def test_the_gaussian_covariance_is_the_identity_over_the_squared_count(rng, shape, count):
    outputs, targets, v = rng.normal(size=(3, *shape))
    found = squared_error.gradient_covariance(outputs, targets, v)
    np.testing.assert_allclose(found, v / count**2, rtol=1e-12)


def test_the_cross_entropy_of_many_float16_logits_does_not_overflow():
    logits = jnp.zeros((70_000, 10), jnp.float16)
    found = softmax_cross_entropy(logits, jnp.zeros(70_000, jnp.int32))
    assert found.dtype == jnp.float16
    assert found == pytest.approx(np.log(10), rel=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_unsigned_labels_have_no_minus_one(dtype):
    largest = np.array([1, np.iinfo(dtype).max], dtype)
    assert np.isnan(softmax_cross_entropy(jnp.zeros((2, 4)), largest))
    assert softmax_cross_entropy(jnp.zeros((2, 4)), np.array([1, 3], dtype)) == pytest.approx(
        np.log(4)
    )


def test_a_loss_says_which_targets_count():
    labels = jnp.array([[1, -1, 0], [-1, -1, 2]])
    np.testing.assert_array_equal(softmax_cross_entropy.weights(labels), [[1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(squared_error.weights(jnp.zeros((2, 3, 4))), np.ones((2, 3)))
    own = Loss(lambda z, y: jnp.mean((z - y) ** 2), lambda *_: None, lambda *_: None)
    np.testing.assert_array_equal(own.weights(jnp.zeros((5, 3))), np.ones(5))


def test_an_ignored_label_is_no_trouble_under_debug_nans():
    jax.config.update("jax_debug_nans", True)
    try:
        found = softmax_cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 1, -1]))
    finally:
        jax.config.update("jax_debug_nans", False)
    assert found == pytest.approx(np.log(4))
