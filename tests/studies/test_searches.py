from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from soaa_edu import Objective, first_order, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.studies import searches
from soaa_edu.studies.results import HIGHEST_LOSS
from soaa_edu.studies.runs import training_run

DATA = Dataset(train=(np.eye(3, dtype=np.float32), np.arange(3)))
OBJECTIVE = Objective(mlp([3, 4]), softmax_cross_entropy)


def scored(function):
    """Scores of a grid of one axis."""
    return lambda grid: [function(value) for value in grid["a"]]


def test_a_search_widens_until_the_best_is_inside():
    found = searches.search({"a": [1.0, 2.0, 4.0]}, scored(lambda a: abs(np.log2(a) - 5)))
    assert found["points"] == {"a": [1, 2, 4, 8, 16, 32, 64]}
    assert found["scores"] == [5, 4, 3, 2, 1, 0, 1]
    assert found["best"] == {"a": 32}


def test_a_search_inside_its_grid_tries_nothing_else():
    found = searches.search({"a": [1.0, 2.0, 4.0]}, scored(lambda a: abs(a - 2.5)))
    assert (found["points"], found["best"]) == ({"a": [1, 2, 4]}, {"a": 2})


def test_a_single_point_is_taken_untried():
    found = searches.search({"a": [3.0], "b": [0.1]}, None)
    assert (found["points"], found["best"]) == ({"a": [3], "b": [0.1]}, {"a": 3, "b": 0.1})
    assert np.isnan(found["scores"]).all()


def test_a_search_widens_downwards_too_and_gives_up_after_six_tries():
    found = searches.search({"a": [1.0, 10.0]}, scored(lambda a: a))
    np.testing.assert_allclose(found["points"]["a"], 10.0 ** np.arange(-6, 2))
    assert found["best"] == {"a": min(found["points"]["a"])}


def test_a_diverged_try_is_never_the_best():
    found = searches.search({"a": [1.0, 2.0, 4.0]}, scored(lambda a: np.nan if a > 2 else 3 - a))
    assert found["best"] == {"a": 2}
    assert found["scores"] == [2, 1, HIGHEST_LOSS]


def test_a_grid_of_two_axes_is_widened_by_a_whole_row():
    asked = []

    def scores(grid):
        asked.append({name: list(values) for name, values in grid.items()})
        a, b = np.meshgrid(*grid.values(), indexing="ij")
        return np.log2(a / 8) ** 2 + np.log10(b) ** 2

    found = searches.search({"a": [1.0, 2.0, 4.0], "b": [0.1, 1.0, 10.0]}, scores)
    assert asked[1:] == [{"a": [a], "b": [0.1, 1.0, 10.0]} for a in (8, 16)]
    assert found["best"] == {"a": 8, "b": 1}
    assert len(found["scores"]) == 15
    at_best = found["points"]["a"].index(8) + 1
    assert [found["points"][name][at_best] for name in "ab"] == [8, 1]


@pytest.mark.parametrize("values, grid", [(1, [3]), (3, [1.5, 3, 6]), (4, [0.75, 1.5, 3, 6])])
def test_a_grid_stands_around_its_middle(values, grid):
    assert searches.grid_around(3.0, 2.0, values) == grid


def test_a_try_is_the_mean_over_its_seeds_and_a_diverged_one_counts_as_ten(monkeypatch):
    def swept(build, grid, *_, keys, **__):
        loss = np.array([[[1 / value]] * len(keys) for value in grid["rate"]])
        if len(keys) == 2 and len(loss) > 1:
            loss[1, 1] = np.nan
        return {"loss": loss, "test_loss": loss, "test_accuracy": loss}

    monkeypatch.setattr(searches, "sweep", swept)
    settings = {"epochs": 1, "batch_size": 3, "seeds": 2}

    def run(**more):
        return searches.tuned(descent, {"rate": [1, 2, 4]}, DATA, **settings, **more)

    assert run()["search"]["scores"][1] == 0.5
    assert run(tuning_seeds=2)["search"]["scores"][:3] == [1, (0.5 + HIGHEST_LOSS) / 2, 0.25]


def descent(rate):
    return first_order(OBJECTIVE, optax.sgd(rate))


def test_runs_are_those_of_training_with_the_best_value():
    settings = {"epochs": 2, "batch_size": 2}
    found = searches.tuned(descent, {"rate": [0.2]}, DATA, seeds=2, **settings)
    assert found["search"]["best"] == {"rate": 0.2}
    for seed, run in enumerate(found["runs"]):
        alone = training_run(descent(0.2), seed, DATA, **settings)
        np.testing.assert_allclose(run["loss"], alone["loss"], rtol=1e-6)
        np.testing.assert_allclose(run["final_loss"], alone["final_loss"], rtol=1e-6)
        assert run["diverged_at"] is None


@pytest.fixture
def sweeps(monkeypatch):
    """The grids and seeds of every sweep, whose losses are the squared distance from ``best``."""
    asked = []

    def swept(build, grid, *_, keys, **__):
        asked.append((dict(grid), [int(jax.random.key_data(key)[-1]) for key in keys]))
        axes = np.meshgrid(*grid.values(), indexing="ij")
        away = sum(np.log2(axis / sweeps.best) ** 2 for axis in axes)
        loss = np.broadcast_to(away[..., None, None], (*away.shape, len(keys), 2))
        return {"loss": loss, "test_loss": loss, "test_accuracy": loss}

    sweeps = SimpleNamespace(asked=asked, best=0.2)
    monkeypatch.setattr(searches, "sweep", swept)
    return sweeps


ONCE = {"epochs": 1, "batch_size": 3}


def test_a_search_is_refined_on_three_seeds_around_its_best_in_steps_of_the_root_of_two(sweeps):
    found = {"search": {"best": {"rate": 0.2}}}
    again = searches.refined(descent, DATA, found, seeds=4, **ONCE)
    (tried, tuning_seeds), (taken, seeds) = sweeps.asked
    np.testing.assert_allclose(tried["rate"], [0.2 / 2**0.5, 0.2, 0.2 * 2**0.5])
    assert tuning_seeds == [1000, 1001, 1002]
    assert (taken, seeds) == ({"rate": [0.2]}, [0, 1, 2, 3])
    assert again["search"]["best"] == {"rate": 0.2}
    assert again["search"]["points"] == tried
    np.testing.assert_allclose(again["search"]["scores"], [0.25, 0, 0.25], atol=1e-15)
    assert len(again["runs"]) == 4


def test_a_refined_search_widens_and_takes_more_seeds_if_asked(sweeps):
    sweeps.best = 0.4
    found = {"search": {"best": {"rate": 0.2}}}
    again = searches.refined(descent, DATA, found, seeds=1, tuning_seeds=5, **ONCE)
    np.testing.assert_allclose(again["search"]["points"]["rate"], 0.2 * 2 ** (np.arange(-1, 4) / 2))
    assert again["search"]["best"] == {"rate": pytest.approx(0.4)}
    assert [len(seeds) for _, seeds in sweeps.asked] == [5, 5, 5, 1]


def test_all_numbers_of_a_point_are_refined(sweeps):
    found = {"search": {"best": {"rate": 0.2, "momentum": 0.2}}}

    def build(rate, momentum):
        return first_order(OBJECTIVE, optax.sgd(rate, momentum))

    again = searches.refined(build, DATA, found, seeds=1, **ONCE)
    values = searches.grid_around(0.2, 2**0.5, 3)
    assert sweeps.asked[0][0] == {"rate": values, "momentum": values}
    assert len(again["search"]["scores"]) == 9
    assert again["search"]["best"] == {"rate": 0.2, "momentum": 0.2}


def test_curves_are_kept_of_the_first_seeds_alone(sweeps):
    seeds = searches.MOST_CURVES + 2
    runs = searches.tuned(descent, {"rate": [0.2]}, DATA, seeds=seeds, **ONCE)["runs"]
    assert ["loss" in run for run in runs] == [True] * searches.MOST_CURVES + [False] * 2
    assert all("final_loss" in run for run in runs)
