import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies import newton_on_quadratics as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, OPEN

SMALL, LARGE = (0.01, 0.02, 0.015), (5.0, 6.0, 7.0)


def results(rounding, steps):
    """Made-up results: errors over rounding and steps at κ = 100, one for each seed."""
    seeds = len(rounding)
    return {
        "study": "newton_on_quadratics",
        "settings": {"dimensions": 20, "seeds": seeds},
        "cells": {
            "1e+00": {
                "condition_number": 1.0,
                "newton_error": (1e-16,) * seeds,
                "newton_error_over_rounding": (0.001,) * seeds,
                "gradient_descent_steps": (1,) * seeds,
            },
            "1e+02": {
                "condition_number": 100.0,
                "newton_error": tuple(1e-12 * r for r in rounding),
                "newton_error_over_rounding": rounding,
                "gradient_descent_steps": steps,
            },
        },
    }


@pytest.mark.parametrize(
    "rounding, steps, answer",
    [
        (SMALL, (700, 800, 750), HOLDS),
        (SMALL, (0, 0, 0), HOLDS),
        (SMALL, (1, 1, 900), HOLDS),
        (LARGE, (700, 800, 750), DOES_NOT_HOLD),
        (LARGE, (0, 0, 0), DOES_NOT_HOLD),
        ((0.1, 3.0, 0.2), (700, 800, 750), OPEN),
        (SMALL[:2], (700, 800), OPEN),
    ],
)
def test_s1_can_come_out_every_way_that_one_clause_can(answers, rounding, steps, answer):
    assert answers(results(rounding, steps)) == {"S1": answer}


def test_one_bad_condition_number_is_enough_to_deny_the_one_step(answers):
    made_up = results(SMALL, (700, 800, 750))
    made_up["cells"]["1e+00"]["newton_error_over_rounding"] = LARGE
    assert answers(made_up) == {"S1": DOES_NOT_HOLD}


def test_gradient_descents_steps_are_told_beside_the_verdict():
    (verdict,) = studies.verdicts(results(SMALL, (700, 800, 750)))
    assert verdict.findings == (
        "κ = 1: gradient descent takes 1 steps",
        "κ = 100: gradient descent takes 750 steps",
    )


def test_the_figure_shows_steps_and_errors(draw):
    drawing = draw(results(SMALL, (700, 800, 750)))
    assert len(drawing.axes) == 2


@pytest.fixture(scope="module")
def computed():
    """What the study finds at a scale smaller than the quick one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study.SCALES, "quick", study.Settings(5, (1.0, 100.0), 8, 0.0))
        return studies.run("newton_on_quadratics", "quick")


def test_a_small_scale_settles_the_claim(computed, answers, draw):
    made_up = results(SMALL, SMALL)["cells"]
    assert {name: set(cell) for name, cell in computed["cells"].items()} == {
        name: set(cell) for name, cell in made_up.items()
    }
    assert answers(computed) == {"S1": HOLDS}
    draw(computed)


def test_gradient_descent_takes_the_steps_that_theory_says(computed):
    cells = computed["cells"]
    assert cells["1e+00"]["gradient_descent_steps"] == [1] * 8
    bound = np.log(1e-6) / np.log((100 - 1) / (100 + 1))
    steps = np.array(cells["1e+02"]["gradient_descent_steps"])
    assert np.all((0.5 * bound < steps) & (steps <= np.ceil(bound)))
