import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies import adaptive_damping as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = {"tuned_gauss_newton": 0.2, "levenberg_marquardt": 0.2, "trust_region": 0.2}
BATCHES = (64, 640)


@pytest.fixture
def results(made_up_runs):
    """Made-up results: final losses at both batch sizes, or at one, and the solver's errors."""

    def make(losses=(), at_640=(), errors=(1e-12, 2e-12, 3e-12), seeds=3):
        cells = {"solver": {"errors": errors}}
        for batch_size, changes in zip(BATCHES, ({}, dict(at_640)), strict=True):
            for rule, loss in (LOSSES | dict(losses) | changes).items():
                runs = made_up_runs(rule, loss + np.array([0, 0.001, -0.001])[:seeds])
                cells[f"{rule}_at_{batch_size}"] = {
                    "search": {"best": 2.0, "values": [1, 2, 4], "scores": [0.3, 0.2, 0.21]},
                    "runs": list(runs.values()),
                }
        settings = {"batch_sizes": BATCHES, "seeds": seeds, "epochs": 2}
        return {"study": "adaptive_damping", "settings": settings, "cells": cells}

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"at_640": {"levenberg_marquardt": 0.5}}, IN_PART),
        ({"losses": {"tuned_gauss_newton": 1.15, "levenberg_marquardt": 1.153}}, IN_PART),
        ({"losses": {"levenberg_marquardt": 0.5}}, DOES_NOT_HOLD),
        ({"losses": {"levenberg_marquardt": np.nan}}, DOES_NOT_HOLD),
        ({"losses": {"levenberg_marquardt": np.array([0.2, 0.3, 0.1])}}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_s10_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S10"] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"at_640": {"trust_region": 0.5}}, IN_PART),
        ({"losses": {"tuned_gauss_newton": 1.15, "trust_region": 1.153}}, IN_PART),
        ({"errors": (1e-3, 1.1e-3, 1.2e-3)}, IN_PART),
        ({"errors": (1e-12, 1e-2)}, IN_PART),
        ({"losses": {"trust_region": 0.5}}, DOES_NOT_HOLD),
        ({"losses": {"trust_region": 0.5}, "errors": (1e-3, 1e-2)}, DOES_NOT_HOLD),
        ({"losses": {"trust_region": np.array([0.2, 0.3, 0.1])}}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_s11_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S11"] == answer


def test_tries_near_the_best_are_counted(results):
    assert study.tries_near_the_best(results(), "trust_region", 64) == 2


def test_a_finer_search_stands_for_the_coarse_one(answers, results, made_up_runs):
    made_up = results()
    cells = made_up["cells"]
    for rule, loss in (LOSSES | {"trust_region": 0.5}).items():
        cells[f"{rule}_at_640.refined"] = {
            "search": {
                "best": 0.7,
                "values": [0.5, 0.7, 1.0],
                "scores": [0.21, 0.2, 0.22],
            },
            "runs": list(made_up_runs(rule, [loss] * 5).values()),
        }
    assert study.tries_near_the_best(made_up, "trust_region", 640) == 3
    assert answers(made_up) == {"S10": HOLDS, "S11": IN_PART}
    told = [finding.split(":")[0] for finding in studies.verdicts(made_up)[1].findings]
    assert told[2::3] == ["batch 64, trust-region from 2", "batch 640, trust-region from 0.7"]


def test_a_run_is_lost_that_ends_above_half_the_loss_of_guessing(made_up_runs):
    runs = list(made_up_runs("trust_region", [0.2, 1.15, 1.16, 2.3, np.nan]).values())
    made_up = {"cells": {"trust_region_at_64": {"runs": runs}}}
    np.testing.assert_array_equal(study.lost(made_up, "trust_region", 64), [0, 0, 1, 1, 1])


def test_the_figure_has_a_panel_for_each_batch_size(draw, results):
    assert [axes.get_title() for axes in draw(results()).axes] == ["batch 64", "batch 640"]


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_dense_trust_region_meets_its_conditions(rng, shift):
    matrix = rng.normal(size=(6, 6))
    matrix, gradient = matrix + matrix.T - shift * np.eye(6), rng.normal(size=6)
    step = study.dense_trust_region(matrix, gradient, 0.1)
    residual = matrix @ step + gradient
    damping = -residual @ step / (step @ step)
    assert np.linalg.norm(step) == pytest.approx(0.1, rel=1e-9)
    np.testing.assert_allclose(residual + damping * step, 0, atol=1e-9)
    assert np.linalg.eigvalsh(matrix + damping * np.eye(6))[0] > 0
