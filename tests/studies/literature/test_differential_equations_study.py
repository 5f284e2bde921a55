import jax
import numpy as np
import pytest

from soaa_edu.studies.literature import differential_equations as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SETTINGS = study.Settings(marks=4, seeds=3)


@pytest.fixture
def results(made_up):
    """Made-up results from each method's final error, the same on both equations.

    After a tenth of the seconds Gauss-Newton has ``early`` times its error. Each number is the same
    for all seeds, or there is one for each.
    """

    def make(early=10.0, **changed):
        ends = dict.fromkeys(study.TUNED, 0.01) | {"gauss_newton_dense": 1e-5, "soap": 1e-3}
        cells = {}

        def run(method, error, early):
            times = early if method == "gauss_newton_dense" else 3.0
            return {
                "final_error": error,
                "error": [100 * error, times * error, 2 * error, error],
                "seconds": [0.1, 1.0, 3.0, 10.0],
                "steps": [1, 10, 30, 100],
            }

        for equation in study.EQUATIONS:
            for method, end in (ends | changed).items():
                numbers = zip(np.broadcast_to(end, 3), np.broadcast_to(early, 3), strict=True)
                cells[f"method={method} equation={equation}"] = {
                    "search": {"points": [0.1, 1.0], "scores": [0.2, 0.1], "best": 1.0},
                    "runs": [run(method, *each) for each in numbers],
                }
            cells[f"long=adam_cosine equation={equation}"] = run("adam_cosine", 4e-3, 1.0)
        return made_up("differential_equations", cells, SETTINGS)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"early": 2000.0}, IN_PART),
        ({"early": [1.0, 100.0, 3000.0]}, IN_PART),
        ({"soap": 9e-3}, IN_PART),
        ({"lbfgs": 1e-5}, IN_PART),
        ({"gauss_newton_dense": 9e-3}, DOES_NOT_HOLD),
        ({"gauss_newton_dense": 0.1}, DOES_NOT_HOLD),
        ({"gauss_newton_dense": [1e-5, 1e-2, 1.0]}, OPEN),
    ],
)
def test_l6_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"L6": answer}


def test_a_share_of_the_time_is_the_last_mark_within_it(results):
    found = results()
    for share, times in ((1.0, 1), (0.3, 2), (0.1, 10), (0.05, 100)):
        ratio = study.against(found, "gauss_newton_dense", "adam_cosine", "poisson", share)
        np.testing.assert_allclose(np.exp(ratio), times * 1e-3)


def test_a_lost_run_counts_as_ten(results):
    found = results(gauss_newton_dense=[1e-5, 1e-5, 10.0])
    found["cells"]["method=gauss_newton_dense equation=burgers"]["runs"][2]["error"][-1] = np.nan
    ratio = study.against(found, "gauss_newton_dense", "adam_cosine", "burgers")
    np.testing.assert_allclose(np.exp(ratio), [1e-3, 1e-3, 1e3])


def test_the_figure_has_both_equations_and_every_method(draw, results):
    drawing = draw(results())
    titles = [axes.get_title() for axes in drawing.axes]
    assert titles == ["Poisson's equation", "Burgers' equation"]
    for axes in drawing.axes:
        assert len(axes.lines) == len(study.TUNED) + 1
        np.testing.assert_allclose(axes.lines[0].get_ydata()[-1], 1e-5)


def test_the_table_tells_what_a_step_takes(results):
    (row, *_) = study.rows(results(), "poisson")
    assert (row["error"], row["steps"], row["ms/step"]) == ("1.0e-05", "100", "100.00")


def test_every_method_has_as_many_tries():
    assert {len(points) for points in study.TUNED.values()} == {study.Settings().tries}


@pytest.fixture(scope="module")
def short_race():
    """A run of 0.2 s of Gauss-Newton on a tiny network, and its start's error."""
    settings = study.Settings(poisson=(4,), interior=4, boundary=4, seconds=0.2, marks=3)
    with jax.enable_x64(True):
        there = study.race(settings, "poisson")
        take = study.steps_of("gauss_newton_dense", there.objective)
        run = study.timed_run(settings, "gauss_newton_dense", there, take, 1.0, 0, 1.0)
        again, _ = there.start(0)
        return run, float(there.error(again)), take, there


def test_a_run_has_its_seconds_and_tells_what_it_reached_when(short_race):
    run, before, _, _ = short_race
    assert np.all(np.diff(run["seconds"]) > 0)
    assert run["seconds"][-1] >= 0.2
    assert np.all(np.diff(run["steps"]) >= 1)
    assert run["final_error"] == run["error"][-1] < before
    assert {"loss", "damping", "reduction_ratio"} <= run.keys()


def test_so_many_steps_together_are_as_many_one_by_one(short_race):
    _, _, take, there = short_race
    with jax.enable_x64(True):
        params, batch = there.start(1)
        state = study.build("gauss_newton_dense", there.objective, 1.0).init(params)
        together = take(params, state, batch, 1.0, 1.0, 5)
        for _ in range(5):
            params, state, _ = take(params, state, batch, 1.0, 1.0, 1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), together[0], params)
