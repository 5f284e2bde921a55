import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu import shampoo

NAKED = {"grafting": None, "b1": 0.0}


def run(transformation, gradients):
    """All updates along given gradients, and the states after each."""

    def step(state, gradient):
        updates, state = transformation.update(gradient, state)
        return state, (updates, state)

    start = transformation.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.jit(lambda start, g: jax.lax.scan(step, start, g)[1])(start, gradients)


def random_gradients(rng, steps, shapes, dtype=float):
    return {name: jnp.asarray(rng.normal(size=(steps, *s)), dtype) for name, s in shapes.items()}


def numpy_root(matrix, exponent, ridge):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (values + ridge * values.max()) ** -exponent) @ vectors.T


def numpy_shampoo(
    gradients, interval, *, rate, exponent, b1, decay, statistics_every, grafting, ridge
):
    """Shampoo of one array, from its definition, with weights in place of debiased recursions."""

    def average(terms, decay):
        weights = decay ** np.arange(len(terms))[::-1]
        return sum(w * term for w, term in zip(weights, terms)) / weights.sum()

    updates, left_terms, right_terms, age = [], [], [], np.inf
    for i, g in enumerate(gradients):
        m = average(gradients[: i + 1], b1)
        v = average(gradients[: i + 1] ** 2, decay)
        if g.ndim == 2:
            if i % statistics_every == 0:
                left_terms.append(g @ g.T)
                right_terms.append(g.T @ g)
            if age >= interval(i):
                left = numpy_root(average(left_terms, decay), exponent, ridge)
                right = numpy_root(average(right_terms, decay), exponent, ridge)
                age = 0
            age += 1
            direction = left @ m @ right
        else:
            direction = m / v ** (2 * exponent)
        donor = {"adam": m / (np.sqrt(v) + 1e-8), "sgd": m, None: direction}[grafting]
        updates.append(-rate * direction * np.linalg.norm(donor) / np.linalg.norm(direction))
    return np.array(updates)


@pytest.mark.parametrize("shape", [(5, 5), (6, 3), (3, 6)])
def test_the_first_step_alone_is_the_orthogonal_factor(float64, rng, shape):
    gradient = jnp.asarray(rng.normal(size=shape))
    transformation = shampoo(0.1, ridge=1e-12, **NAKED)
    update, _ = transformation.update(gradient, transformation.init(gradient))
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    np.testing.assert_allclose(update, -0.1 * u @ vt, rtol=0, atol=1e-8)


@pytest.mark.parametrize("grafting", ["adam", "sgd", None])
@pytest.mark.parametrize("exponent, statistics_every", [(0.25, 1), (0.5, 3)])
def test_twenty_steps_are_the_definition(float64, rng, grafting, exponent, statistics_every):
    gradients = random_gradients(rng, 20, {"matrix": (4, 6), "vector": (5,), "scalar": ()})
    options = {"exponent": exponent, "statistics_every": statistics_every, "grafting": grafting}
    options |= {"b1": 0.8, "decay": 0.7, "ridge": 1e-3}
    found, _ = run(shampoo(0.1, refresh_every=6, **options), gradients)
    for name, sequence in gradients.items():
        expected = numpy_shampoo(np.asarray(sequence), lambda i: 6, rate=0.1, **options)
        np.testing.assert_allclose(found[name], expected, rtol=1e-7, atol=1e-10)


def test_a_grafted_step_has_adams_length_on_each_array(float64, rng):
    gradients = random_gradients(rng, 12, {"a": (4, 6), "b": (2, 3, 5), "c": (3,), "d": ()})
    found, _ = run(shampoo(0.1, b1=0.8, decay=0.7, block_size=3), gradients)
    adam, _ = run(optax.adam(0.1, b1=0.8, b2=0.7), gradients)
    for name in gradients:
        lengths = [np.linalg.norm(u[name].reshape(12, -1), axis=1) for u in (found, adam)]
        np.testing.assert_allclose(*lengths, rtol=1e-9)


def test_long_axes_are_preconditioned_block_by_block(float64, rng):
    gradients = random_gradients(rng, 7, {"whole": (6, 8)})
    parts = {f"{i}{j}": gradients["whole"][:, i : i + 3, j : j + 4] for i in (0, 3) for j in (0, 4)}
    options = {"grafting": None, "refresh_every": 3, "ridge": 1e-4}
    found, _ = run(shampoo(0.1, block_size=4, **options), gradients)
    expected, _ = run(shampoo(0.1, **options), parts)
    rows = [np.concatenate([expected[f"{i}0"], expected[f"{i}4"]], axis=2) for i in (0, 3)]
    np.testing.assert_allclose(found["whole"], np.concatenate(rows, axis=1), rtol=1e-9)


def test_padding_changes_nothing(float64, rng):
    gradients = random_gradients(rng, 7, {"whole": (5, 3)})
    parts = {"top": gradients["whole"][:, :3], "bottom": gradients["whole"][:, 3:]}
    options = {"grafting": None, "refresh_every": 3, "ridge": 1e-4}
    found, _ = run(shampoo(0.1, block_size=4, **options), gradients)
    expected, _ = run(shampoo(0.1, **options), parts)
    np.testing.assert_allclose(
        found["whole"], np.concatenate([expected["top"], expected["bottom"]], axis=1), rtol=1e-9
    )


def test_a_kernel_is_the_dense_layer_on_patches(float64, rng):
    kernels = random_gradients(rng, 5, {"kernel": (3, 3, 2, 4)})
    found, _ = run(shampoo(0.1), kernels)
    expected, _ = run(shampoo(0.1), {"kernel": kernels["kernel"].reshape(5, 18, 4)})
    np.testing.assert_allclose(
        found["kernel"].reshape(5, 18, 4), expected["kernel"], rtol=1e-10, atol=1e-14
    )


def refreshed_at(states):
    """The steps at which the roots changed."""
    (roots,) = [root for root in jax.tree.leaves(states[0].roots) if root.shape[-1] == 4]
    changed = np.any(np.diff(roots, axis=0) != 0, axis=(1, 2, 3))
    return [0, *(1 + np.flatnonzero(changed))]


def test_roots_are_computed_at_the_first_step_and_at_every_interval(rng):
    gradients = random_gradients(rng, 23, {"matrix": (4, 3), "vector": (4,)}, jnp.float32)
    _, states = run(shampoo(0.1, refresh_every=5), gradients)
    assert refreshed_at(states) == [0, 5, 10, 15, 20]


def test_a_schedule_changes_the_interval_during_training(float64, rng):
    gradients = random_gradients(rng, 40, {"matrix": (4, 3)})

    def interval(steps):
        return jnp.where(steps < 9, 2, 15)

    options = {"grafting": None, "ridge": 1e-3}
    found, states = run(shampoo(0.1, refresh_every=interval, **options), gradients)
    assert refreshed_at(states) == [0, 2, 4, 6, 8, 23, 38]
    defaults = {"exponent": 0.25, "b1": 0.9, "decay": 0.95, "statistics_every": 1}
    expected = numpy_shampoo(
        np.asarray(gradients["matrix"]), interval, rate=0.1, **defaults, **options
    )
    np.testing.assert_allclose(found["matrix"], expected, rtol=1e-7, atol=1e-10)


def test_statistics_are_taken_at_their_own_interval(rng):
    gradients = random_gradients(rng, 9, {"matrix": (4, 3)}, jnp.float32)
    _, states = run(shampoo(0.1, statistics_every=4), gradients)
    changed = np.any(np.diff(states[0].statistics["matrix"][0], axis=0) != 0, axis=(1, 2, 3))
    np.testing.assert_array_equal(1 + np.flatnonzero(changed), [4, 8])


def test_under_vmap_over_learning_rates_and_gradients_roots_are_not_computed_at_every_step(
    rng, monkeypatch
):
    module = importlib.import_module("soaa_edu.optimizers.blocks")
    plain, calls = module.inverse_root, []

    def counted(matrix, exponent, ridge):
        jax.debug.callback(lambda _: calls.append(1), matrix[0, 0])
        return plain(matrix, exponent, ridge)

    monkeypatch.setattr(module, "inverse_root", counted)
    gradients = jnp.asarray(rng.normal(size=(2, 8, 4, 3)), jnp.float32)

    def final(rate, gradients):
        return run(shampoo(rate, refresh_every=4), {"matrix": gradients})[0]["matrix"][-1]

    jax.block_until_ready(jax.jit(jax.vmap(final))(jnp.array([0.1, 0.2]), gradients))
    jax.effects_barrier()
    roots_of_a_refresh, runs, refreshes = 2, 2, 2
    assert len(calls) == roots_of_a_refresh * runs * refreshes


def test_any_tree_of_arrays_comes_back_as_it_went_in(rng):
    params = {
        "kernel": jnp.ones((3, 3, 2, 4), jnp.bfloat16),
        "nested": [jnp.ones(()), (jnp.ones((5, 7)), jnp.ones(3, jnp.bfloat16), None)],
        "empty": jnp.ones((0, 3)),
    }
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    transformation = shampoo(0.1, block_size=4)
    state = jax.jit(transformation.init)(params)
    update = jax.jit(transformation.update)
    for _ in range(2):
        updates, after = update(gradients, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for new, old in zip(jax.tree.leaves((updates, after)), jax.tree.leaves((params, state))):
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
            assert np.isfinite(np.asarray(new, np.float32)).all()
        state = after
    averages = jax.tree.leaves((state[0].momentum, state[0].statistics, state[0].roots))
    assert {leaf.dtype for leaf in averages} == {np.dtype("float32")}


@pytest.mark.parametrize("grafting", ["adam", "sgd", None])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-12])
def test_gradients_of_nothing_or_next_to_nothing_stay_finite(rng, grafting, size):
    gradients = random_gradients(rng, 12, {"matrix": (6, 4), "vector": (4,)}, jnp.float32)
    gradients = jax.tree.map(lambda g: size * g, gradients)
    updates, states = run(shampoo(0.1, grafting=grafting), gradients)
    for leaf in jax.tree.leaves((updates, states)):
        assert np.isfinite(leaf).all()
    if size == 0:
        assert not np.any(jax.tree.leaves(updates)[0])


def test_a_step_without_grafting_does_not_feel_the_scale_of_the_loss(rng):
    gradients = random_gradients(rng, 12, {"matrix": (6, 4), "vector": (4,)}, jnp.float32)
    transformation = shampoo(0.1, grafting=None, ridge=1e-2)
    found, _ = run(transformation, jax.tree.map(lambda g: 1e-9 * g, gradients))
    expected, _ = run(transformation, gradients)
    for name in gradients:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5)


def test_a_low_rank_gradient_in_float32_stays_finite_and_bounded(rng):
    gradients = {"matrix": jnp.asarray(rng.normal(size=(30, 50, 1)) * np.ones(20), jnp.float32)}
    updates, _ = run(shampoo(1.0, grafting=None), gradients)
    assert np.isfinite(updates["matrix"]).all()
    assert np.linalg.norm(updates["matrix"], axis=(1, 2)).max() < 1e-6**-0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(rng, bad):
    gradients = random_gradients(rng, 3, {"matrix": (6, 4), "vector": (4,)}, jnp.float32)
    broken = gradients | {"vector": gradients["vector"].at[1, 0].set(bad)}
    found, _ = run(shampoo(0.1), broken)
    expected, _ = run(shampoo(0.1), jax.tree.map(lambda g: g.at[1].set(0), gradients))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_compiled_and_uncompiled_steps_agree(float64, rng):
    gradients = random_gradients(rng, 4, {"matrix": (5, 4), "vector": (3,)})
    transformation = shampoo(0.1, refresh_every=2)
    expected, _ = run(transformation, gradients)
    state = transformation.init({name: g[0] for name, g in gradients.items()})
    for i in range(4):
        gradient = {name: g[i] for name, g in gradients.items()}
        updates, state = transformation.update(gradient, state)
        for name in updates:
            np.testing.assert_allclose(updates[name], expected[name][i], rtol=1e-10, atol=1e-13)


def test_the_learning_rate_may_be_a_schedule_or_traced(float64, rng):
    gradients = random_gradients(rng, 4, {"matrix": (5, 4)})
    ones = run(shampoo(1.0), gradients)[0]["matrix"]
    scheduled = run(shampoo(lambda steps: 0.5**steps), gradients)[0]["matrix"]
    factors = 0.5 ** np.arange(4)[:, None, None]
    np.testing.assert_allclose(scheduled, factors * ones, rtol=1e-12)
    traced = jax.jit(lambda rate: run(shampoo(rate), gradients)[0]["matrix"])(0.25)
    np.testing.assert_allclose(traced, 0.25 * ones, rtol=1e-10)


def test_it_trains_in_a_chain_with_other_transformations(classifier, rng):
    objective, params = classifier()
    x, y = rng.normal(size=(64, 12)), rng.integers(4, size=64)
    transformation = optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-4), shampoo(0.03)
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
        ({"exponent": -0.25}, "exponent must be a finite number above zero"),
        ({"b1": 1.0}, "b1 must be a number of zero or more and below one"),
        ({"decay": -0.1}, "decay must be a number of zero or more and below one"),
        ({"refresh_every": 0}, "refresh_every must be a whole number of one or more"),
        ({"statistics_every": 2.5}, "statistics_every must be a whole number of one or more"),
        ({"grafting": "adagrad"}, "grafting must be one of 'adam', 'sgd'"),
        ({"block_size": 0}, "block_size must be a whole number of one or more"),
        ({"ridge": 0.0}, "ridge must be a finite number above zero"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        shampoo(**({"learning_rate": 0.1} | options))


def test_a_step_can_be_differentiated(float64, rng):
    gradient, direction = jnp.asarray(rng.normal(size=(2, 4, 3)))
    transformation = shampoo(0.1, ridge=1e-2, grafting=None)

    def size(gradient):
        update, _ = transformation.update(gradient, transformation.init(gradient))
        return jnp.sum(jnp.sin(update))

    slope = jnp.sum(jax.grad(size)(gradient) * direction)
    difference = (size(gradient + 1e-5 * direction) - size(gradient - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("exponent", [0.25, 1.0])
def test_a_grafted_step_has_adams_length_at_any_scale(rng, exponent):
    gradients = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
    for scale in (1e8, 1e3, 1.0, 1e-6, 1e-10):
        lengths = []
        for rule in (shampoo(1.0, exponent=exponent), optax.adam(1.0, b2=0.95)):
            state = rule.init(gradients[0])
            for gradient in gradients:
                updates, state = jax.jit(rule.update)(scale * gradient, state)
            lengths.append(float(jnp.linalg.norm(updates)))
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-2), scale
