import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu.optimizers.galore import galore


def run(transformation, gradients):
    """All updates along given gradients, and the states after each."""

    def step(state, gradient):
        updates, state = transformation.update(gradient, state)
        return state, (updates, state)

    start = transformation.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.jit(lambda start, g: jax.lax.scan(step, start, g)[1])(start, gradients)


def random_gradients(rng, steps, shapes, dtype=float):
    return {name: jnp.asarray(rng.normal(size=(steps, *s)), dtype) for name, s in shapes.items()}


def numpy_galore(gradients, rng, *, rate, rank, refresh_every, scale, b1, b2, eps):
    """GaLore of matrices (m, n), m ≤ n, by the paper; the SVD's signs are drawn by lot."""
    updates, m, v, old = [], 0, 0, None
    for i, g in enumerate(gradients):
        if i % refresh_every == 0:
            p = np.linalg.svd(g)[0][:, :rank] * rng.choice([-1, 1], size=rank)
            p = p if old is None else p * np.sign(np.sum(p * old, axis=0))
            old = p
        r = p.T @ g
        m, v = b1 * m + (1 - b1) * r, b2 * v + (1 - b2) * r**2
        m_hat, v_hat = m / (1 - b1 ** (i + 1)), v / (1 - b2 ** (i + 1))
        updates.append(-rate * scale * p @ (m_hat / (np.sqrt(v_hat) + eps)))
    return np.array(updates)


def test_twelve_steps_with_two_refreshes_are_the_definition_on_both_sides(float64, rng):
    shapes = {"wide": (4, 6), "tall": (6, 4), "square": (5, 5), "kernel": (2, 2, 2, 3)}
    gradients = random_gradients(rng, 12, shapes)
    options = {"rank": 2, "refresh_every": 5, "scale": 0.3, "b1": 0.8, "b2": 0.9, "eps": 1e-3}
    found, _ = run(galore(0.1, **options), gradients)
    for name, sequence in gradients.items():
        matrices = np.asarray(sequence).reshape(12, -1, sequence.shape[-1])
        tall = matrices.shape[1] > matrices.shape[2]
        wide = matrices.swapaxes(1, 2) if tall else matrices
        expected = numpy_galore(wide, rng, rate=0.1, **options)
        expected = expected.swapaxes(1, 2) if tall else expected
        np.testing.assert_allclose(
            found[name], expected.reshape(sequence.shape), rtol=1e-8, atol=1e-12
        )


def test_arrays_too_small_to_project_get_adam(float64, rng):
    gradients = random_gradients(rng, 9, {"matrix": (3, 7), "vector": (8,), "scalar": ()})
    found, states = run(galore(0.1, rank=3, b1=0.8, b2=0.9, eps=1e-3), gradients)
    expected, _ = run(optax.adam(0.1, b1=0.8, b2=0.9, eps=1e-3), gradients)
    for name in gradients:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    assert jax.tree.leaves(states[0].projections) == []


def test_gradients_of_low_rank_lose_nothing_by_projection(float64, rng):
    """With a large eps Adam is momentum, which no rotation changes."""
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    gradients = {"wide": jnp.asarray(basis @ rng.normal(size=(8, 2, 9)))}
    gradients["tall"] = gradients["wide"].mT
    found, _ = run(galore(1e6, rank=2, refresh_every=100, scale=1.0, eps=1e6), gradients)
    momentum, _ = run(optax.adam(1e6, eps=1e6), gradients)
    for name in gradients:
        np.testing.assert_allclose(found[name], momentum[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_at_every_interval_projections_become_the_leading_singular_vectors(float64, rng, shape):
    gradients = rng.normal(size=(11, *shape))
    _, (states, _) = run(galore(0.1, rank=3, refresh_every=4), jnp.asarray(gradients))
    p = np.asarray(states.projections)
    assert p.shape == (11, 5, 3)
    changed = np.any(np.diff(p, axis=0) != 0, axis=(1, 2))
    assert list(1 + np.flatnonzero(changed)) == [4, 8]

    refreshed, wide = p[::4], gradients[::4] if shape == (5, 8) else gradients[::4].mT
    np.testing.assert_allclose(refreshed.mT @ refreshed, 3 * [np.eye(3)], rtol=0, atol=1e-12)
    kept = np.linalg.norm(refreshed.mT @ wide, axis=2)
    np.testing.assert_allclose(kept, np.linalg.svd(wide, compute_uv=False)[:, :3], rtol=1e-9)
    assert (np.sum(refreshed[1:] * refreshed[:-1], axis=1) > 0).all()


def test_the_state_holds_what_the_projections_leave():
    shapes = {"wide": (20, 50), "tall": (50, 20), "kernel": (3, 3, 4, 16), "bias": (50,)}
    params = {name: jax.ShapeDtypeStruct(s, jnp.bfloat16) for name, s in shapes.items()}
    state, _ = jax.eval_shape(galore(0.1, rank=8).init, params)
    projections, moments = 8 * (20 + 20 + 16), 8 * (50 + 50 + 36) + 50
    leaves = jax.tree.leaves(state[1:])
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    assert sum(leaf.size for leaf in leaves) == projections + 2 * moments


def test_gradients_of_any_size_have_a_projection(rng):
    gradient = jnp.asarray(rng.normal(size=(1, 6, 4)), jnp.float32)

    @jax.jit
    def first_step(gradient):
        updates, (states, _) = run(galore(0.1, rank=2), gradient)
        return updates, states.projections[0]

    _, expected = first_step(gradient)
    for size in (2.0**-100, 2.0**60, 0.0):
        update, projection = first_step(np.float32(size) * gradient)
        assert np.isfinite(update).all()
        if size:
            np.testing.assert_allclose(projection.T @ projection, np.eye(2), rtol=0, atol=1e-6)
        np.testing.assert_allclose(projection, expected if size else 0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(rng, bad):
    gradients = random_gradients(rng, 3, {"matrix": (6, 4), "vector": (4,)}, jnp.float32)
    broken = gradients | {"vector": gradients["vector"].at[1, 0].set(bad)}
    found, _ = run(galore(0.1, rank=2), broken)
    expected, _ = run(galore(0.1, rank=2), jax.tree.map(lambda g: g.at[1].set(0), gradients))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_params_keep_their_type_and_the_state_is_float32(rng):
    gradients = jnp.asarray(rng.normal(size=(4, 6, 4)), jnp.bfloat16)
    tree = {"half": gradients, "single": gradients.astype(jnp.float32)}
    updates, (states, _) = run(galore(0.1, rank=2, refresh_every=2), tree)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(states[1:])} == {"float32"}
    assert updates["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        updates["half"].astype(jnp.float32), updates["single"], rtol=1e-2, atol=1e-4
    )


def test_compiled_and_uncompiled_steps_agree(float64, rng):
    gradients = jnp.asarray(rng.normal(size=(2, 5, 4)))
    transformation = galore(0.1, rank=2)
    expected, _ = run(transformation, gradients)
    state = transformation.init(gradients[0])
    for gradient, update in zip(gradients, expected, strict=True):
        found, state = transformation.update(gradient, state)
        np.testing.assert_allclose(found, update, rtol=1e-8, atol=1e-12)


def test_the_learning_rate_may_be_a_schedule_or_traced(float64, rng):
    gradients = jnp.asarray(rng.normal(size=(4, 5, 4)))

    @jax.jit
    def three_ways(rate, scale):
        ways = galore(1.0, rank=2), galore(lambda steps: 0.5**steps, rank=2)
        ways += (galore(rate, rank=2, scale=scale),)
        return [run(way, gradients)[0] for way in ways]

    ones, scheduled, traced = three_ways(0.25, 0.5)
    np.testing.assert_allclose(scheduled, 0.5 ** np.arange(4)[:, None, None] * ones, rtol=1e-10)
    np.testing.assert_allclose(traced, 0.5 * ones, rtol=1e-10)


def test_it_trains_in_a_chain_with_other_transformations(classifier, rng):
    objective, params = classifier()
    x, y = rng.normal(size=(64, 12)), rng.integers(4, size=64)
    transformation = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(1e-4),
        galore(0.3, rank=3, refresh_every=10),
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
        ({"rank": 0}, "rank must be a whole number of one or more"),
        ({"refresh_every": 2.5}, "refresh_every must be a whole number of one or more"),
        ({"scale": -1.0}, "scale must be a finite number above zero"),
        ({"b1": 1.0}, "b1 must be a number of zero or more and below one"),
        ({"b2": -0.1}, "b2 must be a number of zero or more and below one"),
        ({"eps": 0.0}, "eps must be a finite number above zero"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        galore(**({"learning_rate": 0.1} | options))


def test_the_first_gradient_that_is_not_zero_gives_the_projection(rng):
    gradients = jnp.asarray(rng.normal(size=(3, 6, 5)), jnp.float32)
    late = jnp.concatenate([jnp.zeros((2, 6, 5)), gradients, jnp.zeros((1, 6, 5))])
    _, (states, _) = run(galore(0.1, rank=2, refresh_every=200), late)
    _, (expected, _) = run(galore(0.1, rank=2, refresh_every=200), gradients)
    assert not np.any(states.projections[:2])
    np.testing.assert_allclose(states.projections[2:5], expected.projections, atol=1e-6)
    np.testing.assert_array_equal(states.projections[5], states.projections[4])
