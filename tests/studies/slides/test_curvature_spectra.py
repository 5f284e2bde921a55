import numpy as np
import pytest

from soaa_edu.studies.slides import curvature_spectra as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART

NONE, CLEAR, FAINT = -1e-15, -0.5, -1e-4


@pytest.fixture
def results(made_up):
    """Made-up results: the smallest eigenvalue of each matrix, the largest being 2."""

    def spectrum(smallest):
        nodes = [smallest, 0.5, 2.0]
        return {"smallest": smallest, "largest": 2.0, "nodes": nodes, "weights": np.ones(3) / 3}

    def make(gauss_newton=NONE, hessian=CLEAR, seeds=3):
        jitter = 1 + 0.01 * np.arange(seeds)
        smallest = {"gauss_newton": gauss_newton * jitter, "hessian": hessian * jitter}
        cells = {
            f"seed={seed}": {
                moment: {name: spectrum(values[seed]) for name, values in smallest.items()}
                for moment in study.MOMENTS
            }
            for seed in range(seeds)
        }
        return made_up("curvature_spectra", cells)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"seeds": 2}, HOLDS),
        ({"hessian": FAINT}, IN_PART),
        ({"hessian": 0.5}, IN_PART),
        ({"hessian": np.array([CLEAR, 0.3, CLEAR])}, IN_PART),
        ({"gauss_newton": -0.1}, DOES_NOT_HOLD),
        ({"gauss_newton": -0.1, "hessian": FAINT}, DOES_NOT_HOLD),
        ({"gauss_newton": np.array([NONE, -1e-8, NONE])}, DOES_NOT_HOLD),
    ],
)
def test_s7_can_come_out_every_way_that_extremes_can(answers, results, changes, answer):
    assert answers(results(**changes)) == {"S7": answer}


@pytest.mark.parametrize(
    "seed, moment, matrix, smallest, answer",
    [
        (0, "after one epoch", "gauss_newton", -0.1, DOES_NOT_HOLD),
        (1, "at the end", "hessian", FAINT, IN_PART),
    ],
)
def test_one_moment_of_one_seed_is_enough_to_deny_either_clause(
    answers, results, seed, moment, matrix, smallest, answer
):
    found = results()
    found["cells"][f"seed={seed}"][moment][matrix]["smallest"] = smallest
    assert answers(found) == {"S7": answer}


def test_the_figure_shows_the_share_of_eigenvalues_of_both_at_three_moments(draw, results):
    drawing = draw(results())
    assert [axes.get_title() for axes in drawing.axes] == list(study.MOMENTS)
    for axes in drawing.axes:
        assert len(axes.lines) == 2
        for line in axes.lines:
            assert np.sum(line.get_ydata()) == pytest.approx(1, abs=1e-5)
