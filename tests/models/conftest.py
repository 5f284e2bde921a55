import jax
import numpy as np
import pytest


@pytest.fixture
def drawn(float64, rng):
    """Draws a model's parameters in float64, none of them zero."""

    def draw(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.tree.map(lambda x: rng.normal(size=x.shape) / np.sqrt(x.shape[0]), shapes)

    return draw


@pytest.fixture
def shapes_of():
    """The shapes of a model's parameters."""
    return lambda model: jax.tree.map(np.shape, jax.eval_shape(model.init, jax.random.key(0)))
