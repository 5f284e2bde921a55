"""The pictures that recur: curves along training, numbers against a size, and heat maps."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from soaa_edu import plotting
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS
from soaa_edu.studies.results import capped, middles

LOSS = "training loss (nats)"


def curves(
    axes: Axes,
    results: dict,
    methods: Sequence[str],
    *,
    against: str = "step",
    points: int | None = None,
    each_seed: bool = False,
    **labels: Any,
) -> None:
    """Training loss along runs, a line for each method and a band for its seeds.

    Args:
        axes: to draw on.
        results: of a study.
        methods: of ``METHODS``.
        against: ``"step"``, ``"epoch"`` or ``"second"``, at the timed seconds of a step.
        points: of a line at most, means over stretches; by default as many as are stored.
        each_seed: a thin line for each seed in place of mean and band; lost ones end at 10.
        **labels: of the place.
    """
    for method in methods:
        loss = stored.over_runs(results, "loss", method=method, **labels)
        steps = stored.steps(results, method=method, **labels)
        x = middles(loss.shape[1], steps)
        if against == "epoch":
            x = x / steps * results["settings"]["epochs"]
        if against == "second":
            x = x * stored.cost(results, "seconds_a_step", method, **labels).mean()
        if points and points < len(x):
            x, loss = (plotting.binned(values, points) for values in (x, loss))
        if each_seed:
            look = METHODS[method]
            first, *_ = axes.plot(x, capped(loss).T, color=look["color"], linewidth=1, alpha=0.8)
            first.set_label(look["label"])
        else:
            plotting.band(axes, x, loss, **METHODS[method])
    axes.set(xlabel=along(against), ylabel=LOSS)


def along(against: str) -> str:
    """The label of an axis of steps, epochs or seconds."""
    return "seconds, compilation left out" if against == "second" else against


def against_size(
    axes: Axes,
    sizes: Sequence[int],
    number: Callable[[str, int], np.ndarray],
    methods: Sequence[str],
    **line: Any,
) -> None:
    """``number(method, size)``, one for each seed, against a size, a band for the seeds."""
    for method in methods:
        values = np.array([number(method, size) for size in sizes]).T
        look = {"marker": "o", "markersize": 4, **METHODS[method], **line}
        plotting.band(axes, sizes, values, **look)
    plotting.sizes_axis(axes, sizes)


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    text: Callable[[int, int], str] | None = None,
    **image: Any,
) -> AxesImage:
    """A number for each row and column as a colour, with words on it where ``text`` gives them."""
    shown = axes.imshow(values, aspect="auto", **image)
    for (row, column), value in np.ndenumerate(values) if text else ():
        dark = np.asarray(shown.norm(value)) < 0.5
        axes.text(
            column,
            row,
            text(row, column),  # type: ignore[misc]
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    return shown
