"""What Shampoo needs grafting for: its factors' norm, its stale roots, or neither (claims L2, L3).

A ViT and a decoder, each trained by Shampoo with the length of Adam's step grafted on and without,
by KL-Shampoo and by SOAP, which do without grafting, and by Adam. Preconditioners are renewed at
every step, every 10 and every 100. SOAP and KL-Shampoo correct the eigenvalues at every step in the
basis that they have; Shampoo's roots stand still between two renewals. Every method is tuned anew
at every interval, with nine tries. Losses are means over the last tenth of the steps.

In a first run SOAP turned its bases ahead of a step, with the step's own gradient in them, and at
an interval of one it ended far above Adam. Its cells were computed anew, on the same seeds, once it
turned them behind the step as its authors do; the clauses are those of the first run.

Budget: at the quick scale 20 runs of about a second; at the laptop scale some 370 runs of 2 to 10
seconds. At the gpu scale a ViT of 139,000 parameters and a decoder of 0.8 million; a method at an
interval is one program of nine runs side by side. By arithmetic, not measured: 26 programs of 25 s
to compile and 10 to 30 s to run.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu.data import mnist, text
from soaa_edu.engine import Cell
from soaa_edu.models import decoder, vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.race import Task, costs, epoch_costs, races
from soaa_edu.studies.results import beside
from soaa_edu.studies.searches import Grid, grid_around
from soaa_edu.studies.tables import as_text, of_race
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "Shampoo with and without grafting, KL-Shampoo and SOAP"
CLAIMS = ("L2", "L3")
FIELD = ("shampoo", "shampoo_plain", "kl_shampoo", "soap")
NETWORKS = {"vit": "ViT", "decoder": "decoder"}
MIDDLES = {"adam": 4e-3, "shampoo": 4e-3, "shampoo_plain": 4e-3, "kl_shampoo": 4e-3, "soap": 4e-3}
RATIO = 2.0
USUAL = 10


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    networks: tuple[str, ...] = ("vit", "decoder")
    intervals: tuple[int, ...] = (1, 10, 100)
    images: int | None = 8192
    epochs: int = 3
    batch_size: int = 64
    characters: int = 409_600
    length: int = 64
    text_batch: int = 16
    width: int = 16
    text_width: int = 32
    depth: int = 2
    tries: int = 9
    seeds: int = 5
    minutes: float = 45.0


SCALES = {
    "quick": Settings(
        networks=("decoder",),
        intervals=(1, 10),
        characters=16_384,
        length=32,
        text_width=8,
        depth=1,
        tries=1,
        seeds=3,
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        images=None,
        epochs=5,
        batch_size=256,
        characters=10_000_000,
        length=128,
        text_batch=64,
        width=64,
        text_width=128,
        depth=4,
        minutes=20.0,
    ),
}


def task(network: str, interval: int, settings: Settings) -> Task:
    """A network and its data, with preconditioners renewed every so many steps."""
    labels = {"network": network, "interval": interval}
    if network == "vit":
        model = vit(width=settings.width, depth=settings.depth)
        load = partial(mnist, settings.images)
        examples = settings.images or 60_000
        epochs, batch_size = settings.epochs, settings.batch_size
    else:
        model = decoder(text.VOCABULARY, width=settings.text_width, depth=settings.depth)
        load = partial(
            text.synthetic,
            settings.characters,
            length=settings.length,
            test_characters=max(settings.characters // 20, 1000),
        )
        examples = -(-settings.characters // settings.length)
        epochs, batch_size = 1, settings.text_batch
    objective = Objective(model, softmax_cross_entropy)
    given = Task(labels, objective, load, examples, epochs, batch_size)
    return given._replace(last=max(given.steps // 10, 1))


def grid(method: str, tries: int) -> Grid:
    """The learning rates with which a search begins."""
    return {"learning_rate": grid_around(MIDDLES[method], RATIO, tries)}


def build(method: str, given: Task, *, learning_rate: Any) -> Optimizer:
    """A method at the task's interval."""
    every: dict[str, Any] = {"refresh_every": int(given.labels["interval"])}
    settings = {"adam": {}, "shampoo_plain": {**every, "grafting": None}}.get(method, every)
    name = "shampoo" if method == "shampoo_plain" else method
    return methods.build(
        name, given.objective, given.steps, learning_rate=learning_rate, **settings
    )


def cells(settings: Settings) -> dict[str, Cell]:
    """A cell for each method on each network at each interval; Adam and the costs at one."""
    found: dict[str, Cell] = {}
    points = partial(grid, tries=settings.tries)
    for network in settings.networks:
        for interval in sorted(settings.intervals, key=lambda i: i != USUAL):
            given = task(network, interval, settings)
            field = ("adam", *FIELD) if interval == USUAL else FIELD
            found |= races([given], field, build, points, seeds=settings.seeds)
    usual = [task(network, USUAL, settings) for network in settings.networks]
    timed = partial(epoch_costs, steps=min(100, usual[0].steps_an_epoch))
    return found | costs(usual, ("adam", *FIELD), build, partial(grid, tries=1), timed)


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return list(results["settings"]["networks"])


def intervals_of(results: dict) -> list[int]:
    """Steps from one renewal to the next, from fresh to stale."""
    return sorted(results["settings"]["intervals"])


def gain_by_grafting(results: dict, network: str, interval: int) -> np.ndarray:
    """Log of the loss without grafting over that with it, one for each seed."""
    at = {"network": network, "interval": interval}
    return beside(results, "shampoo_plain", "shampoo", **at)


def verdicts(results: dict) -> list[Verdict]:
    """L2: KL-Shampoo needs no grafting and beats SOAP. L3: grafting makes up for stale roots."""
    fresh, *_, stale = intervals_of(results)
    usual = {"interval": USUAL}

    def of(read: Any) -> list:
        return [measured(read(n), NETWORKS[n]) for n in networks_of(results)]

    by_kl = [
        Clause(
            "estimated by KL, Shampoo needs no grafting",
            "its loss beside that of grafted Shampoo:",
            "at most 1 %",
            of(lambda n: beside(results, "kl_shampoo", "shampoo", network=n, **usual)),
        ),
        Clause(
            "which by the Frobenius norm it needs",
            "Shampoo's loss without grafting beside that with it:",
            "above 1 %",
            of(lambda n: gain_by_grafting(results, n, USUAL)),
        ),
        Clause(
            "and beats SOAP",
            "KL-Shampoo's loss beside SOAP's:",
            "below 1 %",
            of(lambda n: beside(results, "kl_shampoo", "soap", network=n, **usual)),
        ),
    ]
    staleness = [
        Clause(
            "grafting makes up for stale eigenvalues",
            f"the gain by grafting at {stale} steps beside that at {fresh}:",
            "above 1 %",
            of(lambda n: gain_by_grafting(results, n, stale) - gain_by_grafting(results, n, fresh)),
        ),
        Clause(
            "and for mis-scaled ones",
            "the gain by grafting where every step has fresh roots:",
            "above 1 %",
            of(lambda n: gain_by_grafting(results, n, fresh)),
        ),
        Clause(
            "corrected eigenvalues need none",
            f"SOAP's loss beside that of grafted Shampoo, at {stale} steps:",
            "at most 1 %",
            of(lambda n: beside(results, "soap", "shampoo", network=n, interval=stale)),
        ),
    ]
    best = [
        f"lowest on the {NETWORKS[n]} at {USUAL} steps: "
        + methods.label(stored.lowest(results, ("adam", *FIELD), network=n, **usual))
        for n in networks_of(results)
    ]
    against_adam = [
        f"{methods.label(m)} beside Adam on the {NETWORKS[n]}: "
        + mean_and_spread(100 * np.expm1(beside(results, m, "adam", network=n, **usual)), 1)
        + " %"
        for n in networks_of(results)
        for m in FIELD
    ]
    return [
        judge("L2", by_kl, findings=[*best, *against_adam]),
        judge("L3", staleness, findings=list(_kl_when_stale(results))),
    ]


def _kl_when_stale(results: dict) -> Iterable[str]:
    for network in networks_of(results):
        for interval in intervals_of(results):
            at = {"network": network, "interval": interval}
            share = 100 * np.expm1(beside(results, "kl_shampoo", "shampoo", **at))
            yield (
                f"KL-Shampoo beside grafted Shampoo on the {NETWORKS[network]} at {interval} "
                f"steps: {mean_and_spread(share, 1)} %"
            )


def rows(results: dict) -> list[dict[str, str]]:
    """What was tuned, loss, cost and state at the usual interval, for each network and method."""
    columns = ["tuned", "loss", "test loss", "ms/step", "Adam steps", "state/params"]
    return [
        {"network": NETWORKS[network], **row}
        for network in networks_of(results)
        for row in of_race(results, ("adam", *FIELD), columns, network=network, interval=USUAL)
    ]


def table(results: dict) -> str:
    """The rows as text."""
    return as_text(rows(results))


def draw_losses(axes: Axes, results: dict, network: str) -> None:
    """Final loss of every method against the interval; Adam's as a level."""

    def number(method: str, interval: int) -> np.ndarray:
        return stored.final_loss(results, method=method, network=network, interval=interval)

    panels.against_size(axes, intervals_of(results), number, FIELD)
    axes.axhline(number("adam", USUAL).mean(), **methods.METHODS["adam"])
    axes.set(xlabel="steps between renewals", ylabel=panels.LOSS, title=NETWORKS[network])


def figure(results: dict) -> Figure:
    """A panel for each network."""
    drawing, axes = plt.subplots(
        1, len(networks_of(results)), figsize=(5 * len(networks_of(results)), 4), squeeze=False
    )
    for panel, network in zip(axes[0], networks_of(results), strict=True):
        draw_losses(panel, results, network)
    axes[0, 0].legend()
    return drawing
