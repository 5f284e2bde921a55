"""The book's pictures: one style, colours that every reader can tell apart, a few kinds of plot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu.storage import write_atomically

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito's colours, the strongest first."""


def use_style() -> None:
    """Set matplotlib's defaults to the book's style, for the whole process."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 4.0),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "savefig.dpi": 150,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        }
    )


def band(axes: Axes, x: Any, runs: Any, *, label: str, color: str, **line: Any) -> None:
    """The mean of ``runs`` ``(seeds, points)`` as a line, one standard deviation as a band."""
    runs = np.atleast_2d(np.asarray(runs, float))
    mean = runs.mean(axis=0)
    axes.plot(x, mean, label=label, color=color, **line)
    if len(runs) > 1:
        spread = runs.std(axis=0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)


def binned(values: Any, bins: int) -> np.ndarray:
    """Means over ``bins`` consecutive stretches of the last axis, as even as they come."""
    stretches = np.array_split(np.asarray(values, float), bins, axis=-1)
    return np.stack([stretch.mean(axis=-1) for stretch in stretches], axis=-1)


def sizes_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic x axis with a tick at each size, or at every other one where there are many."""
    axes.set_xscale("log")
    axes.set_xticks(sizes[:: 1 if len(sizes) < 6 else 2])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")


def contours(
    axes: Axes,
    f: Callable,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    levels: Any = 20,
) -> None:
    """Level lines of a function of two numbers, ``f(array of shape (2,))``."""
    x, y = np.linspace(*x_range, 200), np.linspace(*y_range, 200)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    heights = jax.vmap(f)(grid).reshape(len(y), len(x))
    axes.contour(x, y, heights, levels=levels, colors="0.7", linewidths=0.8)
    axes.set(xlim=x_range, ylim=y_range)
    axes.grid(False)


def path(axes: Axes, points: Any, *, label: str, color: str, marker: str = "o") -> None:
    """Where an iteration went, ``(steps + 1, 2)``, a dot for each iterate."""
    points = np.asarray(points)
    axes.plot(*points.T, color=color, marker=marker, markersize=3.5, linewidth=1.2, label=label)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    plt.close(figure)
