from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu.optimizers.adam_8bit import adam_8bit, codebook, dequantize, quantize

SIGNED, UNSIGNED = True, False
compiled_quantize = jax.jit(quantize, static_argnums=1)
both_codebooks = pytest.mark.parametrize("signed", [SIGNED, UNSIGNED])


def run(transformation, gradients):
    """All updates along given gradients, and the states after each."""

    def step(state, gradient):
        updates, state = transformation.update(gradient, state)
        return state, (updates, state)

    start = transformation.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.jit(lambda start, g: jax.lax.scan(step, start, g)[1])(start, gradients)


def numbers_of_all_bytes(signed):
    """The dynamic data type, bit by bit: sign, zeros, a one, and the fraction in what is left."""
    numbers = []
    for byte in range(256):
        bits = f"{byte:08b}"
        sign, bits = (1 - 2 * int(bits[0]), bits[1:]) if signed else (1, bits)
        zeros, _, fraction = bits.partition("1")
        if "1" not in bits:
            numbers.append(0.0 if sign > 0 else 1.0)
        elif len(zeros) == 7:
            numbers.append(1.0)
        else:
            of_all = (int("0" + fraction, 2) + 0.5) / 2 ** len(fraction)
            numbers.append(sign * (0.1 + 0.9 * of_all) / 10 ** len(zeros))
    return np.sort(numbers)


@both_codebooks
def test_the_codebook_is_the_dynamic_data_type(signed):
    values = codebook(signed).values
    np.testing.assert_allclose(values, numbers_of_all_bytes(signed), rtol=1e-7)
    assert len(values) == 256
    assert (np.diff(values) > 0).all()
    assert 0 in values and values[-1] == 1
    assert np.isclose(values[0], -0.9 * (1 - 0.5 / 64) - 0.1 if signed else 0, rtol=1e-6)
    positive = values[values > 0]
    decades = np.ceil(np.log10(positive[:-1]))
    assert list(np.unique(decades)) == [-6, -5, -4, -3, -2, -1, 0]
    assert list(np.unique_counts(decades).counts) == [(2 - signed) * 2**i for i in range(7)]


def numbers_of_all_sizes(rng, signed):
    """Between -1 or 0 and 1, evenly and in all decades, the ends included; the first is 1."""
    even, decade = rng.uniform(size=100_000), rng.uniform(-12, 0, size=100_000)
    values = codebook(signed).values
    midpoints = (values[1:] + values[:-1])[values[1:] > 0] / 2
    around = np.outer([1 - 1e-6, 1, 1 + 1e-6], midpoints).ravel()
    x = np.concatenate([[1, 0, 1e-30], values[values >= 0], around, even, 10**decade])
    x = np.minimum(x, 1).astype(np.float32)
    return np.concatenate([x, -x]) if signed else x


@both_codebooks
def test_a_number_becomes_the_nearest_of_the_codebook(rng, signed):
    x = numbers_of_all_sizes(rng, signed)
    found = compiled_quantize(x[None], signed)
    assert found.codes.dtype == jnp.uint8
    assert found.scales == 1
    values = codebook(signed).values.astype(float)
    distance = np.abs(x - values[found.codes[0]])
    above = np.minimum(np.searchsorted(values, x), 255)
    least = np.minimum(np.abs(x - values[above]), np.abs(x - values[np.maximum(above - 1, 0)]))
    rounded_to_zero = 0 if signed else (x > 0) & (x < values[1] / 2)
    assert (distance <= least + 3e-7 * np.abs(x) + rounded_to_zero).all()


def test_a_positive_second_moment_is_never_stored_as_zero(rng):
    x = numbers_of_all_sizes(rng, UNSIGNED)
    codes = compiled_quantize(x[None], UNSIGNED).codes[0]
    np.testing.assert_array_equal(codes == 0, x == 0)
    smallest = codebook(UNSIGNED).values[1]
    assert (codes[(x > 0) & (x < smallest)] == 1).all()


@both_codebooks
def test_the_error_is_at_most_half_a_gap_times_the_largest_of_the_block(rng, signed):
    blocks = 10 ** rng.uniform(-9, 9, (300, 1)) * rng.normal(size=(300, 256)) ** 5
    blocks = jnp.asarray(blocks if signed else np.abs(blocks), jnp.float32)
    quantized = compiled_quantize(blocks, signed)
    largest = np.max(np.abs(blocks), axis=1, keepdims=True)
    np.testing.assert_array_equal(quantized.scales, largest)

    values = codebook(signed).values
    above = np.clip(np.searchsorted(values, np.asarray(blocks / largest)), 1, 255)
    half_gap = (values[above] - values[above - 1]) / 2
    if not signed:
        half_gap[above == 1] = values[1]
    error = np.abs(blocks - dequantize(quantized, signed))
    assert (error <= (1 + 1e-4) * half_gap * largest).all()
    assert (error > 0.9 * half_gap * largest).any()


@both_codebooks
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30, 1e30])
def test_blocks_of_nothing_or_next_to_nothing_stay_finite(signed, size):
    block = jnp.asarray([[1, 0.5, 1e-3, 0]], jnp.float32) * jnp.float32(size)
    found = dequantize(compiled_quantize(block, signed), signed)
    np.testing.assert_allclose(found, block, rtol=0, atol=max(0.02 * size, 1.2e-38))
    assert found[0, 3] == 0


def dequantized(quantized, signed, like):
    """By NumPy, in the shape of an array."""
    numbers = codebook(signed).values.astype(float)[quantized.codes] * quantized.scales
    return numbers.ravel()[: like.size].reshape(like.shape)


def numpy_adam(g, m, v, t, *, b1, b2, eps):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    return m, v, (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def largest_of_blocks(array):
    flat = np.abs(array).ravel()
    starts = np.arange(0, flat.size, 256)
    largest = np.repeat(np.maximum.reduceat(flat, starts), 256)[: flat.size]
    return largest.reshape(array.shape)


def test_each_of_fifty_steps_is_adam_between_quantized_moments(rng):
    shapes = {"kernel": (3, 3, 5, 12), "vector": (9,), "scalar": ()}
    gradients = {
        name: jnp.asarray(rng.normal(size=(50, *s)) * np.exp(rng.normal(size=s)), jnp.float32)
        for name, s in shapes.items()
    }
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}
    updates, (states, _) = jax.device_get(run(adam_8bit(0.1, **options), gradients))
    for name, sequence in jax.device_get(gradients).items():
        m = v = np.zeros(shapes[name])
        for i, gradient in enumerate(sequence.astype(float)):
            m, v, direction = numpy_adam(gradient, m, v, i + 1, **options)
            np.testing.assert_allclose(updates[name][i], -0.1 * direction, 2e-5, 1e-7)
            exact, stored = {SIGNED: m, UNSIGNED: v}, {}
            for signed, moments in zip(exact, (states.first_moment, states.second_moment)):
                at_this_step = jax.tree.map(itemgetter(i), moments[name])
                stored[signed] = dequantized(at_this_step, signed, gradient)
                half_gap = 0.45 / (64 if signed else 128) + 1e-6
                error = np.abs(stored[signed] - exact[signed])
                assert (error <= half_gap * largest_of_blocks(exact[signed])).all()
            m, v = stored[SIGNED], stored[UNSIGNED]


def test_steps_are_near_adams_and_equal_where_a_block_holds_one_positive_number(rng):
    gradients = {
        "constant": jnp.asarray(np.repeat(rng.exponential(size=(50, 3)), 256, axis=1), jnp.float32),
        "random": jnp.asarray(1 + rng.normal(size=(50, 30, 30)), jnp.float32),
    }
    found, _ = run(adam_8bit(1.0), gradients)
    expected, _ = run(optax.adam(1.0), gradients)
    np.testing.assert_allclose(found["constant"], expected["constant"], rtol=2e-4)
    error = np.linalg.norm(found["random"] - expected["random"])
    assert error < 0.05 * np.linalg.norm(expected["random"])


def test_the_state_is_bytes():
    params = jax.eval_shape(soaa_edu.models.mlp([784, 256, 256, 10]).init, jax.random.key(0))
    state, _ = jax.eval_shape(adam_8bit(0.1).init, params)
    codes = [784 * 256, 256, 256 * 256, 256, 2560, 10]
    blocks = [784, 1, 256, 1, 10, 1]
    for moment in (state.first_moment, state.second_moment):
        leaves = jax.tree.leaves(moment)
        found = {jnp.dtype(kind): sum(a.size for a in leaves if a.dtype == kind) for kind in "Bf"}
        assert found == {jnp.dtype("uint8"): sum(codes), jnp.dtype("float32"): sum(blocks)}

    def size(state):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    assert size(state) == 4 + 2 * (sum(codes) + 4 * sum(blocks))
    assert size(state) <= 0.27 * size(jax.eval_shape(optax.adam(0.1).init, params))


def test_an_array_is_cut_into_blocks_of_256(rng):
    flat = jnp.asarray(rng.normal(size=(10, 600)), jnp.float32)
    parts = {"a": flat[:, :256], "b": flat[:, 256:512].reshape(10, 8, 32), "c": flat[:, 512:]}
    found, (states, _) = run(adam_8bit(0.1), parts | {"whole": flat.reshape(10, 20, 30)})
    together = np.concatenate([found[name].reshape(10, -1) for name in parts], axis=1)
    np.testing.assert_allclose(found["whole"].reshape(10, 600), together, rtol=1e-5, atol=1e-7)
    assert states.first_moment["whole"].codes.shape == (10, 3, 256)


def test_any_tree_of_any_shapes_and_types(float64, rng):
    params = {
        "half": [jnp.ones((3, 100), jnp.bfloat16)],
        "double": (jnp.ones(()), jnp.ones((0, 3))),
    }
    gradients = jax.tree.map(lambda p: jnp.broadcast_to(p, (5, *p.shape)), params)
    traced = jax.jit(lambda b1, eps: run(adam_8bit(0.1, b1=b1, eps=eps), gradients))
    updates, (state, _) = traced(0.9, 1e-8)
    assert [u.dtype for u in jax.tree.leaves(updates)] == [p.dtype for p in jax.tree.leaves(params)]
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.1, rtol=4e-3)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves((state.first_moment, state.second_moment))}
    assert kinds == {"uint8", "float32"}


def test_large_and_small_curvatures_in_one_block_do_not_blow_up(rng):
    curvatures = jnp.logspace(0, -5, 256, dtype=jnp.float32)
    noise = rng.normal(size=(600, 256)) * (np.arange(256) < 128)
    transformation = adam_8bit(0.01)

    def step(carry, noise):
        theta, state = carry
        update, state = transformation.update(curvatures * (theta - 1 + 0.3 * noise), state)
        return (theta + update, state), (theta, update)

    start = jnp.zeros(256)
    _, (thetas, updates) = jax.jit(
        lambda noise: jax.lax.scan(step, (start, transformation.init(start)), noise)
    )(jnp.asarray(noise, jnp.float32))
    assert np.abs(updates).max() < 0.02
    settled = thetas[300:, :128]
    np.testing.assert_allclose(settled.mean(axis=0), 1, rtol=0, atol=0.06)
    np.testing.assert_allclose(settled.mean(axis=1), 1, rtol=0, atol=0.01)
    assert ((thetas[-1, 128:] > 0.03) & (thetas[-1, 128:] < 1.1)).all()


def test_an_outlier_in_a_block_does_not_make_the_others_jump():
    common = np.full((40, 256), 1e-4)
    common[10:, 1:] = 0
    common[:, 0] = 1
    updates, _ = run(adam_8bit(0.01), jnp.asarray(common, jnp.float32))
    assert np.abs(updates).max() < 0.011


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(rng, bad):
    gradients = jnp.asarray(rng.normal(size=(3, 300)), jnp.float32)
    found, _ = run(adam_8bit(0.1), gradients.at[1, 7].set(bad))
    expected, _ = run(adam_8bit(0.1), gradients.at[1].set(0))
    np.testing.assert_array_equal(found, expected)


def test_compiled_and_uncompiled_steps_agree(rng):
    gradients = jnp.asarray(1 + rng.normal(size=(2, 300)), jnp.float32)
    transformation = adam_8bit(0.1)
    expected, _ = run(transformation, gradients)
    state = transformation.init(gradients[0])
    for gradient, update in zip(gradients, expected, strict=True):
        found, state = transformation.update(gradient, state)
        np.testing.assert_allclose(found, update, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_may_be_a_schedule_or_traced(rng):
    gradients = jnp.asarray(rng.normal(size=(4, 300)), jnp.float32)
    ones, _ = run(adam_8bit(1.0), gradients)
    scheduled, _ = run(adam_8bit(lambda steps: 0.5**steps), gradients)
    np.testing.assert_allclose(scheduled, 0.5 ** np.arange(4)[:, None] * ones, rtol=1e-5)
    traced = jax.jit(lambda rate: run(adam_8bit(rate), gradients)[0])(0.25)
    np.testing.assert_allclose(traced, 0.25 * ones, rtol=1e-5)


def test_it_trains_in_a_chain_with_other_transformations(classifier, rng):
    objective, params = classifier()
    x, y = rng.normal(size=(64, 12)), rng.integers(4, size=64)
    transformation = optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-4), adam_8bit(0.03)
    )
    history = soaa_edu.train(
        soaa_edu.first_order(objective, transformation),
        params,
        soaa_edu.data.Dataset(train=(x, y)),
        epochs=40,
        batch_size=32,
        key=jax.random.key(0),
        progress=False,
    )
    assert history.loss[-2:].mean() < 0.5 * history.loss[:2].mean()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above zero"),
        ({"b1": 1.0}, "b1 must be a number of zero or more and below one"),
        ({"b2": -0.1}, "b2 must be a number of zero or more and below one"),
        ({"eps": 0.0}, "eps must be a finite number above zero"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        adam_8bit(**({"learning_rate": 0.1} | options))
