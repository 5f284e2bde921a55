import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.storage import plain
from soaa_edu.studies import batch_sizes as study
from soaa_edu.studies.methods import METHODS
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

FIELD = tuple(METHODS)


def results(losses, accuracies=None, seeds=3):
    """Made-up results on the MLP at 64, 256 and 1,024: (method, batch size) -> loss, or accuracy.

    Either is given for all batch sizes of a method, too, and for all seeds or one by one.
    """
    settings = study.SCALES["quick"]._replace(
        batch_sizes={"mlp": (64, 256, 1024)}, methods=FIELD, seeds=seeds
    )

    def runs(method, size):
        loss, accuracy = (
            np.broadcast_to(given.get((method, size), given.get(method, default)), seeds)
            for given, default in ((losses, 0.5), (accuracies or {}, 0.9))
        )
        return [
            {
                "steps": 40,
                "loss": [2.3, value, value, value],
                "final_loss": value,
                "test_accuracy": [0.5, accuracy[seed] + 0.001 * seed],
            }
            for seed, value in enumerate(loss)
        ]

    cells = {
        f"{method}_on_mlp_at_{size}": {
            "search": {"best": {"learning_rate": 1e-3}},
            "runs": runs(method, size),
        }
        for method in FIELD
        for size in (64, 256, 1024)
    }
    cells["cost_on_mlp_at_64"] = {
        "seconds_an_epoch": {method: [0.1 * (1 + i)] * 3 for i, method in enumerate(FIELD)},
        "bytes": dict.fromkeys(FIELD, 800),
        "parameter_bytes": 400,
    }
    return plain({"study": "batch_sizes", "settings": settings._asdict(), "cells": cells})


CLAIMED = ("kfac", "shampoo")
AT_SMALL = {(name, 64): 0.9 for name in CLAIMED}
WINS = dict.fromkeys(CLAIMED, 0.93) | AT_SMALL
LOSES = dict.fromkeys(CLAIMED, 0.88) | AT_SMALL
LEVEL = dict.fromkeys(CLAIMED, 0.901) | AT_SMALL
NOISY = {name: np.array([0.85, 0.92, 0.99]) for name in CLAIMED} | AT_SMALL


@pytest.mark.parametrize(
    "accuracies, seeds, answer",
    [
        (WINS, 3, HOLDS),
        ({**WINS, "shampoo": 0.88}, 3, IN_PART),
        ({**WINS, "shampoo": NOISY["shampoo"]}, 3, IN_PART),
        ({**WINS, **{(name, 64): 0.95 for name in CLAIMED}}, 3, IN_PART),
        ({**WINS, ("kfac", 64): np.array([0.85, 0.92, 0.99])}, 3, IN_PART),
        ({**WINS, "adam": 0.95}, 3, DOES_NOT_HOLD),
        (LOSES, 3, DOES_NOT_HOLD),
        (LEVEL, 3, DOES_NOT_HOLD),
        (NOISY, 3, OPEN),
        ({**NOISY, "shampoo": 0.88}, 3, OPEN),
        (WINS, 2, OPEN),
    ],
)
def test_p1_can_come_out_every_way(answers, accuracies, seeds, answer):
    assert answers(results({}, accuracies, seeds))["P1"] == answer


@pytest.mark.parametrize(
    "loss, found",
    [
        (np.array([0.2, 0.21, 0.19]), "yes, -60 %"),
        (np.array([0.7, 0.71, 0.69]), "no, +40 %"),
        (0.5, "no difference, +0 %"),
        (np.array([0.1, 0.5, 2.0]), "open, -7 %"),
    ],
)
def test_losses_are_told_beside_the_accuracies_and_decide_nothing(loss, found):
    (verdict,) = studies.verdicts(results(dict.fromkeys(CLAIMED, loss), WINS))
    assert verdict.answer == HOLDS
    told = [f for f in verdict.findings if "loss of" in f]
    assert told == [
        f"MLP, loss of {METHODS[name]['label']} below first order's: {found}" for name in CLAIMED
    ]


def test_the_rival_in_accuracy_is_the_more_accurate_first_order_method():
    made_up = results({"sgd": 0.1}, {"adam": 0.92, ("sgd", 64): 0.94, "kfac": 0.95})
    for size, gained in ((64, 0.01), (1024, 0.03)):
        found = study.accuracy_gained(made_up, "kfac", "mlp", size)
        np.testing.assert_allclose(found, gained, rtol=1e-5)


def test_the_rival_is_the_better_first_order_method_at_that_batch_size():
    made_up = results({"sgd": 0.3, ("adam", 1024): 0.2, "kfac": 0.1})
    assert study.best_first_order(made_up, "mlp", 64) == "sgd"
    assert study.best_first_order(made_up, "mlp", 1024) == "adam"
    np.testing.assert_allclose(study.log_ratio(made_up, "kfac", "mlp", 64), np.log(1 / 3))
    np.testing.assert_allclose(study.log_ratio(made_up, "kfac", "mlp", 1024), np.log(1 / 2))


def test_a_diverged_run_counts_as_ten_and_as_knowing_nothing():
    made_up = results({"kfac": np.array([0.2, np.nan, 0.2])}, {"kfac": np.nan})
    assert list(study.final_loss(made_up, "kfac", "mlp", 64)) == [0.2, 10, 0.2]
    assert list(study.accuracy(made_up, "kfac", "mlp", 64)) == [0, 0, 0]


def test_steps_to_the_target_are_those_of_the_first_stretch_below_it():
    made_up = results({"kfac": 0.4, "adam": 0.6})
    assert list(study.steps_to_target(made_up, "kfac", "mlp", 64)) == [15, 15, 15]
    assert np.isinf(study.steps_to_target(made_up, "adam", "mlp", 64)).all()


def test_the_table_has_costs_where_they_were_timed():
    timed, untimed = (study.rows(results({}), "mlp", size) for size in (64, 256))
    assert [row["method"] for row in timed] == [style["label"] for style in METHODS.values()]
    assert (timed[2]["Adam steps"], timed[2]["state/params"]) == ("1.5", "2.0")
    assert "Adam steps" not in untimed[0]
    assert timed[0]["steps to 0.5"] == "15"


def test_the_figure_shows_accuracy_and_loss_of_every_method(draw):
    drawing = draw(results({}))
    labels = [axes.get_ylabel() for axes in drawing.axes]
    assert labels == ["test accuracy", "training loss (nats)"]
    assert all(len(axes.lines) == len(FIELD) for axes in drawing.axes)


def test_results_without_some_cells_tell_of_the_networks_that_are_whole(draw):
    made_up = results({})
    del made_up["cells"]["psgd_on_mlp_at_256"]
    made_up["settings"]["batch_sizes"] = {"vit": (64,), "mlp": (64, 256, 1024)}
    assert study.networks_of(made_up) == ["mlp"]
    assert "psgd" not in study.methods_of(made_up, "mlp")
    assert len(draw(made_up).axes) == 2
    del made_up["cells"]["kfac_on_mlp_at_64"]
    assert study.networks_of(made_up) == []


def test_at_the_gpu_scale_the_claim_comes_first_a_network_after_the_other():
    names = list(study.cells(study.SCALES["gpu"]))
    of_claim = [name.partition("_on_")[2].partition("_at_")[0] for name in names[:40]]
    assert of_claim == ["mlp"] * 16 + ["vit"] * 12 + ["cnn"] * 12
    assert {name.partition("_on_")[0] for name in names[:40]} == {"sgd", "adam", "kfac", "shampoo"}


def test_cells_are_methods_batch_sizes_and_timings():
    names = list(study.cells(study.SCALES["quick"]._replace(timed={"mlp": (64,)})))
    assert names[:2] == ["adam_on_mlp_at_64", "kfac_on_mlp_at_64"]
    assert len(names) == 2 * 2 + 1
    assert "cost_on_mlp_at_64" in names
