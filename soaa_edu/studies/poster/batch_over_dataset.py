"""A grid of batch sizes and dataset sizes: does their ratio decide? (claim P4, Figure 4).

An MLP sees 1,000 to 60,000 images of MNIST a fixed number of times, so that the ratio of batch to
dataset fixes the number of steps. Every method is tuned with nine tries in every cell. What second
order gains is the log of the better first-order method's loss over the better second-order one's,
losses being means over the last tenth of the last epoch, or over its last 1,024 images where those
are more.

Budget: at the quick scale 18 runs of about a second; at the laptop scale some 1,000 runs of 1 to 20
seconds, 57 min on one of two cores that were both busy.

At the gpu scale an MLP of 270,000 parameters sees 4,000, 16,000 or 60,000 images 20 times. Adam,
K-FAC and Shampoo in eight places are 24 programs of nine runs side by side, for nine tries and five
seeds. By arithmetic, not measured: 25 seconds to compile each and 3 to 20 for its runs; 14 minutes
of an H100, cells one after the other.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from soaa_edu import plotting
from soaa_edu.data import mnist
from soaa_edu.engine import Cell
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.poster.field import FIRST_ORDER, build, grid
from soaa_edu.studies.race import Task, races
from soaa_edu.studies.results import final_loss, held_out_loss
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

Loss = Callable[..., np.ndarray]
TITLE = "Batch size against dataset size"
CLAIMS = ("P4",)
LAST_IMAGES = 1024


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    images: tuple[int, ...] = (1000, 8000, 60_000)
    batch_sizes: tuple[int, ...] = (64, 512, 4096)
    hidden: int = 64
    epochs: int = 3
    methods: tuple[str, ...] = (*FIRST_ORDER, "kfac", "shampoo")
    tries: int = 9
    seeds: int = 20
    minutes: float = 56.0


SCALES = {
    "quick": Settings(
        images=(256, 2048),
        batch_sizes=(64, 512),
        hidden=16,
        epochs=2,
        methods=("adam", "kfac"),
        tries=1,
        seeds=3,
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        images=(4000, 16_000, 60_000),
        batch_sizes=(256, 1024, 4096),
        hidden=256,
        epochs=20,
        methods=("adam", "kfac", "shampoo"),
        seeds=5,
        minutes=14.0,
    ),
}


def places(settings: Settings) -> list[tuple[int, int]]:
    """Dataset and batch sizes with a step an epoch at least."""
    return [(n, b) for n in settings.images for b in settings.batch_sizes if b <= n]


def tasks(settings: Settings) -> list[Task]:
    """One for each place of the grid."""
    model = mlp([784, settings.hidden, settings.hidden, 10], jnp.tanh)
    objective = Objective(model, softmax_cross_entropy)
    found = []
    for images, batch in places(settings):
        steps = images // batch
        last = max(steps // 10, min(steps, LAST_IMAGES // batch), 1)
        labels = {"images": images, "batch": batch}
        load = partial(mnist, images)
        found.append(Task(labels, objective, load, images, settings.epochs, batch, last))
    return found


def cells(settings: Settings) -> dict[str, Cell]:
    """One cell for each method in each place of the grid."""
    points = partial(grid, tries=settings.tries)
    return races(tasks(settings), settings.methods, build, points, seeds=settings.seeds)


def places_of(results: dict) -> list[tuple[int, int]]:
    """Dataset and batch sizes of these results, by ratio of batch to dataset."""
    return sorted(places(Settings(**results["settings"])), key=lambda place: place[1] / place[0])


def ratios(results: dict) -> np.ndarray:
    """Batch size over dataset size in each place."""
    return np.array([batch / images for images, batch in places_of(results)])


def gain(results: dict, images: int, batch: int, loss: Loss = final_loss) -> np.ndarray:
    """Log of first order's loss over second order's in a place, one for each seed.

    Each is the method of its kind with the lowest mean training loss; ``loss`` is ``final_loss`` or
    ``held_out_loss``.
    """
    at = {"images": images, "batch": batch}
    fields = (
        [m for m in results["settings"]["methods"] if (m in FIRST_ORDER) == first]
        for first in (True, False)
    )
    best = (stored.lowest(results, field, **at) for field in fields)
    return stored.log_ratio(*(loss(results, method=method, **at) for method in best))


def gains(results: dict, loss: Loss = final_loss) -> np.ndarray:
    """In every place, ``(seeds, places)``."""
    return np.array([gain(results, *place, loss) for place in places_of(results)]).T


def slopes(results: dict, loss: Loss = final_loss) -> np.ndarray:
    """Of the gain in the logs of batch and of dataset size together, ``(seeds, 2)``."""
    images, batches = np.log(np.array(places_of(results), float)).T
    design = np.stack([batches, images, np.ones_like(images)], axis=1)
    return np.linalg.lstsq(design, gains(results, loss).T, rcond=None)[0][:2].T


def slope_in_ratio(results: dict, loss: Loss = final_loss) -> np.ndarray:
    """Of the gain in the log of the ratio, one for each seed."""
    x = np.log(ratios(results))
    return np.array([np.polyfit(x, gain, 1)[0] for gain in gains(results, loss)])


def verdicts(results: dict) -> list[Verdict]:
    """P4: the gain rises with the ratio, as the caption says, by batch and dataset size alike."""
    ratio, both = [], []
    for where, loss in {"training loss": final_loss, "test loss": held_out_loss}.items():
        batch, images = slopes(results, loss).T
        ratio.append(measured(np.log(2) * slope_in_ratio(results, loss), where))
        both.append(measured(np.log(2) * (batch + images), where))
    clauses = [
        Clause(
            "second order gains more where the ratio of batch to dataset size is large",
            "the gain on first order with each doubling of the ratio:",
            "above 1 %",
            ratio,
        ),
        Clause(
            "it is their ratio that decides",
            "the gain with both of them doubled:",
            "within 1 %",
            both,
        ),
    ]
    smallest, largest = places_of(results)[0], places_of(results)[-1]
    b, d = (mean_and_spread(slope, 3) for slope in slopes(results).T)
    findings = [
        f"slope of the gain in log(batch): {b}, in log(data): {d}",
    ]
    for images, batch_size in (smallest, largest):
        values = mean_and_spread(gain(results, images, batch_size), 3)
        findings.append(f"log gain at batch {batch_size:,} of {images:,} images: {values}")
    return [judge("P4", clauses, findings=findings)]


def rows(results: dict) -> list[dict[str, str]]:
    """Steps, ratio, losses and gain in every place, by ratio."""
    found = []
    methods = results["settings"]["methods"]
    for images, batch in places_of(results):
        at = {"images": images, "batch": batch}
        row = {
            "images": f"{images:,}",
            "batch": f"{batch:,}",
            "ratio": f"{batch / images:.4f}",
            "steps": f"{stored.steps(results, method=methods[0], **at):,}",
        }
        for method in methods:
            row[label(method)] = mean_and_spread(final_loss(results, method=method, **at), 3)
        found.append({**row, "gain": mean_and_spread(gain(results, images, batch), 2)})
    return found


def table(results: dict) -> str:
    """The rows as text."""
    return as_text(rows(results))


def draw_gains(axes: Axes, results: dict) -> None:
    """The gain against the ratio of batch to dataset size, as in the poster's Figure 4."""
    sizes = results["settings"]["images"]
    colors = plt.colormaps["viridis"](np.linspace(0, 0.85, len(sizes)))
    for images, color in zip(sizes, colors, strict=True):
        batches = [b for n, b in places_of(results) if n == images]
        values = np.array([gain(results, images, b) for b in batches]).T
        plotting.band(
            axes,
            [b / images for b in batches],
            values,
            label=f"{images:,} images",
            color=color,
            marker="o",
            markersize=4,
        )
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xscale="log", xlabel="batch size / dataset size")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_ylabel("log(first order's loss / second order's)")


def draw_losses(axes: Axes, results: dict, images: int) -> None:
    """Final training loss of every method against the batch size, for one dataset size."""

    def number(method: str, batch: int) -> np.ndarray:
        return final_loss(results, method=method, images=images, batch=batch)

    batches = [b for n, b in places_of(results) if n == images]
    panels.against_size(axes, batches, number, results["settings"]["methods"])
    axes.set(yscale="log", xlabel="batch size", ylabel=panels.LOSS, title=f"{images:,} images")


def figure(results: dict) -> Figure:
    """Losses for every dataset size, and the gain against the ratio."""
    sizes = results["settings"]["images"]
    drawing, axes = plt.subplots(1, len(sizes) + 1, figsize=(4.2 * (len(sizes) + 1), 3.8))
    for panel, images in zip(axes, sizes, strict=False):
        draw_losses(panel, results, images)
    axes[0].legend()
    draw_gains(axes[-1], results)
    axes[-1].legend()
    return drawing
