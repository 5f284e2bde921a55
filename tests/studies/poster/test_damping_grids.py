import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from soaa_edu import studies
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.storage import plain
from soaa_edu.studies import methods
from soaa_edu.studies.poster import damping_grids as study
from soaa_edu.studies.race import Task
from soaa_edu.studies.searches import grid_around
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SIZES = (32, 128, 512)
RATES = grid_around(0.1, 2.0, 5)
DAMPINGS = grid_around(1.0, 4.0, 9)


@pytest.fixture
def results(made_up):
    """Made-up grids, best at damping ``centre`` (size / 128)^batch (learning rate / 0.1)^rate.

    Around it log loss is a parabola. Seeds move both exponents by ``spread``. The best learning
    rate is 0.1 at every batch size.
    """

    def make(batch=1.0, rate=0.5, spread=0.02, seeds=3, centre=1.0):
        moves = spread * (np.arange(seeds) - (seeds - 1) / 2)
        off_rate = np.log(np.array(RATES) / 0.1)[:, None, None]
        cells = {}
        for size in SIZES:
            best = np.log(centre) + np.log(size / 128) * (batch + moves) + off_rate * (rate + moves)
            off = np.log(np.array(DAMPINGS)[:, None]) - best
            loss = 0.2 * np.exp(0.05 * off**2 + off_rate**2)
            for method in study.FIELD:
                cells[f"method={method} batch={size}"] = {"loss": loss, "accuracy": 1 - loss / 10}
        settings = study.Settings(
            batch_sizes=SIZES,
            learning_rates=dict.fromkeys(study.FIELD, RATES),
            dampings=dict.fromkeys(study.FIELD, DAMPINGS),
            epochs=2,
        )
        return made_up("damping_grids", cells, settings)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"batch": 0.4}, IN_PART),
        ({"batch": 1.6}, IN_PART),
        ({"rate": -0.5}, IN_PART),
        ({"batch": -0.4, "rate": -0.5}, DOES_NOT_HOLD),
        ({"spread": 0.5}, OPEN),
    ],
)
def test_p6_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"P6": answer}


def test_exponents_are_those_of_the_made_up_valley(results):
    made_up = results(batch=0.7, rate=0.5, spread=0.1)
    seeds = np.array([-0.1, 0, 0.1])
    for found, expected in [
        (study.batch_exponent, 0.7),
        (study.batch_exponent_at_rates, 0.7),
        (study.rate_exponent, 0.5),
    ]:
        np.testing.assert_allclose(found(made_up, "kfac"), expected + seeds, rtol=1e-4)
    best = study.best_damping(made_up, "kfac", 512)
    np.testing.assert_allclose(best, 4 ** (0.7 + seeds), rtol=1e-4)


def test_at_one_rate_k_fac_is_compared_with_inverses_that_are_never_old(results):
    old, fresh = results(batch=0.7, rate=0.5, spread=0), results(batch=0.2, rate=0.5, spread=0)
    middle = len(RATES) // 2
    old["settings"]["learning_rates"][study.FRESH] = [RATES[middle]]
    old["settings"]["dampings"][study.FRESH] = DAMPINGS
    for size in SIZES:
        of_kfac = fresh["cells"][f"method=kfac batch={size}"]
        old["cells"][f"method={study.FRESH} batch={size}"] = {
            key: [rows[middle]] for key, rows in of_kfac.items()
        }
    for method, slope in [("kfac", 0.7), (study.FRESH, 0.2)]:
        np.testing.assert_allclose(study.exponent_at_fresh_rate(old, method), slope, rtol=1e-4)
        np.testing.assert_allclose(
            study.best_at_fresh_rate(old, method)[:, 0], (np.array(SIZES) / 128) ** slope, rtol=1e-4
        )
    findings = " ".join(studies.verdicts(old)[0].findings)
    assert "at the rate 0.1 alone: 0.70 ± 0.00, and inverting at every step 0.20 ± 0.00" in findings
    assert study.methods_of(old) == list(study.FIELD)


@pytest.mark.parametrize(
    "method, steps, every",
    [("kfac", 128, 8), ("kfac", 4, 1), (study.FRESH, 128, 1), (study.FRESH, 4, 1)],
)
def test_inverses_are_as_old_as_the_method_s_name_says(monkeypatch, method, steps, every):
    given = {}
    monkeypatch.setitem(methods.BUILDERS, "kfac", lambda *args, **numbers: given.update(numbers))
    task = Task({}, None, lambda: None, 32 * steps, 1, 32)
    study.build(method, task, learning_rate=0.1, damping=1.0)
    assert given == {"invert_every": every, "learning_rate": 0.1, "damping": 1.0}


def test_a_parabola_in_logarithms_finds_its_minimum_between_the_points():
    values = np.array(DAMPINGS)
    losses = np.exp(0.3 * np.log(values / 0.6) ** 2 - 1)
    assert study.lowest_at(values, losses) == pytest.approx(0.6)
    assert study.lowest_at(values, values) == values[0]
    assert study.lowest_at(values, 1 / values) == values[-1]
    assert study.lowest_at(values, np.array([10.0, 1, 1, 1, 10, 10, 10, 10, 10])) == 2 * values[1]


@pytest.mark.parametrize(
    "batch, spread, answer",
    [
        (1.0, 0.02, "yes"),
        (0.8, 0.0, "yes"),
        (1.2, 0.0, "yes"),
        (0.7, 0.0, "no"),
        (1.3, 0.0, "no"),
        (-1.0, 0.02, "no"),
        (1.0, 0.2, "open"),
        (1.2, 0.02, "open"),
    ],
)
def test_an_exponent_is_in_proportion_within_the_margin_of_one(results, batch, spread, answer):
    in_proportion = studies.verdicts(results(batch=batch, spread=spread))[0].clauses[1]
    assert [reading.where for reading in in_proportion.readings] == ["K-FAC", "Gauss-Newton"]
    for reading in in_proportion.readings:
        assert reading.answer == answer
        assert reading.interval[1] == pytest.approx(batch - 1, abs=1e-4)


def test_a_best_value_at_its_grid_s_edge_is_said(results):
    findings = studies.verdicts(results())[0].findings
    assert not [finding for finding in findings if "edge" in finding]
    (verdict,) = studies.verdicts(results(centre=1e3))
    assert "K-FAC at batch size 32: the best damping is at its grid's edge" in verdict.findings


def test_the_table_has_steps_and_the_best_point_of_every_batch_size(results):
    rows = study.rows(results())
    assert len(rows) == 2 * len(SIZES)
    assert rows[1] == {
        "method": "K-FAC",
        "batch": "128",
        "steps": "64",
        "rate": "0.1",
        "damping": "1",
        "log10 of best by seed": "0.00 ± 0.00",
        "loss": "0.200 ± 0.000",
        "accuracy": "0.980 ± 0.000",
    }
    assert study.table(results()).count("\n") == len(rows)


def test_the_figure_has_a_map_for_each_batch_size_and_a_line_of_best_dampings(
    results, close_figures
):
    drawing = studies.figure("damping_grids", results())
    drawing.draw_without_rendering()
    maps = [axes for axes in drawing.axes if axes.images]
    lines = [axes for axes in drawing.axes if axes.get_legend()]
    (bar,) = [axes for axes in drawing.axes if axes not in maps and axes not in lines]
    assert bar.get_ylabel()
    assert len(maps) == 2 * len(SIZES)
    for axes, size in zip(maps, 2 * SIZES, strict=True):
        assert f"batch {size}" in axes.get_title()
        assert axes.get_xlabel() == "damping"
        np.testing.assert_array_equal(
            axes.lines[0].get_xydata(), [[4 + (size > 128) - (size < 128), 2]]
        )
        assert axes.images[0].get_clim() == maps[0].images[0].get_clim()
    for axes in lines:
        *seeds, fitted, proportional = (line.get_ydata() for line in axes.lines)
        assert len(seeds) == 3
        np.testing.assert_allclose(fitted, proportional, rtol=1e-4)


def test_a_chapter_can_draw_one_map_and_one_line_alone(results, close_figures):
    axes = Figure().subplots(1, 2)
    study.draw_heat_map(axes[0], results(), "kfac", 32)
    study.draw_best(axes[1], results(batch=0.5), "gauss_newton")
    assert "exponent 0.50" in axes[1].get_legend().get_texts()[0].get_text()


def test_a_cell_holds_the_end_of_each_run_by_rate_damping_and_seed():
    settings = study.Settings(
        batch_sizes=(256,),
        learning_rates={"gauss_newton": [0.3]},
        dampings={"gauss_newton": [0.3, 30.0]},
        images=512,
        hidden=3,
        epochs=1,
        seeds=2,
        minutes=0.0,
    )
    told = study.cells(settings)
    assert list(told) == ["method=gauss_newton batch=256"]
    cell = plain(told["method=gauss_newton batch=256"]())
    assert np.shape(cell["loss"]) == np.shape(cell["accuracy"]) == (1, 2, 2)
    assert np.all(np.diff(cell["loss"], axis=1) > 0)


@pytest.mark.parametrize(
    "method, tells", [("kfac", {"loss", "damping"}), ("gauss_newton", {"loss", "cg_iterations"})]
)
def test_each_method_is_the_one_it_is_called(method, tells):
    objective = Objective(mlp([5, 3, 10]), softmax_cross_entropy)
    task = Task({}, objective, lambda: None, 8, 1, 4)
    optimizer = study.build(method, task, learning_rate=0.5, damping=1.0)
    params = objective.model.init(jax.random.key(0))
    batch = jnp.zeros((4, 5)), jnp.zeros(4, jnp.int32)
    given = params, optimizer.init(params), batch, jax.random.key(1)
    assert set(jax.eval_shape(optimizer.step, *given)[2]) == tells
