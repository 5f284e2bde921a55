"""The slides' network and numbers, and what their studies have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from soaa_edu import plotting
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS

SLIDES_STEPS = 7 * 937
REPORTED: dict[str, dict[str, Any]] = {
    "sgd_at_0.1": {"loss": 0.2121, "accuracy": 0.9138, "seconds": 222},
    "newton_undamped": {"loss": 2.305, "accuracy": 0.1028, "seconds": 21_257},
    "newton": {"loss": 0.2837, "accuracy": 0.9003, "seconds": 34_933},
    "hessian_free": {"loss": 0.2614, "accuracy": 0.9099, "seconds": 244},
    "gauss_newton_at_4": {"loss": 0.2049, "accuracy": 0.9239, "seconds": 246},
}
"""Training loss, test accuracy and seconds on a V100 that the slides' report gives."""


def slides_objective() -> Objective:
    """784-10-10 with ReLU and softmax cross-entropy."""
    return Objective(mlp([784, 10, 10]), softmax_cross_entropy)


def accuracy_against_epochs(axes: Axes, results: dict, methods: Sequence[str]) -> None:
    """Test accuracy after each epoch."""
    for method in methods:
        accuracy = stored.over_runs(results, "test_accuracy", method=method)
        x = np.arange(1, accuracy.shape[1] + 1)
        plotting.band(axes, x, accuracy, marker="o", markersize=4, **METHODS[method])
    axes.set(xlabel="epoch", ylabel="test accuracy", xticks=x)
    axes.legend()


def loss_against_steps(axes: Axes, results: dict, methods: Sequence[str]) -> None:
    """Training loss, means over stretches of steps, against steps."""
    panels.curves(axes, results, methods)
    axes.legend()


def loss_against_seconds(axes: Axes, results: dict, methods: Sequence[str]) -> None:
    """The same loss against seconds, at the timed seconds of a step."""
    panels.curves(axes, results, methods, against="second")
    axes.set(xscale="log")
    axes.legend()


def field_figure(axes: Any, results: dict, methods: Sequence[str]) -> None:
    """The slides' three pictures of a field: loss by steps and by seconds, accuracy by epochs."""
    loss_against_steps(axes[0, 0], results, methods)
    loss_against_seconds(axes[0, 1], results, methods)
    accuracy_against_epochs(axes[1, 0], results, methods)
