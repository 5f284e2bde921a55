import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.optimizers.refreshes import refreshed


@pytest.fixture
def counted():
    """A fresh value, and how often it was computed."""
    calls = []

    def fresh(value):
        jax.debug.callback(lambda: calls.append(1))
        return {"value": 2 * value}

    return fresh, calls


@pytest.mark.parametrize("due, expected, times", [(True, 6.0, 1), (False, 1.0, 0)])
def test_alone_it_is_a_condition(counted, due, expected, times):
    fresh, calls = counted
    found = jax.jit(lambda d: refreshed(d, lambda: fresh(3.0), {"value": 1.0}))(due)
    jax.effects_barrier()
    assert float(found["value"]) == expected
    assert len(calls) == times


def test_side_by_side_nothing_is_computed_where_no_run_is_due():
    def runs(due, x):
        return jax.vmap(lambda d, v: refreshed(d, lambda: slow(v), v))(due, x)

    def slow(value):
        return jax.lax.while_loop(lambda v: v < 10, lambda v: v + 1, value)

    x = jnp.array([1.0, 2.0])
    found = jax.jit(runs)
    np.testing.assert_array_equal(found(jnp.array([False, False]), x), [1, 2])
    np.testing.assert_array_equal(found(jnp.array([True, False]), x), [10, 2])
    (condition,) = [e for e in jax.make_jaxpr(runs)(x > 1, x).eqns if e.primitive.name == "cond"]
    predicate = condition.invars[0]
    assert predicate.aval.shape == ()


def test_grids_of_runs_share_the_condition_too():
    def run(due, x):
        return refreshed(due, lambda: x + 1, x)

    due = jnp.array([[True, False], [False, False]])
    found = jax.vmap(jax.vmap(run))(due, jnp.zeros((2, 2)))
    np.testing.assert_array_equal(found, due)


def test_a_condition_that_all_runs_share_stays_as_it_is():
    jaxpr = jax.make_jaxpr(jax.vmap(lambda x, d: refreshed(d, lambda: x + 1, x), (0, None)))(
        jnp.zeros(3), True
    )
    assert [e.primitive.name for e in jaxpr.eqns].count("cond") == 1
