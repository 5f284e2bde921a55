import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.studies import newton_on_mnist as study
from soaa_edu.studies import runs
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LIBRARY, WIDE = "undamped_9.5e-03", "undamped_1.0e-01"
SETTLED = {"sgd": 0.2, "slow_sgd": 0.3, "damped": 0.25, LIBRARY: 2.3, WIDE: 2.0}


@pytest.fixture
def results(made_up_runs):
    """Made-up results: final losses, accuracies, and seconds of a step."""

    def make(losses=(), accuracies=(), seconds=(), dense=(100.0, 120.0), seeds=3, spread=0.001):
        losses = SETTLED | dict(losses)
        accuracies = dict.fromkeys(losses, 0.9) | {LIBRARY: 0.1} | dict(accuracies)
        seconds = dict.fromkeys(study.TIMED, 1.0) | {"sgd": 1e-3} | dict(seconds)
        cells = {}
        for method, loss in losses.items():
            jitter = spread * np.arange(seeds)
            cells |= made_up_runs(method, loss + jitter, accuracies[method] + jitter)
        cells["timing"] = {
            "seconds_a_step": {m: [s, 1.01 * s, 0.99 * s] for m, s in seconds.items()},
            "dense": {
                "parameters": 7960,
                "form": [0.5 * s for s in dense],
                "pseudo_inverse": [0.5 * s for s in dense],
            },
        }
        return {"study": "newton_on_mnist", "settings": {}, "cells": cells}

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {LIBRARY: np.nan}, "accuracies": {LIBRARY: np.nan}}, HOLDS),
        ({"losses": {WIDE: 0.2}}, HOLDS),
        ({"accuracies": {LIBRARY: 0.8}}, IN_PART),
        ({"accuracies": {LIBRARY: np.array([0.1, 0.1, 0.5])}}, IN_PART),
        ({"losses": {LIBRARY: 0.3, WIDE: 0.2}, "accuracies": {LIBRARY: 0.9}}, DOES_NOT_HOLD),
        ({"losses": {LIBRARY: 1.15}, "spread": 0.1}, DOES_NOT_HOLD),
        ({"losses": {LIBRARY: 2.2}, "spread": 0.1}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_s2_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S2"] == answer


@pytest.mark.parametrize("claim, method", [("S3", LIBRARY), ("S5", "damped")])
@pytest.mark.parametrize(
    "seconds, dense, answer",
    [
        (1.0, (100.0, 120.0), HOLDS),
        (2e-3, (100.0, 120.0), HOLDS),
        (2e-3, (11e-3, 120.0), HOLDS),
        (1.0, (9e-3, 120.0), DOES_NOT_HOLD),
        (2e-3, (3e-3, 4e-3), DOES_NOT_HOLD),
    ],
)
def test_s3_and_s5_hang_on_the_quickest_dense_step(
    answers, results, claim, method, seconds, dense, answer
):
    assert answers(results(seconds={method: seconds}, dense=dense))[claim] == answer


def test_the_exact_short_way_and_all_cutoffs_are_told_beside_the_verdicts(results):
    verdicts = {v.claim: v for v in studies.verdicts(results(seconds={"damped": 2e-3}))}
    dense, short = verdicts["S5"].findings
    assert dense.startswith("dense algebra: 110 s a step (timed with 7960 parameters)")
    assert "2 ms, 2 times SGD's 1 ms" in short
    assert "1e+03 times SGD's 1 ms" in verdicts["S3"].findings[1]
    assert [told.split(":")[0] for told in verdicts["S2"].findings] == [
        "cut-off 0.0095",
        "cut-off 0.1",
    ]


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {"damped": 0.15}}, IN_PART),
        ({"losses": {"damped": 0.6}}, IN_PART),
        ({"losses": {"damped": 2.3}}, DOES_NOT_HOLD),
        ({"losses": {"damped": np.nan}}, DOES_NOT_HOLD),
        ({"losses": {"damped": np.array([0.3, 0.35, 0.4])}}, IN_PART),
        ({"losses": {"damped": np.array([0.3, 1.0, 2.0])}}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_s4_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S4"] == answer


def test_dense_steps_of_a_smaller_network_are_extrapolated_by_the_cube(results):
    made_up = results(dense=(1.0, 2.0))
    made_up["cells"]["timing"]["dense"]["parameters"] = 796
    np.testing.assert_allclose(study.dense_seconds_a_step(made_up), [1e3, 2e3])


def test_undamped_runs_are_listed_by_cutoff(results):
    made_up = results(losses={"undamped_1.0e-06": 2.3})
    assert study.undamped_methods(made_up) == ["undamped_1.0e-06", LIBRARY, WIDE]


@pytest.mark.parametrize("diverged", [False, True])
def test_the_figure_shows_all_methods_and_cutoffs(draw, results, diverged):
    made_up = results(losses={LIBRARY: np.nan} if diverged else {})
    drawing = draw(made_up)
    texts = [text.get_text() for axes in drawing.axes for text in axes.get_legend().get_texts()]
    assert {"SGD, 0.1", "Newton, λ = 32", "Newton, λ = 0", "cut-off 0.1"} < set(texts)


def test_the_cells_have_the_form_that_the_verdicts_read(monkeypatch, rng, draw, results):
    def small_mnist(train_size):
        images = rng.normal(size=(128, 8)).astype(np.float32)
        labels = rng.integers(10, size=128).astype(np.int32)
        return Dataset(train=(images, labels), test=(images[:20], labels[:20]))

    for module in (runs, study):
        monkeypatch.setattr(module, "mlp", lambda sizes: mlp([8, *sizes[1:]]))
    monkeypatch.setattr(study, "mnist", small_mnist)
    monkeypatch.setattr(study, "seconds_of_steps", lambda *_: np.ones(2))
    small = {"seeds": 1, "undamped_seeds": 1, "dense_hidden": 1, "dense_steps": 1}
    small["cutoffs"] = (9.5e-3, 1e-1)
    cells = study.cells(study.SCALES["quick"]._replace(**small))
    made_up = results(seeds=1)["cells"]
    assert set(cells) == set(made_up)
    run, timing = cells["sgd.0"](), cells["timing"]()
    assert set(run) == set(made_up["sgd.0"])
    assert set(timing["seconds_a_step"]) == set(made_up["timing"]["seconds_a_step"])
    assert timing["dense"]["parameters"] == 8 + 1 + 10 + 10
    assert len(timing["dense"]["form"]) == len(timing["dense"]["pseudo_inverse"]) == 1
