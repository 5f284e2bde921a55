import importlib

import jax
import numpy as np
import optax
import pytest

from soaa_edu import Objective, first_order, softmax_cross_entropy, sweep, train
from soaa_edu.models import mlp
from soaa_edu.training import rehearsal

OBJECTIVE = Objective(mlp([3, 4]), softmax_cross_entropy)
KEYS = jax.random.split(jax.random.key(0), 2)
SETTINGS = {"epochs": 3, "batch_size": 4}
STEPS = 15


@pytest.fixture
def data(labelled):
    return labelled(20, 4)


def adam(learning_rate):
    return first_order(OBJECTIVE, optax.adam(learning_rate))


def swept(data):
    grid = {"learning_rate": [0.1, 0.2, 0.4]}
    return sweep(adam, grid, OBJECTIVE.model.init, data, keys=KEYS, **SETTINGS)


def test_a_sweep_takes_two_steps_side_by_side_and_tells_all_of_its_length(data):
    whole = swept(data)
    with rehearsal() as programs:
        short = swept(data)
    assert {name: told.shape for name, told in short.items()} == {
        name: told.shape for name, told in whole.items()
    }
    np.testing.assert_allclose(short["loss"][..., :2], whole["loss"][..., :2], rtol=1e-5)
    assert (short["loss"][..., 2:] == short["loss"][..., 1:2]).all()
    (program,) = programs.values()
    assert program.runs == 6
    assert program.ran
    assert 0 < program.gigabytes < 1e-3
    np.testing.assert_array_equal(swept(data)["loss"], whole["loss"])


def test_a_program_that_would_take_long_is_compiled_alone(data, monkeypatch):
    module = importlib.import_module("soaa_edu.training.dry_run")
    monkeypatch.setattr(module, "QUICK", 0)
    with rehearsal() as programs:
        short = swept(data)
    (program,) = programs.values()
    assert not program.ran
    assert not short["loss"].any()


def test_a_run_takes_two_steps_too(data):
    def trained():
        start = OBJECTIVE.model.init(KEYS[0])
        return train(adam(0.1), start, data, key=KEYS[0], progress=False, **SETTINGS)

    whole = trained()
    with rehearsal() as programs:
        short = trained()
    assert [program.runs for program in programs.values()] == [1]
    assert len(short.loss) == STEPS
    np.testing.assert_allclose(short.loss[:2], whole.loss[:2], rtol=1e-5)
    assert np.isnan(short.loss[2:]).all()
