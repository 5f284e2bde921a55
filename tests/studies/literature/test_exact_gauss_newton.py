import math

import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies.literature import exact_gauss_newton as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SETTINGS = study.SCALES["laptop"]
MOVES = np.array([-2, -1, 0, 1, 2])


def falling(steps, there):
    """A loss that falls from 3 and is down to 2 after so many steps, then creeps."""
    at = np.arange(steps) + 0.5
    return np.where(at < there, 3 - at / there, 2 - 0.001 * (at - there) / steps)


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results: after how many steps a method is down to 2 nats, and how seeds differ."""

    def make(spread=0.0, **there):
        there = (
            dict.fromkeys(study.FIELD, 200.0)
            | {
                study.WHOLE: 30.0,
                study.LAYERS: 33.0,
            }
            | there
        )
        cells = {}
        for method, middle in there.items():
            steps = study.task(method, SETTINGS).steps
            sign = -1 if method in study.EXACT else 1
            losses = [falling(steps, middle * np.exp(sign * spread * move)) for move in MOVES]
            cells[f"method={method}"] = runs(
                np.full(len(MOVES), 2.0),
                seeds=len(MOVES),
                steps=[steps] * len(MOVES),
                loss=[loss.reshape(60, -1).mean(axis=1) for loss in losses],
            )
        cells["cost=step"] = costs(dict.fromkeys(there, 0.01))
        return made_up("exact_gauss_newton", cells, SETTINGS)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({study.WHOLE: 55.0, study.LAYERS: 55.0}, IN_PART),
        ({study.LAYERS: 55.0}, IN_PART),
        ({"soap": 8.0, "muon": 8.0}, DOES_NOT_HOLD),
        ({"spread": 0.6}, OPEN),
    ],
)
def test_l1_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"L1": answer}


def test_steps_are_counted_to_the_loss_that_all_of_them_reach(results):
    found = results()
    assert study.target(found) == pytest.approx(2)
    for method, there in (("soap", 200), (study.WHOLE, 30)):
        counted = study.steps_to_target(found, method)
        np.testing.assert_allclose(counted, there, atol=study.task(method, SETTINGS).steps / 12)
    np.testing.assert_allclose(study.fewer(found, "soap", study.WHOLE), np.log(200 / 30), atol=0.2)


def test_a_run_that_stays_above_counts_with_all_its_steps(results):
    found = results()
    for run in found["cells"]["method=soap"]["runs"]:
        run["loss"] = [3.0] * 60
    np.testing.assert_array_equal(study.steps_to_target(found, "soap"), 300)


def test_the_others_take_five_times_the_steps_on_as_much_text_each():
    whole, soap = (study.task(method, SETTINGS) for method in (study.WHOLE, "soap"))
    assert (whole.steps, soap.steps) == (60, 300)
    assert soap.examples == 300 * SETTINGS.batch_size


def test_every_method_begins_with_as_many_tries():
    grids = [study.grid(method, SETTINGS.tries) for method in study.FIELD]
    assert {math.prod(map(len, grid.values())) for grid in grids} == {9}


def test_seconds_are_steps_at_the_median_time_of_one(results):
    found = results()
    np.testing.assert_allclose(
        study.seconds_to_target(found, "soap"), 0.01 * study.steps_to_target(found, "soap")
    )
    assert "seconds to target" in study.table(found)


def test_findings_tell_steps_and_seconds_of_everyone(results):
    (verdict,) = studies.verdicts(results())
    assert len(verdict.findings) == len(study.FIELD)


def test_the_figure_shows_steps_and_seconds(draw, results):
    assert [axes.get_xlabel() for axes in draw(results()).axes] == [
        "step",
        "seconds, compilation left out",
    ]
