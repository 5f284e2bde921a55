import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies.methods import label
from soaa_edu.studies.poster import batch_sizes as study
from soaa_edu.studies.poster.field import FIELD
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SIZES = (64, 256, 1024)
NOISY = np.array([0.85, 0.92, 0.99])


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results on the MLP: (method, batch size), or method, -> accuracy, or loss."""

    def make(accuracies=(), losses=()):
        def given(numbers, method, size, default):
            return dict(numbers).get((method, size), dict(numbers).get(method, default))

        cells = {
            f"method={m} network=mlp batch={size}": runs(
                given(losses, m, size, 0.5),
                given(accuracies, m, size, 0.9) + 0.001 * np.arange(3),
            )
            for m in FIELD
            for size in SIZES
        }
        cells["cost=step network=mlp batch=64"] = costs(
            {method: 0.1 * (1 + i) for i, method in enumerate(FIELD)}
        )
        sizes = {"batch_sizes": {"mlp": SIZES}, "timed": {"mlp": (64,)}, "methods": FIELD}
        return made_up("batch_sizes", cells, study.SCALES["quick"]._replace(**sizes))

    return make


def claimed(accuracy, at_64=0.9):
    return {(m, size): at_64 if size == 64 else accuracy for m in study.CLAIMED for size in SIZES}


WINS = claimed(0.93)


@pytest.mark.parametrize(
    "accuracies, answer",
    [
        (WINS, HOLDS),
        ({**WINS, ("shampoo", 1024): 0.88}, IN_PART),
        ({**WINS, ("shampoo", 1024): NOISY}, IN_PART),
        (claimed(0.93, at_64=0.95), IN_PART),
        ({**WINS, ("kfac", 64): NOISY}, IN_PART),
        ({**WINS, "adam": 0.95}, DOES_NOT_HOLD),
        (claimed(0.88), DOES_NOT_HOLD),
        (claimed(0.901), DOES_NOT_HOLD),
        (claimed(NOISY), OPEN),
        ({**claimed(NOISY), ("shampoo", 1024): 0.88}, OPEN),
    ],
)
def test_p1_can_come_out_every_way(answers, results, accuracies, answer):
    assert answers(results(accuracies)) == {"P1": answer}


@pytest.mark.parametrize(
    "loss, found",
    [
        (np.array([0.2, 0.21, 0.19]), "yes, -60 %"),
        (np.array([0.7, 0.71, 0.69]), "no, +40 %"),
        (0.5, "no difference, +0 %"),
        (np.array([0.1, 0.5, 2.0]), "open, -7 %"),
    ],
)
def test_losses_are_told_beside_the_accuracies_and_decide_nothing(results, loss, found):
    (verdict,) = studies.verdicts(results(WINS, dict.fromkeys(study.CLAIMED, loss)))
    assert verdict.answer == HOLDS
    assert [told for told in verdict.findings if "loss of" in told] == [
        f"MLP, loss of {label(name)} below first order's: {found}" for name in study.CLAIMED
    ]


def test_the_rival_is_the_better_first_order_method_at_that_batch_size(results):
    made_up = results(
        {"adam": 0.92, ("sgd", 64): 0.94, "kfac": 0.95},
        {"sgd": 0.3, ("adam", 1024): 0.2, "kfac": 0.1},
    )
    for size, gained, ratio in ((64, 0.01, 1 / 3), (1024, 0.03, 1 / 2)):
        found = study.accuracy_gained(made_up, "kfac", "mlp", size)
        np.testing.assert_allclose(found, gained, rtol=1e-5)
        found = study.log_ratio(made_up, "kfac", "mlp", size)
        np.testing.assert_allclose(found, np.log(ratio), rtol=1e-5)


def test_steps_to_the_target_are_those_of_the_first_stretch_below_it(results):
    made_up = results(losses={"kfac": 0.4, "adam": 0.6, "psgd": np.nan})
    at = {"network": "mlp", "batch": 64}
    assert list(study.steps_to_target(made_up, method="kfac", **at)) == [15, 15, 15]
    for never in ("adam", "psgd"):
        assert np.isinf(study.steps_to_target(made_up, method=never, **at)).all()


def test_the_table_has_costs_where_they_were_timed_and_steps_to_the_target(results):
    timed, untimed = (study.rows(results(), "mlp", size) for size in (64, 256))
    assert [row["method"] for row in timed] == [label(method) for method in FIELD]
    assert (timed[2]["Adam steps"], timed[2]["state/params"]) == ("1.50", "2.00")
    assert "Adam steps" not in untimed[0]
    assert (timed[0]["network"], timed[0]["batch"], timed[0]["steps to 0.5"]) == ("MLP", "64", "15")
    assert study.rows(results(losses={"sgd": 0.6}), "mlp", 64)[0]["steps to 0.5"] == "-"


def test_the_figure_shows_accuracy_and_loss_of_every_method(draw, results):
    drawing = draw(results())
    labels = [axes.get_ylabel() for axes in drawing.axes]
    assert labels == ["test accuracy", "training loss (nats)"]
    assert all(len(axes.lines) == len(FIELD) for axes in drawing.axes)


def test_results_without_some_cells_tell_of_the_networks_that_are_whole(draw, results):
    made_up = results()
    del made_up["cells"]["method=psgd network=mlp batch=256"]
    made_up["settings"]["batch_sizes"] = {"vit": (64,), "mlp": SIZES}
    assert study.networks_of(made_up) == ["mlp"]
    assert "psgd" not in study.methods_of(made_up, "mlp")
    assert len(draw(made_up).axes) == 2
    del made_up["cells"]["method=kfac network=mlp batch=64"]
    assert study.networks_of(made_up) == []


def test_at_the_gpu_scale_the_claim_comes_first_a_network_after_the_other():
    cells = [study.stored.labels_of(name) for name in study.cells(study.SCALES["gpu"])][:40]
    assert [cell["network"] for cell in cells] == ["mlp"] * 16 + ["vit"] * 12 + ["cnn"] * 12
    assert {cell["method"] for cell in cells} == {"sgd", "adam", "kfac", "shampoo"}
