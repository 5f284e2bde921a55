import numpy as np
import pytest
import scipy.stats

from soaa_edu.studies.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    IN_PART,
    UNSETTLED,
    Part,
    interval,
    judge,
    mean_and_spread,
)

YES, NO, OPEN = Part("it", 2, 3, 1.0), Part("it", 0, 0.5, 1.0), Part("it", 0, 3, 1.0)


@pytest.mark.parametrize(
    "parts, answer",
    [
        ([YES, YES], HOLDS),
        ([NO, NO], DOES_NOT_HOLD),
        ([YES, NO], IN_PART),
        ([YES, NO, OPEN], IN_PART),
        ([YES, OPEN], UNSETTLED),
        ([NO, OPEN], UNSETTLED),
        ([OPEN], UNSETTLED),
        ([], UNSETTLED),
    ],
)
def test_the_parts_carry_the_answer(parts, answer):
    verdict = judge("S1", parts, seeds=3, least_seeds=3, settled_by="more", notes=["so"])
    assert verdict == ("S1", answer, tuple(parts), ("so",), 3, "more")


@pytest.mark.parametrize("parts", [[YES], [NO], [YES, NO]])
def test_too_few_seeds_settle_nothing(parts):
    assert judge("S1", parts, seeds=2, least_seeds=3, settled_by="").answer == UNSETTLED


@pytest.mark.parametrize(
    "low, high, above, holds",
    [
        (1.1, 2, True, True),
        (1.1, 2, False, False),
        (0, 0.9, True, False),
        (0, 0.9, False, True),
        (0, 2, True, None),
        (1, 2, True, None),
        (0, 1, False, None),
        (np.nan, np.nan, True, None),
        (-np.inf, np.inf, False, None),
    ],
)
def test_a_part_holds_where_its_whole_interval_is_on_the_claims_side(low, high, above, holds):
    part = Part("x", low, high, 1.0, above)
    assert part.holds is holds
    assert str(part).startswith({True: "yes: x", False: "no: x", None: "open: x"}[holds])


def test_a_part_reads_as_a_sentence():
    assert str(Part("its loss", 0.5, 1 / 3, 2.0, above=False)) == (
        "yes: its loss, [0.5, 0.3333] below 2"
    )


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_is_students(rng, count, confidence):
    values = rng.normal(size=count)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)
    np.testing.assert_allclose(interval(values, confidence), expected, rtol=1e-12)


def test_one_seed_leaves_everything_open():
    assert interval([0.3]) == (-np.inf, np.inf)


def test_a_seed_without_a_number_leaves_everything_open():
    assert Part("x", *interval([1.0, np.nan, 1.0]), 0.0).holds is None


def test_mean_and_spread_are_those_of_the_sample():
    assert mean_and_spread([1.0, 2.0, 3.0], digits=2) == "2.00 ± 1.00"
    assert mean_and_spread([1.0]) == "1.0000 ± nan"
