from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import Objective, first_order, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.storage import plain
from soaa_edu.studies import soaa_ablation as study
from soaa_edu.studies.networks import Size, Task
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN, one_answer

TINY = Size(
    images=64,
    image_epochs=3,
    image_batch=16,
    hidden=(4,),
    characters=128,
    length=8,
    text_batch=4,
    width=8,
    depth=1,
)
LOSSES = dict.fromkeys(study.METHODS, 0.6) | {"soaa": 0.5}
JUMPS = dict.fromkeys(study.METHODS, 0.1) | {"soaa": 0.05}
SHARES = {"soaa": 0.3, "sherman_morrison": 0.4}


def results(losses=(), jumps=(), shares=(), on_decoder=(), seeds=3):
    """Made-up results: final losses, the zigzag of each loss curve, the Fisher's share.

    A number of a method is the same for all seeds, or there is one for each. Losses and shares on
    the decoder may differ: ``{"losses": ..., "shares": ...}``.
    """
    losses, jumps, shares = LOSSES | dict(losses), JUMPS | dict(jumps), SHARES | dict(shares)

    def runs(method, network):
        there = dict(on_decoder) if network == "decoder" else {}
        given = losses | there.get("losses", {}), jumps, shares | there.get("shares", {})
        loss, jump, share = (np.broadcast_to(numbers.get(method, 0.0), seeds) for numbers in given)
        return [
            {
                "steps": 80,
                "loss": 2 + jump[seed] * (-1.0) ** np.arange(40),
                "final_loss": loss[seed],
                "info": {
                    "curvature_share": np.full(40, share[seed]),
                    "trust_scale_low": np.linspace(1, 0.75, 40),
                    "trust_scale_high": np.linspace(2, 1.25, 40),
                },
            }
            for seed in range(seeds)
        ]

    cells = {}
    for network in ("mlp", "decoder"):
        for method in study.TUNED:
            cells[f"{method}_on_{network}"] = {
                "search": {"best": 0.004},
                "runs": runs(method, network),
            }
        cells[f"soaa_on_{network}"] |= {
            "scheduled": runs("scheduled", network),
            "borrowed": runs("borrowed", network),
            "dt": np.ones((seeds, 80)),
        }
    return {"study": "soaa_ablation", "settings": {}, "cells": cells}


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(losses={"still": 0.4}), IN_PART),
        (results(losses={"still": [0.4, 0.6, 0.6]}), IN_PART),
        (results(jumps={"soaa": 0.2}), IN_PART),
        (results(jumps={"soaa": [0.05, 0.05, 0.2]}), IN_PART),
        (results(on_decoder={"losses": {"borrowed": 0.4}}), IN_PART),
        (results(on_decoder={"losses": {"borrowed": [0.4, 0.6, 0.6]}}), IN_PART),
        (results(losses={"borrowed": 0.4}), DOES_NOT_HOLD),
        (results(losses={"borrowed": 0.502}), DOES_NOT_HOLD),
        (results(losses={"soaa": 0.7}, jumps={"soaa": 0.2}), DOES_NOT_HOLD),
        (results(losses={"borrowed": [0.4, 0.6, 0.6]}), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_a6_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up)["A6"] == answer


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(shares={"sherman_morrison": 0.0}), HOLDS),
        (results(on_decoder={"shares": {"soaa": 0.001}}), IN_PART),
        (results(on_decoder={"shares": {"soaa": [0.001, 0.3, 0.02]}}), IN_PART),
        (results(shares={"soaa": 0.001}), DOES_NOT_HOLD),
        (results(shares={"soaa": 0.001, "sherman_morrison": 0.0}), DOES_NOT_HOLD),
        (results(shares={"soaa": [0.001, 0.3, 0.02]}), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_a7_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up)["A7"] == answer


def test_losses_are_compared_seed_by_seed():
    made_up = results(losses={"soaa": [0.5, 1.0, 2.0], "still": [0.6, 1.2, 2.4]})
    found = study.log_ratio(made_up, "mlp", "still")
    assert one_answer(found, "below", study.LOSS_MARGIN, "%") == "yes"
    np.testing.assert_allclose(found, np.log(0.5 / 0.6))


def test_roughness_is_the_height_of_a_zigzag_and_none_of_a_flat_loss():
    made_up = results(jumps={"soaa": [0.05, 0.1, 0.0]})
    np.testing.assert_allclose(study.roughness(made_up, "soaa", "mlp"), [0.1, 0.2, 0], atol=1e-9)


def test_roughness_sees_the_second_half_alone():
    made_up = results()
    for run in made_up["cells"]["soaa_on_mlp"]["runs"]:
        run["loss"] = np.r_[np.linspace(9, 3, 20), np.full(20, 3.0)]
    np.testing.assert_array_equal(study.roughness(made_up, "soaa", "mlp"), 0)


def test_the_table_has_every_method_with_what_soaa_tuned_for_the_two_that_take_it_over():
    made_up = results(losses={"tadam": [0.5, 0.4, 0.6], "gamma_high": 0.3})
    made_up["cells"]["soaa_on_mlp"]["search"]["best"] = 0.016
    rows = {row.pop("method"): row for row in study.rows(plain(made_up), "mlp")}
    assert list(rows) == [style["label"] for style in study.METHODS.values()]
    assert rows["SOAA"] == {
        "learning rate": "0.016",
        "loss": "0.5000 ± 0.0000",
        "SOAA below it": "",
        "roughness": "0.1000",
    }
    assert rows["Adam with another run's dt"] == {
        "learning rate": "0.016",
        "loss": "0.6000 ± 0.0000",
        "SOAA below it": "yes",
        "roughness": "0.2000",
    }
    assert rows["Adam"]["learning rate"] == "0.004"
    assert rows["TAdam"]["loss"] == "0.5000 ± 0.1000"
    assert rows["TAdam"]["SOAA below it"] == "open"
    assert rows["SOAA, γ = 0.75"]["SOAA below it"] == "no"


def test_the_figure_shows_dt_share_and_losses_of_each_network(draw):
    drawing = draw(results())
    scales, shares, losses = np.reshape(drawing.axes, (3, 2))
    assert [axes.get_title() for axes in scales] == ["MLP on MNIST", "decoder, next character"]
    for row, lines in ((scales, 4), (shares, 2), (losses, 4)):
        labels = [line.get_label() for line in row[1].lines]
        assert len(row[0].lines) == len(labels) == lines
        assert [text.get_text() for text in row[1].get_legend().get_texts()] == labels


def test_a_study_has_a_cell_for_each_tuned_method_on_each_network():
    settings = study.Settings(("mlp", "decoder"), TINY._asdict(), 1, 1, (), 0, "")
    found = set(study.cells(settings))
    assert found == {f"{m}_on_{n}" for m in study.TUNED for n in ("mlp", "decoder")}


def test_soaa_with_and_without_its_dt_is_tuned_finely_where_the_settings_say_so():
    settings = study.Settings(("mlp", "decoder"), TINY._asdict(), 1, 1, ("mlp",), 4, "")
    coarse = set(study.cells(settings._replace(refined=())))
    found = study.cells(settings)
    assert set(found) - coarse == {"soaa_on_mlp.refined", "still_on_mlp.refined"}
    assert found["still_on_mlp.refined"].needs == ("still_on_mlp",)


def test_finely_tuned_runs_stand_for_the_coarsely_tuned_ones():
    made_up, finer = results(), results(losses={"soaa": 0.4, "scheduled": 0.3}, seeds=4)
    made_up["cells"]["soaa_on_mlp.refined"] = finer["cells"]["soaa_on_mlp"]
    np.testing.assert_array_equal(study.over_runs(made_up, "soaa", "mlp", "final_loss"), [0.4] * 4)
    np.testing.assert_array_equal(
        study.over_runs(made_up, "scheduled", "mlp", "final_loss"), [0.3] * 4
    )
    np.testing.assert_allclose(study.log_ratio(made_up, "mlp", "still"), [np.log(0.4 / 0.6)] * 3)
    np.testing.assert_allclose(study.log_ratio(made_up, "decoder", "still"), np.log(0.5 / 0.6))


def test_soaas_schedules_are_given_to_adam_on_the_same_seed_and_on_the_next(monkeypatch):
    runs = {"search": {"best": 0.008}, "runs": [{}, {}, {}]}
    monkeypatch.setattr(study, "tuned_runs", lambda *given, **options: runs)
    monkeypatch.setattr(study, "recorded_scales", lambda given, rate, seed: f"dt of {seed}")
    monkeypatch.setattr(study, "adam_on_schedule", lambda given, rate, scales: (rate, scales))
    monkeypatch.setattr(study, "training_run", lambda run_by, seed, *_, **options: (run_by, seed))
    settings = study.Settings(("mlp",), TINY._asdict(), 1, 3, (), 0, "")
    found = study.cells(settings)["soaa_on_mlp"]()
    assert found["dt"] == ["dt of 0", "dt of 1", "dt of 2"]
    assert found["scheduled"] == [((0.008, f"dt of {seed}"), seed) for seed in range(3)]
    others = (1, 2, 0)
    assert found["borrowed"] == [((0.008, f"dt of {o}"), seed) for seed, o in enumerate(others)]


def test_recorded_scales_are_those_with_which_each_step_was_taken(rng):
    data = Dataset(train=(rng.normal(size=(32, 3)), rng.integers(2, size=32)))
    given = Task(Objective(mlp([3, 2]), softmax_cross_entropy), data, epochs=6, batch_size=16)
    scales = study.recorded_scales(given, 0.01, seed=3)
    progress = np.arange(given.steps) / given.steps
    assert scales.shape == (12,)
    np.testing.assert_array_equal(scales[:2], 1)
    assert len(np.unique(scales)) > 5
    assert np.all(scales[1:] >= 0.75 ** progress[:-1] - 1e-6)
    assert np.all(scales[1:] <= 1 + 0.25 ** progress[:-1] + 1e-6)


def bowl(params, batch):
    return 0.5 * jnp.sum(batch * params**2)


def path(optimizer):
    """Where a method goes on a bowl."""
    step, key = optimizer.step, jax.random.key(0)

    def take(carry, _):
        params, state, _ = step(*carry, jnp.array([0.5, 1.0, 2.0]), key)
        return (params, state), params

    start = jnp.array([1.0, -2.0, 30.0])
    run = jax.jit(lambda start: jax.lax.scan(take, (start, optimizer.init(start)), length=4)[1])
    return np.array(run(start))


@pytest.fixture(scope="module")
def path_of_adam():
    return path(first_order(bowl, optax.adam(0.1)))


@pytest.mark.parametrize(
    "scales, rate",
    [
        (np.ones(4), 0.1),
        (np.full(4, 2.0), 0.2),
        ([1.0, 2.0, 0.5, 3.0], lambda count: 0.1 * jnp.array([1.0, 2.0, 0.5, 3.0])[count]),
    ],
)
def test_adam_on_a_schedule_is_adam_with_that_learning_rate(scales, rate):
    given = Task(bowl, None, 1, 1)
    found = path(study.adam_on_schedule(given, 0.1, scales))
    np.testing.assert_allclose(found, path(first_order(bowl, optax.adam(rate))), rtol=1e-6)


@pytest.mark.parametrize("method", study.TUNED)
def test_only_adam_goes_where_adam_goes(method, path_of_adam):
    given = SimpleNamespace(objective=bowl, steps=4)
    found = path(study.build(method, given, 0.1))
    assert np.all(np.isfinite(found))
    assert np.allclose(found, path_of_adam, rtol=1e-4) == (method == "adam")


@pytest.mark.parametrize(
    "method, ratio, answer", [("soaa", 10 / 0.6, "no"), ("still", 0.5 / 10, "yes")]
)
def test_a_run_that_diverged_counts_as_a_high_loss(method, ratio, answer):
    made_up = plain(results(losses={method: np.nan}))
    found = study.log_ratio(made_up, "mlp", "still")
    np.testing.assert_allclose(found, np.log(ratio))
    assert one_answer(found, "below", study.LOSS_MARGIN, "%") == answer
