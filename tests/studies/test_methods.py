import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu import Objective, softmax_cross_entropy
from soaa_edu.models import mlp
from soaa_edu.studies import methods

POINTS = {
    "hessian_free": {"damping": 1.0},
    "gauss_newton": {"damping": 1.0},
    "newton": {"learning_rate": 0.1, "damping": 1.0},
    "trust_region": {"radius": 0.1},
    "kfac": {"learning_rate": 0.1, "damping": 0.1},
    "galore": {"learning_rate": 1e-3, "rank": 2},
}


def built(method, objective, steps):
    point = POINTS.get(method, {"learning_rate": 1e-3})
    return methods.build(method, objective, steps, **point)


def test_every_method_has_a_name_and_a_look_of_its_own():
    looks = [tuple(look.values()) for look in methods.METHODS.values()]
    assert len(set(looks)) == len(looks)
    labels = [methods.label(method) for method in methods.METHODS]
    assert len(set(labels)) == len(labels)
    assert methods.label("soaa") == "SOAA"


@pytest.mark.parametrize("method", methods.BUILDERS)
def test_every_method_takes_a_step_downhill(method, rng):
    objective = Objective(mlp([6, 3]), softmax_cross_entropy)
    batch = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), jnp.asarray(rng.integers(3, size=8))
    optimizer = built(method, objective, 10)
    params = objective.model.init(jax.random.key(0))

    @jax.jit
    def losses(params):
        def take(carry, key):
            params, state, info = optimizer.step(*carry, batch, key)
            return (params, state), info["loss"]

        keys = jax.random.split(jax.random.key(0))
        return jax.lax.scan(take, (params, optimizer.init(params)), keys)[1]

    first, second = losses(params)
    assert np.isfinite(first)
    assert second < first


def test_a_cosine_schedule_ends_with_the_run():
    steps = 10
    rule = methods._adam_cosine(0.1, total_steps=steps)
    gradient = jnp.ones(1)

    def update(state, _):
        updates, state = rule.update(gradient, state)
        return state, updates[0]

    run = jax.jit(lambda: jax.lax.scan(update, rule.init(gradient), length=steps + 1)[1])
    halves = (1 + np.cos(np.pi * np.arange(steps + 1) / steps)) / 2
    np.testing.assert_allclose(run(), -0.1 * halves, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("method", ["adam_cosine", "soaa", "tadam"])
def test_a_method_that_ends_with_its_run_is_told_its_steps(method):
    objective = Objective(mlp([6, 3]), softmax_cross_entropy)
    batch = jnp.ones((8, 6)), jnp.zeros(8, jnp.int32)

    def end(steps):
        optimizer = built(method, objective, steps)
        params = objective.model.init(jax.random.key(0))
        state = optimizer.init(params)
        for _ in range(3):
            params, state, _ = optimizer.step(params, state, batch, jax.random.key(0))
        return params["dense_0"]["weight"]

    assert not np.allclose(jax.jit(lambda: end(4))(), jax.jit(lambda: end(400))(), rtol=1e-5)
