import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.kronecker import check_model, run_forward
from soaa_edu.models import from_function, mlp

KEY = jax.random.key(0)
TABLE = {"dense_0": ("w1", "b1"), "dense_1": ("w2", "b2")}
TIED = r"layer 'dense_[01]' must be inputs @ weight \+ bias, once and outside of loops"


def plain(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def by_rows(params, x):
    hidden = jax.vmap(lambda row: jnp.tanh(params["b1"] + jnp.dot(row, params["w1"])))(x)
    return jnp.einsum("...i,io->...o", hidden, params["w2"]) + params["b2"][None]


def compiled(params, x):
    @jax.jit
    def layer(weight, bias, x):
        return x @ weight + bias

    hidden = jnp.tanh(jax.checkpoint(layer)(params["w1"], params["b1"], x))
    return layer(params["w2"], params["b2"], hidden)


def init(key):
    one, two = jax.random.split(key)
    return {
        "w1": jax.random.normal(one, (6, 5)) / 2,
        "b1": jnp.zeros(5),
        "w2": jax.random.normal(two, (5, 3)) / 2,
        "b2": jnp.zeros(3),
    }


def random_like(model, rng):
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes)


def batch_of(rng, shape=(8, 6)):
    return jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.integers(3, size=shape[:-1]))


def kfac_step(model, params, batch, **options):
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    options = {"learning_rate": 0.5, "damping": 0.1, "fisher": "exact"} | options
    optimizer = soaa_edu.kfac(objective, **options)
    after, state, info = jax.jit(optimizer.step)(params, optimizer.init(params), batch, KEY)
    return after, state, info


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), found, expected
    )


@pytest.mark.parametrize("apply", [plain, by_rows, compiled])
@pytest.mark.parametrize("shape", [(8, 6), (4, 7, 6)], ids=["rows", "positions"])
def test_kfac_takes_the_step_that_it_takes_on_an_mlp(float64, rng, apply, shape):
    if apply is by_rows and len(shape) > 2:
        shape = (8, 6)
    model, own = from_function(apply, init, TABLE), mlp([6, 5, 3], jnp.tanh)
    params, batch = random_like(own, rng), batch_of(rng, shape)
    assert model.dense_layers == own.dense_layers
    check_model(soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy), params, batch)
    assert_close(kfac_step(model, params, batch), kfac_step(own, params, batch))


def nested(params, x):
    first, head = params["layers"]
    hidden = (x @ first[0] + first[1]) * params["gain"]
    return jnp.tanh(hidden) @ head[0]


def init_nested(key):
    tree = init(key)
    return {
        "layers": [(tree["w1"], tree["b1"]), (tree["w2"],)],
        "gain": jnp.full(5, 1.5),
    }


def test_its_parameters_go_there_and_back(rng):
    table = {"first": ("layers/0/0", "layers/0/1"), "head": ("layers/1/0", None)}
    model = from_function(nested, init_nested, table)
    params = model.init(KEY)
    assert jax.tree.map(jnp.shape, params) == {
        "gain": {"array": (5,)},
        "first": {"weight": (6, 5), "bias": (5,)},
        "head": {"weight": (5, 3)},
    }
    tree = model.export(params)
    assert jax.tree.structure(tree) == jax.tree.structure(init_nested(KEY))
    jax.tree.map(np.testing.assert_array_equal, tree, init_nested(KEY))
    jax.tree.map(np.testing.assert_array_equal, model.adopt(tree), params)
    inputs, _ = batch_of(rng)
    np.testing.assert_allclose(model(params, inputs), nested(tree, inputs), rtol=1e-6)


def test_an_array_outside_the_table_has_the_gradient_of_every_example(float64, rng):
    table = {"first": ("layers/0/0", "layers/0/1"), "head": ("layers/1/0", None)}
    model = from_function(nested, init_nested, table)
    params, (inputs, labels) = random_like(model, rng), batch_of(rng)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)

    @jax.jit
    def both(params):
        signals = run_forward(model, params, inputs)
        _, found = signals.pull(jax.grad(objective.loss)(signals.outputs, labels))
        alone = jax.vmap(
            lambda x, y: jax.grad(objective)(params, (x[None], y[None]))["gain"]["array"]
        )
        return found["gain"]["array"], alone(inputs, labels) / len(labels)

    assert_close(*both(params))


def test_it_trains_by_kfac_and_by_a_gradient_method(rng):
    table = {"first": ("layers/0/0", "layers/0/1"), "head": ("layers/1/0", None)}
    model = from_function(nested, init_nested, table)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    inputs = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    batch = inputs, jnp.argmax(inputs[:, :3], axis=1)
    for optimizer in (
        soaa_edu.kfac(objective, learning_rate=0.3, damping=0.03),
        soaa_edu.first_order(objective, soaa_edu.soap(0.05)),
    ):
        params, step = model.init(KEY), jax.jit(optimizer.step)
        state, losses = optimizer.init(params), []
        for i in range(20):
            params, state, info = step(params, state, batch, jax.random.key(i))
            losses.append(float(info["loss"]))
        assert losses[-1] < 0.4 * losses[0]
        assert not np.allclose(params["gain"]["array"], 1.5)


def test_a_narrow_product_is_tapped_in_its_own_type(rng):
    def narrow(params, x):
        return x.astype(jnp.bfloat16) @ params["w1"].astype(jnp.bfloat16) + params["b1"]

    model = from_function(
        narrow, lambda key: {n: init(key)[n] for n in ("w1", "b1")}, {"dense_0": ("w1", "b1")}
    )
    inputs, _ = batch_of(rng)
    inputs, params = inputs.astype(jnp.float32), model.init(KEY)
    outputs, seen = model.forward(params, inputs, {"dense_0": jnp.ones((8, 5))})
    assert seen["dense_0"].dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs, inputs @ params["dense_0"]["weight"] + 1, atol=0.05)


@pytest.mark.parametrize(
    ("apply", "use"),
    [
        (
            lambda p, x: plain(p, x) + jnp.sum(p["w1"] ** 2),
            "weight meets integer_pow|weight meets square",
        ),
        (lambda p, x: plain(p, x @ p["w1"] @ p["w1"].T), "weight meets transpose"),
        (lambda p, x: plain(p, (x @ p["w1"] + p["b1"])[:, :1] + x), "weight meets dot_general"),
        (lambda p, x: plain(p | {"w1": p["w1"] * 2.0}, x), "weight meets mul"),
        (lambda p, x: (x @ p["w1"] + 2 * p["b1"]) @ p["w2"] + p["b2"], "bias meets mul"),
        (lambda p, x: (x @ p["w1"] - p["b1"]) @ p["w2"] + p["b2"], "meets sub"),
        (lambda p, x: jnp.tanh(x @ p["w1"]) @ p["w2"] + p["b2"] + p["b1"][0], "product meets tanh"),
        (
            lambda p, x: jax.lax.scan(lambda x, _: (x + plain(p, x)[:, :1], None), x, None, 2)[0],
            "meets scan",
        ),
        (lambda p, x: (plain(p, x), p["b1"])[1] + x[:, :5], "bias meets add"),
        (lambda p, x: x[:, :5] @ p["w2"] + p["b2"], "weight is never used"),
        (lambda p, x: (plain(p, x), p["w1"]), "weight is among the outputs"),
    ],
)
def test_another_use_is_refused_by_name(apply, use):
    model = from_function(apply, init, TABLE)
    with pytest.raises(ValueError, match=f"({TIED}).*({use}).*leave it out of the table"):
        jax.eval_shape(model.forward, jax.eval_shape(model.init, KEY), jnp.ones((2, 6)), {})


def test_a_tied_weight_that_is_left_out_takes_a_diagonal(float64, rng):
    def tied(params, x):
        return plain(params, jnp.tanh(x @ params["w1"]) @ params["w1"].T)

    with pytest.raises(ValueError, match="leave it out of the table"):
        jax.eval_shape(
            from_function(tied, init, TABLE), random_like(mlp([6, 5, 3]), rng), jnp.ones((2, 6))
        )
    model = from_function(tied, init, {"dense_1": ("w2", "b2")})
    params = random_like(model, rng)
    _, state, _ = kfac_step(model, params, batch_of(rng))
    assert state.factors.diagonal["w1"]["array"].shape == (6, 5)
    assert set(state.factors.inputs) == {"dense_1"}


def test_examples_that_leave_the_first_axis_are_refused():
    model = from_function(lambda p, x: plain(p, x.reshape(-1, 6)).reshape(2, 4, 3), init, TABLE)
    with pytest.raises(ValueError, match=r"dense_0 is given inputs of shape \(8, 6\)"):
        jax.eval_shape(model, jax.eval_shape(model.init, KEY), jnp.ones((2, 4, 6)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "one dense layer at least"),
        (
            {"a": ("w9", None)},
            "no array 'w9' for the weight of the dense layer 'a': take one of b1",
        ),
        ({"a": ("w1", "b9")}, "no array 'b9' for the bias"),
        ({"a": ("w1", "b2")}, r"bias of the dense layer 'a' must have the shape \(5,\)"),
        ({"a": ("b1", None)}, r"weight of the dense layer 'a' must be a matrix"),
        ({"a": ("w1", None), "b": ("w1", None)}, "'w1' belongs to the dense layers 'a' and 'b'"),
        ({"b2": ("w1", "b1")}, "'b2' of a dense layer is the path of an array"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        from_function(plain, init, table)
