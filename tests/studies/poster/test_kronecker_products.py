import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.curvature import dense, fisher_matvec
from soaa_edu.studies.poster import kronecker_products as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

TINY = study.Settings(640, 1, 1, 64, 0.0)


@pytest.fixture
def results(made_up):
    """Made-up results; ``beside`` is how far K-FAC's product is off, over the nearest's."""

    def make(formula=1e-12, empirical=1e-3, off=0.3, beside=1.0, seeds=3):
        jitter = 1 + 0.01 * np.arange(seeds)
        formula, off, beside = (np.broadcast_to(each, seeds) for each in (formula, off, beside))

        def moment(seed):
            value = off[seed] * jitter[seed]
            layer = dict.fromkeys(study.PRODUCTS, value) | {"kfac": value * beside[seed]}
            return {
                "fisher_off": 1e-16,
                "empirical_off": empirical * jitter[seed],
                "layers": {"dense_0": layer, "dense_1": layer},
                "formula_off": {"kfac": formula[seed] * jitter[seed], "shampoo": formula[seed]},
            }

        cells = {f"seed={k}": {name: moment(k) for name in study.MOMENTS} for k in range(seeds)}
        return made_up("kronecker_products", cells)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"off": np.array([0.3, 0.9, 0.3])}, HOLDS),
        ({"beside": 1.09}, HOLDS),
        ({"empirical": 0.6}, IN_PART),
        ({"beside": 1.11}, IN_PART),
        ({"beside": np.array([1.0, 1.5, 1.0])}, IN_PART),
        ({"formula": 1.0, "empirical": 0.6, "off": 3.0}, DOES_NOT_HOLD),
        ({"formula": 1.0}, DOES_NOT_HOLD),
        ({"formula": np.array([1e-12, 1e-3, 1e-12])}, OPEN),
    ],
)
def test_p7_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"P7": answer}


def test_the_figure_shows_every_product_of_both_layers_at_both_moments(draw, results):
    drawing = draw(results())
    for axes, layer in zip(drawing.axes, ("dense_0", "dense_1"), strict=True):
        assert axes.get_title() == layer
        assert len(axes.lines) == 2 * len(study.PRODUCTS)


@pytest.fixture(scope="module")
def cell():
    (compute,) = study.cells(TINY).values()
    return compute()


def test_the_formula_with_dense_matrices_is_what_the_methods_do(cell):
    for moment in study.MOMENTS:
        assert max(cell[moment]["formula_off"].values()) < 1e-8


def test_no_product_is_nearer_than_the_nearest(cell):
    for moment in study.MOMENTS:
        assert cell[moment]["fisher_off"] < 1e-12
        for layer in cell[moment]["layers"].values():
            assert layer["nearest"] == min(layer.values())
            assert 0.01 < layer["nearest"] < layer["root_scaled"] < layer["root"]


def test_the_nearest_product_finds_a_product_again(rng):
    a, b = (m @ m.T for m in (rng.normal(size=(4, 4)), rng.normal(size=(3, 3))))
    found = np.kron(*study.nearest_product(np.kron(a, b), 4, 3))
    np.testing.assert_allclose(found, np.kron(a, b))


def test_blocks_and_shampoos_factors_are_those_of_the_examples(classifier, rng):
    objective, params = classifier()
    inputs = jnp.asarray(rng.normal(size=(3, 12)))
    labels = jnp.array([0, 1, 3])
    matrix = dense(fisher_matvec(objective, params, (inputs, labels)), params)
    found = study.block(np.asarray(matrix), params, "dense_1")
    probabilities = np.array(jax.nn.softmax(objective.model(params, inputs)))
    expected, left, right = 0, 0, 0
    for i in range(3):
        for label in range(4):
            example = (inputs[i : i + 1], jnp.array([label]))
            gradient = jax.grad(objective)(params, example)["dense_1"]
            g = np.concatenate([gradient["weight"], gradient["bias"][None]])
            share = probabilities[i, label] / 3
            expected = expected + share * np.outer(g, g)
            left, right = left + share * g @ g.T, right + share * g.T @ g
    np.testing.assert_allclose(found, expected, atol=1e-12)
    for ours, theirs in zip(study.shampoo_factors(found, 6, 4), (left, right)):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_pooling_takes_means_of_squares(rng):
    images = rng.normal(size=(2, 784))
    found = study.pooled(images)
    assert found.shape == (2, 49)
    corner = images.reshape(2, 28, 28)[:, :4, 4:8].mean(axis=(1, 2))
    np.testing.assert_allclose(found[:, 1], corner)
