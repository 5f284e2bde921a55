import numpy as np
import pytest

from soaa_edu.studies.methods import label
from soaa_edu.studies.poster import large_batch_race as study


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results: the losses of each method on the MLP, one for each seed."""

    def make(**losses):
        cells = {}
        for method in study.FIELD:
            ends = losses.get(method, [0.5] * 3)
            cells[f"method={method} network=mlp"] = runs(ends, seeds=len(ends))
        taken = {method: 0.1 * (1 + i) for i, method in enumerate(study.FIELD)}
        cells["cost=step network=mlp"] = costs(taken)
        return made_up("large_batch_race", cells)

    return make


@pytest.mark.parametrize(
    "kfac, answer",
    [
        ([0.3, 0.31, 0.29], "yes"),
        ([0.8, 0.82, 0.81], "no"),
        ([np.nan, np.nan, np.nan], "no"),
        ([0.498, 0.509, 0.489], "no difference"),
        ([0.3, 0.8, 0.5], "open"),
        ([0.3, 0.31], "open"),
    ],
)
def test_a_method_is_below_adam_above_it_or_neither(results, kfac, answer):
    made_up = results(adam=[0.5, 0.51, 0.49], kfac=kfac)
    assert study.against_adam(made_up, "kfac", "mlp") == answer


def test_the_table_has_loss_cost_and_comparison_of_every_method(results):
    made_up = results(kfac=[0.3, 0.31, 0.29])
    rows = study.rows(made_up)
    assert [row["method"] for row in rows] == [label(method) for method in study.FIELD]
    assert rows[0]["below Adam"] == ""
    assert rows[1] == {
        "network": "MLP",
        "method": "K-FAC",
        "tuned": "0.004",
        "loss": "0.300 ± 0.010",
        "accuracy": "0.900 ± 0.000",
        "below Adam": "yes",
        "ms/step": "200",
        "Adam steps": "2.00",
        "state/params": "2.00",
    }
    head, adam, kfac = study.table(made_up, ("adam", "kfac")).splitlines()
    assert head.startswith("network  method  tuned")
    assert kfac.index("yes") == head.index("below Adam")
    assert adam.startswith("MLP      Adam")


def test_the_figure_shows_every_method_against_steps_and_seconds(draw, results):
    drawing = draw(results())
    labels = [axes.get_xlabel() for axes in drawing.axes]
    assert labels == ["step", "seconds, compilation left out"]
    assert all(len(axes.lines) == len(study.FIELD) for axes in drawing.axes)
