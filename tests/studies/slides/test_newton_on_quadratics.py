import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies.slides import newton_on_quadratics as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, OPEN

SMALL, LARGE = (0.01, 0.02, 0.015), (5.0, 6.0, 7.0)


@pytest.fixture
def results(made_up):
    """Made-up results: errors over rounding at κ = 1 and at κ = 100, and steps there, by seed."""

    def make(rounding=SMALL, steps=(700, 800, 750), at_one=SMALL):
        cells = {
            f"condition={condition:.0e}": {
                "condition_number": condition,
                "newton_error": [1e-16 * condition * r for r in over],
                "newton_error_over_rounding": over[: len(rounding)],
                "gradient_descent_steps": count,
            }
            for condition, over, count in (
                (1.0, at_one[: len(rounding)], (1,) * len(rounding)),
                (100.0, rounding, steps),
            )
        }
        return made_up("newton_on_quadratics", cells, {"dimensions": 20})

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"steps": (0, 0, 0)}, HOLDS),
        ({"rounding": LARGE}, DOES_NOT_HOLD),
        ({"rounding": LARGE, "steps": (0, 0, 0)}, DOES_NOT_HOLD),
        ({"at_one": LARGE}, DOES_NOT_HOLD),
        ({"rounding": (0.1, 3.0, 0.2)}, OPEN),
    ],
)
def test_s1_can_come_out_every_way_that_one_clause_can(answers, results, changes, answer):
    assert answers(results(**changes)) == {"S1": answer}


def test_gradient_descents_steps_are_told_beside_the_verdict(results):
    (verdict,) = studies.verdicts(results())
    assert verdict.findings == (
        "κ = 1: gradient descent takes 1 steps",
        "κ = 100: gradient descent takes 750 steps",
    )


@pytest.fixture(scope="module")
def computed():
    """What the study finds at a scale smaller than the quick one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study.SCALES, "quick", study.Settings(5, (1.0, 100.0), 8, 0.0))
        return studies.run("newton_on_quadratics", "quick")


def test_a_small_scale_settles_the_claim_and_is_drawn(computed, answers, draw, results):
    assert {name: set(cell) for name, cell in computed["cells"].items()} == {
        name: set(cell) for name, cell in results()["cells"].items()
    }
    assert answers(computed) == {"S1": HOLDS}
    assert len(draw(computed).axes) == 2


def test_gradient_descent_takes_the_steps_that_theory_says(computed):
    cells = computed["cells"]
    assert cells["condition=1e+00"]["gradient_descent_steps"] == [1] * 8
    bound = np.log(1e-6) / np.log((100 - 1) / (100 + 1))
    steps = np.array(cells["condition=1e+02"]["gradient_descent_steps"])
    assert np.all((0.5 * bound < steps) & (steps <= np.ceil(bound)))
