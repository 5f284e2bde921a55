import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import soaa_edu

matplotlib.use("agg")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits():
    return soaa_edu.data.mnist()


@pytest.fixture
def classifier(float64, rng):
    """Builds a small float64 network with its loss: (objective, params)."""

    def build(sizes=(12, 5, 4), activation=jnp.tanh, loss=soaa_edu.softmax_cross_entropy):
        model = soaa_edu.models.mlp(sizes, activation)
        params = {
            name: {"weight": rng.normal(size=(n, m)) / np.sqrt(n), "bias": 0.3 * rng.normal(size=m)}
            for name, n, m in zip(model.dense_layers, sizes, sizes[1:], strict=False)
        }
        return soaa_edu.Objective(model, loss), jax.tree.map(jnp.asarray, params)

    return build


@pytest.fixture
def close_figures():
    yield
    plt.close("all")
