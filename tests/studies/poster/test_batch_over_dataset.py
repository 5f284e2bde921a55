import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies import race
from soaa_edu.studies.poster import batch_over_dataset as study
from soaa_edu.studies.results import held_out_loss
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SETTINGS = study.SCALES["laptop"]


@pytest.fixture
def results(made_up, runs):
    """Made-up results: K-FAC's gain on SGD by images, batch size and seeds; others are worse.

    That on the test loss is the same, or another function.
    """

    def make(gain, spread=0.01, on_test=None):
        moves = np.array([-1, 0, 1])
        cells = {}
        for n, b in study.places(SETTINGS):
            for method in SETTINGS.methods:
                at = f"method={method} images={n} batch={b}"
                if method == "kfac":
                    ends, tests = (
                        np.exp(-(of(n, b, moves) + spread * moves))
                        for of in (gain, on_test or gain)
                    )
                else:
                    ends = tests = np.full(3, 1.0 if method == "sgd" else 9.0)
                cells[at] = runs(
                    ends,
                    steps=[3 * (n // b)] * 3,
                    test_loss=[[2.3, test] for test in tests],
                )
        return made_up("batch_over_dataset", cells, SETTINGS)

    return make


def with_ratio(n, b, moves):
    return 1 + 0.2 * np.log(b / n)


def against_ratio(n, b, moves):
    return -0.2 * np.log(b / n)


def with_batch(n, b, moves):
    return 0.2 * np.log(b)


def with_both(n, b, moves):
    return 0.3 * np.log(b) - 0.1 * np.log(n)


def everywhere_alike(n, b, moves):
    return 1.0


def seeds_disagree(n, b, moves):
    return np.array([-0.2, 0.05, 0.3]) * (1 + np.log(b / n))


@pytest.mark.parametrize(
    "gain, on_test, answer",
    [
        (with_ratio, with_ratio, HOLDS),
        (with_batch, with_batch, IN_PART),
        (with_ratio, against_ratio, IN_PART),
        (with_ratio, everywhere_alike, IN_PART),
        (against_ratio, against_ratio, DOES_NOT_HOLD),
        (everywhere_alike, everywhere_alike, DOES_NOT_HOLD),
        (lambda n, b, moves: -0.2 * np.log(b), None, DOES_NOT_HOLD),
        (seeds_disagree, None, OPEN),
    ],
)
def test_p4_can_come_out_every_way(answers, results, gain, on_test, answer):
    assert answers(results(gain, on_test=on_test)) == {"P4": answer}


def test_slopes_and_gains_of_training_and_test_loss_are_found_again(results):
    found = results(with_both, spread=0, on_test=with_batch)
    np.testing.assert_allclose(study.slopes(found), [[0.3, -0.1]] * 3, rtol=1e-4)
    of_test = study.slopes(found, held_out_loss)
    np.testing.assert_allclose(of_test, [[0.2, 0.0]] * 3, rtol=1e-4, atol=1e-5)
    gained = study.gain(found, 8000, 512, held_out_loss)
    np.testing.assert_allclose(gained, 0.2 * np.log(512), rtol=1e-5)
    in_ratio = study.slope_in_ratio(results(with_ratio, spread=0))
    np.testing.assert_allclose(in_ratio, 0.2, rtol=1e-4)


def test_the_verdict_reads_the_gain_as_the_ratio_doubles_and_as_both_sizes_do(results):
    found = results(with_ratio, spread=0, on_test=with_both)
    (verdict,) = studies.verdicts(found)
    in_ratio, both = (
        {reading.where: reading.interval[1] for reading in clause.readings}
        for clause in verdict.clauses
    )
    assert in_ratio["training loss"] == pytest.approx(0.2 * np.log(2), rel=1e-4)
    of_test = np.log(2) * study.slope_in_ratio(found, held_out_loss)[0]
    assert in_ratio["test loss"] == pytest.approx(of_test)
    assert both["training loss"] == pytest.approx(0, abs=1e-4)
    assert both["test loss"] == pytest.approx((0.3 - 0.1) * np.log(2), rel=1e-4)


def test_the_better_of_each_kind_is_compared(results):
    found = results(with_ratio)
    np.testing.assert_allclose(study.gain(found, 1000, 64)[1], with_ratio(1000, 64, 0), rtol=1e-5)
    for run in found["cells"]["method=shampoo images=1000 batch=64"]["runs"]:
        run["final_loss"] = 0.1
    np.testing.assert_allclose(study.gain(found, 1000, 64), -np.log(0.1), rtol=1e-5)


def test_no_batch_is_larger_than_its_dataset_and_rows_come_by_ratio(results):
    found = results(with_ratio)
    assert (1000, 4096) not in study.places_of(found)
    assert (np.diff(study.ratios(found)) >= 0).all()
    rows = study.rows(found)
    assert (rows[0]["images"], rows[0]["batch"], rows[0]["steps"]) == ("60,000", "64", "2,811")


def test_the_figure_shows_losses_and_the_gain(draw, results):
    drawing = draw(results(with_ratio))
    assert drawing.axes[-1].get_xlabel() == "batch size / dataset size"
    assert len(drawing.axes[0].lines) == len(SETTINGS.methods)


@pytest.mark.parametrize(
    "images, batch, steps", [(1000, 64, 15), (8000, 64, 16), (60_000, 64, 93), (8000, 4096, 1)]
)
def test_losses_are_means_over_a_thousand_images_at_least(monkeypatch, images, batch, steps):
    asked = []
    monkeypatch.setattr(race, "tuned", lambda *args, last, **settings: asked.append(last))
    study.cells(SETTINGS)[f"method=adam images={images} batch={batch}"].compute()
    assert asked == [steps]
