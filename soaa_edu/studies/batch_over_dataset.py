"""A grid of batch sizes and dataset sizes: does their ratio decide? (claim P4, Figure 4).

An MLP sees 1,000 to 60,000 images of MNIST a fixed number of times, so that the ratio of batch to
dataset fixes the number of steps. Every method is tuned with nine tries in every cell. What second
order gains is the log of the better first-order method's loss over the better second-order one's,
losses being means over the last tenth of the last epoch, or over its last 1,024 images where those
are more.

Budget: at the quick scale 18 runs of about a second; at the laptop scale some 500 runs of 1 to 20
seconds, 27 min on one CPU core.

At the gpu scale an MLP of 270,000 parameters sees 4,000, 16,000 or 60,000 images 20 times. Adam,
K-FAC and Shampoo in eight places are 24 programs of nine runs side by side, for nine tries and five
seeds. By arithmetic, not measured: 25 seconds to compile each and 3 to 20 for its runs; 14 minutes
of an H100, cells one after the other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from soaa_edu import plotting
from soaa_edu.data import mnist
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import FIRST_ORDER, METHODS, build, grid, label
from soaa_edu.studies.results import capped
from soaa_edu.studies.searches import tuned
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, interval, judge, mean_and_spread, measured

TITLE = "Batch size against dataset size"
CLAIMS = ("P4",)
MARGIN = 1.0
LAST_IMAGES = 1024


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    images: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    hidden: int
    epochs: int
    methods: tuple[str, ...]
    tries: int
    seeds: int
    minutes: float


FIELD = (*FIRST_ORDER, "kfac", "shampoo")
SCALES = {
    "quick": Settings((256, 2048), (64, 512), 16, 2, ("adam", "kfac"), 1, 3, 1.0),
    "laptop": Settings((1000, 8000, 60_000), (64, 512, 4096), 64, 3, FIELD, 9, 5, 27.0),
    "gpu": Settings(
        (4000, 16_000, 60_000),
        (256, 1024, 4096),
        256,
        20,
        ("adam", "kfac", "shampoo"),
        9,
        5,
        14.0,
    ),
}


def places(settings: Settings) -> list[tuple[int, int]]:
    """Dataset and batch sizes with a step an epoch at least."""
    return [(n, b) for n in settings.images for b in settings.batch_sizes if b <= n]


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method in each place of the grid."""
    model = mlp([784, settings.hidden, settings.hidden, 10], jnp.tanh)
    objective = Objective(model, softmax_cross_entropy)
    return {
        f"{method}_on_{images}_at_{batch_size}": partial(
            _learn, method, objective, images, batch_size, settings
        )
        for images, batch_size in places(settings)
        for method in settings.methods
    }


def _learn(
    method: str, objective: Objective, images: int, batch_size: int, settings: Settings
) -> dict[str, Any]:
    steps = images // batch_size
    return tuned(
        partial(build, method, objective, steps, settings.epochs),
        grid(method, settings.tries),
        mnist(images),
        epochs=settings.epochs,
        batch_size=batch_size,
        seeds=settings.seeds,
        last=max(steps // 10, min(steps, LAST_IMAGES // batch_size), 1),
    )


def places_of(results: dict) -> list[tuple[int, int]]:
    """Dataset and batch sizes of these results, by ratio of batch to dataset."""
    return sorted(places(Settings(**results["settings"])), key=lambda place: place[1] / place[0])


def ratios(results: dict) -> np.ndarray:
    """Batch size over dataset size in each place."""
    return np.array([batch_size / images for images, batch_size in places_of(results)])


def over_runs(results: dict, method: str, images: int, batch_size: int, key: str) -> np.ndarray:
    """A tuned method's numbers, seeds along the first axis."""
    return stored.over_runs(results, f"{method}_on_{images}_at_{batch_size}", key)


def final_loss(
    results: dict, method: str, images: int, batch_size: int, key: str = "final_loss"
) -> np.ndarray:
    """Training or ``"test_loss"`` at the end, by seed; that of a diverged run counts as 10."""
    losses = over_runs(results, method, images, batch_size, key)
    return capped(losses if losses.ndim == 1 else losses[:, -1])


def best(results: dict, images: int, batch_size: int, first_order: bool) -> str:
    """Of the first-order methods, or of the others, the one with the lowest mean loss."""
    field = [m for m in results["settings"]["methods"] if (m in FIRST_ORDER) == first_order]
    return min(field, key=lambda method: final_loss(results, method, images, batch_size).mean())


def gain(results: dict, images: int, batch_size: int, key: str = "final_loss") -> np.ndarray:
    """Log of first order's loss over second order's in a place, one for each seed.

    Each is the method of its kind with the lowest mean training loss.
    """
    losses = (
        final_loss(results, best(results, images, batch_size, first), images, batch_size, key)
        for first in (True, False)
    )
    return stored.log_ratio(*losses)


def gains(results: dict, key: str = "final_loss") -> np.ndarray:
    """In every place, ``(seeds, places)``."""
    return np.array([gain(results, *place, key) for place in places_of(results)]).T


def slopes(results: dict, key: str = "final_loss") -> np.ndarray:
    """Of the gain in the logs of batch and of dataset size together, ``(seeds, 2)``."""
    images, batches = np.log(np.array(places_of(results), float)).T
    design = np.stack([batches, images, np.ones_like(images)], axis=1)
    return np.linalg.lstsq(design, gains(results, key).T, rcond=None)[0][:2].T


def slope_in_ratio(results: dict, key: str = "final_loss") -> np.ndarray:
    """Of the gain in the log of the ratio, one for each seed."""
    x = np.log(ratios(results))
    return np.array([np.polyfit(x, gain, 1)[0] for gain in gains(results, key)])


def backed(results: dict) -> str:
    """Which of the poster's two sentences on the ratio the numbers back."""
    low, high = interval(slope_in_ratio(results))
    if low > 0:
        return "the caption: second order gains more where the ratio is large"
    if high < 0:
        return "the sentence above it: second order gains more where the ratio is small"
    return "neither: the gain does not clearly rise or fall with the ratio"


def verdicts(results: dict) -> list[Verdict]:
    """P4: the gain rises with the ratio, as the caption says, by batch and dataset size alike."""
    quantities = {"training loss": "final_loss", "test loss": "test_loss"}
    ratio, both = [], []
    for where, key in quantities.items():
        batch, images = slopes(results, key).T
        ratio.append(measured(np.log(2) * slope_in_ratio(results, key), where))
        both.append(measured(np.log(2) * (batch + images), where))
    clauses = [
        Clause(
            "second order gains more where the ratio of batch to dataset size is large",
            "the gain on first order with each doubling of the ratio:",
            "above",
            MARGIN,
            "%",
            ratio,
        ),
        Clause(
            "it is their ratio that decides",
            "the gain with both of them doubled:",
            "same",
            MARGIN,
            "%",
            both,
        ),
    ]
    smallest, largest = places_of(results)[0], places_of(results)[-1]
    b, d = (mean_and_spread(slope, 3) for slope in slopes(results).T)
    findings = [
        f"on the training loss the numbers back {backed(results)}",
        f"slope of the gain in log(batch): {b}, in log(data): {d}",
    ]
    for images, batch_size in (smallest, largest):
        values = mean_and_spread(gain(results, images, batch_size), 3)
        findings.append(f"log gain at batch {batch_size:,} of {images:,} images: {values}")
    return [judge("P4", clauses, seeds=results["settings"]["seeds"], findings=findings)]


def rows(results: dict) -> list[dict[str, str]]:
    """Steps, ratio, losses and gain in every place, by ratio."""
    found = []
    for images, batch_size in places_of(results):
        steps = over_runs(results, results["settings"]["methods"][0], images, batch_size, "steps")
        row = {
            "images": f"{images:,}",
            "batch": f"{batch_size:,}",
            "ratio": f"{batch_size / images:.4f}",
            "steps": f"{steps[0]:,.0f}",
        }
        for method in results["settings"]["methods"]:
            row[label(method)] = mean_and_spread(final_loss(results, method, images, batch_size), 3)
        row["gain"] = mean_and_spread(gain(results, images, batch_size), 2)
        found.append(row)
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
    batches = [b for n, b in places_of(results) if n == images]
    for method in results["settings"]["methods"]:
        values = np.array([final_loss(results, method, images, b) for b in batches]).T
        plotting.band(axes, batches, values, marker="o", markersize=4, **METHODS[method])
    plotting.sizes_axis(axes, batches)
    axes.set(yscale="log", xlabel="batch size", ylabel="training loss (nats)")
    axes.set_title(f"{images:,} images")


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
