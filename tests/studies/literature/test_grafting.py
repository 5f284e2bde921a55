import numpy as np
import pytest

from soaa_edu import Objective, shampoo, softmax_cross_entropy, studies
from soaa_edu.models import mlp
from soaa_edu.optimizers import first_order
from soaa_edu.studies.literature import grafting as study
from soaa_edu.studies.race import Task
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SETTINGS = study.SCALES["laptop"]
MOVES = np.array([-1, 0, 1])


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results: every method's loss by interval, the same on both networks."""

    def make(plain=1.3, stale_plain=1.6, fresh_plain=1.2, kl=0.9, soap=0.97, spread=0.0003):
        of = {
            "shampoo": dict.fromkeys(SETTINGS.intervals, 1.0),
            "shampoo_plain": {1: fresh_plain, 10: plain, 100: stale_plain},
            "kl_shampoo": dict.fromkeys(SETTINGS.intervals, kl),
            "soap": dict.fromkeys(SETTINGS.intervals, soap),
            "adam": {study.USUAL: 1.1},
        }
        cells = {
            f"method={method} network={network} interval={interval}": runs(
                loss * np.exp(spread * MOVES * (1 if method == "shampoo" else -np.log10(interval)))
            )
            for network in SETTINGS.networks
            for method, losses in of.items()
            for interval, loss in losses.items()
        }
        seconds = dict.fromkeys(of, 0.004)
        timed = {
            f"cost=step network={n} interval={study.USUAL}": costs(seconds)
            for n in SETTINGS.networks
        }
        return made_up("grafting", cells | timed, SETTINGS)

    return make


@pytest.mark.parametrize(
    "losses, answer",
    [
        ({}, HOLDS),
        ({"soap": 0.9}, IN_PART),
        ({"plain": 1.0}, IN_PART),
        ({"kl": 1.2}, DOES_NOT_HOLD),
        ({"spread": 0.3}, OPEN),
    ],
)
def test_l2_can_come_out_every_way(answers, results, losses, answer):
    assert answers(results(**losses))["L2"] == answer


@pytest.mark.parametrize(
    "losses, answer",
    [
        ({}, HOLDS),
        ({"fresh_plain": 1.0}, IN_PART),
        ({"soap": 1.1}, IN_PART),
        ({"stale_plain": 1.2}, DOES_NOT_HOLD),
        ({"spread": 0.3}, OPEN),
    ],
)
def test_l3_can_come_out_every_way(answers, results, losses, answer):
    assert answers(results(**losses))["L3"] == answer


def test_the_gain_by_grafting_is_the_log_of_both_losses(results):
    found = results(plain=np.e, spread=0)
    np.testing.assert_allclose(study.gain_by_grafting(found, "vit", study.USUAL), 1, rtol=1e-5)


def test_each_network_has_every_method_at_every_interval_and_adam_once():
    cells = study.cells(SETTINGS)
    races = [cell for cell in cells if cell.startswith("method=")]
    assert len(races) == 2 * (len(study.FIELD) * len(SETTINGS.intervals) + 1)
    assert [cell for cell in cells if cell.startswith("cost=")] == [
        f"cost=step network={n} interval={study.USUAL}" for n in SETTINGS.networks
    ]


def test_plain_shampoo_is_shampoo_without_grafting_at_the_tasks_interval(rng):
    objective = Objective(mlp([6, 3]), softmax_cross_entropy)
    batch = rng.normal(size=(8, 6)).astype(np.float32), rng.integers(3, size=8)
    task = Task({"interval": 3}, objective, lambda: None, 16, 5, 8)
    params = task.init()
    built = study.build("shampoo_plain", task, learning_rate=1e-2)
    same = first_order(objective, shampoo(1e-2, refresh_every=3, grafting=None))
    ends = [o.step(params, o.init(params), batch, None)[0] for o in (built, same)]
    np.testing.assert_array_equal(*(end["dense_0"]["weight"] for end in ends))


def test_the_rows_tell_loss_and_cost_and_the_figure_has_a_panel_for_each_network(draw, results):
    found = results()
    rows = study.rows(found)
    assert len(rows) == 2 * (len(study.FIELD) + 1)
    assert {"ms/step", "state/params", "loss"} <= set(rows[0])
    assert "KL-Shampoo" in study.table(found)
    assert [axes.get_title() for axes in draw(found).axes] == ["ViT", "decoder"]


def test_findings_name_the_lowest_and_everybody_beside_adam(results):
    by_kl, staleness = studies.verdicts(results())
    assert "lowest on the ViT at 10 steps: KL-Shampoo" in by_kl.findings
    assert any("SOAP beside Adam on the decoder: -11.8" in finding for finding in by_kl.findings)
    assert len(staleness.findings) == 2 * len(SETTINGS.intervals)
