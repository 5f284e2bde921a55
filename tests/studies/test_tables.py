import numpy as np
import pytest

from soaa_edu.studies import tables


@pytest.fixture
def results(made_up, runs, costs):
    cells = {
        "method=adam network=mlp": 0.6,
        "method=kfac network=mlp": runs(
            [0.4, 0.5, np.nan], [0.8, 0.9, np.nan], best={"learning_rate": 0.1, "damping": 0.03}
        ),
        "cost=step network=mlp": costs(
            {"adam": 0.2, "kfac": [0.4, 0.5, 9.0]}, {"kfac": 1200}, {"kfac": 9.5e6}
        ),
    }
    return made_up("race", cells)


def test_a_race_has_a_row_for_each_method_with_the_columns_asked_for(results):
    adam, kfac = tables.of_race(results, ("adam", "kfac"), tuple(tables.COLUMNS), network="mlp")
    assert adam == {
        "method": "Adam",
        "tuned": "0.004",
        "loss": "0.600 ± 0.000",
        "test loss": "0.700 ± 0.000",
        "accuracy": "0.900 ± 0.000",
        "ms/step": "200",
        "Adam steps": "1.00",
        "state/params": "2.00",
        "peak MB": "8.0",
    }
    assert kfac == {
        "method": "K-FAC",
        "tuned": "0.1, 0.03",
        "loss": f"3.633 ± {np.std([0.4, 0.5, 10], ddof=1):.3f}",
        "test loss": f"3.700 ± {np.std([0.5, 0.6, 10], ddof=1):.3f}",
        "accuracy": f"0.567 ± {np.std([0.8, 0.9, 0], ddof=1):.3f}",
        "ms/step": "500",
        "Adam steps": "2.50",
        "state/params": "3.00",
        "peak MB": "9.5",
    }
    (short,) = tables.of_race(results, ["kfac"], ["Adam steps", "tuned"], network="mlp")
    assert list(short.items()) == [
        ("method", "K-FAC"),
        ("Adam steps", "2.50"),
        ("tuned", "0.1, 0.03"),
    ]


def test_text_has_columns_as_wide_as_they_need_to_be_and_a_note_below():
    rows = [
        {"method": "Adam", "loss": "0.5", "below": ""},
        {"method": "K", "loss": "10.25", "below": "yes"},
    ]
    assert tables.as_text(rows, "Timed.") == (
        "method  loss   below\nAdam    0.5\nK       10.25  yes\nTimed."
    )
    assert tables.as_text(rows).count("\n") == 2
