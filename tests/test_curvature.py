import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, softmax_cross_entropy, squared_error
from soaa_edu.curvature import (
    dense,
    empirical_fisher_matvec,
    fisher_matvec,
    gauss_newton_matvec,
    hessian_matvec,
    hvp,
)

MODES = ("forward_over_reverse", "reverse_over_reverse", "reverse_over_forward")
EXACT = {"rtol": 1e-11, "atol": 1e-13}


def linear_loss(outputs, targets):
    return jnp.mean(jnp.sum(outputs * targets, axis=-1))


@pytest.fixture
def draw(rng):
    """Random batches: inputs (*places, 12) and targets that fit the loss and its outputs."""

    def batch(*places, loss=softmax_cross_entropy, outputs=4):
        labels = rng.integers(outputs, size=places)
        values = rng.normal(size=(*places, outputs))
        return rng.normal(size=(*places, 12)), labels if loss is softmax_cross_entropy else values

    return batch


@pytest.fixture(params=[softmax_cross_entropy, squared_error], ids=["entropy", "square"])
def loss(request):
    return request.param


def dense_hessian_matvec(objective, params, batch):
    return hessian_matvec(lambda p: objective(p, batch), params)


def sampled_fisher_matvec(objective, params, batch):
    return fisher_matvec(objective, params, batch, jax.random.key(0))


def matrices(objective, params, batch, *makes):
    """The library's matrices."""
    return jax.jit(lambda p: [dense(make(objective, p, batch), p) for make in makes])(params)


def references(objective, params, batch):
    """From dense derivatives: Hessian, Jᵀ H_L J, and the mean of gᵢ gᵢᵀ, gᵢ from a batch of one.

    The model acts on each position alone, and each is an example.
    """
    inputs, targets = batch
    rows = inputs.reshape(-1, inputs.shape[-1])
    alone = targets.reshape(len(rows), *targets.shape[inputs.ndim - 1 :])
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def derivatives(x):
        def one(x_i, y_i):
            return jax.grad(lambda x: objective(unravel(x), (x_i[None], y_i[None])))(x)

        def outputs(x):
            return objective.model(unravel(x), inputs)

        return (
            jax.hessian(lambda x: objective(unravel(x), batch))(x),
            jax.jacobian(lambda x: outputs(x).ravel())(x),
            jax.hessian(lambda z: objective.loss(z, targets))(outputs(x)),
            jax.vmap(one)(rows, alone),
        )

    hessian, jacobian, output_hessian, gradients = derivatives(flat)
    gauss_newton = jacobian.T @ output_hessian.reshape(2 * (len(jacobian),)) @ jacobian
    return hessian, gauss_newton, gradients.T @ gradients / len(gradients)


@pytest.mark.parametrize("places", [(6,), (3, 2)], ids=["flat", "sequences"])
def test_matvecs_are_the_dense_matrices(classifier, draw, loss, places):
    objective, params = classifier(loss=loss)
    batch = draw(*places, loss=loss)
    makes = dense_hessian_matvec, gauss_newton_matvec, empirical_fisher_matvec
    found = matrices(objective, params, batch, *makes)
    for matrix, reference in zip(found, references(objective, params, batch), strict=True):
        np.testing.assert_allclose(matrix, reference, **EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_hvp_is_the_hessian_times_v(classifier, draw, rng, mode):
    objective, params = classifier()
    batch = draw(6)
    flat, unravel = ravel_pytree(params)
    v = rng.normal(size=flat.size)

    def f(params):
        return objective(params, batch)

    product = jax.jit(lambda p, v: hvp(f, p, v, mode))(params, unravel(v))
    expected = jax.jit(jax.hessian(lambda x: f(unravel(x))))(flat) @ v
    np.testing.assert_allclose(ravel_pytree(product)[0], expected, **EXACT)


def test_an_unknown_mode_of_hvp_is_refused():
    with pytest.raises(ValueError, match=r"mode must be one of 'forward_over_reverse'.*'sideways'"):
        hvp(jnp.sum, jnp.ones(2), jnp.ones(2), mode="sideways")


def test_fisher_is_gauss_newton(classifier, draw, loss):
    objective, params = classifier(loss=loss)
    fisher, gauss_newton = matrices(
        objective, params, draw(6, loss=loss), fisher_matvec, gauss_newton_matvec
    )
    np.testing.assert_allclose(fisher, gauss_newton, rtol=0, atol=1e-13)


def test_fisher_is_gauss_newton_where_labels_are_ignored(classifier, draw):
    objective, params = classifier()
    inputs, labels = draw(6)
    labels[:2] = -1
    fisher, gauss_newton = matrices(
        objective, params, (inputs, labels), fisher_matvec, gauss_newton_matvec
    )
    np.testing.assert_allclose(fisher, gauss_newton, rtol=0, atol=1e-13)


def test_a_sequence_without_any_label_is_no_example(classifier, draw):
    objective, params = classifier()
    inputs, labels = draw(4, 2)
    labels[0, 1], labels[3] = -1, -1
    makes = fisher_matvec, empirical_fisher_matvec
    padded = matrices(objective, params, (inputs, labels), *makes)
    alone = matrices(objective, params, (inputs[:3], labels[:3]), *makes)
    np.testing.assert_allclose(padded, alone, **EXACT)


@pytest.mark.parametrize("ignored", [0, 1], ids=["all count", "one ignored"])
def test_the_fisher_of_sequences_takes_each_position_that_counts(classifier, draw, ignored):
    objective, params = classifier((12, 3))
    inputs, labels = draw(2, 3, outputs=3)
    labels[0, :ignored] = -1
    counts = (labels != -1).ravel()
    flat, unravel = ravel_pytree(params)
    jacobian = np.asarray(jax.jacobian(lambda x: objective.model(unravel(x), inputs))(flat))
    p = scipy.special.softmax(objective.model(params, inputs), axis=-1).reshape(6, 3)
    expected = 0
    for place, label in itertools.product(np.flatnonzero(counts), range(3)):
        gradient = (p[place] - np.eye(3)[label]) @ jacobian.reshape(6, 3, -1)[place]
        expected += p[place, label] * np.outer(gradient, gradient) / counts.sum()
    makes = fisher_matvec, gauss_newton_matvec
    for found in matrices(objective, params, (inputs, labels), *makes):
        np.testing.assert_allclose(found, expected, **EXACT)


def test_the_sampled_fisher_is_right_on_average(classifier, draw, loss, rng):
    objective, params = classifier(loss=loss)
    batch = draw(6, loss=loss)
    v = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    @jax.jit
    def along(keys):
        def sampled(key):
            return ravel_pytree(fisher_matvec(objective, params, batch, key)(v))[0]

        return jax.vmap(sampled)(keys), ravel_pytree(fisher_matvec(objective, params, batch)(v))[0]

    products, exact = map(np.asarray, along(jax.random.split(jax.random.key(0), 10_000)))
    standard_error = products.std(axis=0) / np.sqrt(len(products))
    assert np.all(np.abs(products.mean(axis=0) - exact) < 5 * standard_error)
    assert np.linalg.norm(standard_error) < 0.05 * np.linalg.norm(exact)


def test_a_sampled_fisher_has_no_more_directions_than_examples(classifier, draw):
    objective, params = classifier()
    (found,) = matrices(objective, params, draw(6), sampled_fisher_matvec)
    eigenvalues = np.linalg.eigvalsh(found)
    assert np.all(np.abs(eigenvalues[:-6]) < 1e-14)
    assert np.all(eigenvalues[-6:] > 1e-6)


def test_the_hessian_and_the_empirical_fisher_are_other_matrices(classifier, draw):
    objective, params = classifier()
    makes = fisher_matvec, dense_hessian_matvec, empirical_fisher_matvec
    fisher, *others = matrices(objective, params, draw(6), *makes)
    for other in others:
        assert np.linalg.norm(other - fisher) > 0.2 * np.linalg.norm(fisher)


def test_gauss_newton_is_the_hessian_of_a_linear_model(classifier, draw):
    objective, params = classifier((12, 4))
    makes = gauss_newton_matvec, dense_hessian_matvec
    gauss_newton, hessian = matrices(objective, params, draw(6), *makes)
    np.testing.assert_allclose(gauss_newton, hessian, **EXACT)


def test_a_linear_loss_has_a_hessian_but_no_gauss_newton(classifier, draw):
    objective, params = classifier(activation=jax.nn.relu, loss=linear_loss)
    makes = gauss_newton_matvec, dense_hessian_matvec
    gauss_newton, hessian = matrices(objective, params, draw(6, loss=linear_loss), *makes)
    assert not np.any(gauss_newton)
    assert np.linalg.norm(hessian) > 0.1


def test_in_a_relu_network_gauss_newton_is_the_hessian_within_each_layer_alone(classifier, draw):
    objective, params = classifier((12, 5, 4), jax.nn.relu)
    makes = gauss_newton_matvec, dense_hessian_matvec
    gauss_newton, hessian = map(np.asarray, matrices(objective, params, draw(6), *makes))
    layers = np.repeat([0, 1], [12 * 5 + 5, 5 * 4 + 4])
    within = layers[:, None] == layers
    np.testing.assert_allclose(gauss_newton[within], hessian[within], **EXACT)
    assert np.abs(gauss_newton - hessian)[~within].max() > 0.01


def test_the_fisher_needs_a_loss_that_knows_its_targets(classifier, draw):
    objective, params = classifier(loss=linear_loss)
    with pytest.raises(TypeError, match="needs targets from the model's own distribution"):
        fisher_matvec(objective, params, draw(6, loss=linear_loss))


def test_a_plain_function_may_be_the_model(float64, draw, rng):
    objective = Objective(lambda weight, inputs: inputs @ weight, squared_error)
    inputs, targets = draw(6, loss=squared_error)
    weight = jnp.asarray(rng.normal(size=(12, 4)))
    (found,) = matrices(objective, weight, (inputs, targets), fisher_matvec)
    np.testing.assert_allclose(found, np.kron(inputs.T @ inputs / 6, np.eye(4)), **EXACT)


@pytest.mark.parametrize("size", [3, 300])
def test_dense_tells_rows_from_columns(float64, rng, size):
    a = rng.normal(size=(size, size))
    np.testing.assert_allclose(dense(lambda v: a @ v, jnp.zeros(size)), a, rtol=1e-15)


def test_dense_follows_the_order_of_ravel_pytree(float64):
    params = {"b": jnp.zeros(2), "a": jnp.zeros(1)}
    found = dense(lambda v: {"a": 2 * v["b"][:1], "b": jnp.zeros(2)}, params)
    np.testing.assert_array_equal(found, [[0, 2, 0], [0, 0, 0], [0, 0, 0]])
