"""A small decoder on more and more text: what curvature gains over Adam (claim P3, Figure 3).

Text of the synthetic language, whose entropy is known. Each amount of text is read once; the least
is also read so often that as many steps are taken as with more, since a larger dataset means both
fresh text and more steps. Every method is tuned with nine tries on each amount; on the largest, a
method takes the point that was best on the one before. Losses are means over the last tenth of the
last epoch. Preconditioners are at most ten steps old on any amount, so that more text does not
mean older ones.

Budget: at the quick scale 12 runs of about a second; at the laptop scale 136 runs of 1 to 90
seconds, 33 min on one CPU core.

At the gpu scale the decoder has 0.8 million parameters. 10^5, 10^6 and 10^7 characters are read to
the same 1,220 steps of 8,192 characters, and 10^8 once. Adam and Shampoo make 8 programs of up to
nine runs side by side. By arithmetic, not measured: tries and seeds at 1,220 steps take 40 seconds
of an H100, the five seeds on 10^8 characters 2 minutes, and all 12 minutes with compilation.
"""

from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import text
from soaa_edu.engine import Cell
from soaa_edu.models import decoder
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS, label
from soaa_edu.studies.poster.field import build, grid
from soaa_edu.studies.race import Task, learn, races
from soaa_edu.studies.results import beside, final_loss
from soaa_edu.studies.tables import as_text, of_race
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "A decoder on more and more text"
CLAIMS = ("P3",)
RIVAL = "adam"
TEST_CHARACTERS = 50_000


class Reading(NamedTuple):
    """Text read so often by these methods.

    Attributes:
        characters: of the training text. Methods are tuned on the first amount; on further ones
            they take the point that was best there.
        epochs: how often it is read.
        methods: which learn from it.
    """

    characters: tuple[int, ...]
    epochs: int
    methods: tuple[str, ...]


FIELD = ("adam", "kfac", "shampoo")
TWO = ("adam", "shampoo")


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    readings: tuple[Reading, ...] = (
        Reading((100_000,), 1, FIELD),
        Reading((100_000,), 10, FIELD),
        Reading((1_000_000,), 1, ("kfac",)),
        Reading((1_000_000, 10_000_000), 1, TWO),
    )
    length: int = 64
    batch_size: int = 16
    width: int = 32
    depth: int = 1
    tries: int = 9
    seeds: int = 5
    minutes: float = 33.0


SCALES = {
    "quick": Settings(
        readings=(Reading((8192,), 1, TWO), Reading((32_768,), 1, TWO)),
        length=32,
        width=8,
        tries=1,
        seeds=3,
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        readings=(
            Reading((100_000,), 100, TWO),
            Reading((1_000_000,), 10, TWO),
            Reading((10_000_000, 100_000_000), 1, TWO),
        ),
        length=128,
        batch_size=64,
        width=128,
        depth=4,
        minutes=12.0,
    ),
}


def task(characters: int, epochs: int, settings: Settings) -> Task:
    """A small decoder that reads so many characters so often."""
    model = decoder(text.VOCABULARY, width=settings.width, depth=settings.depth)
    load = partial(
        text.synthetic, characters, length=settings.length, test_characters=TEST_CHARACTERS
    )
    rows = -(-characters // settings.length)
    last = max(rows // settings.batch_size // 10, 1)
    objective = Objective(model, softmax_cross_entropy)
    labels = {"characters": characters, "epochs": epochs}
    return Task(labels, objective, load, rows, epochs, settings.batch_size, last)


def cells(settings: Settings) -> dict[str, Cell]:
    """One for each method on each amount of text, read so often."""
    found: dict[str, Cell] = {}
    points = partial(grid, tries=settings.tries)
    for reading in settings.readings:
        first, *further = (task(n, reading.epochs, settings) for n in reading.characters)
        found |= races([first], reading.methods, build, points, seeds=settings.seeds)
        for method in reading.methods:
            tuned = stored.name(method=method, **first.labels)
            for more in further:
                found[stored.name(method=method, **more.labels)] = Cell(
                    partial(_as_tuned, method, more, settings.seeds), needs=(tuned,)
                )
    return found


def _as_tuned(method: str, task: Task, seeds: int, tuned: dict[str, Any]) -> dict[str, Any]:
    """The runs of a method at the point that was best on less text."""
    points = {name: [value] for name, value in tuned["search"]["best"].items()}
    return learn(method, task, build, points, seeds=seeds)


def readings_of(results: dict) -> list[tuple[int, int]]:
    """Characters and epochs of each reading, the largest text last."""
    readings = [Reading(**reading) for reading in results["settings"]["readings"]]
    return sorted({(n, reading.epochs) for reading in readings for n in reading.characters})


def learners(results: dict, characters: int, epochs: int) -> list[str]:
    """The methods that learned from a reading."""
    found = stored.values_of(results, "method", characters=characters, epochs=epochs)
    return [method for method in METHODS if method in found]


def gain(results: dict, method: str, characters: int, epochs: int) -> np.ndarray:
    """Log of Adam's training loss over a method's, one for each seed: 0.01 is one per cent."""
    return beside(results, RIVAL, method, characters=characters, epochs=epochs)


def verdicts(results: dict) -> list[Verdict]:
    """P3: on the most text the gain on Adam is below 1 % either way, and smaller than before."""
    once = [n for n, epochs in readings_of(results) if epochs == 1]
    at_most, fall = [], []
    for method in (m for m in ("kfac", "shampoo") if m in learners(results, once[0], 1)):
        read = [n for n in once if method in learners(results, n, 1)]
        most, least = (gain(results, method, n, 1) for n in (read[-1], read[0]))
        at_most.append(measured(most, f"{label(method)}, {read[-1]:,} characters"))
        fall.append(measured(least - most, f"{label(method)}, {read[0]:,} to {read[-1]:,}"))
    clauses = [
        Clause(
            "on a very large dataset the benefit is negligible",
            "Adam's loss beside that of second order:",
            "within 1 %",
            at_most,
        ),
        Clause(
            "which it isn't on a small one",
            "the gain on the least text beside that on the most:",
            "above 1 %",
            fall,
        ),
    ]
    return [judge("P3", clauses, findings=_findings(results))]


def _findings(results: dict) -> list[str]:
    """Losses on every reading, and whether fresh text or more steps take the gain away."""
    readings = readings_of(results)
    found = []
    for n, epochs in readings:
        losses = (
            f"{label(m)} "
            f"{mean_and_spread(final_loss(results, method=m, characters=n, epochs=epochs), 3)}"
            for m in learners(results, n, epochs)
        )
        found.append(f"{n:,} characters read {epochs} times, training loss: {', '.join(losses)}")
    for n, epochs in readings:
        if epochs == 1 or (n * epochs, 1) not in readings:
            continue
        for method in (m for m in learners(results, n, epochs) if m != RIVAL):
            again, fresh = gain(results, method, n, epochs), gain(results, method, n * epochs, 1)
            found.append(
                f"{label(method)} gains {100 * np.expm1(again.mean()):+.1f} % on {n:,} characters "
                f"read {epochs} times, and {100 * np.expm1(fresh.mean()):+.1f} % on {n * epochs:,} "
                "read once, in as many steps"
            )
    return found


def rows(results: dict) -> list[dict[str, str]]:
    """Steps, training and held-out loss, and the gain on Adam of each method on each reading."""
    found = []
    for n, epochs in readings_of(results):
        at = {"characters": n, "epochs": epochs}
        methods = learners(results, n, epochs)
        for method, row in zip(
            methods, of_race(results, methods, ["loss", "test loss"], **at), strict=True
        ):
            steps = stored.steps(results, method=method, **at)
            read = {"characters": f"{n:,}", "read": str(epochs), "steps": f"{steps:,}"}
            gained = f"{100 * gain(results, method, n, epochs).mean():.1f}"
            found.append({**read, **row, "gain, %": gained if method != RIVAL else ""})
    return found


def table(results: dict) -> str:
    """The rows as text."""
    return as_text(rows(results))


def draw_curves(axes: Axes, results: dict, characters: int, epochs: int) -> None:
    """Training loss against steps on one reading, as in the poster's Figure 3."""
    methods = learners(results, characters, epochs)
    panels.curves(axes, results, methods, characters=characters, epochs=epochs)
    times = "once" if epochs == 1 else f"{epochs} times"
    axes.set(xscale="log", title=f"{characters:,} characters, {times}")


def draw_gains(axes: Axes, results: dict) -> None:
    """The gain on Adam against the amount of text, each read once, and read again and again."""
    readings = readings_of(results)
    for method in (m for m in METHODS if m != RIVAL):
        once = [n for n, epochs in readings if epochs == 1 and method in learners(results, n, 1)]
        if once:
            values = 100 * np.array([gain(results, method, n, 1) for n in once]).T
            plotting.band(axes, once, values, marker="o", markersize=4, **METHODS[method])
        for n, epochs in readings:
            if epochs > 1 and method in learners(results, n, epochs):
                again = 100 * gain(results, method, n, epochs)
                axes.plot(
                    np.full(len(again), n),
                    again,
                    "x",
                    color=METHODS[method]["color"],
                    label=f"{label(method)}, read {epochs} times",
                )
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xscale="log", xlabel="characters", ylabel="loss below Adam's (%)")


def figure(results: dict) -> Figure:
    """Training curves on each reading, and the gains."""
    readings = readings_of(results)
    columns = -(-(len(readings) + 1) // 2)
    drawing, axes = plt.subplots(2, columns, figsize=(4.2 * columns + 1, 6.8), squeeze=False)
    panels = list(axes.flat)
    for panel, reading in zip(panels, readings, strict=False):
        draw_curves(panel, results, *reading)
    panels[0].legend()
    draw_gains(panels[len(readings)], results)
    beside = panels[len(readings)].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    beside.set_in_layout(False)
    for panel in panels[len(readings) + 1 :]:
        panel.remove()
    return drawing
