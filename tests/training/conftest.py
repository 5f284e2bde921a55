import pytest

from soaa_edu import Optimizer
from soaa_edu.data import Dataset


@pytest.fixture
def labelled(rng):
    """Draws inputs of width 3 with labels from 0 to 3, for training and for testing."""

    def draw(examples, test_examples):
        sizes = examples, test_examples
        return Dataset(*((rng.normal(size=(n, 3)), rng.integers(4, size=n)) for n in sizes))

    return draw


@pytest.fixture
def together():
    """One optimizer of many: each trains parameters of its own, all on the same batches."""

    def join(optimizers):
        def init(params):
            return {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}

        def step(params, state, batch, key):
            params, state, told = dict(params), dict(state), {}
            for name, optimizer in optimizers.items():
                params[name], state[name], info = optimizer.step(
                    params[name], state[name], batch, key
                )
                told |= {f"{name}_{word}": value for word, value in info.items()}
            return params, state, {"loss": sum(told[f"{name}_loss"] for name in optimizers), **told}

        return Optimizer(init, step)

    return join
