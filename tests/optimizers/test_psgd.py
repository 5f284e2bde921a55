import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_triangular

import soaa_edu
from soaa_edu import psgd
from soaa_edu.optimizers.psgd import criterion, fit, identity_factors, normal_like, often_at_first


def kron_state(state):
    """PSGD's own part of the state of its chain."""
    return state[0]


def triangles(rng, rows, columns):
    return tuple(
        jnp.asarray(np.triu(rng.normal(size=(1, n, n))) + 2 * np.eye(n)) for n in (rows, columns)
    )


def test_the_criterion_is_the_dense_one(float64, rng):
    left, right = triangles(rng, 4, 3)
    h, v = (jnp.asarray(rng.normal(size=(1, 4, 3))) for _ in range(2))
    q = np.kron(left[0], right[0])
    p = q.T @ q
    expected = np.ravel(h) @ p @ np.ravel(h) + np.ravel(v) @ np.linalg.solve(p, np.ravel(v))
    assert float(criterion((left, right), v, h)) == pytest.approx(expected)
    diagonal = (jnp.array([0.5, 2.0]),)
    found = criterion(diagonal, jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]))
    assert float(found) == pytest.approx(0.25 * 4 + 4 * 1 + 1 / 0.25 + 9 / 4)


def test_a_short_step_goes_down_the_gradient_of_the_criterion_in_each_factor(float64, rng):
    q = triangles(rng, 4, 3)
    h, v = (jnp.asarray(rng.normal(size=(1, 4, 3))) for _ in range(2))

    def after(move_left, move_right):
        moved = [(jnp.eye(len(e)) - e) @ f for e, f in zip((move_left, move_right), q)]
        return criterion(tuple(moved), v, h)

    slopes = jax.grad(after, argnums=(0, 1))(jnp.zeros((4, 4)), jnp.zeros((3, 3)))
    small = 1e-6
    after_step, _ = fit(q, v, h, small)
    assert float(criterion(after_step, v, h)) < float(criterion(q, v, h))
    for moved, before, slope in zip(after_step, q, slopes):
        direction = np.array(moved @ jnp.linalg.inv(before))[0]
        off_diagonal, downhill = (np.triu(x, k=1) for x in (direction, np.array(slope)))
        product = np.sum(off_diagonal * downhill)
        lengths = np.linalg.norm(off_diagonal) * np.linalg.norm(downhill)
        assert abs(product) == pytest.approx(lengths, rel=1e-6)


def test_the_fit_comes_near_the_whitening_preconditioner(float64):
    rows, columns = 6, 5
    keys = jax.random.split(jax.random.key(0), 3)
    left = jax.random.normal(keys[0], (rows, rows)) * jnp.logspace(0, -1, rows)
    right = jax.random.normal(keys[1], (columns, columns)) * jnp.logspace(0, -1.5, columns)
    covariance = np.kron(left @ left.T, right @ right.T)
    best = 2 * np.sum(np.sqrt(np.linalg.eigvalsh(covariance)))

    def step(q, key):
        h_key, v_key = jax.random.split(key)
        h = left @ jax.random.normal(h_key, (1, rows, columns)) @ right.T
        return fit(q, jax.random.normal(v_key, (1, rows, columns)), h, 0.1)

    start = identity_factors(jnp.zeros((1, rows, columns)))
    (q1, q2), _ = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(keys[2], 1500)))()
    q = np.kron(q1[0], q2[0])
    p = q.T @ q
    assert best <= np.trace(p @ covariance) + np.trace(np.linalg.inv(p)) < 1.08 * best


def test_a_vector_learns_one_over_its_root_mean_squares(float64):
    spread = jnp.array([0.1, 1.0, 10.0])

    def step(q, key):
        h_key, v_key = jax.random.split(key)
        h, v = spread * jax.random.normal(h_key, (3,)), jax.random.normal(v_key, (3,))
        (moved,), _ = fit(q, v, h, 0.05)
        return (moved,), moved

    keys = jax.random.split(jax.random.key(1), 12_000)
    _, q = jax.jit(lambda: jax.lax.scan(step, identity_factors(spread), keys))()
    np.testing.assert_allclose(np.mean(q[2000:] ** 2, axis=0), 1 / spread, rtol=0.05)


def test_it_is_the_algorithm_of_the_paper(float64, rng):
    params = {"w": jnp.zeros((5, 4)), "b": jnp.zeros(4)}
    transformation = psgd(0.1, b1=0.5, update_probability=1.0, step_size=0.2)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    q1, q2, q = np.eye(5), np.eye(4), np.ones(4)
    momentum = jax.tree.map(np.zeros_like, params)

    def norm(s):
        column = s[:, np.argmax(np.linalg.norm(s, axis=0))]
        for _ in range(2):
            column = s @ (column / np.linalg.norm(column))
        return np.linalg.norm(column)

    for t in range(1, 8):
        g = {"w": rng.normal(size=(5, 4)) * np.arange(1, 6)[:, None], "b": rng.normal(size=4)}
        key = kron_state(state).key
        v = jax.tree.map(np.array, normal_like(g, jax.random.split(key, 3)[2]))
        if t == 1:
            scale = np.sqrt(np.linalg.norm(v["w"]) / np.linalg.norm(g["w"]))
            q1, q2 = q1 * np.sqrt(scale), q2 * np.sqrt(scale)
            q = q * np.sqrt(np.linalg.norm(v["b"]) / np.linalg.norm(g["b"]))
        a = q1 @ g["w"] @ q2.T
        b = solve_triangular(q1, v["w"], trans="T") @ np.linalg.inv(q2)
        value = np.sum(a**2 + b**2) + np.sum((q * g["b"]) ** 2 + (v["b"] / q) ** 2)
        slopes = [(a @ a.T, b @ b.T), (a.T @ a, b.T @ b)]
        q1, q2 = (
            f - 0.2 * np.triu(aa - bb) / norm(aa + bb) @ f for f, (aa, bb) in zip((q1, q2), slopes)
        )
        ratio = np.sqrt(np.abs(q2).max() / np.abs(q1).max())
        q1, q2 = q1 * ratio, q2 / ratio
        a, b = (q * g["b"]) ** 2, (v["b"] / q) ** 2
        q = q - 0.2 * (a - b) / np.max(a + b) * q
        momentum = jax.tree.map(lambda m, new: 0.5 * m + 0.5 * new, momentum, g)
        m = jax.tree.map(lambda m, t=t: m / (1 - 0.5**t), momentum)

        updates, state = update(g, state)
        expected = {"w": -0.1 * q1.T @ q1 @ m["w"] @ q2.T @ q2, "b": -0.1 * q**2 * m["b"]}
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), updates, expected)
        assert float(kron_state(state).info["criterion"]) == pytest.approx(value)


def test_p_moves_as_often_as_it_should(rng):
    params = {"w": jnp.zeros((4, 3))}

    def moves(probability, steps=60):
        transformation = psgd(0.1, update_probability=probability)
        state, count = transformation.init(params), 0
        update = jax.jit(transformation.update)
        for _ in range(steps):
            before = kron_state(state).factors["w"][0]
            _, state = update({"w": rng.normal(size=(4, 3)).astype("float32")}, state)
            count += not np.array_equal(before, kron_state(state).factors["w"][0])
        return count

    assert moves(1.0) == 60
    assert moves(1e-9) == 1
    assert moves(lambda steps: jnp.where(steps < 20, 1.0, 0.0)) == 20
    assert 8 < moves(0.3) < 30


def test_lis_schedule_is_one_at_first_and_rare_later():
    np.testing.assert_allclose(often_at_first(np.array([0, 500])), 1)
    np.testing.assert_allclose(often_at_first(1500), np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(often_at_first(10**6), 0.03)


def test_the_choice_is_not_batched_under_vmap():
    transformation = psgd(0.1, update_probability=0.5)

    def run(scale):
        params = {"w": scale * jnp.ones((4, 3))}
        return transformation.update(params, transformation.init(params))[0]

    assert " cond[" in str(jax.make_jaxpr(jax.vmap(run))(jnp.arange(1.0, 3.0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_pytree_will_do(dtype, rng):
    params = {
        "scalar": jnp.zeros((), dtype),
        "parts": [jnp.zeros(3, dtype)],
        "kernel": jnp.zeros((3, 3, 2, 5), dtype),
        "wide": jnp.zeros((1, 30), dtype),
    }
    transformation = psgd(0.1, block_size=8)
    state = jax.jit(transformation.init)(params)
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), dtype), params)
    update = jax.jit(transformation.update)
    for _ in range(3):
        updates, state = update(gradients, state, params)
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert (update.shape, update.dtype) == (leaf.shape, leaf.dtype)
        assert np.any(update)
    assert all(np.all(np.isfinite(u.astype("float32"))) for u in jax.tree.leaves(updates))
    assert {q.dtype.name for q in jax.tree.leaves(kron_state(state).factors)} == {"float32"}
    assert kron_state(state).factors["wide"][1].shape == (4, 8, 8)


def test_a_gradient_of_zeros_moves_nothing_and_breaks_nothing():
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    transformation = psgd(0.1)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for _ in range(3):
        updates, state = update(params, state)
    assert all(not np.any(u) for u in jax.tree.leaves(updates))
    assert all(np.all(np.isfinite(q)) for q in jax.tree.leaves(kron_state(state).factors))


def test_the_criterion_is_told_and_falls_as_training_learns_p(rng):
    objective = soaa_edu.Objective(soaa_edu.models.mlp([6, 4]), soaa_edu.softmax_cross_entropy)
    inputs = rng.normal(size=(320, 6)).astype("float32") * np.geomspace(1, 10, 6, dtype="float32")
    labels = np.argmax(inputs[:, :4], axis=1).astype("int32")
    history = soaa_edu.train(
        soaa_edu.first_order(objective, psgd(1e-2)),
        objective.model.init(jax.random.key(0)),
        soaa_edu.data.Dataset(train=(inputs, labels)),
        epochs=10,
        batch_size=32,
        key=jax.random.key(1),
        progress=False,
    )
    told = history.info["criterion"]
    assert told.shape == (100,)
    assert told[-20:].mean() < 0.7 * told[:5].mean()
    assert history.loss[-20:].mean() < 0.7 * history.loss[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above zero"),
        ({"b1": 1.0}, "b1 must be a number of zero or more and below one"),
        ({"update_probability": 0.0}, "update_probability must be a finite number above zero"),
        ({"step_size": -0.1}, "step_size must be a finite number above zero"),
        ({"block_size": 0}, "block_size must be a whole number"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        psgd(**{"learning_rate": 0.1, **options})


@pytest.mark.parametrize("spike", [1e6, 1e9, 1e12, 1e18])
def test_one_spike_moves_q_by_its_step_size_at_most(spike):
    transformation, update = psgd(1e-3), None
    state = transformation.init(jnp.zeros((6, 4)))
    update = jax.jit(transformation.update)
    for i in range(30):
        gradient = jax.random.normal(jax.random.key(i), (6, 4))
        before, (updates, state) = state, update(gradient * (spike if i == 12 else 1), state)
        if i == 12:
            for new, old in zip(state[0].factors, before[0].factors, strict=True):
                moved = np.linalg.norm((new - old)[0], 2) / np.linalg.norm(old[0], 2)
                assert moved < 0.2
    assert np.isfinite(updates).all()


def test_an_array_without_gradients_keeps_its_preconditioner():
    transformation = psgd(1e-3)
    gradients = {"used": jnp.ones((3, 2)), "unused": jnp.zeros(()), "empty": jnp.zeros((0, 3))}
    state = transformation.init(gradients)

    def step(state, _):
        updates, state = transformation.update(gradients, state)
        return state, updates["unused"]

    state, updates = jax.jit(lambda s: jax.lax.scan(step, s, length=600))(state)
    assert not np.any(updates)
    assert state[0].factors["unused"][0] == 1
