"""What every method that takes the objective promises, whatever it meets."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaa_edu
from soaa_edu.optimizers import levenberg_marquardt

RULE = levenberg_marquardt(np.float64(1.0))
LAMBDA = np.float64(0.1)
METHODS = {
    "newton": partial(soaa_edu.newton, damping=LAMBDA, curvature="gauss_newton"),
    "hessian_free": partial(soaa_edu.hessian_free, damping=LAMBDA, curvature="gauss_newton"),
    "adapted": partial(soaa_edu.hessian_free, damping=RULE, curvature="gauss_newton"),
    "martens": soaa_edu.martens_hessian_free,
    "trust_region": partial(soaa_edu.trust_region, radius=np.float64(0.5)),
    "cat": partial(soaa_edu.trust_region, radius=None, update="cat", subproblem="steihaug"),
    "kfac": partial(soaa_edu.kfac, learning_rate=np.float64(0.1), damping=LAMBDA),
    "layers": partial(
        soaa_edu.hessian_free, damping=RULE, curvature="gauss_newton", blocks="layers"
    ),
    "ekfac": partial(soaa_edu.ekfac, learning_rate=np.float64(0.1), damping=LAMBDA),
    "ekfac_adapted": partial(soaa_edu.ekfac, learning_rate=0.5, damping=RULE, fisher="exact"),
    "kfac_adapted": partial(soaa_edu.kfac, learning_rate=0.5, damping=RULE, fisher="exact"),
}
TRIED = (
    "adapted",
    "layers",
    "martens",
    "trust_region",
    "cat",
    "kfac_adapted",
    "ekfac_adapted",
)
WARY = (*TRIED, "kfac", "ekfac")
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": jnp.float64}
STEPS = 12

every_method = pytest.mark.parametrize("name", METHODS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _float64(float64):
    """A NumPy number among the hyperparameters could then widen what it meets."""


def problem(name, dtype, seed=0):
    model = soaa_edu.models.mlp([4, 5, 3], jnp.tanh)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(p, DTYPES[dtype]), model.init(jax.random.key(seed)))
    batch = (
        jnp.asarray(rng.normal(size=(8, 4)), DTYPES[dtype]),
        jnp.asarray(rng.integers(3, size=8)),
    )
    return METHODS[name](objective), params, batch


def run(optimizer, params, batches):
    """Parameters, state and what was told, from one compiled scan over batches."""

    def step(carry, drawn):
        batch, i = drawn
        params, state, info = optimizer.step(
            *carry, batch, jax.random.fold_in(jax.random.key(3), i)
        )
        return (params, state), info

    count = len(batches[1])
    (params, state), info = jax.lax.scan(
        step, (params, optimizer.init(params)), (batches, jnp.arange(count))
    )
    return params, state, info


def repeated(batch, steps=STEPS):
    return jax.tree.map(lambda array: jnp.broadcast_to(array, (steps, *array.shape)), batch)


def same(found, expected, tolerance):
    compare = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(
        lambda x, y: compare(np.asarray(x, np.float64), np.asarray(y, np.float64)), found, expected
    )


@every_dtype
@every_method
def test_it_trains_keeps_its_types_and_survives_broken_batches(name, dtype):
    optimizer, params, batch = problem(name, dtype)
    broken = batch[0].at[0, 0].set(jnp.nan), batch[1]
    unlabelled = batch[0], jnp.full_like(batch[1], -1)
    sequence = [batch] * 3 + [broken] + [batch] * 2 + [unlabelled] * 2 + [batch] * 8
    batches = jax.tree.map(lambda *arrays: jnp.stack(arrays), *sequence)
    moved, state, info = jax.jit(partial(run, optimizer))(params, batches)
    start = optimizer.init(params)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, start)
    assert jax.tree.map(lambda x: x.dtype, moved) == jax.tree.map(lambda x: x.dtype, params)
    losses = np.asarray(info["loss"], np.float64)
    good = [i for i, one in enumerate(sequence) if one is batch]
    if name in WARY:
        assert np.all(np.isfinite(losses[good]))
        assert losses[-1] < losses[4] < losses[0]
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    else:
        assert losses[2] < losses[0]


@every_method
def test_compiled_mapped_donated_and_pickled_it_is_the_same(name):
    optimizer, params, batch = problem(name, "float64")
    batches = repeated(batch, 3)
    expected, of_expected, _ = jax.jit(partial(run, optimizer))(params, batches)

    _, others, _ = problem(name, "float64", seed=1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, others)
    mapped, _, _ = jax.jit(jax.vmap(partial(run, optimizer), in_axes=(0, None)))(stacked, batches)
    same(jax.tree.map(lambda leaf: leaf[0], mapped), expected, 1e-7)

    step = jax.jit(optimizer.step, donate_argnums=(0, 1))
    moved, state = jax.tree.map(jnp.array, params), optimizer.init(params)
    for i in range(3):
        key = jax.random.fold_in(jax.random.key(3), i)
        moved, state, _ = step(moved, state, batch, key)
        moved, state = pickle.loads(pickle.dumps((moved, state)))
    same(moved, expected, 1e-8)
    same(state, of_expected, 1e-6)


@pytest.mark.parametrize("name", TRIED)
def test_at_a_minimum_it_waits_and_then_follows_new_data(name):
    model = soaa_edu.models.mlp([5, 8, 2], jnp.tanh)
    optimizer = METHODS[name](soaa_edu.Objective(model, soaa_edu.squared_error))
    rng = np.random.default_rng(1)
    batches = [
        tuple(jnp.asarray(rng.normal(size=(8, n)), jnp.float32) for n in (5, 2)) for _ in range(2)
    ]
    params = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), model.init(jax.random.key(0)))
    joined = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]), repeated(batches[0], 300), repeated(batches[1], 200)
    )
    _, _, info = jax.jit(partial(run, optimizer))(params, joined)
    losses = np.asarray(info["loss"])
    assert losses[299] < 1e-10
    assert losses[300] > 0.1
    assert losses[-1] < 1e-8


@pytest.mark.parametrize("name", TRIED)
def test_nothing_to_learn_from_changes_nothing(name):
    optimizer, params, batch = problem(name, "float32")
    _, state, _ = jax.jit(partial(run, optimizer))(params, repeated(batch, 3))
    unlabelled = batch[0], jnp.full_like(batch[1], -1)
    moved, following, _ = jax.jit(optimizer.step)(params, state, unlabelled, jax.random.key(0))
    kept = {
        "martens": "solution",
        "kfac_adapted": "velocity",
        "ekfac_adapted": "velocity",
    }.get(name)
    if kept:
        state, following = (s._replace(**{kept: None}) for s in (state, following))
    same(following, state, 0)
    same(moved, params, 0)


@every_method
def test_complex_parameters_are_refused(name):
    optimizer, params, _ = problem(name, "float32")
    with pytest.raises(TypeError, match="are complex"):
        optimizer.init(jax.tree.map(lambda p: p.astype(jnp.complex64), params))
