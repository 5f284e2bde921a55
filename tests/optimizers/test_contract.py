"""What every gradient method promises as an optax transformation, whatever surrounds it."""

import inspect
import pickle
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu

RATE = np.float64(0.01)
STATIC = {"block_size", "rank"}
STEPS = 4


class Method(NamedTuple):
    build: object
    options: dict


METHODS = {
    "shampoo": Method(soaa_edu.shampoo, {"refresh_every": 2, "decay": np.float64(0.9)}),
    "soap": Method(soaa_edu.soap, {"refresh_every": 2, "eps": np.float64(1e-8)}),
    "kl_shampoo": Method(soaa_edu.kl_shampoo, {"refresh_every": 2, "decay": np.float64(0.9)}),
    "psgd": Method(soaa_edu.psgd, {"step_size": np.float64(0.1)}),
    "soaa": Method(soaa_edu.soaa, {"total_steps": 9, "gamma": np.float64(0.25)}),
    "tadam": Method(soaa_edu.tadam, {"total_steps": 9, "b1": np.float64(0.9)}),
    "adam_8bit": Method(soaa_edu.adam_8bit, {"b2": np.float64(0.99)}),
    "galore": Method(soaa_edu.galore, {"rank": 2, "refresh_every": 2, "b1": np.float64(0.9)}),
}
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": jnp.float64}
TOLERANCES = {"bfloat16": 2e-2, "float32": 2e-5, "float64": 1e-11}
"""8-bit Adam computes in float32, whatever it is given."""

every_method = pytest.mark.parametrize("name", METHODS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _float64(float64):
    """A NumPy number among the hyperparameters could then widen what it meets."""


def build(name, learning_rate=RATE, **options):
    return METHODS[name].build(learning_rate, **METHODS[name].options, **options)


def params_of(dtype, seed=0):
    """A matrix, a vector, a scalar, an empty array, a Python float and nothing."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), DTYPES[dtype])

    return {
        "matrix": draw(4, 3),
        "vector": draw(3),
        "scalar": draw(),
        "empty": draw(0, 3),
        "python": 0.5,
        "nothing": None,
    }


def loss(params):
    return sum(0.5 * jnp.sum(jnp.cosh(p)) for p in jax.tree.leaves(params))


def stepped(transformation):
    """A compiled step ``(params, state) -> (params, state)`` down the loss."""
    extra = optax.with_extra_args_support(transformation)

    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = extra.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return step


def run(transformation, params, steps=STEPS):
    step, state = jax.jit(stepped(transformation)), jax.jit(transformation.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@cache
def plain(name, dtype, only=None):
    params = params_of(dtype)
    return run(build(name), params if only is None else {only: params[only]})


def wrapped(name, params):
    """In everything of optax that is no method itself.

    ``MultiSteps`` rounds to float32, and at the first steps v̂ is made of the squares of so small
    differences: SOAA and TAdam inside it have a test of their own, in test_first_order.
    """
    everything = jax.tree.map(lambda _: True, params)
    labels = jax.tree.map(lambda _: "all", params)
    transformation = build(name, learning_rate=optax.constant_schedule(float(RATE)))
    transformation = optax.apply_if_finite(transformation, max_consecutive_errors=3)
    if name not in ("soaa", "tadam"):
        transformation = optax.MultiSteps(transformation, every_k_schedule=1)
        transformation = transformation.gradient_transformation()
    transformation = optax.masked(transformation, everything)
    transformation = optax.partition({"all": transformation, "none": build(name)}, labels)
    return run(optax.chain(optax.clip_by_global_norm(1e9), transformation), params)


def injected(name, params):
    method = METHODS[name].build
    static = STATIC & set(inspect.signature(method).parameters)
    with_hyperparams = optax.inject_hyperparams(method, static_args=static)
    return run(with_hyperparams(learning_rate=RATE, **METHODS[name].options), params)


def donated_and_pickled(name, params):
    transformation = build(name)
    step = jax.jit(stepped(transformation), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.array, params)
    state = jax.tree.map(jnp.asarray, transformation.init(params))
    for _ in range(STEPS):
        params, state = pickle.loads(pickle.dumps(step(params, state)))
    return params


def mapped(name, params):
    transformation = build(name)
    others = params_of(str(params["matrix"].dtype), seed=1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, others)
    state = jax.jit(jax.vmap(transformation.init))(stacked)
    step = jax.jit(jax.vmap(stepped(transformation)))
    for _ in range(STEPS):
        stacked, state = step(stacked, state)
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def scanned(name, params):
    transformation = build(name)
    params = jax.tree.map(
        lambda p: jnp.asarray(p, p.dtype if hasattr(p, "dtype") else None), params
    )
    params = jax.tree.map(lambda p: jax.lax.convert_element_type(p, p.dtype), params)
    step = stepped(transformation)

    def body(carry, _):
        moved, state = step(*carry)
        return (jax.tree.map(lambda new, old: new.astype(old.dtype), moved, carry[0]), state), None

    return jax.jit(lambda c: jax.lax.scan(body, c, length=STEPS)[0][0])(
        (params, transformation.init(params))
    )


AROUND = [injected, donated_and_pickled, mapped, scanned]
SURROUNDED = [
    *((name, wrapped, dtype) for name in METHODS for dtype in DTYPES),
    *(
        (name, around, list(DTYPES)[(i + j) % 3])
        for i, name in enumerate(METHODS)
        for j, around in enumerate(AROUND)
    ),
]


@pytest.mark.parametrize("name, around, dtype", SURROUNDED)
def test_what_surrounds_a_method_changes_nothing(name, around, dtype):
    expected = plain(name, dtype)
    found = around(name, params_of(dtype))
    computed_in = "float32" if name == "adam_8bit" and dtype == "float64" else dtype
    tolerance = TOLERANCES[computed_in]
    compare = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(
        lambda x, y: compare(np.asarray(x, np.float64), np.asarray(y, np.float64)), found, expected
    )


@every_dtype
@every_method
def test_types_are_kept(name, dtype):
    params = jax.tree.map(jnp.asarray, params_of(dtype))
    transformation = build(name)
    state = jax.eval_shape(transformation.init, params)
    updates, following = jax.eval_shape(
        lambda s: transformation.update(jax.grad(loss)(params), s, params, value=1.0), state
    )
    for found, expected in ((following, state), (updates, params)):
        assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)


@every_method
def test_an_injected_rate_of_zero_stands_still(name):
    method = METHODS[name].build
    static = STATIC & set(inspect.signature(method).parameters)
    wrapped = optax.inject_hyperparams(method, static_args=static)
    params = params_of("float32")
    transformation = wrapped(learning_rate=RATE, **METHODS[name].options)
    state = transformation.init(params)
    state.hyperparams["learning_rate"] = jnp.zeros(())
    updates, _ = jax.jit(lambda g, s, p: transformation.update(g, s, p, value=1.0))(
        jax.grad(loss)(params), state, params
    )
    assert all(bool(jnp.all(u == 0)) for u in jax.tree.leaves(updates))


@every_method
def test_masked_arrays_do_not_reach_the_method(name):
    params = {k: v for k, v in params_of("float64").items() if k in ("matrix", "vector")}
    transformation = optax.chain(
        optax.masked(build(name), {"matrix": True, "vector": False}),
        optax.masked(optax.set_to_zero(), {"matrix": False, "vector": True}),
    )
    step, state = jax.jit(stepped(transformation)), jax.jit(transformation.init)(params)
    moved = params
    alone = {"matrix": params["matrix"]}
    of_alone = jax.jit(stepped(build(name)))
    state_alone = build(name).init(alone)
    shift = loss({"vector": params["vector"]})
    for _ in range(STEPS):
        moved, state = step(moved, state)
        alone, state_alone = of_alone(alone, state_alone)
    if name not in ("soaa", "tadam"):
        np.testing.assert_allclose(moved["matrix"], alone["matrix"], rtol=1e-11)
    assert shift == loss({"vector": moved["vector"]})


@every_method
def test_weight_decay_is_decoupled_and_masked(name):
    params = params_of("float64")
    only = jax.tree.map(lambda _: False, params) | {"matrix": True}
    zero = jax.tree.map(jnp.zeros_like, params)
    transformation = build(name, weight_decay=0.5, mask=only)
    updates, _ = transformation.update(zero, transformation.init(params), params, value=1.0)
    expected = zero | {"matrix": -float(RATE) * 0.5 * params["matrix"]}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), updates, expected)


@every_dtype
@every_method
def test_a_thousand_gradients_of_zero_move_nothing(name, dtype):
    params = jax.tree.map(jnp.asarray, params_of(dtype))
    transformation = build(name)
    zero = jax.tree.map(jnp.zeros_like, params)

    def step(state, _):
        updates, state = transformation.update(zero, state, params, value=1.0)
        return state, sum(jnp.sum(jnp.abs(u)) for u in jax.tree.leaves(updates))

    @jax.jit
    def after(state):
        state, lengths = jax.lax.scan(step, state, length=1000)
        updates, _ = transformation.update(jax.grad(loss)(params), state, params, value=1.0)
        return lengths, updates

    lengths, updates = after(transformation.init(params))
    assert np.all(np.asarray(lengths, np.float64) == 0)
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))
    assert jnp.any(updates["matrix"] != 0)


@every_dtype
@every_method
def test_after_one_broken_gradient_it_goes_on(name, dtype):
    params = jax.tree.map(jnp.asarray, params_of(dtype))
    transformation = build(name)
    too_large_to_square = 1e200 if dtype == "float64" else 1e30

    def step(bad, carry, i):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        broken = jax.tree.map(lambda g: jnp.full_like(g, bad), gradient)
        gradient = optax.tree.where(i == 3, broken, gradient)
        updates, state = transformation.update(gradient, state, params, value=value)
        moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return (moved, state), value

    @jax.jit
    def after(bad):
        start = params, transformation.init(params)
        return jax.lax.scan(partial(step, bad), start, jnp.arange(60))[1]

    for bad in (np.nan, np.inf, too_large_to_square):
        values = np.asarray(after(bad), np.float64)
        assert np.all(np.isfinite(values))
        assert values[-1] < values[4] < values[0]


@every_dtype
@every_method
def test_gradients_of_any_size_leave_finite_steps(name, dtype):
    params = jax.tree.map(jnp.asarray, params_of(dtype))
    transformation = build(name)
    gradient = jax.grad(loss)(params)

    @jax.jit
    def largest(scale):
        scaled = jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient)

        def step(state, _):
            updates, state = transformation.update(scaled, state, params, value=1.0)
            return state, jnp.max(
                jnp.array([jnp.max(jnp.abs(u), initial=0) for u in jax.tree.leaves(updates)])
            )

        return jax.lax.scan(step, transformation.init(params), length=12)[1]

    for scale in 10.0 ** np.arange(-30, 31, 6):
        assert np.all(np.isfinite(np.asarray(largest(scale), np.float64))), scale


@every_method
def test_complex_parameters_are_refused(name):
    with pytest.raises(TypeError, match=r"parameters\['w'\] are complex"):
        build(name).init({"w": jnp.ones((3, 2), jnp.complex64)})


@every_method
def test_it_starts_under_debug_nans(name):
    jax.config.update("jax_debug_nans", True)
    try:
        params = params_of("float32")
        found = run(build(name), params, 2)
    finally:
        jax.config.update("jax_debug_nans", False)
    assert loss(found) < loss(params)
