import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies import gauss_newton_on_mnist as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = {
    "sgd": 0.25,
    "matched_sgd": 0.26,
    "damped": 0.26,
    "hessian_free": 0.251,
    "gauss_newton": 0.2,
    "levenberg_marquardt": 0.2,
}
ACCURACIES = dict.fromkeys(LOSSES, 0.90) | {"gauss_newton": 0.92}
TUNED = {"tuned_sgd": 0.2, "tuned_adam": 0.19, "tuned_gauss_newton": 0.1}
SECONDS = dict.fromkeys(LOSSES, 1e-3)
SLOW = {"hessian_free": 10e-3}
NOISY = {"hessian_free": np.array([0.5e-3, 1e-3, 2e-3])}


@pytest.fixture
def results(made_up_runs):
    """Made-up results: final losses, accuracies, seconds of a step, and losses once tuned.

    ``paired`` and ``paired_accuracies`` are those of the many seeds, ``dispatched`` the seconds of
    steps sent one by one.
    """

    def make(
        losses=(),
        accuracies=(),
        seconds=(),
        dispatched=(),
        tuned=(),
        paired=(),
        paired_accuracies=(),
        seeds=3,
        paired_seeds=4,
        repeats=3,
    ):
        jitter, paired_jitter = 0.001 * np.arange(seeds), 0.001 * np.arange(paired_seeds)
        in_turn = np.array([1, 1.01, 0.99])[:repeats]
        losses, accuracies = LOSSES | dict(losses), ACCURACIES | dict(accuracies)
        cells = {}
        for method, loss in losses.items():
            cells |= made_up_runs(method, loss + jitter, accuracies[method] + jitter)
        for batch_size in (64, 320):
            for method, loss in (TUNED | dict(tuned)).items():
                runs = list(made_up_runs(method, loss + jitter).values())
                cells[f"{method}_at_{batch_size}"] = {"search": {"best": 0.25}, "runs": runs}
        for method in study.PAIRED:
            cells[f"{method}_paired"] = {
                "final_loss": (LOSSES | dict(paired))[method] + paired_jitter,
                "test_accuracy": (ACCURACIES | dict(paired_accuracies))[method] + paired_jitter,
            }
        for name, changes in (("timing", seconds), ("timing_dispatched", dispatched)):
            every = (SECONDS | dict(changes)).items()
            cells[name] = {"seconds_a_step": {m: s * in_turn for m, s in every}}
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
        ({"losses": {"damped": 0.4}}, HOLDS),
        ({"seconds": SLOW}, IN_PART),
        ({"dispatched": SLOW}, IN_PART),
        ({"seconds": NOISY}, IN_PART),
        ({"losses": {"hessian_free": 0.26}}, IN_PART),
        ({"losses": {"hessian_free": np.nan}}, IN_PART),
        ({"accuracies": {"hessian_free": 0.8}}, IN_PART),
        ({"losses": {"sgd": np.array([0.25, 0.1, 0.25])}}, IN_PART),
        ({"seeds": 2}, IN_PART),
        ({"seconds": SLOW, "dispatched": SLOW}, DOES_NOT_HOLD),
        (
            {
                "seconds": SLOW,
                "dispatched": SLOW,
                "losses": {"hessian_free": 0.5},
                "accuracies": {"hessian_free": 0.8},
            },
            DOES_NOT_HOLD,
        ),
        ({"seconds": NOISY, "dispatched": NOISY}, OPEN),
        ({"seconds": NOISY, "dispatched": SLOW}, OPEN),
        ({"repeats": 2}, OPEN),
    ],
)
def test_s6_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S6"] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"tuned": {"tuned_adam": 0.05}}, HOLDS),
        ({"tuned": {"tuned_adam": np.array([0.05, 0.1, 0.2])}}, HOLDS),
        ({"accuracies": {"damped": 0.95}}, HOLDS),
        ({"losses": {"gauss_newton": 0.4}, "seeds": 2}, HOLDS),
        ({"paired": {"matched_sgd": 0.1}}, HOLDS),
        ({"paired_accuracies": {"gauss_newton": 0.9}}, IN_PART),
        ({"paired_accuracies": {"gauss_newton": np.array([0.92, 0.92, 0.9, 0.96])}}, IN_PART),
        ({"paired": {"gauss_newton": 0.246}}, DOES_NOT_HOLD),
        ({"paired": {"gauss_newton": 0.3}}, DOES_NOT_HOLD),
        (
            {
                "losses": {"gauss_newton": np.nan},
                "accuracies": {"gauss_newton": np.nan},
                "paired": {"gauss_newton": np.nan},
                "paired_accuracies": {"gauss_newton": np.nan},
                "tuned": {"tuned_gauss_newton": 0.3},
            },
            DOES_NOT_HOLD,
        ),
        ({"paired": {"gauss_newton": np.array([0.05, 0.1, 0.2, 0.4])}}, OPEN),
        ({"paired_seeds": 2}, OPEN),
    ],
)
def test_s8_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S8"] == answer


def test_each_claim_tells_the_seeds_that_it_rests_on(results):
    found = {verdict.claim: verdict.seeds for verdict in studies.verdicts(results())}
    assert found == {"S6": 3, "S8": 4}


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
