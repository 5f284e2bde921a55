import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.storage import plain


def _runs(final_loss=0.5, accuracy=0.9, *, seeds=3, best=None, **numbers):
    """A cell of runs. A number is the same for all seeds, or there is one for each.

    Other numbers of a run are given as lists, one for each seed.
    """
    loss, right = (np.broadcast_to(number, seeds) for number in (final_loss, accuracy))
    best = best or {"learning_rate": 0.004}
    points = {name: [value / 2, value, 2 * value] for name, value in best.items()}
    return {
        "search": {"points": points, "scores": [0.3, 0.2, 0.21], "best": best},
        "runs": [
            {
                "steps": 40,
                "loss": [2.3, loss[seed], loss[seed], loss[seed]],
                "final_loss": loss[seed],
                "diverged_at": None,
                "test_loss": [2.3, loss[seed] + 0.1],
                "test_accuracy": [right[seed] / 2, right[seed]],
                "seconds": 1.0,
                "info": {},
                **{name: values[seed] for name, values in numbers.items()},
            }
            for seed in range(seeds)
        ],
    }


@pytest.fixture
def runs():
    """Makes up a cell of a method's runs from how they ended."""
    return _runs


@pytest.fixture
def costs():
    """Makes up a cell of costs: seconds of a step by method, three repeats each, and bytes."""

    def make(seconds, bytes=(), peaks=(), repeats=3):
        return {
            "seconds_a_step": {m: np.broadcast_to(s, repeats) for m, s in seconds.items()},
            "bytes": dict.fromkeys(seconds, 800) | dict(bytes),
            "peak_bytes": dict.fromkeys(seconds, 8e6) | dict(peaks),
            "parameter_bytes": 400,
        }

    return make


@pytest.fixture
def made_up():
    """Makes up results of a study, as they come back from a file: cell -> numbers, or how runs end.

    Settings are a scale's, or a dict.
    """

    def make(study, cells, settings=()):
        settings = settings._asdict() if hasattr(settings, "_asdict") else dict(settings)
        as_runs = {
            c: found if isinstance(found, dict | list) else _runs(found)
            for c, found in cells.items()
        }
        return plain(
            {
                "study": study,
                "scale": "quick",
                "settings": settings,
                "origins": [],
                "made": {},
                "cells": as_runs,
            }
        )

    return make


@pytest.fixture
def answers():
    """Made-up results -> {claim: answer}, once they went through JSON as stored results do."""

    def judge(results):
        return {v.claim: v.answer for v in studies.verdicts(plain(results))}

    return judge


@pytest.fixture
def draw(close_figures):
    """Draws a study's figure and checks that every panel shows labelled, finite data."""

    def says_what_is_up(axes):
        ticks = [label.get_text() for label in axes.get_yticklabels()]
        return axes.get_ylabel() or any(map(str.isidentifier, " ".join(ticks).split()))

    def check(results):
        drawing = studies.figure(results["study"], plain(results))
        drawing.draw_without_rendering()
        for axes in drawing.axes:
            assert axes.lines
            assert all(np.isfinite(line.get_ydata()).any() for line in axes.lines)
            assert axes.get_xlabel()
            assert any(map(says_what_is_up, axes.get_shared_y_axes().get_siblings(axes)))
        assert any(axes.get_legend() for axes in drawing.axes)
        return drawing

    return check
