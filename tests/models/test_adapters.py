import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.kronecker import check_model, factors, run_forward
from soaa_edu.models import from_equinox, from_function, from_linen, from_nnx, mlp

KEY = jax.random.key(0)
MLP_NAMES = {
    "linen": ("Dense_0", "Dense_1"),
    "nnx": ("layers.0", "layers.1"),
    "equinox": ("layers.0", "layers.1"),
}
every_library = pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def dtype(request):
    """A type, in a JAX that has it as its own."""
    with jax.enable_x64(request.param == jnp.float64):
        yield request.param


def linen(build, inputs, **options):
    """The model of a module whose compact call is ``build(nn, x)``."""
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, **options):
            return build(nn, x, **options)

    return from_linen(Net(), inputs, **options)


def nnx(layers, call):
    """The model of a module of ``layers(nnx, rngs)``, whose call is ``call(self, x)``."""
    library = pytest.importorskip("flax.nnx")

    class Net(library.Module):
        def __init__(self, rngs):
            for name, layer in layers(library, rngs).items():
                setattr(self, name, layer)

        def __call__(self, x):
            return call(self, x)

    return from_nnx(lambda key: Net(library.Rngs(key)))


def equinox(layers, call):
    """The model of a module of ``layers(nn, keys)``, whose call is ``call(self, x)``."""
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layers: dict

        def __call__(self, x):
            return call(self.layers, x)

    return from_equinox(lambda key: Net(layers(eqx.nn, iter(jax.random.split(key, 9)))))


def adapted_mlp(library):
    if library == "linen":

        def build(nn, x):
            hidden = jnp.tanh(nn.Dense(5)(x))
            return nn.Dense(3)(hidden)

        return linen(build, jnp.ones((2, 6)))
    if library == "nnx":
        return nnx(
            lambda nnx, rngs: {
                "layers": nnx.List([nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)])
            },
            lambda net, x: net.layers[1](jnp.tanh(net.layers[0](x))),
        )
    eqx = pytest.importorskip("equinox")
    return from_equinox(lambda key: eqx.nn.MLP(6, 3, 5, 1, activation=jnp.tanh, key=key))


def normalised(library):
    """A network with a layer norm between two dense layers."""
    if library == "linen":
        return linen(
            lambda nn, x: nn.Dense(3)(jnp.tanh(nn.LayerNorm()(nn.Dense(5)(x)))), jnp.ones((2, 6))
        )
    if library == "nnx":
        return nnx(
            lambda nnx, rngs: {
                "first": nnx.Linear(6, 5, rngs=rngs),
                "norm": nnx.LayerNorm(5, rngs=rngs),
                "head": nnx.Linear(5, 3, rngs=rngs),
            },
            lambda net, x: net.head(jnp.tanh(net.norm(net.first(x)))),
        )
    return equinox(
        lambda nn, keys: {
            "first": nn.Linear(6, 5, key=next(keys)),
            "norm": nn.LayerNorm(5),
            "head": nn.Linear(5, 3, key=next(keys)),
        },
        lambda net, x: net["head"](jnp.tanh(net["norm"](net["first"](x)))),
    )


def used_twice(library):
    if library == "linen":

        def build(nn, x):
            square = nn.Dense(4, name="square")
            return square(jnp.tanh(square(x)))

        return linen(build, jnp.ones((2, 4)))
    if library == "nnx":
        return nnx(
            lambda nnx, rngs: {"square": nnx.Linear(4, 4, rngs=rngs)},
            lambda net, x: net.square(jnp.tanh(net.square(x))),
        )
    return equinox(
        lambda nn, keys: {"square": nn.Linear(4, 4, key=next(keys))},
        lambda net, x: net["square"](jnp.tanh(net["square"](x))),
    )


def shared_over_positions(library):
    """Two dense layers on each of the positions of a sequence."""
    if library != "equinox":
        return adapted_mlp(library)
    return equinox(
        lambda nn, keys: {
            "first": nn.Linear(6, 5, key=next(keys)),
            "head": nn.Linear(5, 3, key=next(keys)),
        },
        lambda net, x: jax.vmap(net["head"])(jnp.tanh(jax.vmap(net["first"], in_axes=1)(x.T))),
    )


def random_params(model, rng, dtype):
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), dtype), shapes)


def as_mlp(model, params):
    """The library's own perceptron with the same weights: (model, params, names)."""
    names = dict(zip(("dense_0", "dense_1"), model.dense_layers, strict=True))
    return mlp([6, 5, 3], jnp.tanh), {own: params[n] for own, n in names.items()}, names


def first_call(model, shape):
    return jax.eval_shape(model.forward, jax.eval_shape(model.init, KEY), jnp.ones(shape), {})


def batch_of(rng, dtype, shape=(8, 6)):
    inputs = jnp.asarray(rng.normal(size=shape), dtype)
    return inputs, jnp.asarray(rng.integers(3, size=shape[:-1]))


def renamed(tree, names):
    return {own: tree[name] for own, name in names.items()}


def assert_close(found, expected, dtype):
    rtol, atol = (1e-11, 1e-12) if dtype == jnp.float64 else (2e-4, 1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@every_library
def test_a_dense_layer_has_a_weight_in_by_out_and_a_bias(library):
    model = adapted_mlp(library)
    first, second = MLP_NAMES[library]
    assert model.dense_layers == (first, second)
    assert jax.tree.map(jnp.shape, jax.eval_shape(model.init, KEY)) == {
        first: {"weight": (6, 5), "bias": (5,)},
        second: {"weight": (5, 3), "bias": (3,)},
    }


@every_library
def test_weights_start_as_the_library_starts_them(library):
    model = adapted_mlp(library)
    params = model.init(KEY)
    first, second = MLP_NAMES[library]
    if library == "equinox":
        eqx = pytest.importorskip("equinox")
        own = eqx.nn.MLP(6, 3, 5, 1, activation=jnp.tanh, key=KEY).layers
        expected = [layer.weight.T for layer in own]
    elif library == "nnx":
        library = pytest.importorskip("flax.nnx")
        rngs = library.Rngs(KEY)
        expected = [library.Linear(*size, rngs=rngs).kernel[...] for size in ((6, 5), (5, 3))]
    else:
        nn = pytest.importorskip("flax.linen")

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                hidden = nn.Dense(5)(x)
                return nn.Dense(3)(hidden)

        own = Net().init(KEY, jnp.ones((2, 6)))["params"]
        expected = [own["Dense_0"]["kernel"], own["Dense_1"]["kernel"]]
    np.testing.assert_array_equal(params[first]["weight"], expected[0])
    np.testing.assert_array_equal(params[second]["weight"], expected[1])
    other = model.init(jax.random.key(1))
    assert not np.allclose(params[first]["weight"], other[first]["weight"])


@every_library
def test_it_is_an_mlp_of_the_same_weights(dtype, rng, library):
    model = adapted_mlp(library)
    params = random_params(model, rng, dtype)
    own, own_params, names = as_mlp(model, params)
    batch = batch_of(rng, dtype)

    @partial(jax.jit, static_argnums=0)
    def everything(model, params):
        objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
        return *model.forward(params, batch[0], {}), jax.grad(objective)(params, batch)

    outputs, layer_inputs, gradient = everything(model, params)
    expected, expected_inputs, expected_gradient = everything(own, own_params)
    assert_close(outputs, expected, dtype)
    assert_close(renamed(layer_inputs, names), expected_inputs, dtype)
    assert_close(renamed(gradient, names), expected_gradient, dtype)


@every_library
def test_a_tap_is_added_and_one_that_is_missing_is_zero(float64, rng, library):
    model = adapted_mlp(library)
    params = random_params(model, rng, jnp.float64)
    own, own_params, names = as_mlp(model, params)
    inputs, _ = batch_of(rng, jnp.float64)
    tap = jnp.asarray(rng.normal(size=(8, 5)))

    @partial(jax.jit, static_argnums=(0, 2))
    def everything(model, params, name):
        def of_tap(tap):
            outputs, layer_inputs = model.forward(params, inputs, {name: tap})
            return jnp.sum(outputs**2), (outputs, layer_inputs)

        return jax.value_and_grad(of_tap, has_aux=True)(tap)

    (_, (outputs, seen)), signal = everything(model, params, names["dense_0"])
    (_, (expected, own_seen)), own_signal = everything(own, own_params, "dense_0")
    found = outputs, renamed(seen, names), signal
    assert_close(found, (expected, own_seen, own_signal), jnp.float64)
    assert not np.allclose(outputs, jax.jit(model)(params, inputs))


def kfac_step(model, params, batch):
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    optimizer = soaa_edu.kfac(objective, learning_rate=0.5, damping=0.1, fisher="exact")
    after, state, _ = jax.jit(optimizer.step)(params, optimizer.init(params), batch, KEY)
    return jax.tree.map(jnp.subtract, after, params), state.factors.inputs, state.factors.outputs


@cache
def step_of_an_mlp(dtype):
    """Some weights by layers, a batch, and K-FAC's step there."""
    rng, model = np.random.default_rng(0), mlp([6, 5, 3], jnp.tanh)
    params, batch = random_params(model, rng, dtype), batch_of(rng, dtype)
    return params, batch, kfac_step(model, params, batch)


@every_library
def test_kfac_takes_the_step_that_it_takes_on_an_mlp(dtype, library):
    own_params, batch, expected = step_of_an_mlp(dtype)
    model = adapted_mlp(library)
    names = dict(zip(own_params, model.dense_layers, strict=True))
    params = {name: own_params[own] for own, name in names.items()}
    found = kfac_step(model, params, batch)
    assert_close([renamed(tree, names) for tree in found], expected, dtype)


@every_library
def test_kfac_trains_a_network_with_a_layer_norm(rng, library):
    model = normalised(library)
    params = jax.jit(model.init)(KEY)
    (norm,) = set(params) - set(model.dense_layers)
    assert jax.tree.leaves(jax.tree.map(jnp.shape, params[norm])) == [5, 5]
    inputs, _ = batch_of(rng, jnp.float32, (32, 6))
    batch = inputs, jnp.argmax(inputs[:, :3], axis=1)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    optimizer = soaa_edu.kfac(objective, learning_rate=0.3, damping=0.03, fisher="exact")
    step, state, before = jax.jit(optimizer.step), optimizer.init(params), params
    losses = []
    for _ in range(15):
        params, state, info = step(params, state, batch, KEY)
        losses.append(float(info["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    moved = jax.tree.map(lambda a, b: float(jnp.max(abs(a - b))), params, before)
    assert min(jax.tree.leaves(moved)) > 1e-3


@every_library
def test_the_gradients_of_examples_are_right_where_a_layer_norm_stands(float64, rng, library):
    model = normalised(library)
    params = random_params(model, rng, jnp.float64)
    inputs, labels = batch_of(rng, jnp.float64)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)

    @jax.jit
    def found(params):
        signals = run_forward(model, params, inputs)
        residual = jax.grad(objective.loss)(signals.outputs, labels)
        expected = jax.grad(objective)(params, (inputs, labels))
        return signals.inputs, signals.pull(residual), expected

    layer_inputs, (gradient, signals), expected = found(params)
    assert_close(gradient, expected, jnp.float64)
    for name in model.dense_layers:
        product = layer_inputs[name].T @ signals[name]
        assert_close(product[:-1], gradient[name]["weight"], jnp.float64)
        assert_close(product[-1], gradient[name]["bias"], jnp.float64)


@every_library
def test_a_layer_shared_over_positions_is_seen_at_each(float64, rng, library):
    model = shared_over_positions(library)
    params = random_params(model, rng, jnp.float64)
    own, own_params, names = as_mlp(model, params)
    inputs, labels = batch_of(rng, jnp.float64, (4, 7, 6))

    def seen(model, params):
        objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
        signals = run_forward(model, params, inputs)
        found = factors(objective, signals, labels, fisher="empirical", sharing="reduce")
        return signals.outputs, signals.inputs, found.inputs, found.outputs

    outputs, *found = jax.jit(lambda p: seen(model, p))(params)
    expected_outputs, *expected = jax.jit(lambda p: seen(own, p))(own_params)
    assert found[0][names["dense_1"]].shape == (4, 7, 6)
    assert_close(outputs, expected_outputs, jnp.float64)
    assert_close([renamed(tree, names) for tree in found], expected, jnp.float64)


@every_library
def test_jit_and_vmap_give_what_a_plain_call_gives(float64, rng, library):
    model = adapted_mlp(library)
    params = [random_params(model, rng, jnp.float64) for _ in range(3)]
    inputs, _ = batch_of(rng, jnp.float64)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    together = jax.jit(jax.vmap(lambda p: model.forward(p, inputs, {})))(stacked)
    alone = model.forward(params[1], inputs, {})
    assert_close(jax.tree.map(lambda leaf: leaf[1], together), alone, jnp.float64)
    started = jax.jit(jax.vmap(model.init))(jax.random.split(KEY, 3))
    one = model.init(jax.random.split(KEY, 3)[1])
    for found, expected in zip(jax.tree.leaves(started), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(found[1], expected, rtol=1e-6)


@every_library
def test_a_dense_layer_that_is_used_twice_is_refused_by_name(library):
    with pytest.raises(ValueError, match=r"layer \S*square is called twice"):
        first_call(used_twice(library), (2, 4))


@pytest.mark.parametrize(
    ("adapt", "missing", "remedy"),
    [
        (lambda: from_linen(None, jnp.ones((1, 2))), "flax.linen", "pip install flax"),
        (lambda: from_nnx(lambda key: None), "flax.nnx", "pip install flax"),
        (lambda: from_equinox(lambda key: None), "equinox", "pip install equinox"),
    ],
)
def test_a_library_that_is_missing_is_named(monkeypatch, adapt, missing, remedy):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=remedy):
        adapt()


def test_layers_of_linen_are_named_by_their_paths_and_take_options():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))

    def build(nn, x, train):
        features = Block(name="block")(nn.Embed(7, 6)(x), train)
        return nn.Dense(3, use_bias=False, name="head")(features)

    tokens = jnp.arange(10).reshape(2, 5) % 7
    model = linen(build, tokens, train=False)
    assert model.dense_layers == ("block/Dense_0", "head")
    params = model.init(KEY)
    assert jax.tree.map(jnp.shape, params) == {
        "Embed_0": {"embedding": (7, 6)},
        "block/Dense_0": {"weight": (6, 4), "bias": (4,)},
        "head": {"weight": (4, 3)},
    }
    outputs, layer_inputs = jax.jit(model.forward)(params, tokens, {})
    assert outputs.shape == (2, 5, 3)
    np.testing.assert_array_equal(
        layer_inputs["block/Dense_0"], params["Embed_0"]["embedding"][tokens]
    )
    drawing = linen(build, tokens, train=True)
    assert drawing.dense_layers == model.dense_layers
    with pytest.raises(ValueError, match="deterministic=True"):
        drawing(params, tokens)


def attentive(nn, keys):
    return {
        "latents": jax.random.normal(next(keys), (3, 4)),
        "attention": nn.MultiheadAttention(2, 4, key=next(keys)),
        "head": nn.Linear(4, 2, key=next(keys)),
    }


def test_layers_of_equinox_are_seen_in_attention_from_inputs_that_all_examples_share(float64, rng):
    model = equinox(
        attentive, lambda net, x: net["head"](net["attention"](net["latents"], x, x).mean(axis=0))
    )
    params = random_params(model, rng, jnp.float64)
    assert params["layers"]["latents"].shape == (3, 4)
    projections = [f"layers.attention.{n}_proj" for n in ("query", "key", "value", "output")]
    assert set(model.dense_layers) == {*projections, "layers.head"}
    inputs, labels = jnp.asarray(rng.normal(size=(5, 7, 4))), jnp.asarray([0, 1, 1, 0, 1])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)

    @jax.jit
    def found(params):
        signals = run_forward(model, params, inputs)
        residual = jax.grad(objective.loss)(signals.outputs, labels)
        expected = jax.grad(objective)(params, (inputs, labels))
        return signals.inputs, signals.pull(residual), expected

    layer_inputs, (gradient, signals), expected = found(params)
    assert layer_inputs[projections[0]].shape == (5, 3, 4)
    assert layer_inputs[projections[1]].shape == (5, 7, 4)
    assert_close(gradient, expected, jnp.float64)
    for name in projections:
        product = jnp.einsum("bti,bto->io", layer_inputs[name], signals[name])
        assert_close(product, gradient[name]["weight"], jnp.float64)


def rematerialised(library):
    if library == "linen":
        return linen(lambda nn, x: nn.remat(nn.Dense)(3)(x), jnp.ones((2, 6)))
    if library == "nnx":
        nn = pytest.importorskip("flax.nnx")
        return nnx(
            lambda nnx, rngs: {"head": nnx.Linear(6, 3, rngs=rngs)},
            lambda net, x: nn.remat(lambda head, x: head(x))(net.head, x),
        )
    eqx = pytest.importorskip("equinox")
    return equinox(
        lambda nn, keys: {"head": nn.Linear(6, 3, key=next(keys))},
        lambda net, x: eqx.filter_jit(eqx.filter_checkpoint(net["head"]))(x),
    )


@every_library
def test_a_layer_is_seen_under_checkpoint_and_jit(rng, library):
    model = rematerialised(library)
    (name,) = model.dense_layers
    params = model.init(KEY)
    inputs, _ = batch_of(rng, jnp.float32)
    outputs, layer_inputs = jax.jit(model.forward)(params, inputs, {})
    np.testing.assert_array_equal(layer_inputs[name], inputs)
    expected = inputs @ params[name]["weight"] + params[name]["bias"]
    assert_close(outputs, expected, jnp.float32)


def test_layers_that_nnx_stacks_are_others(rng):
    library = pytest.importorskip("flax.nnx")

    def layers(nnx, rngs):
        @nnx.vmap(in_axes=0)
        def make(key):
            return nnx.Linear(4, 4, rngs=nnx.Rngs(key))

        stack = make(jax.random.split(rngs.params(), 3))
        return {"stack": stack, "head": nnx.Linear(4, 2, rngs=rngs)}

    def call(net, x):
        scan = library.scan(
            lambda x, layer: layer(x), in_axes=(library.Carry, 0), out_axes=library.Carry
        )
        return net.head(scan(x, net.stack))

    model = nnx(layers, call)
    assert model.dense_layers == ("head",)
    params = model.init(KEY)
    assert params["stack"]["kernel"].shape == (3, 4, 4)
    inputs = jnp.asarray(rng.normal(size=(5, 4)))
    _, layer_inputs = jax.jit(model.forward)(params, inputs, {})
    expected = inputs
    for kernel in params["stack"]["kernel"]:
        expected = expected @ kernel
    np.testing.assert_allclose(layer_inputs["head"], expected, rtol=1e-4, atol=1e-5)


def test_a_linear_of_scalars_is_another_layer(rng):
    model = equinox(
        lambda nn, keys: {
            "first": nn.Linear(6, 4, key=next(keys)),
            "head": nn.Linear(4, "scalar", key=next(keys)),
        },
        lambda net, x: net["head"](jnp.tanh(net["first"](x)))[None],
    )
    assert model.dense_layers == ("layers.first",)
    assert model.init(KEY)["layers.head"]["weight"].shape == (1, 4)
    inputs, _ = batch_of(rng, jnp.float32)
    assert jax.eval_shape(model, model.init(KEY), inputs).shape == (8, 1)


def tied(library):
    """A dense layer whose weight is read once more, transposed."""
    if library == "linen":

        def build(nn, x):
            layer = nn.Dense(5, name="first")
            hidden = layer(x)
            return hidden @ layer.variables["params"]["kernel"].T

        return linen(build, jnp.ones((2, 6)))
    if library == "nnx":
        return nnx(
            lambda nnx, rngs: {"first": nnx.Linear(6, 5, rngs=rngs)},
            lambda net, x: net.first(x) @ net.first.kernel.T,
        )
    return equinox(
        lambda nn, keys: {"first": nn.Linear(6, 5, key=next(keys))},
        lambda net, x: net["first"].weight.T @ net["first"](x),
    )


@every_library
def test_a_weight_that_is_read_outside_of_its_layer_is_refused_by_name(library):
    with pytest.raises(ValueError, match=r"arrays of the dense layer \S*first are read outside"):
        first_call(tied(library), (2, 6))


def test_a_weight_that_is_normalised_is_refused():
    with pytest.raises(ValueError, match="take no weight normalisation"):
        linen(lambda nn, x: nn.WeightNorm(nn.Dense(3))(x), jnp.ones((2, 6)))
    model = equinox(
        lambda nn, keys: {"head": nn.WeightNorm(nn.Linear(6, 3, key=next(keys)))},
        lambda net, x: net["head"](x),
    )
    with pytest.raises(ValueError, match="take no weight normalisation"):
        first_call(model, (2, 6))


def in_a_loop(library):
    if library == "linen":

        def build(nn, x):
            loop = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=3,
            )
            return loop(nn.Dense(6, name="square"), x, None)[0]

        return linen(build, jnp.ones((2, 6)))
    if library == "nnx":
        return nnx(
            lambda nnx, rngs: {"square": nnx.Linear(6, 6, rngs=rngs)},
            lambda net, x: jax.lax.scan(lambda x, _: (net.square(x), None), x, None, 3)[0],
        )
    return equinox(
        lambda nn, keys: {"square": nn.Linear(6, 6, key=next(keys))},
        lambda net, x: jax.lax.scan(lambda x, _: (net["square"](x), None), x, None, 3)[0],
    )


@every_library
def test_a_layer_inside_a_loop_is_refused_by_name(library):
    with pytest.raises(
        ValueError, match=r"layer (layers\.)?square (are read .* loop|is called inside scan)"
    ):
        first_call(in_a_loop(library), (2, 6))


def test_examples_that_leave_the_first_axis_are_refused():
    with pytest.raises(ValueError, match=r"Dense_0 is given inputs of shape \(8, 6\)"):
        linen(lambda nn, x: nn.Dense(3)(x.reshape(-1, 6)).reshape(2, 4, 3), jnp.ones((2, 4, 6)))


def test_a_layer_that_is_never_called_is_refused_by_name():
    model = nnx(
        lambda nnx, rngs: {
            "head": nnx.Linear(6, 3, rngs=rngs),
            "spare": nnx.Linear(6, 3, rngs=rngs),
        },
        lambda net, x: net.head(x),
    )
    with pytest.raises(ValueError, match="layer spare is never called"):
        first_call(model, (2, 6))


def test_a_network_without_a_dense_layer_is_refused():
    with pytest.raises(ValueError, match=r"one flax\.linen\.Dense at least"):
        linen(lambda nn, x: nn.LayerNorm()(x), jnp.ones((2, 6)))
    with pytest.raises(ValueError, match=r"one flax\.nnx\.Linear at least"):
        nnx(lambda nnx, rngs: {"norm": nnx.LayerNorm(6, rngs=rngs)}, lambda net, x: net.norm(x))
    with pytest.raises(ValueError, match=r"one equinox\.nn\.Linear at least"):
        equinox(lambda nn, keys: {"norm": nn.LayerNorm(6)}, lambda net, x: net["norm"](x))


def test_state_is_refused_by_its_kind():
    with pytest.raises(ValueError, match=r"carries no state.*batch_stats.*LayerNorm"):
        linen(
            lambda nn, x: nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)), jnp.ones((2, 6))
        )
    with pytest.raises(ValueError, match=r"carries no state.*BatchStat.*LayerNorm"):
        nnx(
            lambda nnx, rngs: {
                "head": nnx.Linear(6, 3, rngs=rngs),
                "norm": nnx.BatchNorm(3, use_running_average=True, rngs=rngs),
            },
            lambda net, x: net.norm(net.head(x)),
        )
    with pytest.raises(ValueError, match=r"carries no state.*StateIndex.*LayerNorm"):
        equinox(
            lambda nn, keys: {
                "head": nn.Linear(6, 3, key=next(keys)),
                "norm": nn.BatchNorm(3, "batch", mode="batch"),
            },
            lambda net, x: net["head"](x),
        )


def test_statistics_that_stay_as_they_are_go_into_a_plain_function(rng):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x)))

    def init(key):
        return Net().init(key, jnp.ones((1, 6)), train=False)["params"]

    statistics = {"BatchNorm_0": {"mean": jnp.full(5, 0.3), "var": jnp.full(5, 2.0)}}

    def apply(params, inputs):
        variables = {"params": params, "batch_stats": statistics}
        return Net().apply(variables, inputs, train=False)

    table = {name: (f"{name}/kernel", f"{name}/bias") for name in ("Dense_0", "Dense_1")}
    objective = soaa_edu.Objective(
        from_function(apply, init, table), soaa_edu.softmax_cross_entropy
    )
    params, batch = objective.model.init(KEY), batch_of(rng, jnp.float32)
    check_model(objective, params, batch)
    optimizer = soaa_edu.kfac(objective, learning_rate=0.1, damping=0.1)
    step, state = jax.jit(optimizer.step), optimizer.init(params)
    before = float(objective(params, batch))
    for _ in range(9):
        params, state, _ = step(params, state, batch, KEY)
    assert float(objective(params, batch)) < 0.9 * before
