import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import methods
from soaa_edu.studies.poster import field
from soaa_edu.studies.race import Task

RENEWING = ("kfac", "shampoo", "psgd")
OBJECTIVE = Objective(mlp([6, 4, 3]), softmax_cross_entropy)
TASK = Task({}, OBJECTIVE, lambda: None, 256, 2, 8)


@pytest.mark.parametrize("method", field.FIELD)
def test_every_method_gets_nine_tries_or_the_middle_of_them(method):
    nine, one = (field.grid(method, tries) for tries in (9, 1))
    assert np.prod([len(values) for values in nine.values()]) == 9
    for name, (middle,) in one.items():
        np.testing.assert_allclose(nine[name][len(nine[name]) // 2], middle)
        ratios = np.divide(nine[name][1:], nine[name][:-1])
        np.testing.assert_allclose(ratios, ratios[0])


@pytest.mark.parametrize(
    "steps_an_epoch, every", [(1, 1), (16, 1), (50, 3), (160, 10), (100_000, 10)]
)
@pytest.mark.parametrize("method, option", [("kfac", "invert_every"), ("shampoo", "refresh_every")])
def test_no_preconditioner_is_older_than_ten_steps_or_a_sixteenth_of_an_epoch(
    monkeypatch, method, option, steps_an_epoch, every
):
    given = {}
    monkeypatch.setitem(methods.BUILDERS, method, lambda *args, **numbers: given.update(numbers))
    field.build(method, TASK._replace(examples=8 * steps_an_epoch), learning_rate=0.1)
    assert given[option] == every


def test_a_rate_rises_to_its_value_and_falls_to_zero():
    rate = field.rising_and_falling(0.8, 100, 20)
    at = np.array([rate(step) for step in (0, 9, 19, 20, 60, 100)])
    np.testing.assert_allclose(at, [0.04, 0.4, 0.8, 0.8, 0.4, 0.0], atol=1e-7)


@pytest.mark.parametrize("warm_up", [0.0, 0.25])
@pytest.mark.parametrize("method", field.FIELD)
def test_every_method_steps_with_learning_rates_that_are_traced(method, warm_up):
    def shapes(value):
        point = dict.fromkeys(field.grid(method, 1), value)
        optimizer = field.build(method, TASK, warm_up=warm_up, **point)
        params = TASK.init()
        batch = (jnp.zeros((8, 6)), jnp.zeros(8, jnp.int32))
        after, _, info = optimizer.step(params, optimizer.init(params), batch, jax.random.key(1))
        return params, after, info["loss"]

    params, after, loss = jax.eval_shape(shapes, jnp.float32(0.1))
    assert jax.tree.leaves(after) == jax.tree.leaves(params)
    assert loss.shape == ()


@pytest.mark.parametrize("method, renews", [(m, m in RENEWING) for m in field.FIELD])
def test_every_method_is_compiled_for_a_gpu_with_renewals_that_all_runs_share(method, renews):
    """Down to what the compiler gets; a condition that differed between runs would be gone."""
    params = TASK.init()
    batch = jnp.zeros((8, 6)), jnp.zeros(8, jnp.int32)

    def run(value):
        optimizer = field.build(method, TASK, **dict.fromkeys(field.grid(method, 1), value))

        def step(carry, key):
            params, state, info = optimizer.step(*carry, batch, key)
            return (params, state), info["loss"]

        keys = jax.random.split(jax.random.key(1), 3)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    traced = jax.jit(jax.vmap(run)).trace(jnp.array([0.1, 0.2]))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("stablehlo.case" in text) == renews
    assert "lapack" not in text
