import numpy as np
import pytest
import scipy.stats

from soaa_edu.studies.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    IN_PART,
    OPEN,
    Clause,
    Reading,
    interval,
    judge,
    known,
    mean_and_spread,
    measured,
    one_answer,
)

BETTER, WORSE, LEVEL, ANYTHING = known(2), known(-2), known(0), measured([0.0, -9, 9])


def clause(*readings, side="above", margin=1.0, unit=""):
    return Clause("it is so", "it is", f"{side} {margin:g} {unit}".strip(), readings)


@pytest.mark.parametrize(
    "clauses, answer",
    [
        ([[BETTER]], HOLDS),
        ([[BETTER], [BETTER, BETTER]], HOLDS),
        ([[WORSE], [BETTER]], DOES_NOT_HOLD),
        ([[LEVEL], [BETTER]], DOES_NOT_HOLD),
        ([[LEVEL, WORSE]], DOES_NOT_HOLD),
        ([[BETTER], [WORSE]], IN_PART),
        ([[BETTER], [LEVEL]], IN_PART),
        ([[BETTER], [ANYTHING]], IN_PART),
        ([[BETTER, WORSE]], IN_PART),
        ([[BETTER, ANYTHING]], IN_PART),
        ([[ANYTHING], [BETTER]], OPEN),
        ([[ANYTHING, WORSE], [BETTER]], OPEN),
    ],
)
def test_the_claim_stands_or_falls_with_its_first_clause(clauses, answer):
    verdict = judge("S1", [clause(*readings) for readings in clauses])
    assert verdict.answer == answer
    assert (verdict.closes != "") == any(ANYTHING in readings for readings in clauses)


@pytest.mark.parametrize(
    "side, answers",
    [
        ("above", ["no", "no difference", "yes", "no", "open"]),
        ("below", ["yes", "no difference", "no", "open", "no"]),
        ("at least", ["no", "yes", "yes", "open", "yes"]),
        ("at most", ["yes", "yes", "no", "yes", "open"]),
        ("within", ["no", "yes", "no", "open", "open"]),
    ],
)
def test_an_answer_needs_the_whole_interval_on_one_side_of_the_margin(side, answers):
    places = [(-3, -2), (-0.5, 0.5), (2, 3), (-2, 0.5), (-0.5, 2)]
    readings = [Reading("", lambda _, ends=(low, 0, high): ends, 0) for low, high in places]
    judged = judge("S1", [clause(*readings, side=side)]).clauses[0]
    found = [reading.answer for reading in judged.readings]
    assert found == answers


def test_an_interval_that_touches_the_margin_is_no_yes():
    assert judge("S1", [clause(known(1.0))]).answer == DOES_NOT_HOLD


def test_two_seeds_settle_nothing_but_a_number_without_error_does():
    assert one_answer([5.0, 5.0], "above 1") == "open"
    assert one_answer([5.0, 5.0, 5.0], "above 1") == "yes"
    assert judge("S1", [clause(measured([5.0]))]).closes == "at least 3 seeds"
    assert judge("S1", [clause(known(5.0))]).answer == HOLDS


def test_a_diverged_statistic_is_open():
    assert one_answer([np.nan] * 4, "above 1") == "open"


def test_intervals_are_simultaneous_over_all_readings_that_have_an_error():
    values = [1.0, 2.0, 4.0]
    clauses = [clause(measured(values), known(3)), clause(measured(values), measured(values))]
    low, middle, high = judge("S1", clauses).clauses[0].readings[0].interval
    assert middle == pytest.approx(7 / 3)
    assert (low, high) == pytest.approx(interval(values, 1 - 0.05 / 3))


@pytest.mark.parametrize(
    "unit, value, margin, text",
    [
        ("%", np.log(0.87), 1, "-13 %"),
        ("times", np.log(2.5), 1.1, "2.5 times"),
        ("points", 0.031, 0.2, "+3.1 points"),
        ("nats", 0.25, 0.1, "0.25 nats"),
        ("", 0.25, 0.1, "0.25"),
    ],
)
def test_numbers_and_margins_are_told_in_plain_units(unit, value, margin, text):
    side = "below" if value < 0 else "above"
    (judged,) = judge("S1", [clause(known(value), side=side, margin=margin, unit=unit)]).clauses
    assert str(judged) == f"yes: it is so; it is {text} (margin {margin} {unit}".rstrip() + ")"


def test_the_margin_is_a_ratio_where_the_statistic_is_one():
    assert one_answer(np.log([1.015] * 3), "above 1 %") == "yes"
    assert one_answer(np.log([1.005] * 3), "above 1 %") == "no difference"
    assert one_answer(np.log([1.09] * 3), "at most 1.1 times") == "yes"
    assert one_answer(np.log([1.11] * 3), "at most 1.1 times") == "no"


def test_a_clause_names_the_answer_of_each_place_where_they_differ():
    mixed = judge("S1", [clause(known(2, "here"), known(-2, "there"))]).clauses[0]
    assert str(mixed) == "in part: it is so; it is here: yes, 2; there: no, -2 (margin 1)"


def test_readings_are_counted_by_answer():
    verdict = judge("S1", [clause(BETTER, BETTER), clause(WORSE, ANYTHING, LEVEL)])
    assert verdict.counts == "2 yes, 1 no, 1 no difference, 1 open"


@pytest.mark.parametrize("middle, spread, half", [(0.0, 2, 1.0), (1.01, 2, 1.0), (1.1, 0.5, 0.1)])
def test_as_many_seeds_as_it_names_would_close_it(middle, spread, half):
    values = middle + spread * np.array([-1.0, 0, 1, 0, 0, 1, -1, 0])
    closes = judge("S1", [clause(measured(values))]).closes
    seeds = int(closes.split()[1].replace(",", ""))

    def to_each_side(seeds):
        return scipy.stats.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)

    assert seeds > 8
    assert to_each_side(seeds) <= half
    assert to_each_side(0.6 * seeds) > half


def test_an_estimate_on_the_limit_is_closed_by_no_number_of_seeds():
    on_it = measured([1.0] * 5 + [0.0] * 95)
    verdict = judge("S1", [clause(on_it, side="at most", margin=5.0, unit="points")])
    assert verdict.closes.startswith("no number of seeds")


def test_a_number_without_error_on_the_limit_is_still_at_most_that():
    assert judge("S1", [clause(known(1.0), side="at most")]).answer == HOLDS


@pytest.mark.parametrize("clauses", [[], [clause(BETTER)] * 5])
def test_a_claim_has_one_to_four_clauses(clauses):
    with pytest.raises(ValueError, match="split it"):
        judge("S1", clauses)


@pytest.mark.parametrize("wrong", [{"margin": 0.0}, {"side": "better"}])
def test_a_margin_of_zero_and_an_unknown_side_are_refused(wrong):
    with pytest.raises(ValueError, match="margin above zero"):
        judge("S1", [clause(BETTER, **wrong)])


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_is_students(rng, count, confidence):
    values = rng.normal(size=count)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)
    np.testing.assert_allclose(interval(values, confidence), expected, rtol=1e-12)


def test_one_seed_leaves_everything_open():
    assert interval([0.3]) == (-np.inf, np.inf)


def test_mean_and_spread_are_those_of_the_sample():
    assert mean_and_spread([1.0, 2.0, 3.0], digits=2) == "2.00 ± 1.00"
    assert mean_and_spread([1.0]) == "1.0000 ± nan"


@pytest.mark.parametrize(
    "counts, seeds", [([], ""), ([5, 5], "5"), ([5, 50, 20], "5 to 50"), ([1], "1")]
)
def test_the_seeds_are_those_that_the_readings_rest_on(counts, seeds):
    readings = [known(2), *(measured([2.0] * count) for count in counts)]
    assert judge("S1", [clause(known(2)), clause(*readings)]).seeds == seeds
