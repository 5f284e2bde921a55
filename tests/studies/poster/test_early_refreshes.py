import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.optimizers import shampoo
from soaa_edu.storage import plain
from soaa_edu.studies import early_refreshes as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SETTINGS = study.Settings(
    ("grafted", "plain"), 8, 1, 640, 10, 2, (0.0, 0.04, 0.1), (4, 20), 1, 3, 0, 0.0
)
STEPS = 100


def results(lost=0.002, gained=0.3, alone=0.1, seeds=3):
    """Accuracy that refreshes lose by ending early, and log loss gained over as many spread."""
    settings = SETTINGS._replace(seeds=seeds)
    jitter = 1 + 0.01 * np.arange(seeds)
    lost, gained = (np.broadcast_to(array, seeds) * jitter for array in (lost, gained))

    def runs(accuracies, losses):
        return {
            "loss": [[[2.3, loss] for loss in row] for row in losses],
            "final_loss": losses,
            "test_accuracy": [[[0.1, a] for a in row] for row in accuracies],
        }

    cells = {}
    for form in settings.forms:
        for share in settings.shares:
            early = np.tile(0.9 - lost if share else alone * jitter, (3, 1))
            cells[f"{form}_at_{share:g}"] = {
                "refreshes": [
                    study.then_every(share, later, settings).refreshes(2, STEPS)
                    for later in (4, 20, study.NEVER)
                ],
                **runs(early, np.full((3, seeds), 0.2)),
            }
        tuned = {"loss": [2.3, 0.15], "final_loss": 0.15, "test_accuracy": [0.1, 0.9]}
        cells[f"{form}_throughout"] = cells[f"{form}_retuned"] = {"runs": [tuned] * seeds}
        for place in ("even", "late"):
            spread = np.tile(0.2 * np.exp(gained), (2, 1))
            cells[f"{form}_{place}"] = runs(np.full((2, seeds), 0.8), spread)
    return {"study": "early_refreshes", "settings": settings._asdict(), "cells": cells}


@pytest.mark.parametrize(
    "made_up, answer",
    [
        (results(), HOLDS),
        (results(alone=0.8), HOLDS),
        (results(lost=-0.05), HOLDS),
        (results(gained=-0.1), IN_PART),
        (results(gained=0.0), IN_PART),
        (results(gained=np.array([-0.1, 0.1, 0.3])), IN_PART),
        (results(lost=0.05), DOES_NOT_HOLD),
        (results(lost=0.05, gained=-0.1, alone=0.8), DOES_NOT_HOLD),
        (results(lost=np.array([0.0, 0.03, 0.002])), OPEN),
        (results(seeds=2), OPEN),
    ],
)
def test_p5_can_come_out_every_way(answers, made_up, answer):
    assert answers(made_up) == {"P5": answer}


def test_p5_holds_in_part_where_one_form_alone_keeps_its_accuracy(answers):
    made_up = results()
    for share in SETTINGS.shares:
        made_up["cells"][f"plain_at_{share:g}"] = results(lost=0.05)["cells"][f"plain_at_{share:g}"]
    assert answers(made_up) == {"P5": IN_PART}


def test_what_the_first_refresh_alone_reaches_is_told():
    (verdict,) = studies.verdicts(plain(results(alone=0.8)))
    assert len(verdict.findings) == 2
    for finding in verdict.findings:
        assert "refreshes throughout: 0.9000 ± 0.0000" in finding
        assert "the first step's alone: 0.8080 ± 0.0080" in finding


def test_the_shares_that_stand_for_the_claim_give_two_early_refreshes_at_every_scale():
    for settings in study.SCALES.values():
        made_up = {"settings": settings._asdict()}
        for share in study.claimed_shares(made_up):
            assert share in settings.shares
        for share in study.shares_placed(made_up):
            early = study.then_every(share, study.NEVER, settings)
            assert early.refreshes(settings.frequent, settings.steps) >= 2
    assert study.claimed_shares({"settings": study.SCALES["laptop"]._asdict()}) == [0.01, 0.1]
    assert study.claimed_shares({"settings": study.SCALES["gpu"]._asdict()}) == [0.003, 0.1]


def test_everywhere_in_training_there_are_as_many_refreshes_as_early():
    for settings in (SETTINGS, *study.SCALES.values()):
        for share in settings.shares[1:]:
            counts = {
                study.placed(place, share, settings).refreshes(settings.frequent, settings.steps)
                for place in study.PLACES
            }
            assert len(counts) == 1


def test_refreshes_are_counted_as_shampoo_makes_them():
    """A root is fresh where the state says that it is one step old."""
    settings = SETTINGS._replace(images=64 * 40, epochs=1)
    schedules = [
        study.THROUGHOUT,
        study.FIRST_ALONE,
        study.then_every(0.3, 7, settings),
        *(study.placed(place, 0.2, settings) for place in study.PLACES),
    ]

    @jax.jit
    def ages(schedule):
        optimizer = shampoo(0.1, refresh_every=study.every(schedule, settings.frequent))
        params = jnp.eye(2)

        def step(state, _):
            _, state = optimizer.update(params, state, params)
            return state, state[0].since_refresh

        return jax.lax.scan(step, optimizer.init(params), length=settings.steps)[1]

    for schedule in schedules:
        made = int(jnp.sum(ages(schedule) == 1))
        assert made == schedule.refreshes(settings.frequent, settings.steps)


@pytest.fixture
def tiny(monkeypatch, rng):
    """The study on a network and a data set of a few numbers."""

    def labelled(n):
        x = rng.normal(size=(n, 4)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int32)

    data = Dataset(train=labelled(640), test=labelled(64))
    monkeypatch.setattr(study, "mnist", lambda images: data)
    monkeypatch.setattr(study, "vit", lambda width, depth: mlp([4, 3, 2]))
    return SETTINGS._replace(forms=("plain",))


def test_a_share_of_one_and_a_refresh_as_often_later_give_the_same_run(tiny):
    computed = {}
    for name, cell in study.cells(tiny).items():
        computed[name] = cell.compute(*(computed[needed] for needed in cell.needs))
    assert list(computed) == [
        "plain_throughout",
        "plain_even",
        "plain_late",
        "plain_at_0",
        "plain_at_0.04",
        "plain_at_0.1",
    ]
    made = plain({"study": "early_refreshes", "settings": tiny._asdict(), "cells": computed})
    assert study.accuracies(made, "plain", 0.1).shape == (3, 3)
    assert study.placed_numbers(made, "plain", "late", "final_loss").shape == (2, 3)
    often = study.then_every(0.1, 2, tiny)
    tuning = computed["plain_throughout"]
    same = study.with_each("plain", [often], tiny, tuning)["final_loss"][0]
    np.testing.assert_allclose(same, study.throughout(made, "plain", "final_loss"), atol=1e-6)
    others = study.placed_numbers(made, "plain", "early", "final_loss")[0]
    assert not np.allclose(same, others, atol=1e-4)
    assert studies.verdicts(made)[0].seeds == 3


def test_a_diverged_run_counts_as_no_accuracy():
    made_up = results()
    made_up["cells"]["plain_at_0.1"]["test_accuracy"][-1][0][-1] = None
    assert study.accuracies(made_up, "plain", 0.1)[-1, 0] == 0


def test_the_table_is_laid_out_as_the_posters(close_figures):
    lines = study.table(plain(results()), "plain").splitlines()
    assert lines[0].split() == ["then", "every", "0", "%", "4", "%", "10", "%", "100", "%"]
    assert [line.split()[0] for line in lines[1:]] == ["4", "20", "never"]
    assert lines[3].count("(") == 4
    assert "(1)" in lines[3] and "(2)" in lines[3] and "(5)" in lines[3] and "(50)" in lines[3]


def test_the_figure_shows_every_form_in_numbers_and_curves(close_figures):
    drawing = studies.figure("early_refreshes", plain(results()))
    drawing.draw_without_rendering()
    assert len(drawing.axes) == 6
    for panel in drawing.axes[::3]:
        assert panel.images[0].get_size() == (3, 4)
        assert len(panel.texts) == 2 * 3 * 4
    for panel in drawing.axes:
        assert panel.get_xlabel() and panel.get_ylabel() and panel.get_title()
    for panel in (*drawing.axes[1::3], *drawing.axes[2::3]):
        assert len(panel.lines) == 4
        assert all(np.isfinite(line.get_ydata()).all() for line in panel.lines)
    assert all(panel.get_legend() for panel in drawing.axes[1:3])
