from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu import ekfac, kfac, kronecker, levenberg_marquardt
from soaa_edu.curvature import dense, fisher_matvec
from soaa_edu.kronecker import factors, in_bases, run_forward, second_moments
from soaa_edu.studies.poster.kronecker_products import block

KEY = jax.random.key(0)
ROWS, CLASSES = 20, 3
SIZES = (6, 4, CLASSES)


def batch_of(rng, rows=ROWS, width=SIZES[0]):
    return jnp.asarray(rng.normal(size=(rows, width))), jnp.asarray(
        rng.integers(CLASSES, size=rows)
    )


def stacked(layer):
    return np.concatenate([layer["weight"], np.asarray(layer["bias"])[None]])


def step_of(optimizer, params, batch):
    after, state, info = jax.jit(optimizer.step)(params, optimizer.init(params), batch, KEY)
    return jax.tree.map(lambda a, b: np.asarray(a - b), after, params), state, info


@partial(jax.jit, static_argnums=0)
def gradients_of_examples(objective, params, inputs, labels):
    def alone(row, label):
        return jax.grad(objective)(params, (row[None], label[None]))

    found = jax.vmap(alone)(inputs, labels)
    return {
        name: jnp.concatenate([layer["weight"], layer["bias"][:, None]], axis=1)
        for name, layer in found.items()
    }


def all_gradients(objective, params, batch):
    """Of every example with every label, and how likely the pair is."""
    inputs, _ = batch
    probabilities = jax.nn.softmax(objective.model(params, inputs)) / len(inputs)
    rows = jnp.repeat(inputs, CLASSES, axis=0)
    labels = jnp.tile(jnp.arange(CLASSES), len(inputs))
    found = gradients_of_examples(objective, params, rows, labels)
    return jax.tree.map(np.asarray, (found, probabilities.ravel()))


def mean_square(gradients, weights, u, v):
    return np.einsum("n,nij->ij", weights, (u.T @ gradients @ v) ** 2)


@partial(jax.jit, static_argnames=("objective", "fisher"))
def found_by_library(objective, params, batch, fisher, key=None):
    """The factors, their eigenvectors, S and the gradient in them."""
    options = {"fisher": fisher, "key": key}
    signals = run_forward(objective.model, params, batch[0])
    found = factors(objective, signals, batch[1], **options)
    bases = {
        name: (jnp.linalg.eigh(found.inputs[name])[1], jnp.linalg.eigh(found.outputs[name])[1])
        for name in found.inputs
    }
    seen = in_bases(signals, bases)
    gradient, _ = seen.pull(jax.grad(objective.loss)(seen.outputs, batch[1]))
    return found, bases, second_moments(objective, seen, batch[1], **options), gradient


def test_s_is_the_mean_square_of_the_examples_turned_gradients(classifier, rng):
    objective, params = classifier(SIZES)
    batch = batch_of(rng)
    of_given = gradients_of_examples(objective, params, *batch), np.full(ROWS, 1 / ROWS)
    expected = {"empirical": of_given, "exact": all_gradients(objective, params, batch)}
    for fisher, (gradients, weights) in expected.items():
        _, bases, moments, gradient = found_by_library(objective, params, batch, fisher)
        for name, (u, v) in bases.items():
            np.testing.assert_allclose(
                moments[name], mean_square(gradients[name], weights, u, v), atol=1e-15
            )
            mean = np.mean(of_given[0][name], axis=0)
            np.testing.assert_allclose(gradient[name], u.T @ mean @ v, atol=1e-14)


def test_sampled_it_is_s_of_the_factors_own_draw(classifier, rng):
    objective, params = classifier(SIZES)
    inputs, labels = batch_of(rng)
    drawn = objective.loss.sample(KEY, objective.model(params, inputs), labels)
    found = found_by_library(objective, params, (inputs, labels), "sampled", KEY)
    expected = found_by_library(objective, params, (inputs, drawn), "empirical")
    for name in params:
        np.testing.assert_allclose(found[0].outputs[name], expected[0].outputs[name], atol=1e-14)
        np.testing.assert_allclose(found[2][name], expected[2][name], atol=1e-14)


@pytest.mark.parametrize("rows", [2, 40])
def test_it_is_nearer_to_the_fisher_block_than_kfac(classifier, rng, rows):
    objective, params = classifier(SIZES)
    batch = batch_of(rng, rows)
    fisher = np.asarray(dense(fisher_matvec(objective, params, batch), params))
    found, bases, moments, _ = found_by_library(objective, params, batch, "exact")
    for name in params:
        of_layer = block(fisher, params, name)
        basis = np.kron(*bases[name])
        diagonal = np.diag(basis.T @ of_layer @ basis)
        np.testing.assert_allclose(moments[name].ravel(), diagonal, atol=1e-14)
        by_kfac = np.linalg.norm(of_layer - np.kron(found.inputs[name], found.outputs[name]))
        by_ekfac = np.linalg.norm(of_layer - (basis * diagonal) @ basis.T)
        assert by_ekfac < 0.999 * by_kfac


def test_where_a_block_is_a_kronecker_product_it_takes_kfacs_step(classifier, rng):
    cases = [
        (classifier(SIZES), batch_of(rng, 1)),
        (
            classifier((5, 4, 3), lambda s: s, soaa_edu.squared_error),
            (jnp.asarray(rng.normal(size=(ROWS, 5))), jnp.asarray(rng.normal(size=(ROWS, 3)))),
        ),
    ]
    for (objective, params), batch in cases:
        options = {"learning_rate": 0.5, "damping": 0.03, "fisher": "exact"}
        found, state, _ = step_of(ekfac(objective, **options), params, batch)
        expected, of_kfac, _ = step_of(
            kfac(objective, **options, exact_damping=True), params, batch
        )
        for name in params:
            np.testing.assert_allclose(stacked(found[name]), stacked(expected[name]), rtol=1e-9)
            (a, _), (g, _) = of_kfac.inverses[name]
            np.testing.assert_allclose(
                state.second_moments[name] / 0.05, np.outer(a, g), atol=1e-12
            )


def test_in_general_it_takes_another_step_than_kfac(classifier, rng):
    objective, params = classifier(SIZES)
    batch = batch_of(rng)
    options = {"learning_rate": 0.5, "damping": 0.03, "fisher": "exact"}
    found, _, _ = step_of(ekfac(objective, **options), params, batch)
    expected, _, _ = step_of(kfac(objective, **options, exact_damping=True), params, batch)
    apart = optax.tree.norm(optax.tree.sub(found, expected)) / optax.tree.norm(expected)
    assert apart > 0.02


def test_it_is_the_algorithm_of_the_paper(classifier, rng):
    objective, params = classifier(SIZES)
    optimizer = ekfac(
        objective,
        learning_rate=0.2,
        damping=0.05,
        momentum=0.8,
        decay=0.7,
        update_every=2,
        refresh_every=3,
        fisher="exact",
        weight_decay=0.01,
    )
    state, step = optimizer.init(params), jax.jit(optimizer.step)
    moment_weight = 0.0
    a, g, bases, scales, velocity = {}, {}, {}, {}, dict.fromkeys(params, 0.0)
    for t in range(7):
        batch = batch_of(rng)
        gradient = jax.grad(objective)(params, batch)
        of_pairs, weights = all_gradients(objective, params, batch)
        rows = np.hstack([batch[0], np.ones((ROWS, 1))])
        hidden = np.tanh(rows @ stacked(params["dense_0"]))
        inputs = {"dense_0": rows, "dense_1": np.hstack([hidden, np.ones((ROWS, 1))])}
        moment_weight = 0.7 * moment_weight + 0.3
        expected = {}
        for name, pairs in of_pairs.items():
            if t % 2 == 0:
                new_a = inputs[name].T @ inputs[name] / ROWS
                signals = pairs[:, -1]
                new_g = np.einsum("n,ni,nj->ij", weights, signals, signals)
                a[name] = 0.7 * a.get(name, 0) + 0.3 * new_a
                g[name] = 0.7 * g.get(name, 0) + 0.3 * new_g
            if t % 3 == 0:
                old, u, v = bases.get(name), *(np.linalg.eigh(f[name])[1] for f in (a, g))
                bases[name] = np.kron(u, v)
                if old is not None:
                    matrix = (old * scales[name]) @ old.T
                    scales[name] = np.diag(bases[name].T @ matrix @ bases[name])
            turned = pairs.reshape(len(pairs), -1) @ bases[name]
            scales[name] = 0.7 * scales.get(name, 0) + 0.3 * weights @ turned**2
            basis, curvature = bases[name], scales[name] / moment_weight + 0.05
            flat = basis @ ((basis.T @ stacked(gradient[name]).ravel()) / curvature)
            decayed = flat.reshape(pairs.shape[1:]) + 0.01 * stacked(params[name])
            velocity[name] = 0.8 * velocity[name] - 0.2 * decayed
            expected[name] = stacked(params[name]) + velocity[name]
        params, state, info = step(params, state, batch, KEY)
        for name in params:
            np.testing.assert_allclose(stacked(params[name]), expected[name], atol=1e-9)
    assert float(info["damping"]) == pytest.approx(0.05)


def test_positions_that_don_t_mix_are_rows_of_their_own(float64, rng):
    model = soaa_edu.models.mlp(SIZES, jnp.tanh)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = jax.tree.map(lambda p: p + 0.1, model.init(KEY))
    inputs, labels = batch_of(rng, 24)
    labels = labels.at[5].set(-1)
    in_rows = inputs.reshape(2, 3, 4, -1), labels.reshape(2, 3, 4)
    optimizer = ekfac(objective, learning_rate=0.5, damping=0.03, fisher="empirical")
    found, expected = (
        step_of(optimizer, params, batch)[0] for batch in (in_rows, (inputs, labels))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found, expected)


@pytest.mark.parametrize("sharing", kronecker.SHARINGS)
def test_whole_numbers_stand_for_one_hot_rows(float64, rng, sharing):
    def layers(params, inputs, taps):
        table = params["tokens"]["weight"]
        ids = jnp.issubdtype(inputs.dtype, jnp.integer)
        embedded = table[inputs] if ids else inputs @ table
        hidden = jnp.tanh(embedded + taps.get("tokens", 0))
        outputs = hidden @ params["last"]["weight"] + taps.get("last", 0)
        return outputs, {"tokens": inputs, "last": hidden}

    weights = {"tokens": rng.normal(size=(7, 4)), "last": rng.normal(size=(4, CLASSES))}
    params = {name: {"weight": jnp.asarray(w)} for name, w in weights.items()}
    ids = jnp.asarray(rng.integers(7, size=(5, 3)))
    labels = jnp.asarray(rng.integers(CLASSES, size=(5, 3))).at[2].set(-1)
    found = []
    for inputs, embeddings in ((ids, ("tokens",)), (jax.nn.one_hot(ids, 7), ())):
        model = soaa_edu.models.Model(None, layers, tuple(params), embeddings=embeddings)
        objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
        optimizer = ekfac(
            objective, learning_rate=0.5, damping=0.03, fisher="empirical", sharing=sharing
        )
        found.append(step_of(optimizer, params, (inputs, labels))[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12), *found)


def test_a_long_axis_takes_the_diagonal_of_its_factor(classifier, rng, monkeypatch):
    objective, params = classifier(SIZES)
    batch = batch_of(rng)
    monkeypatch.setattr(kronecker, "LARGEST_FACTOR", SIZES[0])
    optimizer = ekfac(objective, learning_rate=1.0, damping=0.05, fisher="exact")
    update, state, _ = step_of(optimizer, params, batch)
    monkeypatch.undo()
    assert state.factors.inputs["dense_0"].shape == (7,)
    assert state.bases["dense_0"][0] is None
    gradients, weights = all_gradients(objective, params, batch)
    v = np.asarray(state.bases["dense_0"][1])
    curvature = mean_square(gradients["dense_0"], weights, np.eye(7), v) + 0.05
    gradient = stacked(jax.grad(objective)(params, batch)["dense_0"])
    np.testing.assert_allclose(
        stacked(update["dense_0"]), -(gradient @ v / curvature) @ v.T, rtol=1e-9
    )


def test_a_vocabulary_of_fifty_thousand_needs_no_matrix_of_its_size():
    model = soaa_edu.models.decoder(50_000, width=8, heads=1, depth=1)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    optimizer = ekfac(objective, learning_rate=0.1, damping=0.1)
    params = jax.eval_shape(model.init, KEY)
    tokens = jnp.zeros((2, 4), jnp.int32)
    state = jax.eval_shape(optimizer.init, params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) <= 8 * 50_000
    jax.eval_shape(optimizer.step, params, state, (tokens, tokens), KEY)


def test_frozen_layers_stay_and_clipping_bounds_the_divergence(classifier, rng):
    objective, params = classifier(SIZES)
    batch = batch_of(rng)
    options = {"learning_rate": 0.2, "damping": 0.05, "fisher": "exact"}
    whole, _, _ = step_of(ekfac(objective, **options), params, batch)
    update, state, _ = step_of(ekfac(objective, **options, frozen=["dense_0"]), params, batch)
    assert set(state.second_moments) == {"dense_1"}
    assert not np.any(update["dense_0"]["weight"])
    np.testing.assert_allclose(update["dense_1"]["weight"], whole["dense_1"]["weight"], rtol=1e-9)
    clipped, _, _ = step_of(ekfac(objective, **options, kl_clip=1e-4), params, batch)
    along = -0.2 * float(optax.tree.vdot(whole, jax.grad(objective)(params, batch)))
    shorter = float(optax.tree.norm(clipped) / optax.tree.norm(whole))
    assert along * shorter**2 == pytest.approx(1e-4, rel=1e-6)


def test_a_quadratic_keeps_its_promise_and_loses_its_damping(classifier, rng):
    objective, params = classifier((6, 3), loss=soaa_edu.squared_error)
    batch = (jnp.asarray(rng.normal(size=(20, 6))), jnp.asarray(rng.normal(size=(20, 3))))
    optimizer = ekfac(
        objective, learning_rate=1.0, damping=levenberg_marquardt(0.1), fisher="exact"
    )
    _, state, info = step_of(optimizer, params, batch)
    assert float(info["reduction_ratio"]) == pytest.approx(1, rel=1e-8)
    assert float(state.damping) == pytest.approx(0.1 * 2 / 3)


def test_a_vision_transformer_learns(digits):
    model = soaa_edu.models.vit(width=8, heads=2, depth=1, patch=14)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    few = soaa_edu.data.Dataset(train=jax.tree.map(lambda array: array[:512], digits.train))
    history = soaa_edu.train(
        ekfac(objective, learning_rate=0.05, damping=0.03, kl_clip=1e-2, fisher="empirical"),
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
        ({"decay": 1.0}, "decay must be a number of zero or more and below one"),
        ({"update_every": 0}, "update_every must be a whole number"),
        ({"refresh_every": 2.5}, "refresh_every must be a whole number"),
        ({"fisher": "true"}, "fisher must be one of"),
        ({"sharing": "sum"}, "sharing must be one of"),
    ],
)
def test_bad_arguments_are_named(classifier, options, message):
    objective, _ = classifier()
    with pytest.raises(ValueError, match=message):
        ekfac(objective, **{"learning_rate": 0.1, "damping": 0.1, **options})


def test_a_model_without_declared_layers_is_refused():
    plain = soaa_edu.Objective(lambda params, x: x, soaa_edu.squared_error)
    with pytest.raises(TypeError, match="declares its dense layers"):
        ekfac(plain, learning_rate=0.1, damping=0.1)
