import numpy as np
import pytest

from soaa_edu.storage import plain
from soaa_edu.studies import dataset_sizes as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

FEW, MORE, MOST = 1000, 10_000, 100_000
READINGS = (
    study.Reading((FEW,), 1, ("adam", "shampoo")),
    study.Reading((FEW,), 10, ("adam", "shampoo")),
    study.Reading((MORE, MOST), 1, ("adam", "shampoo")),
)


def results(shampoo, seeds=3, spread=0.001):
    """Made-up results: Shampoo's loss on each reading, Adam's being one everywhere."""
    settings = study.SCALES["quick"]._replace(readings=READINGS, seeds=seeds)

    def learned(loss):
        values = loss + spread * (np.arange(seeds) - seeds // 2)
        return {
            "search": {"best": {"learning_rate": 0.01}},
            "runs": [
                {"steps": 20, "loss": [4, 2, v], "final_loss": v, "test_loss": [v + 0.1]}
                for v in values
            ],
        }

    cells = {
        f"{method}_on_{reading.characters[0]}_read_{reading.epochs}": {
            str(n): learned(1.0 if method == "adam" else shampoo[n, reading.epochs])
            for n in reading.characters
        }
        for reading in READINGS
        for method in reading.methods
    }
    return plain({"study": "dataset_sizes", "settings": settings._asdict(), "cells": cells})


FADES = {(FEW, 1): 0.7, (FEW, 10): 0.6, (MORE, 1): 0.9, (MOST, 1): 1.0}
GROWS = {(FEW, 1): 1.01, (FEW, 10): 0.9, (MORE, 1): 0.8, (MOST, 1): 0.6}


@pytest.mark.parametrize(
    "shampoo, seeds, spread, answer",
    [
        (FADES, 3, 0.001, HOLDS),
        ({**FADES, (FEW, 1): 1.0}, 3, 0.001, IN_PART),
        ({**FADES, (FEW, 1): 1.2}, 3, 0.001, IN_PART),
        (FADES, 3, 0.3, IN_PART),
        (GROWS, 3, 0.001, DOES_NOT_HOLD),
        ({**FADES, (MOST, 1): 0.9}, 3, 0.001, DOES_NOT_HOLD),
        ({**FADES, (MOST, 1): 1.1}, 3, 0.001, DOES_NOT_HOLD),
        ({**FADES, (MOST, 1): 0.97}, 3, 0.3, OPEN),
        (FADES, 2, 0.001, OPEN),
    ],
)
def test_p3_can_come_out_every_way(answers, shampoo, seeds, spread, answer):
    assert answers(results(shampoo, seeds, spread))["P3"] == answer


def test_a_gain_is_the_log_of_adams_loss_over_the_methods_seed_by_seed():
    np.testing.assert_allclose(
        study.gain(results(FADES, spread=0), "shampoo", FEW, 1), -np.log(0.7), rtol=1e-6
    )


def test_readings_come_in_order_with_those_who_learned_from_them():
    made_up = results(FADES)
    assert study.readings_of(made_up) == [(FEW, 1), (FEW, 10), (MORE, 1), (MOST, 1)]
    assert study.learners(made_up, MOST, 1) == ["adam", "shampoo"]
    with pytest.raises(ValueError, match="K-FAC has not read 1,000 characters 1 times"):
        study.final_loss(made_up, "kfac", FEW, 1)


def test_the_table_tells_training_and_held_out_loss_and_gain():
    rows = study.rows(results(FADES))
    assert [row["gain, %"] for row in rows][:2] == ["", "35.7"]
    assert (rows[1]["training loss"], rows[1]["held-out loss"]) == (
        "0.700 ± 0.001",
        "0.800 ± 0.001",
    )


def test_the_figure_shows_every_reading_and_the_gains(draw):
    drawing = draw(results(FADES))
    assert len(drawing.axes) == 5
    assert drawing.axes[1].get_title() == "1,000 characters, 10 times"
    assert drawing.axes[-1].get_xlabel() == "characters"


def test_further_text_is_learned_with_what_was_best_on_the_first(monkeypatch):
    asked = []

    def tuned(build, points, data, **settings):
        asked.append((points, len(data.train[0]), settings["last"]))
        return {"search": {"best": {"learning_rate": 0.5}}, "runs": []}

    monkeypatch.setattr(study, "tuned", tuned)
    settings = study.SCALES["quick"]._replace(readings=READINGS[2:], tries=3)
    found = study.cells(settings)["adam_on_10000_read_1"]()
    assert list(found) == ["10000", "100000"]
    assert len(asked[0][0]["learning_rate"]) == 3
    assert asked[1] == ({"learning_rate": [0.5]}, 3125, 19)
