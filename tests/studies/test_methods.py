import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import methods

OBJECTIVE = Objective(mlp([6, 4, 3]), softmax_cross_entropy)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_gets_nine_tries_or_the_middle_of_them(method):
    nine, one = (methods.grid(method, tries) for tries in (9, 1))
    assert np.prod([len(values) for values in nine.values()]) == 9
    for name, (middle,) in one.items():
        np.testing.assert_allclose(nine[name][len(nine[name]) // 2], middle)
        ratios = np.divide(nine[name][1:], nine[name][:-1])
        np.testing.assert_allclose(ratios, ratios[0])


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_steps_with_learning_rates_that_are_traced(method):
    def shapes(value):
        point = dict.fromkeys(methods.grid(method, 1), value)
        optimizer = methods.build(method, OBJECTIVE, 32, 2, **point)
        params = OBJECTIVE.model.init(jax.random.key(0))
        batch = (jnp.zeros((8, 6)), jnp.zeros(8, jnp.int32))
        after, _, info = optimizer.step(params, optimizer.init(params), batch, jax.random.key(1))
        return params, after, info["loss"]

    params, after, loss = jax.eval_shape(shapes, jnp.float32(0.1))
    assert jax.tree.leaves(after) == jax.tree.leaves(params)
    assert loss.shape == ()
