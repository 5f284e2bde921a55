import numpy as np
import pytest

from soaa_edu.studies import networks
from soaa_edu.studies.literature import muon as study
from soaa_edu.studies.methods import label
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = dict.fromkeys(study.FIELD, 0.5) | {"adam": 0.6}
SECONDS = dict.fromkeys(study.FIELD, 0.1) | {"shampoo": 0.3}
APART = [0.3, 0.5, 0.9, 0.5, 0.6]


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results on all three networks; losses on the decoder may differ.

    A loss is the same for all seeds, or there is one for each.
    """

    def make(losses=(), on_decoder=(), seconds=(), seeds=5):
        cells = {}
        for network in study.NAMES:
            ends = LOSSES | dict(losses) | (dict(on_decoder) if network == "decoder" else {})
            for method in study.FIELD:
                cells[f"method={method} network={network}"] = runs(ends[method], seeds=seeds)
            cells[f"cost=step network={network}"] = costs(SECONDS | dict(seconds))
        return made_up("muon", cells)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {"shampoo": 0.6}}, HOLDS),
        ({"losses": {"shampoo": 0.498}}, HOLDS),
        ({"losses": {"shampoo_without_memory": 0.45}}, IN_PART),
        ({"on_decoder": {"shampoo": 0.4}}, IN_PART),
        ({"seconds": {"muon": 0.4}}, IN_PART),
        ({"losses": {"shampoo": 0.4}}, DOES_NOT_HOLD),
        ({"losses": {"muon": [np.nan] * 5}}, DOES_NOT_HOLD),
        ({"losses": {"shampoo": APART}}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_l4_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"L4": answer}


def test_every_method_has_the_same_tries():
    assert len({str(study.grid(method, 9)) for method in study.FIELD}) == 1
    assert len(study.grid("muon", 9)["learning_rate"]) == 9


def test_the_tasks_are_those_of_the_settings():
    settings = study.SCALES["laptop"]._replace(vit_images=640, vit_batch=64)
    assert study.task("vit", settings).steps == 10
    assert study.task("vit", settings).last == 1
    mlp = study.task("mlp", settings)
    assert mlp.steps == 2 * (60_000 // 512)
    assert mlp.labels == networks.task("mlp", networks.SIZES["laptop"]).labels


def test_the_table_has_loss_and_cost_of_every_method(results):
    head, adam, muon, *_ = study.table(results()).splitlines()
    assert head.startswith("network  method")
    assert adam.startswith("MLP")
    assert label("muon") in muon


def test_the_figure_shows_every_method_against_steps_and_seconds(draw, results):
    drawing = draw(results())
    labels = [axes.get_xlabel() for axes in drawing.axes]
    assert labels == ["step"] * 3 + ["seconds, compilation left out"] * 3
    assert all(len(axes.lines) == len(study.FIELD) for axes in drawing.axes)
