import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.storage import plain
from soaa_edu.studies import batch_over_dataset as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

FIELD = ("sgd", "adam", "kfac", "shampoo")


def results(gain, seeds=3, spread=0.01, on_test=None):
    """Made-up results: K-FAC's gain on SGD as a function of images and batch size.

    That on the test loss is the same, or another function.
    """
    settings = study.SCALES["laptop"]._replace(methods=FIELD, seeds=seeds)

    def loss(gain, method, images, batch_size, seed):
        if method in ("adam", "shampoo"):
            return 9.0
        wanted = gain(images, batch_size) + spread * (seed - seeds // 2)
        return float(np.exp(-wanted)) if method == "kfac" else 1.0

    cells = {
        f"{method}_on_{n}_at_{b}": {
            "runs": [
                {
                    "steps": 3 * (n // b),
                    "final_loss": loss(gain, method, n, b, seed),
                    "test_loss": [2.3, loss(on_test or gain, method, n, b, seed)],
                }
                for seed in range(seeds)
            ]
        }
        for n, b in study.places(settings)
        for method in FIELD
    }
    return plain({"study": "batch_over_dataset", "settings": settings._asdict(), "cells": cells})


def with_ratio(n, b):
    return 1 + 0.2 * np.log(b / n)


def against_ratio(n, b):
    return -0.2 * np.log(b / n)


def with_batch(n, b):
    return 0.2 * np.log(b)


def everywhere_alike(n, b):
    return 1.0


@pytest.mark.parametrize(
    "gain, on_test, seeds, answer",
    [
        (with_ratio, with_ratio, 3, HOLDS),
        (with_batch, with_batch, 3, IN_PART),
        (with_ratio, against_ratio, 3, IN_PART),
        (with_ratio, everywhere_alike, 3, IN_PART),
        (against_ratio, against_ratio, 3, DOES_NOT_HOLD),
        (everywhere_alike, everywhere_alike, 3, DOES_NOT_HOLD),
        (lambda n, b: -0.2 * np.log(b), None, 3, DOES_NOT_HOLD),
        (with_ratio, with_ratio, 2, OPEN),
    ],
)
def test_p4_can_come_out_every_way(answers, gain, on_test, seeds, answer):
    assert answers(results(gain, seeds, on_test=on_test))["P4"] == answer


def test_where_seeds_disagree_p4_stays_open(answers):
    made_up = results(with_ratio)
    for place in study.places_of(made_up):
        runs = made_up["cells"]["kfac_on_{}_at_{}".format(*place)]["runs"]
        tilts = (-0.2, 0.05, 0.3)
        for run, tilt in zip(runs, tilts, strict=True):
            run["final_loss"] = float(np.exp(-tilt * np.log(place[1] / place[0]) - tilt))
            run["test_loss"] = [2.3, run["final_loss"]]
    assert answers(made_up)["P4"] == OPEN


def test_slopes_in_batch_and_dataset_size_are_found_again():
    made_up = results(lambda n, b: 0.3 * np.log(b) - 0.1 * np.log(n), spread=0)
    np.testing.assert_allclose(study.slopes(made_up), [[0.3, -0.1]] * 3, rtol=1e-4)


def test_training_and_test_loss_each_have_their_gain_and_slopes():
    made_up = results(with_ratio, spread=0, on_test=with_batch)
    np.testing.assert_allclose(study.slopes(made_up), [[0.2, -0.2]] * 3, rtol=1e-4)
    of_test = study.slopes(made_up, "test_loss")
    np.testing.assert_allclose(of_test, [[0.2, 0.0]] * 3, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(study.slope_in_ratio(made_up), 0.2, rtol=1e-4)
    np.testing.assert_allclose(
        study.gain(made_up, 8000, 512, "test_loss"), 0.2 * np.log(512), rtol=1e-5
    )


def test_the_verdict_reads_the_gain_as_the_ratio_doubles_and_as_both_sizes_do():
    made_up = results(with_ratio, spread=0, on_test=lambda n, b: 0.3 * np.log(b) - 0.1 * np.log(n))
    (verdict,) = studies.verdicts(made_up)
    in_ratio, both = (
        {reading.where: reading.interval[1] for reading in clause.readings}
        for clause in verdict.clauses
    )
    assert in_ratio["training loss"] == pytest.approx(0.2 * np.log(2), rel=1e-4)
    assert in_ratio["test loss"] == pytest.approx(
        np.log(2) * study.slope_in_ratio(made_up, "test_loss")[0]
    )
    assert both["training loss"] == pytest.approx(0, abs=1e-4)
    assert both["test loss"] == pytest.approx((0.3 - 0.1) * np.log(2), rel=1e-4)


@pytest.mark.parametrize(
    "sign, words", [(1, "the caption"), (-1, "the sentence above it"), (0, "neither")]
)
def test_the_numbers_back_the_caption_or_the_sentence_or_neither(sign, words):
    made_up = results(lambda n, b: sign * np.log(b / n), spread=0 if sign else 0.3)
    if sign == 0:
        for place, tilt in zip(study.places_of(made_up), np.linspace(-1, 1, 8), strict=True):
            for seed, run in enumerate(made_up["cells"]["kfac_on_{}_at_{}".format(*place)]["runs"]):
                run["final_loss"] = float(np.exp(-tilt * (seed - 1)))
    assert study.backed(made_up).startswith(words)


def test_the_better_of_each_kind_is_compared():
    made_up = results(with_ratio)
    assert study.best(made_up, 1000, 64, first_order=True) == "sgd"
    assert study.best(made_up, 1000, 64, first_order=False) == "kfac"
    np.testing.assert_allclose(study.gain(made_up, 1000, 64)[1], with_ratio(1000, 64), rtol=1e-5)


def test_no_batch_is_larger_than_its_dataset_and_rows_come_by_ratio():
    made_up = results(with_ratio)
    assert (1000, 4096) not in study.places_of(made_up)
    assert (np.diff(study.ratios(made_up)) >= 0).all()
    rows = study.rows(made_up)
    assert (rows[0]["images"], rows[0]["batch"], rows[0]["steps"]) == ("60,000", "64", "2,811")


def test_the_figure_shows_losses_and_the_gain(draw):
    drawing = draw(results(with_ratio))
    assert drawing.axes[-1].get_xlabel() == "batch size / dataset size"
    assert len(drawing.axes[0].lines) == len(FIELD)


@pytest.mark.parametrize(
    "images, batch_size, steps", [(1000, 64, 15), (8000, 64, 16), (60_000, 64, 93), (8000, 4096, 1)]
)
def test_losses_are_means_over_a_thousand_images_at_least(monkeypatch, images, batch_size, steps):
    asked = []
    monkeypatch.setattr(study, "tuned", lambda *args, last, **settings: asked.append(last))
    study.cells(study.SCALES["laptop"])[f"adam_on_{images}_at_{batch_size}"]()
    assert asked == [steps]
