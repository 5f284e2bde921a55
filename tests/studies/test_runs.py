from types import SimpleNamespace

import numpy as np
import optax
import pytest

from soaa_edu import Objective, first_order, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.studies import runs
from soaa_edu.training import History


def test_a_run_is_told_in_stretches(rng):
    inputs, labels = rng.normal(size=(30, 3)), rng.integers(4, size=30)
    data = Dataset(train=(inputs, labels), test=(inputs, labels))
    objective = Objective(mlp([3, 4]), softmax_cross_entropy)
    optimizer = first_order(objective, optax.sgd(0.1))
    run, again = (runs.training_run(optimizer, 1, data, epochs=10, batch_size=1) for _ in range(2))
    assert (run["steps"], run["diverged_at"]) == (300, None)
    assert run["loss"].shape == (100,)
    assert run["test_loss"].shape == run["test_accuracy"].shape == (10,)
    assert run["final_loss"] < run["loss"][:14].mean()
    np.testing.assert_array_equal(run["loss"], again["loss"])


def test_a_run_without_curves_is_told_by_its_ends(rng):
    inputs, labels = rng.normal(size=(8, 3)), rng.integers(4, size=8)
    data = Dataset(train=(inputs, labels), test=(inputs, labels))
    optimizer = first_order(Objective(mlp([3, 4]), softmax_cross_entropy), optax.sgd(0.1))
    settings = {"epochs": 2, "batch_size": 2}
    full = runs.training_run(optimizer, 0, data, **settings)
    ends = runs.training_run(optimizer, 0, data, **settings, curves=False)
    assert set(full) - set(ends) == {"loss", "info"}
    for name in ends.keys() - {"seconds"}:
        np.testing.assert_array_equal(ends[name], full[name])


@pytest.mark.parametrize("curves", [True, False])
def test_the_final_loss_is_over_the_last_steps_with_or_without_curves(curves):
    history = History(
        loss=np.array([4.0, 3.0, 2.0, 1.0]),
        test_loss=np.array([2.0, 1.0]),
        test_accuracy=np.array([0.5, 0.75]),
        seconds=np.array([1.0, 1.0]),
        params=(),
        info={"damping": np.arange(4.0)},
    )
    told = runs.record(history, 2, curves)
    assert (told["steps"], told["final_loss"], told["diverged_at"]) == (4, 1.5, None)
    np.testing.assert_array_equal(told["test_accuracy"], [0.5, 0.75])
    assert ("loss" in told) == ("info" in told) == curves


def test_runs_of_one_seed_share_their_start_and_order(rng):
    inputs, labels = rng.normal(size=(8, 3)), rng.integers(4, size=8)
    data = Dataset(train=(inputs, labels))
    objective = Objective(mlp([3, 4]), softmax_cross_entropy)
    still, momentum = (
        runs.training_run(first_order(objective, optimizer), 0, data, epochs=1, batch_size=2)
        for optimizer in (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9))
    )
    np.testing.assert_allclose(still["loss"][:2], momentum["loss"][:2], rtol=1e-6)
    assert not np.isclose(still["loss"][3], momentum["loss"][3], rtol=1e-6)


def test_seconds_of_steps_are_those_of_an_epoch_over_its_steps_but_for_the_first(monkeypatch):
    def a_second_a_step(optimizer, params, data, *, epochs, batch_size, **_):
        steps = len(data.train[0]) / batch_size
        return SimpleNamespace(seconds=steps + 100 * (np.arange(epochs) == 0))

    monkeypatch.setattr(runs, "mnist", lambda size: Dataset(train=(np.zeros(size), None)))
    monkeypatch.setattr(runs, "train", a_second_a_step)
    optimizer = first_order(Objective(mlp([3, 4]), softmax_cross_entropy), optax.sgd(0.1))
    np.testing.assert_array_equal(runs.seconds_of_steps(optimizer, 5, 3), [1, 1, 1])


def test_seconds_of_dispatched_steps_are_those_of_a_repeat_over_its_steps_but_for_the_first(
    monkeypatch,
):
    clock = iter([0, 60, 100, 103, 200, 206])
    images, labels = np.eye(3, dtype=np.float32), np.arange(3)
    monkeypatch.setattr(runs, "mnist", lambda size: Dataset(train=(images, labels)))
    monkeypatch.setattr(runs, "perf_counter", lambda: next(clock))
    optimizer = first_order(Objective(mlp([3, 4]), softmax_cross_entropy), optax.sgd(0.1))
    np.testing.assert_array_equal(runs.seconds_of_dispatched_steps(optimizer, 3, 2), [1, 2])


def test_all_values_of_a_number_share_one_compiled_program(monkeypatch):
    traced = []

    def build(value):
        optimizer = first_order(Objective(mlp([3, 4]), softmax_cross_entropy), optax.sgd(value))

        def step(*arguments):
            traced.append(value)
            return optimizer.step(*arguments)

        return optimizer._replace(step=step)

    data = Dataset(train=(np.eye(3, dtype=np.float32), np.arange(3)))
    at = runs.one_program(build)
    kept = [runs.training_run(at(rate), 0, data, 2, 3)["loss"] for rate in (0.1, 0.5)]
    programs = len(traced)
    apart = [runs.training_run(build(rate), 0, data, 2, 3)["loss"] for rate in (0.1, 0.5)]
    np.testing.assert_allclose(kept, apart, rtol=1e-6)
    assert len(traced) == 3 * programs


def test_epochs_are_timed_in_turns_but_for_the_first(monkeypatch):
    clock = iter([60, 60, 1, 10, 2, 20, 3, 30])
    monkeypatch.setattr(runs, "train", lambda *_, **__: SimpleNamespace(seconds=[next(clock)]))
    optimizer = first_order(Objective(mlp([3, 4]), softmax_cross_entropy), optax.sgd(0.1))
    found = runs.epochs_in_turn({"one": optimizer, "other": optimizer}, None, 1)
    assert found == {"one": [1, 2, 3], "other": [10, 20, 30]}
