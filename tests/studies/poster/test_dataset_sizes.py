import numpy as np
import pytest

from soaa_edu.studies import race
from soaa_edu.studies.poster import dataset_sizes as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

FEW, MORE, MOST = 1000, 10_000, 100_000
READINGS = (
    study.Reading((FEW,), 1, study.TWO),
    study.Reading((FEW,), 10, study.TWO),
    study.Reading((MORE, MOST), 1, study.TWO),
)
FADES = {(FEW, 1): 0.7, (FEW, 10): 0.6, (MORE, 1): 0.9, (MOST, 1): 1.0}
GROWS = {(FEW, 1): 1.01, (FEW, 10): 0.9, (MORE, 1): 0.8, (MOST, 1): 0.6}


@pytest.fixture
def results(made_up, runs):
    """Made-up results: Shampoo's loss on each reading, Adam's being one everywhere."""

    def make(shampoo, spread=0.001):
        cells = {}
        jitter = spread * np.array([-1, 0, 1])
        for (characters, epochs), loss in shampoo.items():
            for method in study.TWO:
                ends = (1.0 if method == "adam" else loss) + jitter
                place = f"characters={characters} epochs={epochs}"
                cells[f"method={method} {place}"] = runs(ends)
        settings = study.SCALES["quick"]._replace(readings=READINGS)
        return made_up("dataset_sizes", cells, settings)

    return make


@pytest.mark.parametrize(
    "shampoo, spread, answer",
    [
        (FADES, 0.001, HOLDS),
        ({**FADES, (FEW, 1): 1.0}, 0.001, IN_PART),
        ({**FADES, (FEW, 1): 1.2}, 0.001, IN_PART),
        (FADES, 0.3, IN_PART),
        (GROWS, 0.001, DOES_NOT_HOLD),
        ({**FADES, (MOST, 1): 0.9}, 0.001, DOES_NOT_HOLD),
        ({**FADES, (MOST, 1): 1.1}, 0.001, DOES_NOT_HOLD),
        ({**FADES, (MOST, 1): 0.97}, 0.3, OPEN),
    ],
)
def test_p3_can_come_out_every_way(answers, results, shampoo, spread, answer):
    assert answers(results(shampoo, spread)) == {"P3": answer}


def test_a_gain_is_the_log_of_adams_loss_over_the_methods_seed_by_seed(results):
    found = study.gain(results(FADES, spread=0), "shampoo", FEW, 1)
    np.testing.assert_allclose(found, [-np.log(0.7)] * 3, rtol=1e-6)


def test_readings_come_in_order_with_those_who_learned_from_them(results):
    found = results(FADES)
    assert study.readings_of(found) == [(FEW, 1), (FEW, 10), (MORE, 1), (MOST, 1)]
    assert study.learners(found, MOST, 1) == ["adam", "shampoo"]
    del found["cells"][f"method=shampoo characters={MOST} epochs=1"]
    assert study.learners(found, MOST, 1) == ["adam"]


def test_the_table_tells_training_and_held_out_loss_and_gain(results):
    rows = study.rows(results(FADES))
    assert [row["gain, %"] for row in rows][:2] == ["", "35.7"]
    assert (rows[1]["loss"], rows[1]["test loss"]) == ("0.700 ± 0.001", "0.800 ± 0.001")
    assert (rows[2]["characters"], rows[2]["read"], rows[2]["steps"]) == ("1,000", "10", "40")


def test_fresh_text_is_told_beside_as_many_steps_on_the_same(results):
    (verdict,) = study.verdicts(results(FADES, spread=0))
    assert verdict.findings[-1] == (
        "Shampoo gains +66.7 % on 1,000 characters read 10 times, and +11.1 % on 10,000 read once, "
        "in as many steps"
    )


def test_the_figure_shows_every_reading_and_the_gains(draw, results):
    drawing = draw(results(FADES))
    assert len(drawing.axes) == 5
    assert drawing.axes[1].get_title() == "1,000 characters, 10 times"
    assert drawing.axes[-1].get_xlabel() == "characters"


def test_further_text_is_learned_with_what_was_best_on_the_first(monkeypatch):
    asked = []

    def tuned(build, points, data, **settings):
        asked.append((points, len(data.train[0]), settings["last"]))
        return {"search": {"best": {"learning_rate": 0.5}}, "runs": []}

    monkeypatch.setattr(race, "tuned", tuned)
    cells = study.cells(study.SCALES["quick"]._replace(readings=READINGS[2:], tries=3))
    first, further = (f"method=adam characters={n} epochs=1" for n in (MORE, MOST))
    assert cells[further].needs == (first,)
    cells[further].compute(cells[first].compute())
    assert len(asked[0][0]["learning_rate"]) == 3
    assert asked[1] == ({"learning_rate": [0.5]}, 3125, 19)


def test_a_task_knows_how_many_rows_its_text_has():
    for characters in (FEW, 8192):
        given = study.task(characters, 3, study.SCALES["quick"])
        assert given.examples == len(given.load().train[0])
