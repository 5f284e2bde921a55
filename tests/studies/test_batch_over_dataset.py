import numpy as np
import pytest

from soaa_edu.storage import plain
from soaa_edu.studies import batch_over_dataset as study

FIELD = ("sgd", "adam", "kfac", "shampoo")


def results(gain, seeds=3, spread=0.01):
    """Made-up results: K-FAC's gain on SGD as a function of images and batch size."""
    settings = study.SCALES["laptop"]._replace(methods=FIELD, seeds=seeds)

    def loss(method, images, batch_size, seed):
        if method in ("adam", "shampoo"):
            return 9.0
        wanted = gain(images, batch_size) + spread * (seed - seeds // 2)
        return float(np.exp(-wanted)) if method == "kfac" else 1.0

    cells = {
        f"{method}_on_{n}_at_{b}": {
            "runs": [
                {"steps": 3 * (n // b), "final_loss": loss(method, n, b, seed)}
                for seed in range(seeds)
            ]
        }
        for n, b in study.places(settings)
        for method in FIELD
    }
    return plain({"study": "batch_over_dataset", "settings": settings._asdict(), "cells": cells})


def with_ratio(n, b):
    return 1 + 0.2 * np.log(b / n)


@pytest.mark.parametrize(
    "gain, seeds, spread, answer",
    [
        (with_ratio, 3, 0.01, "holds"),
        (lambda n, b: -0.2 * np.log(b), 3, 0.01, "does not hold here"),
        (lambda n, b: 0.2 * np.log(b), 3, 0.01, "holds in part"),
        (with_ratio, 2, 0.01, "cannot be settled at this scale"),
    ],
)
def test_p4_can_come_out_every_way(answers, gain, seeds, spread, answer):
    assert answers(results(gain, seeds, spread))["P4"] == answer


def test_where_seeds_disagree_p4_stays_open(answers):
    made_up = results(with_ratio)
    for place in study.places_of(made_up):
        runs = made_up["cells"]["kfac_on_{}_at_{}".format(*place)]["runs"]
        tilts = (-0.2, 0.05, 0.3)
        for run, tilt in zip(runs, tilts, strict=True):
            run["final_loss"] = float(np.exp(-tilt * np.log(place[1] / place[0]) - tilt))
    assert answers(made_up)["P4"] == "cannot be settled at this scale"


def test_slopes_in_batch_and_dataset_size_are_found_again():
    made_up = results(lambda n, b: 0.3 * np.log(b) - 0.1 * np.log(n), spread=0)
    np.testing.assert_allclose(study.slopes(made_up), [[0.3, -0.1]] * 3, rtol=1e-4)
    np.testing.assert_allclose(study.alike(made_up), 0.0, atol=1e-4)
    made_up = results(lambda n, b: 4 + 0.2 * np.log(b) - 0.3 * np.log(n), spread=0)
    np.testing.assert_allclose(study.alike(made_up), 0.2 - 0.3 / 3, rtol=1e-4)


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
