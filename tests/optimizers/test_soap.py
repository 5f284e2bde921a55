import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu import soap

NEVER = 10**6


def run(transformation, gradients, start=None):
    """All updates along given gradients, and the states after each."""

    def step(state, gradient):
        updates, state = transformation.update(gradient, state)
        return state, (updates, state)

    if start is None:
        start = transformation.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.jit(lambda start, g: jax.lax.scan(step, start, g)[1])(start, gradients)


def random_gradients(rng, steps, shapes, dtype=float):
    return {name: jnp.asarray(rng.normal(size=(steps, *s)), dtype) for name, s in shapes.items()}


def drifting_gradients(rng, steps, size):
    """Gradients whose directions change in importance, so that eigenvalues change places."""
    u, v = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    turn = np.linspace(0, 1, steps)[:, None]
    scales = np.geomspace(3, 0.3, size)
    scales = (1 - turn) * scales + turn * scales[::-1]
    noise = 0.1 * rng.normal(size=(steps, size, size))
    return jnp.asarray((u * (scales * rng.normal(size=(steps, size)))[:, None]) @ v.T + noise)


def numpy_soap(gradients, interval, *, rate, b1, b2, decay, eps):
    """Algorithm 3 for one square matrix, M kept in the space of the gradients."""
    m, v, left, right = (np.zeros_like(gradients[0]) for _ in range(4))
    updates, reordered = [], 0
    for i, g in enumerate(gradients):
        if i == 0:
            bases = [np.linalg.eigh(matrix)[1][:, ::-1] for matrix in (g @ g.T, g.T @ g)]
        elif i % interval == 0:
            orders = []
            for k, matrix in enumerate((left, right)):
                order = np.argsort(-np.diag(bases[k].T @ matrix @ bases[k]), kind="stable")
                bases[k] = np.linalg.qr(matrix @ bases[k][:, order])[0]
                orders.append(order)
            v = v[np.ix_(*orders)]
            reordered += any(np.any(np.diff(order) < 0) for order in orders)
        left = decay * left + (1 - decay) * g @ g.T
        right = decay * right + (1 - decay) * g.T @ g
        rotated = bases[0].T @ g @ bases[1]
        if i == 0:
            rotated = np.diag(np.diag(rotated))
        m = b1 * m + (1 - b1) * (g if i else bases[0] @ rotated @ bases[1].T)
        v = b2 * v + (1 - b2) * rotated**2
        first = bases[0].T @ m @ bases[1] / (1 - b1 ** (i + 1))
        second = v / (1 - b2 ** (i + 1))
        updates.append(-rate * bases[0] @ (first / (np.sqrt(second) + eps)) @ bases[1].T)
    return np.array(updates), reordered


def test_twenty_five_steps_are_the_algorithm_reorderings_included(float64, rng):
    gradients = drifting_gradients(rng, 25, 6)
    options = {"b1": 0.9, "b2": 0.8, "decay": 0.7, "eps": 1e-8}
    found, _ = run(soap(0.1, refresh_every=4, **options), gradients)
    expected, reordered = numpy_soap(np.asarray(gradients), 4, rate=0.1, **options)
    assert reordered >= 4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_in_the_identity_basis_it_is_adam(float64, rng):
    gradients = random_gradients(rng, 12, {"matrix": (4, 3), "kernel": (2, 2, 3, 2), "bias": (3,)})
    transformation = soap(0.1, b1=0.9, b2=0.7, eps=1e-3, refresh_every=NEVER)
    state, rest = transformation.init(jax.tree.map(lambda g: g[0], gradients))
    identities = jax.tree.map(
        lambda q: jnp.broadcast_to(jnp.eye(q.shape[-1]), q.shape), state.bases
    )
    start = state._replace(bases=identities, since_refresh=jnp.int32(0)), rest
    found, _ = run(transformation, gradients, start)
    expected, _ = run(optax.adam(0.1, b1=0.9, b2=0.7, eps=1e-3), gradients)
    for name in gradients:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-13)


def test_vectors_get_adam(float64, rng):
    gradients = random_gradients(rng, 25, {"vector": (5,), "scalar": ()})
    found, _ = run(soap(0.1, b1=0.9, b2=0.99, refresh_every=3), gradients)
    expected, _ = run(optax.adam(0.1, b1=0.9, b2=0.99), gradients)
    for name in gradients:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-13)


@pytest.mark.parametrize("shape", [(5, 5), (6, 3), (3, 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_step_is_the_orthogonal_factor(float64, rng, shape, dtype):
    gradient = jnp.asarray(rng.normal(size=shape), dtype)
    transformation = soap(0.1, eps=1e-16)
    update, _ = transformation.update(gradient, transformation.init(gradient))
    u, _, vt = np.linalg.svd(np.asarray(gradient, float), full_matrices=False)
    np.testing.assert_allclose(update, -0.1 * u @ vt, rtol=0, atol=2e3 * np.finfo(dtype).eps)


def test_a_rotated_problem_has_rotated_steps(float64, rng):
    gradients = drifting_gradients(rng, 20, 6)
    u, v = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    transformation = soap(0.1, decay=0.7, refresh_every=4)
    plain, _ = run(transformation, gradients)
    turned, _ = run(transformation, u @ gradients @ v.T)
    np.testing.assert_allclose(turned, u @ plain @ v.T, rtol=0, atol=1e-6)
    adam, _ = run(optax.adam(0.1), gradients)
    turned_adam, _ = run(optax.adam(0.1), u @ gradients @ v.T)
    assert np.abs(turned_adam - u @ adam @ v.T).max() > 0.01


def test_refreshes_turn_the_bases_into_the_eigenvectors(float64, rng):
    scales = np.geomspace(1, 0.1, 5)
    gradients = jnp.asarray(scales[:, None] * rng.normal(size=(300, 5, 5)))
    _, (state, _) = run(soap(0.1, decay=0.99, refresh_every=1), gradients)
    basis = state.bases[0][-1, 0]
    turned = basis.T @ state.statistics[0][-1, 0] @ basis
    values = np.diag(turned)
    assert np.all(np.diff(values) < 0)
    couplings = np.abs(turned - np.diag(values)) / np.sqrt(np.outer(values, values))
    assert couplings.max() < 0.1


@pytest.mark.parametrize("rank", [1, 8])
def test_bases_stay_orthogonal_over_many_float32_steps(rng, rank):
    left, right = (rng.normal(size=size) for size in ((200, 20, rank), (200, rank, 8)))
    gradients = jnp.asarray(left @ right, jnp.float32).at[:, :3].set(0)
    updates, (state, _) = run(soap(0.1, refresh_every=2), gradients)
    assert np.isfinite(updates).all()
    for basis in jax.tree.leaves(state.bases):
        errors = np.asarray(basis[:, 0].mT @ basis[:, 0]) - np.eye(basis.shape[-1])
        assert np.abs(errors).max() < 1e-5


def test_updates_stay_as_long_as_adams_over_many_refreshes(rng):
    gradients = jnp.asarray(drifting_gradients(rng, 200, 8), jnp.float32)
    updates, _ = run(soap(1.0, refresh_every=5), gradients)
    assert np.sqrt(np.mean(updates**2, axis=(1, 2))).max() < 2


def test_bases_have_not_seen_the_gradient_that_they_turn(float64, rng):
    gradients = random_gradients(rng, 400, {"matrix": (8, 8)})
    _, (state, _) = run(soap(0.1, refresh_every=1), gradients)
    left, right = (np.asarray(q)[200:, 0] for q in state.bases["matrix"])
    seen = left.mT @ np.asarray(gradients["matrix"])[200:] @ right
    on_diagonal = np.mean(np.diagonal(seen, axis1=1, axis2=2) ** 2) / np.mean(seen**2)
    np.testing.assert_allclose(on_diagonal, 1, atol=0.15)


def test_the_second_moment_moves_at_every_step(rng):
    gradients = random_gradients(rng, 12, {"matrix": (4, 3)}, jnp.float32)
    _, (state, _) = run(soap(0.1, refresh_every=5), gradients)
    moved = np.any(np.diff(state.second_moment["matrix"], axis=0) != 0, axis=(1, 2, 3))
    assert moved.all()


def test_at_a_refresh_both_moments_follow_the_bases(float64, rng):
    gradients = drifting_gradients(rng, 13, 6)
    options = {"b1": 0.9, "b2": 0.8, "decay": 0.5}
    _, (turned, _) = run(soap(0.1, refresh_every=12, **options), gradients)
    left, right = (np.asarray(basis)[:, 0] for basis in turned.bases)
    first = left @ np.asarray(turned.first_moment)[:, 0] @ right.mT
    np.testing.assert_allclose(first[12], 0.9 * first[11] + 0.1 * gradients[12], atol=1e-12)
    overlaps = [np.abs(q[11].T @ q[12]) for q in (left, right)]
    assert not all(np.array_equal(o.argmax(axis=0), np.arange(6)) for o in overlaps)
    orders = [
        np.argsort(-np.diag(q[11].T @ np.asarray(s)[11, 0] @ q[11]))
        for q, s in zip((left, right), turned.statistics)
    ]
    rotated = left[12].T @ np.asarray(gradients[12]) @ right[12]
    expected = 0.8 * np.asarray(turned.second_moment)[11, 0][np.ix_(*orders)] + 0.2 * rotated**2
    np.testing.assert_allclose(turned.second_moment[12, 0], expected, rtol=1e-9)


def test_long_axes_are_split_into_blocks(float64, rng):
    gradients = {"whole": jnp.asarray(rng.normal(size=(9, 8, 4)))}
    parts = {"top": gradients["whole"][:, :4], "bottom": gradients["whole"][:, 4:]}
    found, _ = run(soap(0.1, block_size=4, refresh_every=3), gradients)
    expected, _ = run(soap(0.1, refresh_every=3), parts)
    both = np.concatenate([expected["top"], expected["bottom"]], axis=1)
    np.testing.assert_allclose(found["whole"], both, rtol=1e-6, atol=1e-9)


def refreshed_at(states):
    """The steps at which the bases changed."""
    changed = np.any(np.diff(states[0].bases["matrix"][0], axis=0) != 0, axis=(1, 2, 3))
    return [0, *(1 + np.flatnonzero(changed))]


@pytest.mark.parametrize(
    "refresh_every, expected",
    [(5, [0, 5, 10, 15, 20]), (lambda steps: jnp.where(steps < 6, 2, 9), [0, 2, 4, 13, 22])],
    ids=["number", "schedule"],
)
def test_bases_are_turned_at_every_interval(rng, refresh_every, expected):
    gradients = random_gradients(rng, 23, {"matrix": (4, 3)}, jnp.float32)
    _, states = run(soap(0.1, refresh_every=refresh_every), gradients)
    assert refreshed_at(states) == expected


def test_under_vmap_over_learning_rates_and_gradients_bases_are_not_turned_at_every_step(
    rng, monkeypatch
):
    module = importlib.import_module("soaa_edu.optimizers.eigenbases")
    plain, calls = module._orthogonal, []

    def counted(image, order):
        jax.debug.callback(lambda _: calls.append(1), image[0, 0])
        return plain(image, order)

    monkeypatch.setattr(module, "_orthogonal", counted)
    gradients = jnp.asarray(rng.normal(size=(2, 9, 4, 3)), jnp.float32)

    def final(rate, gradients):
        return run(soap(rate, refresh_every=4), {"matrix": gradients})[0]["matrix"][-1]

    jax.block_until_ready(jax.jit(jax.vmap(final))(jnp.array([0.1, 0.2]), gradients))
    jax.effects_barrier()
    bases, runs, refreshes_after_the_first = 2, 2, 2
    assert len(calls) == bases * runs * refreshes_after_the_first


def test_any_tree_of_arrays_comes_back_as_it_went_in(rng):
    params = {
        "kernel": jnp.ones((3, 3, 2, 4), jnp.bfloat16),
        "nested": [jnp.ones(()), (jnp.ones((5, 7)), jnp.ones(3, jnp.bfloat16), None)],
        "empty": jnp.ones((0, 3)),
    }
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    transformation = soap(0.1, block_size=4, refresh_every=1)
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
    averages = jax.tree.leaves((state[0].first_moment, state[0].statistics, state[0].bases))
    assert {leaf.dtype for leaf in averages} == {np.dtype("float32")}


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-12])
def test_gradients_of_nothing_or_next_to_nothing_stay_finite(rng, size):
    gradients = random_gradients(rng, 12, {"matrix": (6, 4), "vector": (4,)}, jnp.float32)
    gradients = jax.tree.map(lambda g: size * g, gradients)
    updates, states = run(soap(0.1, refresh_every=3), gradients)
    for leaf in jax.tree.leaves((updates, states)):
        assert np.isfinite(leaf).all()
    if size == 0:
        assert not np.any(jax.tree.leaves(updates)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(rng, bad):
    gradients = random_gradients(rng, 6, {"matrix": (6, 4), "vector": (4,)}, jnp.float32)
    broken = gradients | {"vector": gradients["vector"].at[1, 0].set(bad)}
    found, _ = run(soap(0.1, refresh_every=3), broken)
    expected, _ = run(soap(0.1, refresh_every=3), jax.tree.map(lambda g: g.at[1].set(0), gradients))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_compiled_and_uncompiled_steps_agree(float64, rng):
    gradients = {"matrix": drifting_gradients(rng, 4, 5), "vector": jnp.ones((4, 3))}
    transformation = soap(0.1, refresh_every=2)
    expected, _ = run(transformation, gradients)
    state = transformation.init({name: g[0] for name, g in gradients.items()})
    for i in range(4):
        gradient = {name: g[i] for name, g in gradients.items()}
        updates, state = transformation.update(gradient, state)
        for name in updates:
            np.testing.assert_allclose(updates[name], expected[name][i], rtol=1e-7, atol=1e-9)


def test_the_learning_rate_may_be_a_schedule_or_traced(float64, rng):
    gradients = drifting_gradients(rng, 4, 5)
    ones, _ = run(soap(1.0), gradients)
    scheduled, _ = run(soap(lambda steps: 0.5**steps), gradients)
    np.testing.assert_allclose(scheduled, 0.5 ** np.arange(4)[:, None, None] * ones, rtol=1e-12)
    traced = jax.jit(lambda rate: run(soap(rate), gradients)[0])(0.25)
    np.testing.assert_allclose(traced, 0.25 * ones, rtol=1e-7, atol=1e-10)


def test_it_trains_in_a_chain_with_other_transformations(classifier, rng):
    objective, params = classifier()
    x, y = rng.normal(size=(64, 12)), rng.integers(4, size=64)
    transformation = optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-4), soap(0.03)
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
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above zero"),
        ({"b1": 1.0}, "b1 must be a number of zero or more and below one"),
        ({"b2": -0.1}, "b2 must be a number of zero or more and below one"),
        ({"decay": 1.5}, "decay must be a number of zero or more and below one"),
        ({"eps": 0.0}, "eps must be a finite number above zero"),
        ({"refresh_every": 0}, "refresh_every must be a whole number of one or more"),
        ({"block_size": 2.5}, "block_size must be a whole number of one or more"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        soap(**({"learning_rate": 0.1} | options))
