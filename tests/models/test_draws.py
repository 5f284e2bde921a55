from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu.kronecker import check_model, run_forward
from soaa_edu.models import Keyed, from_equinox, from_linen, from_nnx

KEY = jax.random.key(0)
RULE = soaa_edu.levenberg_marquardt(1.0)


def from_library_linen(norm, train):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            hidden = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))
            return nn.Dense(3)(nn.LayerNorm()(hidden) if norm else hidden)

    return from_linen(Net(), jnp.ones((1, 6)), train=train)


def from_library_nnx(norm, train):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.norm = nnx.LayerNorm(8, rngs=rngs) if norm else None
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            hidden = self.dropout(self.first(x))
            return self.head(self.norm(hidden) if norm else hidden)

    def make(key):
        net = Net(nnx.Rngs(key))
        if not train:
            net.eval()
        return net

    return from_nnx(make)


def from_library_equinox(norm, train):
    eqx = pytest.importorskip("equinox")

    def make(key):
        first, head = jax.random.split(key)
        norms = [eqx.nn.LayerNorm(8)] if norm else []
        net = eqx.nn.Sequential(
            [
                eqx.nn.Linear(6, 8, key=first),
                eqx.nn.Dropout(0.5),
                *norms,
                eqx.nn.Linear(8, 3, key=head),
            ]
        )
        return net if train else eqx.nn.inference_mode(net)

    return from_equinox(make)


BUILD = {
    "linen": from_library_linen,
    "nnx": from_library_nnx,
    "equinox": from_library_equinox,
}


@pytest.fixture(params=BUILD)
def build(request, float64):
    return BUILD[request.param]


def problem(build, rng, norm=True, loss=soaa_edu.softmax_cross_entropy):
    """An objective with dropout, its parameters in float64, and a batch without keys."""
    model = build(norm, train=True)
    params = jax.tree.map(lambda p: p.astype(float), model.init(KEY))
    targets = rng.integers(3, size=12)
    if loss is soaa_edu.squared_error:
        targets = rng.normal(size=(12, 3))
    return (
        soaa_edu.Objective(model, loss),
        params,
        (jnp.asarray(rng.normal(size=(12, 6))), jnp.asarray(targets)),
    )


def keyed(inputs, key=KEY):
    return Keyed(inputs, jax.random.split(key, len(inputs)))


def step_of(optimizer, params, batch, key=KEY):
    return jax.jit(optimizer.step)(params, optimizer.init(params), batch, key)


def test_every_example_draws_its_own_mask_and_the_same_keys_draw_the_same(build, rng):
    objective, params, (inputs, _) = problem(build, rng)
    rows = jnp.broadcast_to(inputs[0], (64, 6))
    forward = jax.jit(objective.model.forward)
    outputs, layer_inputs = forward(params, keyed(rows), {})
    assert len(np.unique(outputs, axis=0)) > 32
    np.testing.assert_array_equal(outputs, forward(params, keyed(rows), {})[0])
    last = objective.model.dense_layers[-1]
    seen = layer_inputs[last] @ params[last]["weight"] + params[last]["bias"]
    np.testing.assert_allclose(outputs, seen, rtol=1e-9)
    other, _ = forward(params, keyed(rows, jax.random.key(1)), {})
    assert np.mean(np.all(outputs == other, axis=1)) < 0.1


def test_the_signals_make_the_gradient_under_the_same_masks(build, rng):
    objective, params, (inputs, labels) = problem(build, rng)
    batch = keyed(inputs), labels
    check_model(objective, params, batch)
    signals = run_forward(objective.model, params, batch[0])
    gradient, _ = signals.pull(jax.grad(objective.loss)(signals.outputs, labels))
    expected = jax.grad(objective)(params, batch)
    for name, layer in expected.items():
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), gradient[name], layer)


def test_the_masks_of_a_network_without_norm_keep_half_of_the_units_and_double_them(build, rng):
    objective, params, (inputs, _) = problem(build, rng, norm=False)
    first, head = objective.model.dense_layers
    _, layer_inputs = objective.model.forward(params, keyed(inputs), {})
    hidden = inputs @ params[first]["weight"] + params[first]["bias"]
    kept = layer_inputs[head] != 0
    np.testing.assert_allclose(layer_inputs[head], jnp.where(kept, 2 * hidden, 0))
    assert 0.3 < kept.mean() < 0.7


@pytest.mark.parametrize("method", ["kfac", "hessian_free"])
def test_curvature_and_the_loss_after_the_step_see_the_masks_of_the_gradient(build, rng, method):
    objective, params, batch = problem(build, rng, norm=False, loss=soaa_edu.squared_error)
    optimizer = {
        "kfac": partial(
            soaa_edu.kfac,
            learning_rate=1.0,
            fisher="exact",
            frozen=objective.model.dense_layers[:1],
        ),
        "hessian_free": partial(soaa_edu.hessian_free, learning_rate=1e-4),
    }[method](objective, damping=RULE)
    _, _, info = step_of(soaa_edu.with_dropout(optimizer), params, batch)
    assert float(info["reduction_ratio"]) == pytest.approx(1, rel=1e-3)


def test_each_step_draws_anew(build, rng):
    objective, params, batch = problem(build, rng)
    optimizer = soaa_edu.with_dropout(
        soaa_edu.kfac(objective, learning_rate=0.1, damping=0.1, fisher="empirical")
    )
    first, again, other = (step_of(optimizer, params, batch, jax.random.key(k)) for k in (0, 0, 1))
    assert first[2]["loss"] == again[2]["loss"] != other[2]["loss"]


def test_micro_batches_keep_the_masks(build, rng):
    objective, params, batch = problem(build, rng)
    whole, parted = (
        soaa_edu.kfac(
            objective, learning_rate=0.1, damping=RULE, fisher="exact", micro_batches=count
        )
        for count in (1, 3)
    )
    expected, found = (
        step_of(soaa_edu.with_dropout(optimizer), params, batch) for optimizer in (whole, parted)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), found[::2], expected[::2])


@pytest.mark.parametrize("method", ["kfac", "adam"])
def test_it_trains_and_is_evaluated_without_dropout(build, rng, method):
    inputs = rng.normal(size=(256, 6))
    labels = np.argmax(inputs[:, :3], axis=1)
    objective, quiet = (
        soaa_edu.Objective(build(True, train=train), soaa_edu.softmax_cross_entropy)
        for train in (True, False)
    )
    if method == "kfac":
        optimizer = soaa_edu.kfac(objective, learning_rate=0.1, damping=0.1)
    else:
        optimizer = soaa_edu.first_order(objective, optax.adam(0.02))
    history = soaa_edu.train(
        soaa_edu.with_dropout(optimizer, quiet),
        objective.model.init(KEY),
        soaa_edu.data.Dataset((inputs, labels), (inputs, labels)),
        epochs=4,
        batch_size=32,
        key=KEY,
        progress=False,
    )
    assert history.test_loss[-1] < 0.7 * history.loss[0]
    np.testing.assert_allclose(history.test_loss[-1], quiet(history.params, (inputs, labels)))


REMEDIES = {
    "linen": "give it deterministic=True",
    "nnx": r"have make call module\.eval\(\)",
    "equinox": r"equinox\.nn\.inference_mode",
}


@pytest.mark.parametrize("library", BUILD)
def test_dropout_without_keys_is_refused_until_evaluation(library):
    inputs = jnp.ones((2, 6))
    model = BUILD[library](norm=True, train=True)
    with pytest.raises(ValueError, match=rf"with_dropout\(optimizer\), or .*{REMEDIES[library]}"):
        model(model.init(KEY), inputs)
    evaluated = BUILD[library](norm=True, train=False)
    params = evaluated.init(KEY)
    np.testing.assert_array_equal(evaluated(params, inputs), evaluated(params, keyed(inputs)))
