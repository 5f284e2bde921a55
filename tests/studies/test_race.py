import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import Objective, adam_8bit, first_order, soaa, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.engine import Cell
from soaa_edu.models import mlp
from soaa_edu.studies import methods, race
from soaa_edu.studies.runs import training_run

NUMBERS = 6 * 3 + 3


@pytest.fixture
def task(rng):
    """Two batches of random numbers an epoch, and one example left over."""
    data = Dataset(train=(rng.normal(size=(17, 6)), rng.integers(3, size=17)))
    objective = Objective(mlp([6, 3]), softmax_cross_entropy)
    return race.Task({"network": "mlp", "batch": 8}, objective, lambda: data, 17, 5, 8)


def build(method, task, **point):
    return methods.build(method, task.objective, task.steps, **point)


def grid(method):
    return {"learning_rate": [0.1, 0.2] if method == "sgd" else [0.01, 0.02, 0.04]}


def test_a_task_counts_whole_batches_and_starts_always_the_same(task):
    assert (task.steps_an_epoch, task.steps, task.last) == (2, 10, None)
    jax.tree.map(np.testing.assert_array_equal, task.init(), task.init())


def test_a_race_has_a_cell_for_each_method_on_each_task(task):
    tasks = [task._replace(labels={"network": "mlp", "batch": batch}) for batch in (8, 16)]
    cells = race.races(
        tasks, ("sgd", "adam"), build, grid, seeds=2, share=lambda t: t.labels["batch"]
    )
    assert {name: (cell.share, cell.needs) for name, cell in cells.items()} == {
        "method=sgd network=mlp batch=8": (8, ()),
        "method=adam network=mlp batch=8": (8, ()),
        "method=sgd network=mlp batch=16": (16, ()),
        "method=adam network=mlp batch=16": (16, ()),
    }
    assert next(iter(cells)) == "method=sgd network=mlp batch=8"
    (alone,) = race.races([task], ("sgd",), build, grid, seeds=2).values()
    assert alone.share == Cell(int).share


def asked(monkeypatch, name):
    calls = []
    monkeypatch.setattr(race, name, lambda *args, **settings: calls.append((args, settings)))
    return calls


def test_each_cell_tunes_its_method_on_its_grid_and_its_task(task, monkeypatch):
    calls = asked(monkeypatch, "tuned")
    task = task._replace(last=1)
    cells = race.races([task], ("sgd", "adam"), build, grid, seeds=4, tuning_seeds=3)
    cells["method=adam network=mlp batch=8"].compute()
    (((made, points, data), settings),) = calls
    assert (points, data) == (grid("adam"), task.load())
    assert settings == {"seeds": 4, "tuning_seeds": 3, "epochs": 5, "batch_size": 8, "last": 1}
    assert made.func is build
    assert made.args == ("adam", task)


def test_a_finer_race_needs_the_coarse_cell_and_searches_around_what_it_found(task, monkeypatch):
    calls = asked(monkeypatch, "refined")
    cells = race.finer_races([task], ("sgd", "adam"), build, seeds=50, tuning_seeds=10)
    assert {name: cell.needs for name, cell in cells.items()} == {
        f"method={m} network=mlp batch=8 search=refined": (f"method={m} network=mlp batch=8",)
        for m in ("sgd", "adam")
    }
    found = {"search": {"best": {"learning_rate": 0.1}}}
    cells["method=adam network=mlp batch=8 search=refined"].compute(found)
    (((made, data, given), settings),) = calls
    assert made.args == ("adam", task)
    assert (data, given) == (task.load(), found)
    assert settings == {"seeds": 50, "tuning_seeds": 10, "epochs": 5, "batch_size": 8, "last": None}


def test_what_is_learned_is_what_training_gives_at_the_best_point(task):
    found = race.learn("sgd", task, build, {"learning_rate": [0.2]}, seeds=2)
    assert found["search"]["best"] == {"learning_rate": 0.2}
    for seed, run in enumerate(found["runs"]):
        alone = training_run(build("sgd", task, learning_rate=0.2), seed, task.load(), 5, 8)
        np.testing.assert_allclose(run["loss"], alone["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    "costs, repeats, more", [("epoch_costs", 3, set()), ("step_costs", 5, {"peak_bytes"})]
)
def test_costs_are_measured_for_every_method(task, costs, repeats, more):
    optimizers = {m: build(m, task, learning_rate=0.1) for m in ("adam", "soaa")}
    found = getattr(race, costs)(task, optimizers, steps=2)
    assert set(found) == {"seconds_a_step", "bytes", "parameter_bytes"} | more
    assert {m: len(times) for m, times in found["seconds_a_step"].items()} == {
        "adam": repeats,
        "soaa": repeats,
    }
    assert min(min(times) for times in found["seconds_a_step"].values()) > 0
    assert found["parameter_bytes"] == 4 * NUMBERS
    assert found["bytes"] == {"adam": 8 * NUMBERS + 4, "soaa": 12 * NUMBERS + 36}
    assert all(peak > 24 * NUMBERS for peak in found.get("peak_bytes", {}).values())


@pytest.mark.parametrize("steps, an_epoch", [(0, 2), (1, 1)])
def test_an_epoch_is_timed_by_the_step_over_so_many_or_the_whole(
    task, monkeypatch, steps, an_epoch
):
    def in_turn(optimizers, data, batch_size):
        assert len(data.train[0]) == len(data.train[1]) == an_epoch * batch_size
        return {method: [6.0, 12.0] for method in optimizers}

    monkeypatch.setattr(race, "epochs_in_turn", in_turn)
    optimizers = {"adam": build("adam", task, learning_rate=0.1)}
    found = race.epoch_costs(task, optimizers, steps=steps)
    assert found["seconds_a_step"] == {"adam": [6.0 / an_epoch, 12.0 / an_epoch]}


def test_steps_on_one_batch_are_timed_in_turns_but_for_the_first(task, monkeypatch):
    clock = iter(np.cumsum([0, 60, 0, 60, *[0, 4, 0, 8] * 5]))
    monkeypatch.setattr(race, "perf_counter", lambda: next(clock))
    optimizers = {m: build(m, task, learning_rate=0.1) for m in ("adam", "sgd")}
    found = race.step_costs(task, optimizers, steps=2)
    assert found["seconds_a_step"] == {"adam": [2.0] * 5, "sgd": [4.0] * 5}


@pytest.mark.parametrize(
    "transformation, expected",
    [
        (optax.adam(1e-3), 2 * 1032 * 4 + 4),
        (soaa(1e-3, total_steps=10), 3 * 1032 * 4 + 9 * 4),
        (adam_8bit(1e-3), 2 * (4 * (256 + 4) + 8 + 4) + 4),
    ],
)
def test_bytes_of_state_are_those_of_the_arrays(transformation, expected):
    objective = Objective(mlp([128, 8]), softmax_cross_entropy)
    params = {"weight": jnp.zeros((128, 8)), "bias": jnp.zeros(8)}
    assert race.state_bytes(first_order(objective, transformation), params) == expected


def test_peak_memory_is_no_less_than_what_goes_in_and_comes_out():
    x = jnp.ones((100, 50))
    program = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x).lower(x).compile()
    assert race.peak_bytes(program) >= 2 * x.nbytes
