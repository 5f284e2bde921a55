from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxprs import operations

import soaa_edu
from soaa_edu import kfac, kronecker, levenberg_marquardt
from soaa_edu.curvature import dense, fisher_matvec
from soaa_edu.kronecker import factors, run_forward
from soaa_edu.studies.poster.kronecker_products import block

KEY = jax.random.key(0)


def batch_of(rng, examples, width=12, classes=4):
    inputs = jnp.asarray(rng.normal(size=(examples, width)))
    return inputs, jnp.asarray(rng.integers(classes, size=examples))


def stacked(layer):
    return np.concatenate([layer["weight"], np.asarray(layer["bias"])[None]])


def step_of(optimizer, params, batch, key=KEY):
    after, state, info = jax.jit(optimizer.step)(params, optimizer.init(params), batch, key)
    return jax.tree.map(lambda a, b: np.asarray(a - b), after, params), state, info


@partial(jax.jit, static_argnums=0)
def jitted_factors(objective, params, batch):
    return factors(
        objective, run_forward(objective.model, params, batch[0]), batch[1], fisher="exact"
    )


def exact_factors(objective, params, batch):
    return jax.tree.map(np.asarray, jitted_factors(objective, params, batch))


def cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


def test_damped_exactly_one_example_takes_the_step_of_its_dense_fisher_block(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 1)
    update, _, _ = step_of(
        kfac(
            objective,
            learning_rate=0.5,
            damping=0.03,
            fisher="exact",
            exact_damping=True,
        ),
        params,
        batch,
    )
    gradient = jax.grad(objective)(params, batch)
    fisher = np.asarray(dense(fisher_matvec(objective, params, batch), params))
    for name in params:
        of_layer = block(fisher, params, name)
        damped = of_layer + 0.03 * np.eye(len(of_layer))
        expected = -0.5 * np.linalg.solve(damped, stacked(gradient[name]).ravel())
        np.testing.assert_allclose(stacked(update[name]).ravel(), expected, rtol=1e-9)


@pytest.mark.parametrize("exact_damping", [False, True])
def test_it_is_the_algorithm_of_the_paper(classifier, rng, exact_damping):
    objective, params = classifier()
    options = {"learning_rate": 0.2, "damping": 0.05, "momentum": 0.8, "decay": 0.7}
    optimizer = kfac(
        objective,
        **options,
        update_every=2,
        invert_every=3,
        fisher="exact",
        kl_clip=1e-2,
        exact_damping=exact_damping,
    )
    state = optimizer.init(params)
    step = jax.jit(optimizer.step)
    average, weight, velocity, kept = None, 0.0, None, {}
    for t in range(9):
        batch = batch_of(rng, 8)
        gradient = jax.grad(objective)(params, batch)
        if t % 2 == 0:
            new = exact_factors(objective, params, batch)
            average = jax.tree.map(
                lambda f, o: 0.7 * o + 0.3 * f,
                new,
                average or jax.tree.map(np.zeros_like, new),
            )
            weight = 0.7 * weight + 0.3
        direction = {}
        for name in params:
            if t % 3 == 0:
                kept[name] = average.inputs[name] / weight, average.outputs[name] / weight
            a, g = kept[name]
            of_layer = stacked(gradient[name])
            if exact_damping:
                whole = np.kron(a, g) + 0.05 * np.eye(of_layer.size)
                solved = np.linalg.solve(whole, of_layer.ravel())
                direction[name] = solved.reshape(of_layer.shape)
            else:
                pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
                root = np.sqrt(0.05)
                left = np.linalg.inv(a + pi * root * np.eye(len(a)))
                right = np.linalg.inv(g + root / pi * np.eye(len(g)))
                direction[name] = left @ of_layer @ right
        inner = sum(np.sum(direction[n] * stacked(gradient[n])) for n in params)
        rate = 0.2 * min(1, np.sqrt(1e-2 / (0.2**2 * inner)))
        velocity = {n: 0.8 * (velocity[n] if velocity else 0) - rate * direction[n] for n in params}
        expected = {n: stacked(params[n]) + velocity[n] for n in params}
        params, state, info = step(params, state, batch, KEY)
        for name in params:
            np.testing.assert_allclose(stacked(params[name]), expected[name], atol=1e-9)
        assert float(info["damping"]) == pytest.approx(0.05)


def test_much_damping_leaves_a_small_gradient_step(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 6)
    gradient = jax.grad(objective)(params, batch)
    for exact_damping in (False, True):
        update, _, _ = step_of(
            kfac(
                objective,
                learning_rate=1e14,
                damping=1e14,
                fisher="empirical",
                exact_damping=exact_damping,
            ),
            params,
            batch,
        )
        for name in params:
            np.testing.assert_allclose(
                stacked(update[name]), -stacked(gradient[name]), rtol=2e-4, atol=1e-9
            )


def test_on_digits_pi_damps_better_than_roots_and_roots_better_than_lambda(classifier, digits):
    objective, params = classifier((784, 20, 10))
    batch = (jnp.asarray(digits.train[0][:300], float), digits.train[1][:300])
    damping = 0.01
    gradient = jax.grad(objective)(params, batch)
    found = exact_factors(objective, params, batch)
    optimizer = kfac(objective, learning_rate=1.0, damping=damping, fisher="exact")
    factored, _, _ = step_of(optimizer, params, batch)
    name = "dense_0"
    a, g, of_layer = found.inputs[name], found.outputs[name], stacked(gradient[name])
    (of_a, u), (of_g, v) = np.linalg.eigh(a), np.linalg.eigh(g)
    target = -u @ ((u.T @ of_layer @ v) / (np.outer(of_a, of_g) + damping)) @ v.T

    def damped_each(amount):
        left, right = (m + amount * np.eye(len(m)) for m in (a, g))
        return -np.linalg.solve(left, np.linalg.solve(right, of_layer.T).T)

    by_lambda = cosine(damped_each(damping), target)
    by_root = cosine(damped_each(np.sqrt(damping)), target)
    by_pi = cosine(stacked(factored[name]), target)
    assert by_lambda < 0.6 < by_root < 0.85 < by_pi
    assert np.linalg.norm(damped_each(damping)) > 2 * np.linalg.norm(target)


def test_the_first_average_is_the_first_batch_whatever_the_decay(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 5)
    updates = [
        step_of(
            kfac(objective, learning_rate=0.1, damping=0.1, decay=decay, fisher="empirical"),
            params,
            batch,
        )[0]
        for decay in (0.0, 0.99)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), *updates)


def test_clipping_bounds_the_divergence_and_leaves_short_steps_alone(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 5)
    gradient = jax.grad(objective)(params, batch)
    options = {"learning_rate": 0.1, "damping": 0.1, "fisher": "empirical"}
    free, clipped, loose = (
        step_of(kfac(objective, **options, kl_clip=clip), params, batch)[0]
        for clip in (None, 1e-6, 1e6)
    )
    jax.tree.map(np.testing.assert_array_equal, free, loose)
    along = float(optax.tree.vdot(free, gradient))
    shorter = float(optax.tree.norm(clipped) / optax.tree.norm(free))
    assert -0.1 * along * shorter**2 == pytest.approx(1e-6, rel=1e-6)


def test_sampling_hangs_on_the_key_and_the_exact_fisher_does_not(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 5)
    for fisher, same in (("sampled", False), ("exact", True), ("empirical", True)):
        optimizer = kfac(objective, learning_rate=0.1, damping=0.1, fisher=fisher)
        first, second = (step_of(optimizer, params, batch, jax.random.key(k))[0] for k in (0, 1))
        equal = np.array_equal(first["dense_0"]["weight"], second["dense_0"]["weight"])
        assert equal == same


def test_a_loss_that_is_quadratic_keeps_its_promise_and_loses_its_damping(classifier, rng):
    objective, params = classifier((6, 3), loss=soaa_edu.squared_error)
    batch = (jnp.asarray(rng.normal(size=(20, 6))), jnp.asarray(rng.normal(size=(20, 3))))
    optimizer = kfac(objective, learning_rate=1.0, damping=levenberg_marquardt(0.1), fisher="exact")
    _, state, info = step_of(optimizer, params, batch)
    assert float(info["reduction_ratio"]) == pytest.approx(1, rel=1e-8)
    assert bool(info["accepted"])
    assert float(state.damping) == pytest.approx(0.1 * 2 / 3)


def test_a_step_that_raises_the_loss_is_taken_back_and_its_velocity_forgotten(classifier, rng):
    objective, params = classifier()
    damping = levenberg_marquardt(1e-3)
    optimizer = kfac(objective, learning_rate=1e3, damping=damping, fisher="empirical")
    update, state, info = step_of(optimizer, params, batch_of(rng, 20))
    assert not bool(info["accepted"])
    assert float(state.damping) == pytest.approx(1.5e-3)
    for leaf in jax.tree.leaves((update, state.velocity)):
        assert not np.any(leaf)


def test_the_schedule_sets_the_rate_of_each_step(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 5)
    options = {"damping": 0.1, "momentum": 0.0, "fisher": "empirical"}
    scheduled = kfac(
        objective, learning_rate=optax.piecewise_constant_schedule(0.1, {1: 10.0}), **options
    )
    step = jax.jit(scheduled.step)
    first, state, _ = step(params, scheduled.init(params), batch, KEY)
    second, _, _ = step(params, state, batch, KEY)
    jax.tree.map(
        lambda p, one, other: np.testing.assert_allclose(other - p, 10 * (one - p), rtol=1e-6),
        params,
        first,
        second,
    )


def test_inversions_stay_rare_under_vmap(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 5)

    def run(rate):
        optimizer = kfac(objective, learning_rate=rate, damping=0.1, update_every=2)
        return optimizer.step(params, optimizer.init(params), batch, KEY)[0]

    program = operations(jax.vmap(run), jnp.array([0.1, 0.2]))
    outermost = [e for e, within in program if e.primitive.name == "cond" and "cond" not in within]
    factorised = [within for e, within in program if e.primitive.name == "cholesky"]
    assert len(outermost) == 3
    assert factorised
    assert all("cond" in within for within in factorised)


def test_dead_layers_and_float32_stay_finite(rng):
    model = soaa_edu.models.mlp([12, 5, 4])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = model.init(KEY)
    params["dense_0"]["bias"] = params["dense_0"]["bias"] - 1e3
    batch = batch_of(rng, 16)
    for exact_damping in (False, True):
        update, _, _ = step_of(
            kfac(
                objective,
                learning_rate=0.1,
                damping=1e-3,
                fisher="empirical",
                exact_damping=exact_damping,
            ),
            params,
            batch,
        )
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(update))


@pytest.mark.parametrize(
    "model",
    [
        soaa_edu.models.cnn(channels=(4, 4), stride=4, kernel=5),
        soaa_edu.models.vit(width=8, heads=2, depth=1, patch=14),
    ],
    ids=["cnn", "vit"],
)
def test_networks_with_shared_layers_learn(model, digits):
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    few = soaa_edu.data.Dataset(train=jax.tree.map(lambda array: array[:512], digits.train))
    history = soaa_edu.train(
        kfac(objective, learning_rate=0.05, damping=0.03, kl_clip=1e-2, fisher="empirical"),
        jax.jit(model.init)(KEY),
        few,
        epochs=5,
        batch_size=128,
        key=KEY,
        progress=False,
    )
    assert history.loss[-4:].mean() < 0.8 * history.loss[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping must be a finite number above zero"),
        ({"damping": -1.0}, "damping must be a finite number above zero"),
        ({"learning_rate": 0}, "learning_rate must be a finite number above zero"),
        ({"momentum": 1.0}, "momentum must be a number of zero or more and below one"),
        ({"decay": -0.1}, "decay must be a number of zero or more and below one"),
        ({"update_every": 0}, "update_every must be a whole number"),
        ({"invert_every": 2.5}, "invert_every must be a whole number"),
        ({"fisher": "true"}, "fisher must be one of"),
        ({"sharing": "sum"}, "sharing must be one of"),
        ({"kl_clip": 0.0}, "kl_clip must be a finite number above zero"),
    ],
)
def test_bad_arguments_are_named(classifier, options, message):
    objective, _ = classifier()
    with pytest.raises(ValueError, match=message):
        kfac(objective, **{"learning_rate": 0.1, "damping": 0.1, **options})


def three_steps(optimizer, params, batch):
    state, step = optimizer.init(params), jax.jit(optimizer.step)
    for _ in range(3):
        params, state, info = step(params, state, batch, KEY)
    return params, state, info


def test_schedules_move_rate_damping_and_momentum(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 8)
    numbers = {"learning_rate": 0.2, "damping": 0.05, "momentum": 0.8}
    schedules = {name: lambda _, v=value: v for name, value in numbers.items()}
    expected, _, _ = three_steps(kfac(objective, **numbers, fisher="exact"), params, batch)
    found, _, _ = three_steps(kfac(objective, **schedules, fisher="exact"), params, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), found, expected)
    falling = kfac(objective, **numbers | {"damping": lambda t: 0.05 / (1 + t)}, fisher="exact")
    _, _, info = three_steps(falling, params, batch)
    assert info["damping"] == pytest.approx(0.05 / 3)


def test_weight_decay_is_decoupled(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 8)
    options = {"learning_rate": 0.2, "damping": 0.05, "momentum": 0.0, "fisher": "exact"}
    plain, _, _ = step_of(kfac(objective, **options), params, batch)
    decayed, _, _ = step_of(kfac(objective, **options, weight_decay=0.3), params, batch)
    jax.tree.map(
        lambda d, u, p: np.testing.assert_allclose(d, u - 0.2 * 0.3 * p, atol=1e-12),
        decayed,
        plain,
        params,
    )


def test_frozen_layers_stay_and_the_others_take_the_step_they_would_take(classifier, rng):
    objective, params = classifier((12, 5, 5, 4))
    batch = batch_of(rng, 8)
    options = {"learning_rate": 0.2, "damping": 0.05, "momentum": 0.0, "fisher": "exact"}
    whole, _, _ = step_of(kfac(objective, **options), params, batch)
    update, state, _ = step_of(kfac(objective, **options, frozen=["dense_1"]), params, batch)
    assert set(state.factors.inputs) == {"dense_0", "dense_2"}
    assert not np.any(update["dense_1"]["weight"])
    for name in ("dense_0", "dense_2"):
        np.testing.assert_allclose(update[name]["weight"], whole[name]["weight"], rtol=1e-9)
    with pytest.raises(ValueError, match="there is no layer 'dense_9' to freeze"):
        kfac(objective, **options, frozen=["dense_9"]).init(params)


@pytest.mark.parametrize("exact_damping", [False, True])
def test_a_long_axis_takes_the_diagonal_of_its_factor(classifier, rng, exact_damping, monkeypatch):
    objective, params = classifier((12, 5, 4))
    batch = batch_of(rng, 8)
    options = {"learning_rate": 1.0, "damping": 0.05, "momentum": 0.0, "fisher": "exact"}
    monkeypatch.setattr(kronecker, "LARGEST_FACTOR", 12)
    optimizer = kfac(objective, **options, exact_damping=exact_damping)
    update, state, _ = step_of(optimizer, params, batch)
    monkeypatch.undo()
    whole = exact_factors(objective, params, batch)
    a, g = np.diag(whole.inputs["dense_0"]), whole.outputs["dense_0"]
    assert state.factors.inputs["dense_0"].shape == (13,)
    gradient = stacked(jax.grad(objective)(params, batch)["dense_0"])
    if exact_damping:
        matrix = np.kron(np.diag(a), g) + 0.05 * np.eye(gradient.size)
        expected = -np.linalg.solve(matrix, gradient.ravel()).reshape(gradient.shape)
    else:
        pi = np.sqrt(a.mean() / (np.trace(g) / len(g)))
        root = np.sqrt(0.05)
        right = np.linalg.inv(g + root / pi * np.eye(len(g)))
        expected = -(gradient / (a + pi * root)[:, None]) @ right
    np.testing.assert_allclose(stacked(update["dense_0"]), expected, rtol=1e-9)


def test_a_vocabulary_of_fifty_thousand_needs_no_matrix_of_its_size():
    model = soaa_edu.models.decoder(50_000, width=8, heads=1, depth=1)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    optimizer = kfac(objective, learning_rate=0.1, damping=0.1)
    params = jax.eval_shape(model.init, KEY)
    tokens = jnp.zeros((2, 4), jnp.int32)
    state = jax.eval_shape(optimizer.init, params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) <= 8 * 50_000
    jax.eval_shape(optimizer.step, params, state, (tokens, tokens), KEY)


def test_a_batch_without_labels_or_finite_loss_changes_nothing(classifier, rng):
    objective, params = classifier()
    inputs, labels = batch_of(rng, 8)
    optimizer = kfac(objective, learning_rate=0.2, damping=0.05, fisher="exact")
    params, state, _ = three_steps(optimizer, params, (inputs, labels))
    for broken in ((inputs, jnp.full_like(labels, -1)), (inputs.at[0, 0].set(jnp.nan), labels)):
        moved, following, _ = jax.jit(optimizer.step)(params, state, broken, KEY)
        jax.tree.map(np.testing.assert_array_equal, (moved, following), (params, state))


def test_an_ordinary_loss_is_damped_by_gauss_newton(classifier, rng):
    objective, params = classifier()
    plain = soaa_edu.Objective(objective.model, lambda z, y: objective.loss(z, y))
    batch = batch_of(rng, 8)
    rule = soaa_edu.levenberg_marquardt(0.1)
    options = {"learning_rate": 1.0, "damping": rule, "fisher": "empirical"}
    found = three_steps(kfac(plain, **options), params, batch)[2]
    expected = three_steps(kfac(objective, **options), params, batch)[2]
    assert float(found["reduction_ratio"]) == pytest.approx(
        float(expected["reduction_ratio"]), rel=1e-8
    )


def forgetful(taps_of, inputs_of):
    def forward(params, inputs, taps):
        def layer(name, x):
            given = taps.get(name, 0) if name in taps_of else 0
            return x @ params[name]["weight"] + params[name]["bias"] + given

        hidden = layer("dense_0", inputs)
        seen = {"dense_0": inputs, "dense_1": jnp.tanh(hidden)}
        return layer("dense_1", jnp.tanh(hidden)), seen | inputs_of(inputs, hidden)

    return forward


def test_a_layer_that_is_declared_wrongly_is_named(classifier, rng):
    objective, params = classifier()
    batch = batch_of(rng, 8)
    both = ("dense_0", "dense_1")

    def with_forward(forward):
        model = soaa_edu.models.Model(None, forward, both)
        return soaa_edu.Objective(model, objective.loss)

    right = with_forward(forgetful(both, lambda x, h: {}))
    kronecker.check_model(right, params, batch)
    wrong_inputs = with_forward(forgetful(both, lambda x, h: {"dense_1": h}))
    with pytest.raises(ValueError, match="signals of the dense layer 'dense_1' don't make its"):
        kronecker.check_model(wrong_inputs, params, batch)
    untapped = with_forward(forgetful(("dense_0",), lambda x, h: {}))
    optimizer = kfac(untapped, learning_rate=0.1, damping=0.1)
    with pytest.raises(ValueError, match="the tap of the dense layer 'dense_1' changes nothing"):
        optimizer.step(params, optimizer.init(params), batch, KEY)
