import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from soaa_edu import Objective, adam_8bit, first_order, soaa, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.storage import plain
from soaa_edu.studies import soaa_race as study
from soaa_edu.studies.networks import NETWORKS, Size, Task
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN, Clause, judge, one_answer

LOSSES = dict.fromkeys(study.METHODS, 0.6) | {"soaa": 0.5}
SPREADS = dict.fromkeys(study.METHODS, 0.1) | {"soaa": 0.01}
BYTES = dict.fromkeys(study.METHODS, 800) | {"soaa": 1200, "adam_8bit": 200, "galore": 300}
PEAKS = dict.fromkeys(study.METHODS, 8e6) | {"soaa": 9e6}
SECONDS = dict.fromkeys(study.METHODS, 0.2) | {"adam_8bit": 0.1}


def results(losses=(), on_encoder=(), spreads=(), bytes=(), peaks=(), seconds=(), seeds=5):
    """Made-up results on all three networks; losses on the encoder may differ.

    A loss is the same for all seeds, or there is one for each; so are seconds and timed repeats.
    """
    losses, spreads = LOSSES | dict(losses), SPREADS | dict(spreads)

    def runs(loss, spread):
        curve = np.linspace(2, 0.5, 40)
        places = scipy.stats.zscore(np.arange(seeds), ddof=1)
        return [
            {
                "steps": 80,
                "loss": curve + spread * place,
                "final_loss": end,
                "test_loss": [2.0, end + 0.1],
            }
            for place, end in zip(places, np.broadcast_to(loss, seeds), strict=True)
        ]

    cells = {}
    for network in NETWORKS:
        here = losses | (dict(on_encoder) if network == "encoder" else {})
        for method in study.METHODS:
            cells[f"{method}_on_{network}"] = {
                "search": {"best": 0.004},
                "runs": runs(here[method], spreads[method]),
            }
        cells[f"cost_on_{network}"] = {
            "seconds_a_step": {
                method: np.broadcast_to(values, 3)
                for method, values in (SECONDS | dict(seconds)).items()
            },
            "bytes": BYTES | dict(bytes),
            "peak_bytes": PEAKS | dict(peaks),
            "parameter_bytes": 400,
        }
    return {"study": "soaa_race", "settings": {}, "cells": cells}


APART = [0.3, 0.5, 0.9, 0.5, 0.6]


def test_a_table_of_seconds_from_several_devices_says_so():
    made_up = results()
    plain_table = study.table(made_up)
    costs = [name for name in made_up["cells"] if name.startswith("cost")]
    made_up["origins"] = [{"device": "cpu"}, {"device": "NVIDIA H100"}]
    made_up["made"] = {cell: [i % 2, 1.0, ""] for i, cell in enumerate(costs)}
    note = "Timed on different devices, not to be compared: cpu, NVIDIA H100."
    assert study.table(made_up) == f"{plain_table}\n{note}"


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(losses={"adamw": 0.4}), IN_PART),
        (results(on_encoder={"soaa": 0.7}), IN_PART),
        (results(losses={"soaa": 0.7}), DOES_NOT_HOLD),
        (results(losses={"adam": APART}), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_a2_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up)["A2"] == answer


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(spreads={"adamw": 0.001}), IN_PART),
        (results(spreads={"soaa": 1.0}), DOES_NOT_HOLD),
        (results(spreads={"soaa": 0.05}), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_a3_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up)["A3"] == answer


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(losses={"galore": 0.4}), IN_PART),
        (results(bytes={"galore": 2000}), IN_PART),
        (results(losses={"soaa": 0.7}, bytes={"soaa": 100}), DOES_NOT_HOLD),
        (results(losses={"adam_8bit": APART}), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_a4_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up)["A4"] == answer


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(losses={"soaa": 0.603}), HOLDS),
        (results(on_encoder={"soaa": 0.7}), IN_PART),
        (results(on_encoder={"soaa": APART}), IN_PART),
        (results(losses={"soaa": 0.7}), DOES_NOT_HOLD),
        (results(losses={"soaa": APART}), OPEN),
        (results(losses={"soaa": 0.7}, on_encoder={"soaa": APART}), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_a8_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up)["A8"] == answer


LARGE_AND_SLOW = {
    "bytes": {"adam_8bit": 400},
    "seconds": {"adam_8bit": 0.3},
    "peaks": {"soaa": 7e6},
}


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(bytes={"adam_8bit": 230}), HOLDS),
        (results(seeds=2), HOLDS),
        (results(seconds={"adam_8bit": 0.3}), IN_PART),
        (results(seconds={"adam_8bit": [0.1, 0.2, 0.3]}), IN_PART),
        (results(peaks={"galore": 1e7}), IN_PART),
        (results(bytes={"adam_8bit": 400}), DOES_NOT_HOLD),
        (results(**LARGE_AND_SLOW), DOES_NOT_HOLD),
    ],
)
def test_a10_can_come_out_every_way_but_open_since_bytes_have_no_error(answers, made_up, answer):
    assert answers(made_up)["A10"] == answer


def test_a10_holds_in_part_where_one_network_alone_has_an_adam_that_saves_as_much(answers):
    made_up = results()
    made_up["cells"]["cost_on_mlp"]["bytes"]["adam_8bit"] = 400
    assert answers(made_up)["A10"] == IN_PART


def test_a8_asks_the_transformers_alone():
    verdict = next(v for v in study.verdicts(plain(results())) if v.claim == "A8")
    (clause,) = verdict.clauses
    assert [reading.where for reading in clause.readings] == ["encoder", "decoder"]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_of_the_spreads_is_that_of_the_f_distribution(seeds, confidence):
    made_up = results(spreads={"soaa": 0.05}, seeds=seeds)
    reading = study.spread_beside(made_up, "mlp", "adam")
    low, middle, high = reading.interval_at(confidence)
    assert (low + high) / 2 == pytest.approx(np.log(0.05 / 0.1))
    assert middle == pytest.approx(np.log(0.05 / 0.1))
    below = np.exp(2 * (high - np.log(0.5)))
    expected = (1 + confidence) / 2
    assert scipy.stats.f.cdf(below, seeds - 1, seeds - 1) == pytest.approx(expected)
    assert (reading.where, reading.seeds) == ("MLP", seeds)


def test_the_spread_of_one_seed_is_unknown():
    with pytest.warns(RuntimeWarning):
        reading = study.spread_beside(results(seeds=1), "mlp", "adam")
    clause = Clause("more stable", "spread:", "below", 1.1, "times", [reading])
    verdict = judge("A3", [clause], seeds=1)
    assert verdict.answer == OPEN
    assert verdict.closes == "at least 3 seeds"


def test_checkpoints_are_means_over_tenths_of_the_run():
    made_up = results(spreads={"soaa": 0.0})
    tenths = np.linspace(2, 0.5, 40).reshape(10, 4).mean(axis=1)
    found = study.checkpoints(made_up, "soaa", "mlp")
    np.testing.assert_allclose(found, np.tile(tenths, (5, 1)))


def test_ratios_are_those_of_the_costs():
    made_up = results(seconds={"soaa": [0.2, 0.4, 0.6], "adam": [0.1, 0.2, 0.2]})
    np.testing.assert_allclose(study.seconds_ratio(made_up, "mlp", "soaa", "adam"), [2, 2, 3])
    assert study.bytes_ratio(made_up, "mlp", "bytes", "soaa", "adam") == 1.5


def test_the_table_has_loss_speed_and_memory_of_every_method():
    made_up = results(losses={"kfac": [0.4, 0.5, 0.6, 0.5, 0.5]}, seconds={"kfac": 0.5})
    rows = {row.pop("method"): row for row in study.rows(plain(made_up), "encoder")}
    assert list(rows) == [style["label"] for style in study.METHODS.values()]
    assert rows["K-FAC"] == {
        "tuned": "0.004",
        "loss": "0.500 ± 0.071",
        "test loss": "0.600 ± 0.071",
        "Adam steps": "2.50",
        "state/params": "2.00",
        "peak MB": "8.0",
    }
    assert rows["SOAA"]["state/params"] == "3.00"


def test_the_figure_shows_losses_and_spreads_of_every_network(draw):
    losses, spreads = np.reshape(draw(results()).axes, (2, 3))
    assert [axes.get_title() for axes in losses] == list(NETWORKS.values())
    for row, methods in ((losses, study.METHODS), (spreads, ("adam", "adamw", "soaa"))):
        labels = [study.label(method) for method in methods]
        for axes in row:
            assert [line.get_label() for line in axes.lines] == labels
        assert [text.get_text() for text in row[-1].get_legend().get_texts()] == labels
    np.testing.assert_allclose(spreads[0].lines[-1].get_ydata(), 0.01, rtol=1e-3)


def test_a_study_has_a_cell_for_each_race_and_for_the_costs_of_each_network():
    size = Size(32, 1, 16, (4,), 64, 8, 4, 8, 1)._asdict()
    settings = study.Settings(("mlp", "decoder"), size, 1, 1, 1, "")
    names = [f"{what}_on_{n}" for n in ("mlp", "decoder") for what in (*study.METHODS, "cost")]
    assert sorted(study.cells(settings)) == sorted(names)


@pytest.mark.parametrize(
    "transformation, expected",
    [
        (optax.adam(1e-3), 2 * 1032 * 4 + 4),
        (soaa(1e-3, total_steps=10), 3 * 1032 * 4 + 9 * 4),
        (adam_8bit(1e-3), 2 * (4 * (256 + 4) + 8 + 4) + 4),
    ],
)
def test_bytes_of_state_are_those_of_the_arrays(transformation, expected):
    objective = Objective(mlp([128, 8]), softmax_cross_entropy)
    params = {"weight": jnp.zeros((128, 8)), "bias": jnp.zeros(8)}
    assert study.state_bytes(first_order(objective, transformation), params) == expected


def test_peak_memory_is_no_less_than_what_goes_in_and_comes_out():
    x = jnp.ones((100, 50))
    program = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x).lower(x).compile()
    assert study.peak_bytes(program) >= 2 * x.nbytes


@pytest.fixture
def tiny(rng):
    """A task of two batches of random numbers."""
    data = Dataset(train=(rng.normal(size=(16, 6)), rng.integers(3, size=16)))
    return Task(Objective(mlp([6, 3]), softmax_cross_entropy), data, epochs=5, batch_size=8)


@pytest.mark.parametrize("method", study.METHODS)
def test_every_method_takes_a_step_downhill(method, tiny):
    optimizer = study.build(method, tiny, study.MIDDLES[method])
    batch = jax.tree.map(lambda array: jnp.asarray(array[:8]), tiny.data.train)
    params = jax.jit(tiny.init)()

    def steps(params):
        keys = jax.random.split(jax.random.key(0))
        return jax.lax.scan(take, (params, optimizer.init(params)), keys)[1]

    def take(carry, key):
        params, state, info = optimizer.step(*carry, batch, key)
        return (params, state), info["loss"]

    first, second = jax.jit(steps)(params)
    assert np.isfinite(first)
    assert second < first


@pytest.mark.parametrize("network", ["encoder", "decoder"])
@pytest.mark.parametrize("method", study.METHODS)
def test_every_method_takes_the_transformers_parameters(method, network):
    given = study.task(network, Size(32, 1, 16, (4,), 64, 8, 4, 8, 1))
    optimizer = study.build(method, given, study.MIDDLES[method])
    batch = jax.tree.map(lambda array: array[: given.batch_size], given.data.train)

    def step(key):
        params = given.init()
        return params, optimizer.step(params, optimizer.init(params), batch, key)

    params, (moved, _, info) = jax.eval_shape(step, jax.random.key(0))
    assert params == moved
    assert info["loss"].shape == ()


@pytest.mark.parametrize("network", NETWORKS)
def test_galores_rank_is_a_quarter_of_the_width(network, monkeypatch):
    given = study.task(network, Size(32, 1, 16, (24, 4), 64, 8, 4, 24, 1))
    monkeypatch.setattr(study, "transformation", lambda *given: given)
    monkeypatch.setattr(study, "first_order", lambda objective, rule: rule)
    assert study.build("galore", given, 0.1) == ("galore", 0.1, 2, 6)


def test_the_cosine_schedule_ends_with_the_run():
    steps = 10
    rule = study.transformation("cosine", 0.1, steps, 1)
    gradient = jnp.ones(1)

    def update(state, _):
        updates, state = rule.update(gradient, state)
        return state, updates[0]

    run = jax.jit(lambda: jax.lax.scan(update, rule.init(gradient), length=steps + 1)[1])
    halves = (1 + np.cos(np.pi * np.arange(steps + 1) / steps)) / 2
    np.testing.assert_allclose(run(), -0.1 * halves, rtol=1e-4, atol=1e-8)


def test_costs_are_measured_for_every_method(tiny, monkeypatch):
    monkeypatch.setattr(study, "METHODS", {m: study.METHODS[m] for m in ("adam", "soaa")})
    monkeypatch.setattr(study, "task", lambda name, size: tiny)
    size = Size(32, 1, 16, (4,), 64, 8, 4, 8, 1)._asdict()
    found = study.cells(study.Settings(("mlp",), size, 1, 1, 2, ""))["cost_on_mlp"]()
    assert {method: len(times) for method, times in found["seconds_a_step"].items()} == {
        "adam": 5,
        "soaa": 5,
    }
    numbers = 6 * 3 + 3
    assert found["parameter_bytes"] == 4 * numbers
    assert found["bytes"] == {"adam": 8 * numbers + 4, "soaa": 12 * numbers + 36}
    assert all(peak > 24 * numbers for peak in found["peak_bytes"].values())


@pytest.mark.parametrize(
    "method, ratio, answer", [("soaa", 10 / 0.6, "no"), ("adam", 0.5 / 10, "yes")]
)
def test_a_run_that_diverged_counts_as_a_high_loss(method, ratio, answer):
    made_up = plain(results(losses={method: np.nan}))
    found = study.log_ratio(made_up, "mlp", "soaa", "adam")
    np.testing.assert_allclose(found, np.log(ratio))
    assert one_answer(found, "below", study.LOSS_MARGIN, "%") == answer


def test_the_table_has_a_line_for_every_method_on_every_network():
    head, *lines = study.table(plain(results())).splitlines()
    assert head.startswith("network  method")
    assert len(lines) == len(study.METHODS) * len(NETWORKS)
