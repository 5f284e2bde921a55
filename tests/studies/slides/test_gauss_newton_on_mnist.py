import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies.slides import gauss_newton_on_mnist as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = {
    "sgd_at_0.1": 0.25,
    "sgd_at_0.5/4": 0.26,
    "newton": 0.26,
    "hessian_free": 0.251,
    "gauss_newton_at_4": 0.2,
    "levenberg_marquardt": 0.2,
}
TUNED = {"sgd": 0.2, "adam": 0.19, "gauss_newton": 0.1}
SLOW = {"hessian_free": 10e-3}
NOISY = {"hessian_free": np.array([0.5e-3, 1e-3, 2e-3])}
MINE = "gauss_newton_at_4"
LOST = {MINE: np.nan}


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results: losses, accuracies and seconds of a step by method.

    ``paired`` and ``right`` are losses and accuracies of the many seeds, ``sent`` the seconds of
    steps sent one by one, and ``tuned`` the losses once tuned.
    """

    def make(
        losses=(),
        accuracies=(),
        seconds=(),
        sent=(),
        tuned=(),
        paired=(),
        right=(),
        seeds=3,
        paired_seeds=4,
        repeats=3,
    ):
        jitter, paired_jitter = 0.001 * np.arange(seeds), 0.001 * np.arange(paired_seeds)
        all_right = dict.fromkeys(LOSSES, 0.9) | {MINE: 0.92}
        cells = {}
        for method, loss in (LOSSES | dict(losses)).items():
            accuracy = (all_right | dict(accuracies))[method]
            found = runs(loss + jitter, accuracy + jitter, seeds=seeds)
            cells |= {f"method={method} seed={k}": run for k, run in enumerate(found["runs"])}
        for batch in (64, 320):
            for method, loss in (TUNED | dict(tuned)).items():
                cells[f"method={method} batch={batch}"] = runs(
                    loss + jitter, seeds=seeds, best={"learning_rate": 0.25}
                )
        for method in study.PAIRED:
            cells[f"paired={method}"] = {
                "final_loss": (LOSSES | dict(paired))[method] + paired_jitter,
                "test_accuracy": (all_right | dict(right))[method] + paired_jitter,
            }
        for kind, changes in (("step", seconds), ("sent", sent)):
            in_turn = np.array([1, 1.01, 0.99])[:repeats]
            of_step = dict.fromkeys(LOSSES, 1e-3) | dict(changes)
            taken = {method: s * in_turn for method, s in of_step.items()}
            cells[f"cost={kind}"] = costs(taken, repeats=repeats)
        return made_up("gauss_newton_on_mnist", cells, {"large_batch": 320, "epochs": 2})

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {"newton": 0.4}}, HOLDS),
        ({"seconds": SLOW}, IN_PART),
        ({"sent": SLOW}, IN_PART),
        ({"seconds": NOISY}, IN_PART),
        ({"losses": {"hessian_free": 0.26}}, IN_PART),
        ({"accuracies": {"hessian_free": 0.8}}, IN_PART),
        ({"losses": {"sgd_at_0.1": np.array([0.25, 0.1, 0.25])}}, IN_PART),
        ({"seeds": 2}, IN_PART),
        ({"seconds": SLOW, "sent": SLOW}, DOES_NOT_HOLD),
        ({"seconds": SLOW, "sent": SLOW, "losses": {"hessian_free": 0.5}}, DOES_NOT_HOLD),
        ({"seconds": NOISY, "sent": NOISY}, OPEN),
        ({"seconds": NOISY, "sent": SLOW}, OPEN),
    ],
)
def test_s6_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S6"] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"tuned": {"adam": np.array([0.05, 0.1, 0.2])}}, HOLDS),
        ({"accuracies": {"newton": 0.95}}, HOLDS),
        ({"losses": {MINE: 0.4}, "seeds": 2}, HOLDS),
        ({"paired": {"sgd_at_0.5/4": 0.1}}, HOLDS),
        ({"right": {MINE: 0.9}}, IN_PART),
        ({"right": {MINE: np.array([0.92, 0.92, 0.9, 0.96])}}, IN_PART),
        ({"paired": {MINE: 0.246}}, DOES_NOT_HOLD),
        ({"paired": {MINE: 0.3}}, DOES_NOT_HOLD),
        ({"losses": LOST, "accuracies": LOST, "paired": LOST, "right": LOST}, DOES_NOT_HOLD),
        ({"paired": {MINE: np.array([0.05, 0.1, 0.2, 0.4])}}, OPEN),
    ],
)
def test_s8_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["S8"] == answer


def test_each_claim_tells_the_seeds_that_it_rests_on(results):
    found = {verdict.claim: verdict.seeds for verdict in studies.verdicts(results(seeds=5))}
    assert found == {"S6": "3 to 5", "S8": "4"}


def test_lost_runs_of_the_many_seeds_count_as_ten_and_as_knowing_nothing(results):
    found = results(paired=LOST, right=LOST)
    np.testing.assert_array_equal(study.paired(found, MINE, "final_loss"), [10] * 4)
    np.testing.assert_array_equal(study.paired(found, MINE, "test_accuracy"), [0] * 4)


def test_the_table_sets_our_numbers_beside_the_slides(results):
    *rest, row = study.slides_table(results()).splitlines()
    assert row.split()[-6:] == ["246", "0.04", "0.2049", "0.2010", "0.9239", "0.9210"]
    assert row.startswith("Gauss-Newton, λ = 4  ")
    assert [line[:22].strip() for line in rest] == [
        "",
        "",
        "SGD, 0.1",
        "Newton, λ = 32",
        "Hessian-free, λ = 32",
    ]


def test_a_method_of_several_studies_is_taken_from_the_first(results):
    other = results(losses={"sgd_at_0.1": 0.5, "newton": 0.6})
    del other["cells"]["method=sgd_at_0.1 seed=0"]
    first = results()
    for seed in range(3):
        del first["cells"][f"method=newton seed={seed}"]
    lines = study.slides_table(first, other).splitlines()[2:4]
    assert [line.split()[-3] for line in lines] == ["0.2510", "0.6010"]


def test_the_figure_shows_the_slides_field_and_the_tuned_one(draw, results):
    drawing = draw(results())
    assert [len(axes.lines) for axes in drawing.axes] == [3, 3, 3, 3]
    labels = [text.get_text() for text in drawing.axes[3].get_legend().get_texts()]
    assert labels == ["SGD", "Adam", "Gauss-Newton"]
    assert drawing.axes[3].get_title() == "batch 320, tuned"
