from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, hessian_free, levenberg_marquardt
from soaa_edu.curvature import hessian_matvec
from soaa_edu.optimizers.spans import row_space, spanned_by_rows

SHAPES = [(5,), (3, 2)]
both_spans = pytest.mark.parametrize("span", [row_space, spanned_by_rows])


@pytest.fixture
def wide(classifier, rng, request):
    """A network with 40 inputs, the same without a declared input layer, and batches for both."""
    objective, params = classifier((40, getattr(request, "param", 5), 4))
    undeclared = Objective(replace(objective.model, input_layer=None), objective.loss)

    def batch(shape):
        return jnp.asarray(rng.normal(size=(*shape, 40))), jnp.asarray(rng.integers(4, size=shape))

    return objective, undeclared, params, batch


@both_spans
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_lifts_to_the_gradient(wide, span, shape):
    objective, _, params, draw = wide
    batch = draw(shape)
    space = span(objective, params, batch)
    assert ravel_pytree(space.coordinates)[0].size < ravel_pytree(params)[0].size
    lifted = space.to_parameters(jax.grad(space.objective)(space.coordinates, batch))
    expected = jax.grad(objective)(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), lifted, expected)


@both_spans
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_lifts_to_the_product_and_the_metric_measures_lengths(wide, span, shape):
    objective, _, params, draw = wide
    batch = draw(shape)
    space = span(objective, params, batch)
    v = jax.grad(space.objective)(space.coordinates, batch)
    product = hessian_matvec(lambda c: space.objective(c, batch), space.coordinates)
    full = hessian_matvec(lambda p: objective(p, batch), params)(space.to_parameters(v))
    lifted = space.to_parameters(product(space.metric(v)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), lifted, full)
    squared = ravel_pytree(v)[0] @ ravel_pytree(space.metric(v))[0]
    length = np.linalg.norm(ravel_pytree(space.to_parameters(v))[0])
    assert squared == pytest.approx(length**2, rel=1e-12)


@pytest.mark.parametrize("damping", [8.0, levenberg_marquardt(8.0)])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("rows", [6, 40])
def test_hessian_free_takes_the_same_step_with_a_declared_input_layer(
    wide, rows, curvature, damping
):
    objective, undeclared, params, draw = wide
    batch = draw((rows,))
    outcomes = []
    for each in (objective, undeclared):
        optimizer = hessian_free(each, damping=damping, curvature=curvature, learning_rate=0.5)
        outcomes.append(jax.jit(optimizer.step)(params, optimizer.init(params), batch, None))
    assert outcomes[0][2]["cg_iterations"] == outcomes[1][2]["cg_iterations"] > 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *outcomes)


def test_examples_that_repeat_do_no_harm(wide):
    objective, undeclared, params, draw = wide
    batch = jax.tree.map(lambda array: jnp.concatenate([array[:3]] * 3), draw((3,)))
    steps = [
        jax.jit(hessian_free(each, damping=2.0).step)(params, (), batch, None)[0]
        for each in (objective, undeclared)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *steps)


@pytest.mark.parametrize(
    "wide, span, most",
    [(5, row_space, 40), (5, spanned_by_rows, 40), (2, spanned_by_rows, 26)],
    indirect=["wide"],
)
def test_a_batch_with_too_many_rows_is_left_as_it_is(wide, span, most):
    objective, undeclared, params, draw = wide
    assert span(objective, params, draw((most,))).coordinates is not params
    assert span(objective, params, draw((most + 1,))).coordinates is params
    assert span(undeclared, params, draw((2,))).coordinates is params
