import numpy as np
import pytest

from soaa_edu.studies import gauss_newton_on_mnist as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = {
    "sgd": 0.25,
    "matched_sgd": 0.26,
    "damped": 0.26,
    "hessian_free": 0.262,
    "gauss_newton": 0.2,
    "levenberg_marquardt": 0.2,
}
ACCURACIES = dict.fromkeys(LOSSES, 0.90) | {"gauss_newton": 0.92}
TUNED = {"tuned_sgd": 0.2, "tuned_adam": 0.19, "tuned_gauss_newton": 0.1}
SECONDS = dict.fromkeys(LOSSES, 1e-3)


@pytest.fixture
def results(made_up_runs):
    """Made-up results: final losses, accuracies, seconds of a step, and losses once tuned."""

    def make(losses=(), accuracies=(), seconds=(), tuned=(), seeds=3):
        jitter = 0.001 * np.arange(seeds)
        losses, accuracies = LOSSES | dict(losses), ACCURACIES | dict(accuracies)
        cells = {}
        for method, loss in losses.items():
            cells |= made_up_runs(method, loss + jitter, accuracies[method] + jitter)
        for batch_size in (64, 320):
            for method, loss in (TUNED | dict(tuned)).items():
                runs = list(made_up_runs(method, loss + jitter).values())
                cells[f"{method}_at_{batch_size}"] = {"search": {"best": 0.25}, "runs": runs}
        every = (SECONDS | dict(seconds)).items()
        cells["timing"] = {"seconds_a_step": {m: s * np.array([1, 1.01, 0.99]) for m, s in every}}
        return {
            "study": "gauss_newton_on_mnist",
            "settings": {"large_batch": 320, "epochs": 2},
            "cells": cells,
        }

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"seconds": {"hessian_free": 10e-3}}, IN_PART),
        ({"losses": {"damped": 0.4}}, IN_PART),
        (
            {
                "seconds": {"hessian_free": 10e-3},
                "losses": {"hessian_free": 0.5},
                "accuracies": {"hessian_free": 0.8},
            },
            DOES_NOT_HOLD,
        ),
        ({"losses": {"sgd": np.array([0.25, 0.1, 0.25])}}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_s6_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S6"] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"tuned": {"tuned_adam": 0.05}}, IN_PART),
        ({"accuracies": {"damped": 0.95}}, IN_PART),
        (
            {
                "losses": {"gauss_newton": np.nan},
                "accuracies": {"gauss_newton": np.nan},
                "tuned": {"tuned_gauss_newton": 0.3},
            },
            DOES_NOT_HOLD,
        ),
        ({"tuned": {"tuned_adam": np.array([0.05, 0.1, 0.2])}}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_s8_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S8"] == answer


def test_the_table_sets_our_numbers_beside_the_slides(results):
    *rest, row = study.slides_table(results()).splitlines()
    assert row.split()[-6:] == ["246", "0.04", "0.2049", "0.2010", "0.9239", "0.9210"]
    assert row.startswith("Gauss-Newton, λ = 4  ")
    assert [line[:22].strip() for line in rest] == [
        "",
        "",
        "SGD, 0.1",
        "Newton, λ = 32",
        "Hessian-free, λ = 32",
    ]


def test_the_figure_shows_the_slides_field_and_the_tuned_one(draw, results):
    texts = [[t.get_text() for t in a.get_legend().get_texts()] for a in draw(results()).axes]
    assert [len(panel) for panel in texts] == [3, 3, 3, 3]
    assert all("tuned" in text for text in texts[-1])
