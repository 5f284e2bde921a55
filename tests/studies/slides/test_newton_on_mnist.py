import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.storage import plain
from soaa_edu.studies.slides import newton_on_mnist as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = {
    "sgd_at_0.1": 0.2,
    "sgd_at_0.5/32": 0.3,
    "newton": 0.25,
    "newton_undamped": 2.3,
    "newton_cut_off at=1.0e-01": 2.0,
}
DENSE = (100.0, 120.0)


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results: final losses, test accuracies and seconds of a step, by method."""

    def make(losses=(), accuracies=(), seconds=(), dense=DENSE, seeds=3, spread=0.001, size=7960):
        jitter = spread * np.arange(seeds)
        accuracies = {"newton_undamped": 0.1} | dict(accuracies)
        cells = {}
        for method, loss in (LOSSES | dict(losses)).items():
            found = runs(loss + jitter, accuracies.get(method, 0.9) + jitter, seeds=seeds)
            cells |= {f"method={method} seed={k}": run for k, run in enumerate(found["runs"])}
        half = 0.5 * np.array(dense)
        cells["cost=step"] = {
            **costs(dict.fromkeys(study.TIMED, 1.0) | {"sgd_at_0.1": 1e-3} | dict(seconds)),
            "dense": {"parameters": size, "form": half, "pseudo_inverse": half},
        }
        return made_up("newton_on_mnist", cells, {"cutoffs": (study.LIBRARY_CUTOFF, 0.1)})

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {"newton_undamped": np.nan}, "accuracies": {"newton_undamped": np.nan}}, HOLDS),
        ({"losses": {"newton_cut_off at=1.0e-01": 0.2}}, HOLDS),
        ({"accuracies": {"newton_undamped": 0.8}}, IN_PART),
        ({"accuracies": {"newton_undamped": np.array([0.1, 0.1, 0.5])}}, IN_PART),
        (
            {"losses": {"newton_undamped": 0.3}, "accuracies": {"newton_undamped": 0.9}},
            DOES_NOT_HOLD,
        ),
        ({"losses": {"newton_undamped": 1.15}, "spread": 0.1}, DOES_NOT_HOLD),
        ({"losses": {"newton_undamped": 2.2}, "spread": 0.1}, OPEN),
    ],
)
def test_s2_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S2"] == answer


@pytest.mark.parametrize("claim, method", [("S3", "newton_undamped"), ("S5", "newton")])
@pytest.mark.parametrize(
    "seconds, dense, answer",
    [
        (1.0, DENSE, HOLDS),
        (2e-3, DENSE, HOLDS),
        (2e-3, (11e-3, 120.0), HOLDS),
        (1.0, (9e-3, 120.0), DOES_NOT_HOLD),
        (2e-3, (3e-3, 4e-3), DOES_NOT_HOLD),
    ],
)
def test_s3_and_s5_hang_on_the_quickest_dense_step(
    answers, results, claim, method, seconds, dense, answer
):
    assert answers(results(seconds={method: seconds}, dense=dense))[claim] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {"newton": 0.15}}, IN_PART),
        ({"losses": {"newton": 0.6}}, IN_PART),
        ({"losses": {"newton": np.array([0.3, 0.35, 0.4])}}, IN_PART),
        ({"losses": {"newton": 2.3}}, DOES_NOT_HOLD),
        ({"losses": {"newton": np.array([0.3, 1.0, 2.0])}}, OPEN),
    ],
)
def test_s4_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S4"] == answer


def test_the_exact_short_way_and_all_cutoffs_are_told_beside_the_verdicts(results):
    verdicts = {v.claim: v for v in studies.verdicts(results(seconds={"newton": 2e-3}))}
    dense, short = verdicts["S5"].findings
    assert dense.startswith("dense algebra: 110 s a step (timed with 7960 parameters)")
    assert "2 ms, 2 times SGD's 1 ms" in short
    assert "1e+03 times SGD's 1 ms" in verdicts["S3"].findings[1]
    assert [told.split(":")[0] for told in verdicts["S2"].findings] == [
        "cut-off 0.0095",
        "cut-off 0.1",
    ]


def test_dense_steps_of_a_smaller_network_are_extrapolated_by_the_cube(results):
    found = study.dense_seconds_a_step(results(dense=(1.0, 2.0), size=796))
    np.testing.assert_allclose(found, [1e3, 2e3])


@pytest.mark.parametrize("loss", [2.3, np.nan])
def test_the_figure_shows_all_methods_and_cutoffs(draw, results, loss):
    drawing = draw(results(losses={"newton_undamped": loss}))
    *panels, cutoffs = [[line.get_label() for line in axes.lines] for axes in drawing.axes]
    assert panels == [["SGD, 0.1", "Newton, λ = 32", "SGD, 0.5/32", "Newton, λ = 0"]] * 3
    assert [label for label in cutoffs if label[0] != "_"] == [
        "cut-off 0.0095",
        "cut-off 0.1",
        "guessing, ln 10",
    ]
    assert len(cutoffs) == 2 * 3 + 1


def test_the_cells_have_the_form_that_the_verdicts_read(monkeypatch, rng, results):
    def small_mnist(train_size):
        images = rng.normal(size=(128, 8)).astype(np.float32)
        labels = rng.integers(10, size=128).astype(np.int32)
        return Dataset(train=(images, labels), test=(images[:20], labels[:20]))

    objective = Objective(mlp([8, 10, 10]), softmax_cross_entropy)
    monkeypatch.setattr(study, "slides_objective", lambda: objective)
    monkeypatch.setattr(study, "mlp", lambda sizes: mlp([8, *sizes[1:]]))
    monkeypatch.setattr(study, "mnist", small_mnist)
    monkeypatch.setattr(study, "seconds_of_steps", lambda *_: np.ones(2))
    small = {"seeds": 1, "undamped_seeds": 1, "dense_hidden": 1, "dense_steps": 1}
    small["cutoffs"] = (study.LIBRARY_CUTOFF, 0.1)
    cells = study.cells(study.SCALES["quick"]._replace(**small))
    expected = results(seeds=1)["cells"]
    assert set(cells) == set(expected)
    run, cost = (plain(cells[name]()) for name in ("method=sgd_at_0.1 seed=0", "cost=step"))
    assert set(run) == set(expected["method=sgd_at_0.1 seed=0"])
    assert set(cost["seconds_a_step"]) == set(study.TIMED)
    assert cost["dense"]["parameters"] == 8 + 1 + 10 + 10
    assert len(cost["dense"]["form"]) == len(cost["dense"]["pseudo_inverse"]) == 1
