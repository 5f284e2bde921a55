import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu import kl_shampoo

NEVER = 10**6


def run(transformation, gradients):
    """All updates along given gradients, and the states after each."""

    def step(state, gradient):
        updates, state = transformation.update(gradient, state)
        return state, (updates, state)

    start = transformation.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.jit(lambda start, g: jax.lax.scan(step, start, g)[1])(start, gradients)


def random_gradients(rng, steps, shapes, dtype=float):
    return {name: jnp.asarray(rng.normal(size=(steps, *s)), dtype) for name, s in shapes.items()}


def definite(rng, size, condition):
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (q * np.geomspace(1 / condition, 1, size)) @ q.T


def factors_of(states, moment=-1):
    """S_A and S_B in the space of the gradients, at one step."""
    state = states[0]
    return [
        np.asarray(q[moment, 0] @ t[moment, 0] @ q[moment, 0].T)
        for q, t in zip(state.bases, state.factors)
    ]


def divergence(left, right, gradients):
    """KL(N(0, E[ggᵀ]) ‖ N(0, A ⊗ B)) from the whole matrices, up to what is constant in both."""
    flat = gradients.reshape(len(gradients), -1)
    model = jnp.kron(left, right)
    fit = jnp.trace(jnp.linalg.solve(model, flat.T @ flat / len(flat)))
    return 0.5 * (jnp.linalg.slogdet(model)[1] + fit)


def numpy_kl_shampoo(gradients, interval, *, rate, b1, decay, ridge):
    """Claim 2 with running averages, the factors held in the space of the gradients."""
    rows, columns = gradients[0].shape
    size = np.sqrt(np.mean(gradients[0] ** 2))
    factors = [size * np.eye(rows), size * np.eye(columns)]
    m, updates, reordered = np.zeros_like(gradients[0]), [], 0

    def eigenvalues(k):
        values = np.diag(bases[k].T @ factors[k] @ bases[k])
        return np.maximum(values, ridge * values.max())

    for i, g in enumerate(gradients):
        if i == 0:
            bases = [np.linalg.eigh(x)[1][:, ::-1] for x in (g @ g.T, g.T @ g)]
        elif i % interval == 0:
            for k in range(2):
                order = np.argsort(-np.diag(bases[k].T @ factors[k] @ bases[k]), kind="stable")
                bases[k] = np.linalg.qr((factors[k] @ bases[k])[:, order])[0]
                reordered += np.any(np.diff(order) < 0)
        inverses = [(bases[k] / eigenvalues(k)) @ bases[k].T for k in range(2)]
        factors = [
            decay * factors[0] + (1 - decay) * g @ inverses[1] @ g.T / columns,
            decay * factors[1] + (1 - decay) * g.T @ inverses[0] @ g / rows,
        ]
        m = b1 * m + (1 - b1) * g
        left, right = ((bases[k] / np.sqrt(eigenvalues(k))) @ bases[k].T for k in range(2))
        updates.append(-rate * left @ (m / (1 - b1 ** (i + 1))) @ right)
    return np.array(updates), reordered


@pytest.mark.parametrize("interval", [1, 4])
def test_twenty_five_steps_are_the_algorithm_reorderings_included(float64, rng, interval):
    turn = np.linspace(0, 1, 25)[:, None]
    scales = (1 - turn) * np.geomspace(3, 0.3, 6) + turn * np.geomspace(0.3, 3, 6)
    gradients = jnp.asarray(scales[:, :, None] * rng.normal(size=(25, 6, 6)))
    options = {"b1": 0.9, "decay": 0.7, "ridge": 0.05}
    found, _ = run(kl_shampoo(0.1, refresh_every=interval, **options), gradients)
    expected, reordered = numpy_kl_shampoo(np.asarray(gradients), interval, rate=0.1, **options)
    assert reordered
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_at_its_fixed_point_the_divergence_is_stationary(float64, rng):
    scales = np.sqrt(np.geomspace(1, 0.1, 4)[:, None] + np.geomspace(1, 0.2, 3))
    few = jnp.asarray(scales * rng.normal(size=(6, 4, 3)))
    many = jnp.tile(few, (4000, 1, 1))
    _, states = run(kl_shampoo(0.1, decay=0.997, refresh_every=1), many)
    period = [factors_of(states, -k) for k in range(1, 7)]
    left, right = (sum(each) / 6 for each in zip(*period))
    slopes = jax.grad(divergence, (0, 1))(left, right, few)
    shampoos = [jnp.einsum("kij,klj->il", few, few), jnp.einsum("kji,kjl->il", few, few)]
    others = jax.grad(divergence, (0, 1))(*shampoos, few)
    for slope, factor, other, of_shampoo in zip(slopes, (left, right), others, shampoos):
        assert np.linalg.norm(factor @ slope) < 0.02
        assert np.linalg.norm(of_shampoo @ other) > 0.5


def test_a_kronecker_product_is_recovered(float64, rng):
    left, right = definite(rng, 4, 30.0), definite(rng, 3, 10.0)
    halves = [np.linalg.cholesky(matrix) for matrix in (left, right)]
    units = np.sqrt(12) * np.eye(12).reshape(12, 4, 3)
    gradients = jnp.asarray(np.tile(halves[0] @ units @ halves[1].T, (400, 1, 1)))
    _, states = run(kl_shampoo(0.1, decay=0.995, refresh_every=1), gradients)
    period = [np.kron(*factors_of(states, -k)) for k in range(1, 13)]
    expected = np.kron(left, right)
    error = np.linalg.norm(np.mean(period, axis=0) - expected, 2)
    assert error < 0.02 * np.linalg.norm(expected, 2)


def test_the_direction_does_not_depend_on_the_scale_or_the_basis(float64, rng):
    gradients = jnp.asarray(np.geomspace(1, 0.1, 5)[:, None] * rng.normal(size=(30, 5, 4)))
    transformation = kl_shampoo(0.1, refresh_every=4)
    plain, _ = run(transformation, gradients)
    scaled, _ = run(transformation, 1e-6 * gradients)
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-7)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (5, 4))
    turned, _ = run(transformation, u @ gradients @ v.T)
    np.testing.assert_allclose(turned, u @ plain @ v.T, rtol=0, atol=1e-7)


def test_whitened_gradients_have_entries_of_size_one_whatever_their_covariance(float64, rng):
    left, right = (np.linalg.cholesky(definite(rng, n, 100.0)) for n in (8, 6))
    gradients = jnp.asarray(left @ rng.normal(size=(2000, 8, 6)) @ right.T)
    updates, _ = run(kl_shampoo(1.0, b1=0.0, decay=0.99), gradients)
    late = np.asarray(updates[1000:]).reshape(1000, -1)
    covariance = late.T @ late / len(late)
    np.testing.assert_allclose(np.diag(covariance), 1, atol=0.25)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.2


@pytest.mark.parametrize("shape", [(5, 5), (6, 3)])
def test_the_first_step_is_as_large_as_adams(float64, rng, shape):
    gradient = jnp.asarray(7 * rng.normal(size=shape))
    transformation = kl_shampoo(0.1, decay=1 - 1e-12)
    update, _ = transformation.update(gradient, transformation.init(gradient))
    expected = -0.1 * gradient / np.sqrt(np.mean(gradient**2))
    np.testing.assert_allclose(update, expected, atol=1e-9)


def test_eigenvalues_move_at_every_step_while_the_bases_are_old(rng):
    gradients = random_gradients(rng, 12, {"matrix": (4, 3)}, jnp.float32)
    _, (state, _) = run(kl_shampoo(0.1, refresh_every=NEVER), gradients)
    for factor, basis in zip(state.factors["matrix"], state.bases["matrix"]):
        values = np.diagonal(factor, axis1=-2, axis2=-1)
        assert np.all(np.diff(values, axis=0) != 0)
        assert not np.any(np.diff(basis, axis=0))


def test_refreshes_turn_the_bases_into_the_eigenvectors(float64, rng):
    scales = np.geomspace(1, 0.1, 5)
    gradients = jnp.asarray(scales[:, None] * rng.normal(size=(300, 5, 5)))
    _, (state, _) = run(kl_shampoo(0.1, decay=0.99, refresh_every=1), gradients)
    turned = np.asarray(state.factors[0][-1, 0])
    values = np.diag(turned)
    assert np.all(np.diff(values) < 0)
    couplings = np.abs(turned - np.diag(values)) / np.sqrt(np.outer(values, values))
    assert couplings.max() < 0.1


@pytest.mark.parametrize("rank", [1, 8])
def test_bases_stay_orthogonal_over_many_float32_steps(rng, rank):
    left, right = (rng.normal(size=size) for size in ((2000, 20, rank), (2000, rank, 8)))
    gradients = jnp.asarray(left @ right, jnp.float32).at[:, :3].set(0)
    updates, (state, _) = run(kl_shampoo(0.1, refresh_every=2), gradients)
    assert np.isfinite(updates).all()
    for basis in jax.tree.leaves(state.bases):
        errors = np.asarray(basis[-200:, 0].mT @ basis[-200:, 0]) - np.eye(basis.shape[-1])
        assert np.abs(errors).max() < 1e-5
    for factor in jax.tree.leaves(state.factors):
        last = np.asarray(factor[-1, 0])
        assert np.abs(last - last.T).max() < 1e-5 * np.abs(last).max()


def test_vectors_get_adam(float64, rng):
    gradients = random_gradients(rng, 25, {"vector": (5,), "scalar": ()})
    found, _ = run(kl_shampoo(0.1, b1=0.8, decay=0.99, refresh_every=3), gradients)
    expected, _ = run(optax.adam(0.1, b1=0.8, b2=0.99), gradients)
    for name in gradients:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)


def test_a_block_that_was_zero_at_first_begins_at_its_own_scale(float64, rng):
    gradients = random_gradients(rng, 9, {"early": (3, 3), "late": (4, 2)})
    gradients["late"] = gradients["late"].at[:2].set(0)
    found, _ = run(kl_shampoo(0.1, b1=0.0, decay=1 - 1e-12), gradients)
    assert not np.any(found["late"][:2])
    np.testing.assert_allclose(np.sqrt(np.mean(found["late"][2] ** 2)), 0.1, rtol=1e-9)


def test_long_axes_are_split_into_blocks(float64, rng):
    gradients = {"whole": jnp.asarray(rng.normal(size=(9, 8, 4)))}
    parts = {"top": gradients["whole"][:, :4], "bottom": gradients["whole"][:, 4:]}
    found, _ = run(kl_shampoo(0.1, block_size=4, refresh_every=3), gradients)
    expected, _ = run(kl_shampoo(0.1, refresh_every=3), parts)
    both = np.concatenate([expected["top"], expected["bottom"]], axis=1)
    np.testing.assert_allclose(found["whole"], both, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "refresh_every, expected",
    [(5, [0, 5, 10, 15, 20]), (lambda steps: jnp.where(steps < 6, 2, 9), [0, 2, 4, 13, 22])],
    ids=["number", "schedule"],
)
def test_bases_are_turned_at_every_interval(rng, refresh_every, expected):
    gradients = random_gradients(rng, 23, {"matrix": (4, 3)}, jnp.float32)
    _, states = run(kl_shampoo(0.1, refresh_every=refresh_every), gradients)
    changed = np.any(np.diff(states[0].bases["matrix"][0], axis=0) != 0, axis=(1, 2, 3))
    assert [0, *(1 + np.flatnonzero(changed))] == expected


def test_runs_side_by_side_do_not_turn_their_bases_at_every_step(rng, monkeypatch):
    module = importlib.import_module("soaa_edu.optimizers.eigenbases")
    plain, calls = module._orthogonal, []

    def counted(image, order):
        jax.debug.callback(lambda _: calls.append(1), image[0, 0])
        return plain(image, order)

    monkeypatch.setattr(module, "_orthogonal", counted)
    gradients = jnp.asarray(rng.normal(size=(2, 9, 4, 3)), jnp.float32)

    def final(rate, gradients):
        return run(kl_shampoo(rate, refresh_every=4), {"matrix": gradients})[0]["matrix"][-1]

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
    transformation = kl_shampoo(0.1, block_size=4, refresh_every=1)
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


def test_it_holds_less_than_soap():
    params = {"w": jnp.zeros((30, 20)), "b": jnp.zeros(20)}
    mine, soaps = (
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(method(0.1).init, params)))
        for method in (kl_shampoo, soaa_edu.soap)
    )
    assert soaps - mine == params["w"].size


def test_the_learning_rate_may_be_a_schedule_or_traced(float64, rng):
    gradients = jnp.asarray(rng.normal(size=(4, 5, 5)))
    ones, _ = run(kl_shampoo(1.0), gradients)
    scheduled, _ = run(kl_shampoo(lambda steps: 0.5**steps), gradients)
    np.testing.assert_allclose(scheduled, 0.5 ** np.arange(4)[:, None, None] * ones, rtol=1e-12)
    traced = jax.jit(lambda rate: run(kl_shampoo(rate), gradients)[0])(0.25)
    np.testing.assert_allclose(traced, 0.25 * ones, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above zero"),
        ({"b1": 1.0}, "b1 must be a number of zero or more and below one"),
        ({"decay": 1.5}, "decay must be a number of zero or more and below one"),
        ({"ridge": 0.0}, "ridge must be a finite number above zero"),
        ({"refresh_every": 0}, "refresh_every must be a whole number of one or more"),
        ({"block_size": 2.5}, "block_size must be a whole number of one or more"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        kl_shampoo(**({"learning_rate": 0.1} | options))
