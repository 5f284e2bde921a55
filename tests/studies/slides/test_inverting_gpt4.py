import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART

NEAR_5E36, NEAR_4E27 = (4e36, 5e36, 6e36), (3e27, 4e27, 5e27)
FAR_BELOW = (1e16, 2e16, 3e16)


@pytest.fixture
def results(made_up):
    """Made-up results: the range that the arithmetic gives for each of the two figures."""

    def make(operations, gigabytes):
        arithmetic = {
            "parameters": (1.65e12, 1.7e12, 1.75e12),
            "operations": operations,
            "gigabytes": gigabytes,
            "gigabytes_of_n_cubed": (4e28, 4e28, 4e28),
        }
        return made_up("inverting_gpt4", {"arithmetic": arithmetic})

    return make


@pytest.mark.parametrize(
    "operations, gigabytes, answer",
    [
        (NEAR_5E36, NEAR_4E27, HOLDS),
        (NEAR_5E36, FAR_BELOW, IN_PART),
        (FAR_BELOW, NEAR_4E27, DOES_NOT_HOLD),
        ((2e37, 3e37, 4e37), FAR_BELOW, DOES_NOT_HOLD),
        ((1e36, 2.6e36, 6e36), NEAR_4E27, HOLDS),
        ((1e36, 2.4e36, 6e36), NEAR_4E27, DOES_NOT_HOLD),
        ((4e36, 9.9e36, 2e37), NEAR_4E27, HOLDS),
        ((4e36, 10.1e36, 2e37), NEAR_4E27, DOES_NOT_HOLD),
    ],
)
def test_s9_can_come_out_every_way_that_arithmetic_can(
    answers, results, operations, gigabytes, answer
):
    assert answers(results(operations, gigabytes)) == {"S9": answer}


def test_the_arithmetic_finds_the_operations_right_and_the_memory_wrong(answers):
    found = studies.run("inverting_gpt4", "quick")
    ours = found["cells"]["arithmetic"]
    n = 1.7e12
    assert ours["operations"][1] == n * n * n
    np.testing.assert_allclose(ours["gigabytes"][1], 8 * n**2 / 10**9)
    assert answers(found) == {"S9": IN_PART}


def test_the_figure_sets_the_slides_numbers_beside_ours(draw, results):
    (axes,) = draw(results(NEAR_5E36, FAR_BELOW)).axes
    texts = {text.get_text() for text in axes.get_legend().get_texts()}
    assert texts == {"slides", "computed"}
