import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.optimizers import shampoo
from soaa_edu.storage import plain
from soaa_edu.studies.poster import early_refreshes as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SETTINGS = study.Settings(
    ("grafted", "plain"), 8, 1, 640, 10, 2, (0.0, 0.04, 0.1), (4, 20), 1, 3, 0, 0.0
)
STEPS = 100


@pytest.fixture
def results(made_up, runs):
    """Accuracy that refreshes lose by ending early, and log loss gained over as many spread.

    Either is the same for both forms, or by form.
    """

    def make(lost=0.002, gained=0.3, alone=0.1, seeds=3):
        jitter = 1 + 0.01 * np.arange(seeds)
        settings = SETTINGS._replace(seeds=seeds)

        def ends(accuracies, losses):
            return {
                "loss": np.stack([np.full_like(losses, 2.3), losses], -1),
                "final_loss": losses,
                "test_accuracy": np.stack([np.full_like(accuracies, 0.1), accuracies], -1),
            }

        cells = {}
        for form in settings.forms:
            less = np.array(lost[form] if isinstance(lost, dict) else lost) * jitter
            for share in settings.shares:
                early = np.tile(0.9 - less if share else alone * jitter, (3, 1))
                cells[f"form={form} share={share:g}"] = {
                    "refreshes": [
                        study.then_every(share, later, settings).refreshes(2, STEPS)
                        for later in (4, 20, study.NEVER)
                    ],
                    **ends(early, np.full((3, seeds), 0.2)),
                }
            for tuned in ("throughout", "retuned"):
                cells[f"form={form} refreshes={tuned}"] = runs(0.15, 0.9, seeds=seeds)
            for place in ("even", "late"):
                spread = np.tile(0.2 * np.exp(np.array(gained) * jitter), (2, 1))
                cells[f"form={form} refreshes={place}"] = ends(np.full((2, seeds), 0.8), spread)
        return made_up("early_refreshes", cells, settings)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"alone": 0.8}, HOLDS),
        ({"lost": -0.05}, HOLDS),
        ({"gained": -0.1}, IN_PART),
        ({"gained": 0.0}, IN_PART),
        ({"gained": [-0.1, 0.1, 0.3]}, IN_PART),
        ({"lost": {"grafted": 0.002, "plain": 0.05}}, IN_PART),
        ({"lost": 0.05}, DOES_NOT_HOLD),
        ({"lost": 0.05, "gained": -0.1, "alone": 0.8}, DOES_NOT_HOLD),
        ({"lost": [0.0, 0.03, 0.002]}, OPEN),
    ],
)
def test_p5_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"P5": answer}


def test_what_the_first_refresh_alone_reaches_is_told(results):
    (verdict,) = studies.verdicts(results(alone=0.8))
    assert len(verdict.findings) == 2
    for finding in verdict.findings:
        assert "refreshes throughout: 0.9000 ± 0.0000" in finding
        assert "the first step's alone: 0.8080 ± 0.0080, tuned for that: 0.9000" in finding


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
        "form=plain refreshes=throughout",
        "form=plain refreshes=even",
        "form=plain refreshes=late",
        "form=plain share=0",
        "form=plain share=0.04",
        "form=plain share=0.1",
    ]
    made = plain({"study": "early_refreshes", "settings": tiny._asdict(), "cells": computed})
    assert study.accuracies(made, "plain", 0.1).shape == (3, 3)
    assert study.placed_numbers(made, "plain", "late", "final_loss").shape == (2, 3)
    often = study.then_every(0.1, 2, tiny)
    tuning = computed["form=plain refreshes=throughout"]
    same = study.with_each("plain", [often], tiny, tuning)["final_loss"][0]
    np.testing.assert_allclose(same, study.throughout(made, "plain", "final_loss"), atol=1e-6)
    others = study.placed_numbers(made, "plain", "early", "final_loss")[0]
    assert not np.allclose(same, others, atol=1e-4)
    assert studies.verdicts(made)[0].seeds == "3"


def test_a_diverged_run_counts_as_no_accuracy(results):
    made_up = results()
    made_up["cells"]["form=plain share=0.1"]["test_accuracy"][-1][0][-1] = None
    assert study.accuracies(made_up, "plain", 0.1)[-1, 0] == 0


def test_the_table_is_laid_out_as_the_posters(results):
    lines = study.table(results(), "plain").splitlines()
    assert lines[0].split() == ["then", "every", "0", "%", "4", "%", "10", "%", "100", "%"]
    assert [line.split()[0] for line in lines[1:]] == ["4", "20", "never"]
    assert lines[3].count("(") == 4
    assert "(1)" in lines[3] and "(2)" in lines[3] and "(5)" in lines[3] and "(50)" in lines[3]


def test_the_figure_shows_every_form_in_numbers_and_curves(results, close_figures):
    drawing = studies.figure("early_refreshes", results())
    drawing.draw_without_rendering()
    assert len(drawing.axes) == 6
    for panel in drawing.axes[::3]:
        assert panel.images[0].get_size() == (3, 4)
        words = [text.get_text() for text in panel.texts]
        assert words[-4:] == ["10.1\n(1)", "89.8\n(2)", "89.8\n(5)", "90.0\n(50)"]
        assert len(words) == 3 * 4
    for panel in drawing.axes:
        assert panel.get_xlabel() and panel.get_ylabel() and panel.get_title()
    for panel in (*drawing.axes[1::3], *drawing.axes[2::3]):
        assert len(panel.lines) == 4
        assert all(np.isfinite(line.get_ydata()).all() for line in panel.lines)
    assert all(panel.get_legend() for panel in drawing.axes[1:3])
