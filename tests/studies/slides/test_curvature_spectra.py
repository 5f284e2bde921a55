import numpy as np
import pytest

from soaa_edu.studies import curvature_spectra as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART


def spectrum(smallest):
    nodes = np.array([smallest, 0.5, 2.0])
    return {"smallest": smallest, "largest": 2.0, "nodes": nodes, "weights": np.ones(3) / 3}


def results(gauss_newton, hessian, seeds=3):
    """Made-up results: the smallest eigenvalue of each matrix, the largest being 2."""
    jitter = 1 + 0.01 * np.arange(seeds)
    smallest = {"gauss_newton": gauss_newton * jitter, "hessian": hessian * jitter}
    cells = {
        f"sgd.{seed}": {
            moment: {name: spectrum(float(values[seed])) for name, values in smallest.items()}
            for moment in study.MOMENTS
        }
        for seed in range(seeds)
    }
    return {"study": "curvature_spectra", "settings": {}, "cells": cells}


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(-1e-15, -0.5), HOLDS),
        (results(-1e-15, -0.5, seeds=2), HOLDS),
        (results(-1e-15, -1e-4), IN_PART),
        (results(-0.1, -1e-4), DOES_NOT_HOLD),
        (results(-1e-15, 0.5), IN_PART),
        (results(-1e-15, np.array([-0.5, 0.3, -0.5])), IN_PART),
        (results(-0.1, -0.5), DOES_NOT_HOLD),
        (results(np.array([-1e-15, -1e-8, -1e-15]), -0.5), DOES_NOT_HOLD),
    ],
)
def test_s7_can_come_out_every_way_that_extremes_can(answers, made_up, answer):
    assert answers(made_up) == {"S7": answer}


def test_one_bad_moment_is_enough_to_deny_semidefiniteness(answers):
    made_up = results(-1e-15, -0.5)
    for cell in made_up["cells"].values():
        cell["after one epoch"]["gauss_newton"]["smallest"] = -0.1
    assert answers(made_up) == {"S7": DOES_NOT_HOLD}


def test_one_moment_without_negative_curvature_is_enough_to_deny_the_hessians(answers):
    made_up = results(-1e-15, -0.5)
    made_up["cells"]["sgd.1"]["at the end"]["hessian"]["smallest"] = -1e-4
    assert answers(made_up) == {"S7": IN_PART}


def test_the_figure_shows_both_densities_at_three_moments(draw):
    drawing = draw(results(-1e-15, -0.5))
    assert [axes.get_title() for axes in drawing.axes] == list(study.MOMENTS)
    for axes in drawing.axes:
        for line in axes.lines:
            area = np.trapezoid(line.get_ydata(), line.get_xdata())
            assert area == pytest.approx(1, abs=1e-3)
