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

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import text
from soaa_edu.models import decoder
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies.methods import METHODS, build, grid, label
from soaa_edu.studies.results import capped, log_ratio
from soaa_edu.studies.runs import middles
from soaa_edu.studies.searches import tuned
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "A decoder on more and more text"
CLAIMS = ("P3",)
NEGLIGIBLE = 1.0
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


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    readings: tuple[Reading, ...]
    length: int
    batch_size: int
    width: int
    depth: int
    tries: int
    seeds: int
    minutes: float


FIELD = ("adam", "kfac", "shampoo")
SCALES = {
    "quick": Settings(
        (
            Reading((8192,), 1, ("adam", "shampoo")),
            Reading((32_768,), 1, ("adam", "shampoo")),
        ),
        32,
        16,
        8,
        1,
        1,
        3,
        1.0,
    ),
    "laptop": Settings(
        (
            Reading((100_000,), 1, FIELD),
            Reading((100_000,), 10, FIELD),
            Reading((1_000_000,), 1, ("kfac",)),
            Reading((1_000_000, 10_000_000), 1, ("adam", "shampoo")),
        ),
        64,
        16,
        32,
        1,
        9,
        5,
        33.0,
    ),
    "gpu": Settings(
        (
            Reading((100_000,), 100, ("adam", "shampoo")),
            Reading((1_000_000,), 10, ("adam", "shampoo")),
            Reading((10_000_000, 100_000_000), 1, ("adam", "shampoo")),
        ),
        128,
        64,
        128,
        4,
        9,
        5,
        12.0,
    ),
}


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method on each reading."""
    model = decoder(text.VOCABULARY, width=settings.width, depth=settings.depth)
    objective = Objective(model, softmax_cross_entropy)
    return {
        f"{method}_on_{reading.characters[0]}_read_{reading.epochs}": partial(
            _learn, method, objective, reading, settings
        )
        for reading in settings.readings
        for method in reading.methods
    }


def _learn(
    method: str, objective: Objective, reading: Reading, settings: Settings
) -> dict[str, Any]:
    """The amount of text -> the search on it, and the runs."""
    points = grid(method, settings.tries)
    found: dict[str, Any] = {}
    for characters in reading.characters:
        data = text.synthetic(characters, length=settings.length, test_characters=TEST_CHARACTERS)
        steps = len(data.train[0]) // settings.batch_size
        found[str(characters)] = tuned(
            partial(build, method, objective, steps, reading.epochs),
            points,
            data,
            epochs=reading.epochs,
            batch_size=settings.batch_size,
            seeds=settings.seeds,
            last=max(steps // 10, 1),
        )
        points = {n: [v] for n, v in found[str(characters)]["search"]["best"].items()}
    return found


def readings_of(results: dict) -> list[tuple[int, int]]:
    """Characters and epochs of each reading, the largest text last."""
    readings = [Reading(**reading) for reading in results["settings"]["readings"]]
    return sorted({(n, reading.epochs) for reading in readings for n in reading.characters})


def learners(results: dict, characters: int, epochs: int) -> list[str]:
    """The methods that learned from a reading."""
    return [m for m in METHODS if _found(results, m, characters, epochs) is not None]


def _found(results: dict, method: str, characters: int, epochs: int) -> dict | None:
    ends = f"_read_{epochs}"
    for name, cell in results["cells"].items():
        if name.startswith(f"{method}_on_") and name.endswith(ends) and str(characters) in cell:
            return cell[str(characters)]
    return None


def over_runs(results: dict, method: str, characters: int, epochs: int, key: str) -> np.ndarray:
    """A method's numbers, seeds along the first axis.

    Raises:
        ValueError: the method has not learned from this reading.
    """
    found = _found(results, method, characters, epochs)
    if found is None:
        raise ValueError(
            f"{label(method)} has not read {characters:,} characters {epochs} times: "
            "take a reading of readings_of and a method of learners"
        )
    return np.array([run[key] for run in found["runs"]], float)


def final_loss(results: dict, method: str, characters: int, epochs: int) -> np.ndarray:
    """Training loss at the end, one for each seed; that of a diverged run counts as 10."""
    return capped(over_runs(results, method, characters, epochs, "final_loss"))


def held_out_loss(results: dict, method: str, characters: int, epochs: int) -> np.ndarray:
    """Loss on text of the same language that was not trained on, one for each seed."""
    return capped(over_runs(results, method, characters, epochs, "test_loss")[:, -1])


def gain(results: dict, method: str, characters: int, epochs: int) -> np.ndarray:
    """Log of Adam's training loss over a method's, one for each seed: 0.01 is one per cent."""
    losses = (final_loss(results, m, characters, epochs) for m in (RIVAL, method))
    return log_ratio(*losses)


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
            "same",
            NEGLIGIBLE,
            "%",
            at_most,
        ),
        Clause(
            "which it isn't on a small one",
            "the gain on the least text beside that on the most:",
            "above",
            NEGLIGIBLE,
            "%",
            fall,
        ),
    ]
    return [judge("P3", clauses, seeds=results["settings"]["seeds"], findings=_told(results))]


def _told(results: dict) -> list[str]:
    """Losses on every reading, and whether fresh text or more steps take the gain away."""
    readings = readings_of(results)
    found = [
        f"{n:,} characters read {epochs} times, training loss: "
        + ", ".join(
            f"{label(m)} {mean_and_spread(final_loss(results, m, n, epochs), 3)}"
            for m in learners(results, n, epochs)
        )
        for n, epochs in readings
    ]
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
        for method in learners(results, n, epochs):
            given = (results, method, n, epochs)
            found.append(
                {
                    "characters": f"{n:,}",
                    "read": str(epochs),
                    "steps": f"{over_runs(*given, 'steps')[0]:,.0f}",
                    "method": label(method),
                    "training loss": mean_and_spread(final_loss(*given), 3),
                    "held-out loss": mean_and_spread(held_out_loss(*given), 3),
                    "gain, %": f"{100 * gain(*given).mean():.1f}" if method != RIVAL else "",
                }
            )
    return found


def table(results: dict) -> str:
    """The rows as text."""
    return as_text(rows(results))


def draw_curves(axes: Axes, results: dict, characters: int, epochs: int) -> None:
    """Training loss against steps on one reading, as in the poster's Figure 3."""
    for method in learners(results, characters, epochs):
        loss = over_runs(results, method, characters, epochs, "loss")
        x = middles(loss.shape[1], int(over_runs(results, method, characters, epochs, "steps")[0]))
        plotting.band(axes, x, loss, **METHODS[method])
    times = "once" if epochs == 1 else f"{epochs} times"
    axes.set(xlabel="step", ylabel="training loss (nats)", xscale="log")
    axes.set_title(f"{characters:,} characters, {times}")


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
