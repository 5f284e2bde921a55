import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu.studies.networks import Size
from soaa_edu.studies.soaa import soaa_costs as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN
from soaa_edu.timing import BothWays

SIZES = (10**5, 10**6, 10**7, 10**8)
TINY = Size(32, 1, 16, (), 64, 8, 4, 8, 1)
STEPS = {
    "adam": {"one_by_one": 2.0, "fused": 1.0},
    "adamw": {"one_by_one": 2.0, "fused": 1.0},
    "soaa": {"one_by_one": 1.5, "fused": 1.0},
}


@pytest.fixture
def results(made_up):
    """Made-up results: SOAA's exponent of n, its copies of the parameters, seconds of updates.

    The gradient takes a second. An exponent is the same for all repeats, or there is one for each.
    """

    def make(exponent=1.0, copies=2.0, steps=(), repeats=3):
        exponents = dict.fromkeys(study.FIELD, 1.0) | {"soaa": exponent}
        state = {"adam": 2.0, "adamw": 2.0, "soaa": copies}
        cells = {
            f"update={n}": {
                "seconds": {
                    method: 1e-9 * float(n) ** np.broadcast_to(power, repeats)
                    for method, power in exponents.items()
                },
                "state_bytes": {method: 4 * n * factor for method, factor in state.items()},
                "parameter_bytes": 4 * n,
            }
            for n in SIZES
        }
        for network in ("mlp", "decoder"):
            cells[f"network={network}"] = {"gradient": np.ones(repeats), "parameters": 1000} | {
                method: {way: np.broadcast_to(taken, repeats) for way, taken in ways.items()}
                for method, ways in (
                    (method, STEPS[method] | dict(steps).get(method, {})) for method in study.FIELD
                )
            }
        return made_up("soaa_costs", cells)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"exponent": 0.9, "copies": 1}, HOLDS),
        ({"copies": 3}, IN_PART),
        ({"exponent": 1.05}, IN_PART),
        ({"exponent": 1.2}, DOES_NOT_HOLD),
        ({"exponent": 2.0, "copies": 4}, DOES_NOT_HOLD),
        ({"exponent": [1.0, 1.1, 1.3]}, OPEN),
    ],
)
def test_a1_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["A1"] == answer


@pytest.mark.parametrize(
    "steps, answer",
    [
        ({}, HOLDS),
        ({"soaa": {"fused": 0.5}}, HOLDS),
        ({"soaa": {"fused": 1.5}}, IN_PART),
        ({"soaa": {"fused": [1.0, 1.0, 1.5]}}, IN_PART),
        ({"adamw": {"one_by_one": 1.0}}, IN_PART),
        ({"soaa": {"one_by_one": 2.5}}, DOES_NOT_HOLD),
        ({"soaa": {"one_by_one": 2.0}}, DOES_NOT_HOLD),
        ({"soaa": {"one_by_one": 2.5, "fused": 1.5}}, DOES_NOT_HOLD),
        ({"soaa": {"one_by_one": [1.0, 1.5, 2.5]}}, OPEN),
    ],
)
def test_a5_can_come_out_every_way(answers, results, steps, answer):
    assert answers(results(steps=steps))["A5"] == answer


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_the_exponent_is_that_of_a_power_law_where_caches_are_too_small(results, power):
    made_up = results(exponent=power)
    made_up["cells"]["update=100000"]["seconds"]["soaa"] = [1e3] * 3
    np.testing.assert_allclose(study.exponents(made_up, "soaa"), power, rtol=1e-5)


def test_a_training_step_is_a_gradient_and_an_update(results):
    made_up = results(steps={"soaa": {"fused": [0.1, 0.2, 0.3]}})
    made_up["cells"]["network=mlp"]["gradient"] = [1.0, 2.0, 3.0]
    seconds = study.training_seconds(made_up, "mlp", "soaa", "fused")
    np.testing.assert_allclose(seconds, [1.1, 2.2, 3.3])


def test_updates_are_compared_with_adams_where_the_caches_are_too_small(results):
    a1, _ = study.verdicts(results(exponent=1.5))
    readings = {reading.where: reading.interval[1] for reading in a1.clauses[2].readings}
    assert readings == pytest.approx(
        {f"n = {n:.0e}": 0.5 * np.log(n) for n in (10**6, 10**7, 10**8)}, rel=1e-4
    )


def test_state_is_compared_with_adams(results):
    a1, _ = study.verdicts(results(copies=3))
    (reading,) = a1.clauses[1].readings
    assert reading.interval == pytest.approx((np.log(1.5),) * 3)


def test_the_findings_compare_a_fused_soaa_with_adam_one_by_one(results):
    _, a5 = study.verdicts(results())
    assert a5.findings[0].endswith("one operation at a time, MLP on MNIST: 0.67")
    assert len(a5.findings) == 2


def test_the_figure_shows_updates_against_n_and_both_ways_on_every_network(draw, results):
    updates, ways = draw(results()).axes
    labels = [line.get_label() for line in updates.lines]
    assert labels == ["Adam", "AdamW", "SOAA", "proportional to n"]
    for line in updates.lines:
        np.testing.assert_allclose(line.get_ydata(), 1e-9 * np.array(SIZES), rtol=1e-5)
    assert [label.get_text() for label in ways.get_xticklabels()] == ["MLP", "decoder"]
    labels = [line.get_label() for line in ways.lines]
    assert labels == [text.get_text() for text in ways.get_legend().get_texts()]
    heights = dict(zip(labels, [line.get_ydata().tolist() for line in ways.lines]))
    assert heights["SOAA, one by one"] == [2500, 2500]
    assert heights["Adam, fused"] == [2000, 2000]


def test_updates_are_timed_and_their_state_is_counted():
    settings = study.Settings((), TINY._asdict(), (10_000,), 2, 0.0)
    found = study.cells(settings)["update=10000"]()
    assert found["parameter_bytes"] == 4 * 10_000
    counter, scalars = 4, 4 * 9
    assert found["state_bytes"] == {
        "adam": 2 * 40_000 + counter,
        "adamw": 2 * 40_000 + counter,
        "soaa": 3 * 40_000 + scalars,
    }
    for seconds in found["seconds"].values():
        assert len(seconds) == 2
        assert min(seconds) > 0


def test_a_timed_program_holds_no_gradient_as_a_constant():
    gradient = jnp.arange(1000.0)
    program, state = study._many_updates(optax.sgd(0.1), gradient, 2)
    lowered = program.lower((jnp.zeros(1000), state), gradient).as_text()
    assert "tensor<1000xf32>" in lowered
    assert len(lowered) < 10_000
    moved = program((jnp.zeros(1000), state), gradient + 1)[0]
    np.testing.assert_allclose(moved, -0.1 * (2 - 1e-4) * (gradient + 1), rtol=1e-5)


def test_every_method_is_timed_both_ways_on_a_network(monkeypatch):
    timed = []

    def both_ways(rule, params, gradients, *, repeats):
        shapes, same = (jax.tree.map(jnp.shape, tree) for tree in (params, gradients))
        assert shapes == same
        timed.append(repeats)
        return BothWays(np.full(repeats, 2.0), np.full(repeats, 1.0))

    monkeypatch.setattr(study, "both_ways", both_ways)
    settings = study.Settings(("mlp",), TINY._asdict(), (), 2, 0.0)
    found = study.cells(settings)["network=mlp"]()
    assert timed == [2] * len(study.FIELD) * study.ROUNDS
    assert found["parameters"] == 784 * 10 + 10
    assert set(found) == {"gradient", "parameters", *study.FIELD}
    seconds = study.training_seconds(
        {"study": "", "cells": {"network=mlp": found}}, "mlp", "soaa", "fused"
    )
    np.testing.assert_allclose(seconds - found["gradient"], 1)
    assert np.all(seconds > 1)
