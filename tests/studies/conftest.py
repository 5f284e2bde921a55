import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.storage import plain


@pytest.fixture
def answers():
    """Made-up results -> {claim: answer}, once they went through JSON as stored results do."""

    def judge(results):
        return {v.claim: v.answer for v in studies.verdicts(plain(results))}

    return judge


@pytest.fixture
def draw(close_figures):
    """Draws a study's figure and checks that every panel shows labelled, finite data."""

    def check(results):
        drawing = studies.figure(results["study"], plain(results))
        drawing.draw_without_rendering()
        for axes in drawing.axes:
            assert axes.lines
            assert all(np.isfinite(line.get_ydata()).any() for line in axes.lines)
            assert axes.get_xlabel()
            ticks = [label.get_text() for label in axes.get_yticklabels()]
            assert axes.get_ylabel() or any(map(str.isidentifier, " ".join(ticks).split()))
        assert any(axes.get_legend() for axes in drawing.axes)
        return drawing

    return check


@pytest.fixture
def made_up_runs():
    """Cells of a method's runs, one for each seed, with these final losses and accuracies."""

    def make(method, losses, accuracies=(0.9,)):
        accuracies = [accuracies[0]] * len(losses) if len(accuracies) == 1 else accuracies
        return {
            f"{method}.{seed}": {
                "steps": 40,
                "loss": [2.3, 1.0, loss, loss],
                "final_loss": loss,
                "diverged_at": None,
                "test_loss": [1.0, loss],
                "test_accuracy": [accuracy / 2, accuracy],
                "seconds": 1.0,
                "info": {},
            }
            for seed, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
        }

    return make
