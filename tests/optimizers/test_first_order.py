from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import first_order, soaa
from soaa_edu.problems import rosenbrock

START = np.array([-1.2, 1.0])
NO_BATCH = (None, None)


def run(optimizer, params, steps):
    """The parameters after some steps, and the info of each."""
    state = optimizer.init(params)

    def step(carry, _):
        params, state, info = optimizer.step(*carry, NO_BATCH, None)
        return (params, state), info

    (params, _), infos = jax.jit(lambda start: jax.lax.scan(step, start, length=steps))(
        (params, state)
    )
    return params, infos


@pytest.mark.parametrize(
    "transformation",
    [
        optax.sgd(1e-3),
        optax.adamw(optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01, momentum=0.9)),
    ],
    ids=["sgd", "adamw", "chain"],
)
def test_training_is_optax_by_hand(float64, transformation):
    params = expected = jnp.asarray(START)
    state, losses = transformation.init(expected), []
    derive = jax.jit(jax.value_and_grad(rosenbrock))
    for _ in range(5):
        loss, gradient = derive(expected)
        updates, state = transformation.update(gradient, state, expected)
        expected = optax.apply_updates(expected, updates)
        losses.append(loss)
    found, infos = run(first_order(rosenbrock, transformation), params, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(infos["loss"], losses, rtol=1e-12)


def test_lbfgs_with_its_line_search_solves_rosenbrock(float64):
    optimizer = first_order(rosenbrock, optax.lbfgs())
    found, infos = run(optimizer, jnp.asarray(START), 60)
    np.testing.assert_allclose(found, rosenbrock.solution, rtol=1e-8)
    assert infos["num_linesearch_steps"].shape == (60,)


def test_the_gradient_is_that_of_the_batch():
    def objective(params, batch):
        return params @ batch[0].sum(axis=0)

    optimizer = first_order(objective, optax.sgd(1.0))
    inputs = np.array([[1.0, 2.0], [3.0, 5.0]])
    after, _, info = optimizer.step(jnp.ones(2), optimizer.init(jnp.ones(2)), (inputs, None), None)
    np.testing.assert_array_equal(after, [1 - 4, 1 - 7])
    assert info == {"loss": 11}


class Told(NamedTuple):
    count: Any
    info: Any


class Words(NamedTuple):
    scale: Any


def telling(info):
    """A transformation that changes nothing and keeps ``info(count)`` in its state."""

    def update(updates, state, params=None):
        count = state.count + 1
        return updates, Told(count, info(count))

    return optax.GradientTransformation(lambda params: Told(0, info(0)), update)


def test_scalars_that_states_keep_in_info_join_info():
    transformation = optax.chain(
        telling(lambda count: {"steps": count}),
        optax.chain(optax.sgd(0.0), telling(lambda count: Words(scale=10.0 * count))),
    )
    _, infos = run(first_order(rosenbrock, transformation), START, 3)
    np.testing.assert_array_equal(infos["steps"], [1, 2, 3])
    np.testing.assert_array_equal(infos["scale"], [10, 20, 30])
    assert set(infos) == {"loss", "steps", "scale"}


def test_info_inside_a_partition_is_found():
    parts = {"told": telling(lambda count: {"steps": count}), "plain": optax.sgd(0.0)}
    transformation = optax.partition(parts, {"x": "told", "y": "plain"})
    optimizer = first_order(lambda params, batch: params["x"] + params["y"], transformation)
    _, infos = run(optimizer, {"x": jnp.ones(()), "y": jnp.ones(())}, 2)
    np.testing.assert_array_equal(infos["steps"], [1, 2])


def test_nothing_that_a_state_tells_hides_the_loss():
    optimizer = first_order(rosenbrock, telling(lambda count: {"loss": -1.0}))
    _, infos = run(optimizer, jnp.asarray(START), 1)
    np.testing.assert_allclose(infos["loss"], rosenbrock(START), rtol=1e-6)


def test_extra_arguments_are_exactly_value_grad_and_value_fn():
    seen = []

    def update(updates, state, params, **extra):
        seen.append((updates, params, extra))
        return updates, state

    transformation = optax.GradientTransformationExtraArgs(lambda params: (), update)
    first_order(rosenbrock, transformation).step(START, (), NO_BATCH, None)
    ((updates, params, extra),) = seen
    assert set(extra) == {"value", "grad", "value_fn"}
    np.testing.assert_array_equal(params, START)
    np.testing.assert_array_equal(extra["grad"], updates)
    np.testing.assert_allclose(extra["value"], rosenbrock(START), rtol=1e-6)
    assert extra["value_fn"](2 * START) == rosenbrock(2 * START)


def test_a_transformation_without_extra_arguments_gets_none():
    def update(updates, state, params, **extra):
        assert not extra
        return updates, state

    transformation = optax.GradientTransformation(lambda params: (), update)
    first_order(rosenbrock, transformation).step(START, (), NO_BATCH, None)


def test_the_objective_travels_with_the_optimizer():
    assert first_order(rosenbrock, optax.sgd(0.1)).objective is rosenbrock


def test_multi_steps_pass_the_loss_on():
    def told(transformation):
        optimizer = first_order(rosenbrock, transformation)
        params = jnp.array([-1.2, 1.0])
        state, step, scales = optimizer.init(params), jax.jit(optimizer.step), []
        for _ in range(6):
            params, state, info = step(params, state, (None, None), None)
            scales.append(float(info["trust_scale"]))
        return scales

    plain = told(soaa(0.01, total_steps=6))
    assert len(set(plain)) > 2
    assert told(optax.MultiSteps(soaa(0.01, total_steps=6), every_k_schedule=1)) == plain
