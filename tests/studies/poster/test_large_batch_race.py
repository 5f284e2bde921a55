import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import first_order
from soaa_edu.storage import plain
from soaa_edu.studies import large_batch_race as study


def results(losses):
    """Made-up results: the losses of each method on the MLP, one for each seed."""

    def runs(values):
        return [
            {
                "steps": 40,
                "loss": [2.3, value, value],
                "final_loss": value,
                "test_accuracy": [0.5, 0.9],
            }
            for value in values
        ]

    cells = {
        f"{method}_on_mlp": {"search": {"best": 1e-3}, "runs": runs(losses.get(method, [0.5] * 3))}
        for method in study.METHODS
    }
    cells["cost_on_mlp"] = {
        "seconds_a_step": {method: [0.1 * (1 + i)] * 3 for i, method in enumerate(study.METHODS)},
        "bytes": dict.fromkeys(study.METHODS, 800),
        "parameter_bytes": 400,
    }
    return plain({"study": "large_batch_race", "settings": {}, "cells": cells})


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
def test_a_method_is_below_adam_above_it_or_neither(kfac, answer):
    made_up = results({"adam": [0.5, 0.51, 0.49], "kfac": kfac})
    assert study.against_adam(made_up, "kfac", "mlp") == answer


def test_the_table_has_loss_cost_and_comparison_of_every_method():
    made_up = results({"kfac": [0.3, 0.31, 0.29]})
    rows = study.rows(made_up)
    assert [row["method"] for row in rows] == [style["label"] for style in study.METHODS.values()]
    assert rows[0]["below Adam"] == ""
    assert rows[1] == {
        "network": "MLP",
        "method": "K-FAC",
        "tuned": "0.001",
        "loss": "0.300 ± 0.010",
        "accuracy": "0.900 ± 0.000",
        "below Adam": "yes",
        "Adam steps": "2.0",
        "state/params": "2.0",
    }
    head, adam, kfac = study.table(made_up, ("adam", "kfac")).splitlines()
    assert head.startswith("network  method  tuned")
    assert kfac.index("yes") == head.index("below Adam")
    assert len(adam) == len(kfac)


def test_the_figure_shows_every_method_against_steps_and_seconds(draw):
    drawing = draw(results({}))
    assert [axes.get_xlabel() for axes in drawing.axes] == ["step", "seconds"]
    assert all(len(axes.lines) == len(study.METHODS) for axes in drawing.axes)


def test_bytes_of_state_are_those_of_the_arrays():
    objective = Objective(study.mlp([4, 3]), softmax_cross_entropy)
    params = objective.model.init(jax.random.key(0))
    assert study.state_bytes(first_order(objective, optax.adam(1e-3)), params) == 2 * 15 * 4 + 4


@pytest.mark.parametrize("method", study.METHODS)
def test_every_method_takes_a_step_on_the_race_track(method, digits):
    objective = Objective(study.mlp([784, 4, 10]), softmax_cross_entropy)
    params = objective.model.init(jax.random.key(0))
    optimizer = study.build(method, objective, study.MIDDLES[method])
    batch = jax.tree.map(lambda array: jnp.asarray(array[:32]), digits.train)
    after, _, info = jax.jit(optimizer.step)(
        params, optimizer.init(params), batch, jax.random.key(1)
    )
    assert np.isfinite(float(info["loss"]))
    assert float(objective(after, batch)) != float(info["loss"])
