import numpy as np
import pytest

from soaa_edu.studies import results as stored


def run(loss, curve=True):
    return {"final_loss": loss, **({"loss": [2.3, loss]} if curve else {})}


COARSE = {"search": {"best": 1.0}, "runs": [run(0.5), run(0.6)]}
FINE = {"search": {"best": 1.4}, "runs": [run(0.3), run(0.4), run(0.2, curve=False)]}


@pytest.mark.parametrize(
    "cells, expected", [({"a": COARSE}, COARSE), ({"a": COARSE, "a.refined": FINE}, FINE)]
)
def test_a_refined_cell_stands_for_the_coarse_one(cells, expected):
    results = {"cells": {**cells, "b": {"runs": []}, "b.refined": {"runs": [run(9.0)]}}}
    assert stored.latest(results, "a") is expected
    assert stored.seeds_of(results, "a") == len(expected["runs"])


def test_a_cell_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no_such_cell"):
        stored.latest({"cells": {"a": COARSE}}, "no_such_cell")


def test_numbers_are_those_of_every_run_and_curves_those_of_the_first_seeds():
    results = {"cells": {"a": COARSE}}
    np.testing.assert_array_equal(stored.over_runs(results, "a", "final_loss"), [0.5, 0.6])
    np.testing.assert_array_equal(stored.over_runs(results, "a", "loss"), [[2.3, 0.5], [2.3, 0.6]])
    results["cells"]["a.refined"] = FINE
    np.testing.assert_array_equal(stored.over_runs(results, "a", "final_loss"), [0.3, 0.4, 0.2])
    np.testing.assert_array_equal(stored.over_runs(results, "a", "loss"), [[2.3, 0.3], [2.3, 0.4]])


def test_a_lost_number_that_json_left_out_is_nan():
    results = {"cells": {"a": {"runs": [run(None, curve=False), run(0.5)]}}}
    np.testing.assert_array_equal(stored.over_runs(results, "a", "final_loss"), [np.nan, 0.5])


def test_lost_runs_and_all_above_count_as_ten():
    found = stored.capped([0.5, np.nan, np.inf, 1e6, 10.0])
    np.testing.assert_array_equal(found, [0.5, 10, 10, 10, 10])


@pytest.mark.parametrize("losses", [[1.0, 2.0, np.nan], [1.0, 2.0, np.nan, 7.0]])
@pytest.mark.parametrize("rivals", [[2.0, np.inf, 5.0], [2.0, np.inf, 5.0, np.nan, 3.0]])
def test_a_ratio_pairs_seeds_as_far_as_both_go(losses, rivals):
    found = np.exp(stored.log_ratio(losses, rivals))
    expected = [1 / 2, 2 / 10, 10 / 5, 7 / 10][: min(len(losses), len(rivals))]
    np.testing.assert_allclose(found, expected)


def test_two_lost_runs_are_level():
    np.testing.assert_array_equal(stored.log_ratio([np.nan, 50.0], [np.inf, np.nan]), [0, 0])
