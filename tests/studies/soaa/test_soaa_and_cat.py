import jax
import numpy as np
import pytest

from soaa_edu.studies.soaa import soaa_and_cat as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN


@pytest.fixture
def results(made_up):
    """Made-up results: from how many of seven starts SOAA solves each problem, and how it goes.

    CAT solves all. Each number is the same for all seeds, or there is one for each.
    """

    def run(solved, decades, rising):
        falls = np.where(np.arange(7) < solved, 1e-5, 0.5)
        return {"fall": falls, "decades": np.full(7, decades), "rising": np.full(7, rising)}

    def make(solved=7, decades=2.0, rising=0.0, seeds=3):
        given = [np.broadcast_to(numbers, seeds) for numbers in (solved, decades, rising)]
        cells = {}
        for name in study.PROBLEMS:
            cells[f"method=cat problem={name}"] = [run(7, 4.0, 0.0)] * seeds
            cells[f"method=soaa problem={name}"] = list(map(run, *given))
        return made_up("soaa_and_cat", cells)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"decades": 0.3}, IN_PART),
        ({"rising": 0.2}, IN_PART),
        ({"decades": [0.5, 1.5, 2.0]}, IN_PART),
        ({"rising": [0.0, 0.01, 0.02]}, IN_PART),
        ({"solved": 3}, DOES_NOT_HOLD),
        ({"solved": 3, "decades": 0.3, "rising": 0.2}, DOES_NOT_HOLD),
        ({"solved": [7, 7, 3]}, OPEN),
    ],
)
def test_a9_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"A9": answer}


def test_the_share_solved_counts_problems_and_starts(results):
    made_up = results(solved=[7, 5, 0])
    made_up["cells"]["method=soaa problem=network"] = made_up["cells"]["method=cat problem=network"]
    np.testing.assert_allclose(study.solved(made_up, "cat"), 1)
    np.testing.assert_allclose(study.solved(made_up, "soaa"), [1, 17 / 21, 7 / 21])


def test_the_verdict_takes_the_most_decades_of_any_problem_and_start(results):
    made_up = results(decades=0.3)
    for run in made_up["cells"]["method=soaa problem=network"]:
        run["decades"][4] = 1.5
    (verdict,) = study.verdicts(made_up)
    (reading,) = verdict.clauses[1].readings
    assert reading.interval == (1.5, 1.5, 1.5)


def test_the_figure_has_a_panel_for_each_problem_and_both_methods_in_it(draw, results):
    drawing = draw(results(solved=4))
    assert [axes.get_title() for axes in drawing.axes] == ["Quadratic", "Rosenbrock", "Network"]
    for axes in drawing.axes:
        assert [line.get_label() for line in axes.lines][:2] == ["CAT, first radius", "SOAA"]
        np.testing.assert_array_equal(axes.lines[1].get_xdata(), study.STARTS)
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), [1e-5] * 4 + [0.5] * 3)


def test_the_network_has_64_labelled_examples():
    params, (inputs, labels) = jax.eval_shape(lambda: study.problem("network", 0)[1:])
    assert (inputs.shape, labels.shape) == ((64, 6), (64,))
    assert [layer["weight"].shape for layer in params.values()] == [(6, 5), (5, 3)]


def test_the_starts_span_the_decades_that_the_study_names():
    assert study.STARTS == (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@pytest.fixture(scope="module")
def in_the_valley():
    """Both methods' cells on Rosenbrock's valley, two starts, 40 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "STARTS", (1e-2, 10.0))
        cells = study.cells(study.Settings(40, 1, 0.0))
        return {method: cells[f"method={method} problem=rosenbrock"]()[0] for method in study.FIELD}


def test_cat_solves_it_from_any_radius_and_never_rises(in_the_valley):
    found = in_the_valley["cat"]
    assert all(fall <= study.SOLVED for fall in found["fall"])
    assert found["rising"] == [0, 0]
    assert min(found["decades"]) > 1


def test_soaas_dt_keeps_to_the_bounds_that_gamma_sets(in_the_valley):
    found = in_the_valley["soaa"]
    assert np.all(np.isfinite(jax.tree.leaves(found)))
    assert 0 < max(found["decades"]) <= np.log10(2 / 0.75)
    assert max(found["fall"]) <= 1
    assert max(found["rising"]) > 0
