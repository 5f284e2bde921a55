"""SOAA against Adam, AdamW, 8-bit Adam, GaLore, K-FAC and Shampoo (claims A2-A4, A8 and A10).

An MLP, an encoder and a decoder, small enough for a laptop. Every method has one number to tune,
the damping for K-FAC and the learning rate for the others, on the same nine tries and a seed of its
own; all else is the library's default, but AdamW's decay is 0.01, GaLore's rank a quarter of the
network's width with a refresh every 50 steps, and K-FAC takes a learning rate of 0.1 and clips, as
in the race at large batches. Learning rates are constant, as in the paper; Adam with a cosine
schedule stands beside them, since SOAA's trust region brings a schedule of its own.

At the gpu scale the decoder has 4.8 million parameters and takes 610 steps of 16,384 characters,
each seen once. A method is one program of five runs, for five tries and three seeds. By arithmetic,
not measured: a run is 3e14 operations, 10 seconds of an H100, a method 2 minutes with its
compilation, and all eight with their costs 19, two calls of ten minutes. The paper's Llama 2, of 7
billion parameters, would take 4e17 operations a run for as many tokens, three hours of such a card.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.engine import Cell, device_note
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies import methods, panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS, label
from soaa_edu.studies.networks import NETWORKS, SHORT, SIZES, Size, task
from soaa_edu.studies.race import Task, costs, races, step_costs
from soaa_edu.studies.searches import Grid, grid_around
from soaa_edu.studies.tables import as_text, of_race
from soaa_edu.studies.verdicts import (
    Clause,
    Interval,
    Reading,
    Verdict,
    judge,
    known,
    mean_and_spread,
    measured,
)

TITLE = "SOAA against Adam and its relatives"
CLAIMS = ("A2", "A3", "A4", "A8", "A10")
CLAIMED_SAVING = 0.75
CHECKPOINTS = 10
RIVALS = ("adam", "adamw")
FRUGAL = ("adam_8bit", "galore")
FIELD = ("adam", "adamw", "adam_cosine", "soaa", *FRUGAL, "kfac", "shampoo")


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    size: dict[str, Any] = SIZES["laptop"]._asdict()
    tuning_values: int = 9
    seeds: int = 5
    timed_steps: int = 20
    minutes: float = 60.0


SCALES = {
    "quick": Settings(
        networks=("mlp", "decoder"),
        size=SIZES["quick"]._asdict(),
        tuning_values=1,
        seeds=3,
        timed_steps=8,
        minutes=2.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        networks=("decoder",),
        size=SIZES["gpu"]._asdict(),
        tuning_values=5,
        seeds=3,
        timed_steps=100,
        minutes=19.0,
    ),
}


def grid(method: str, values: int) -> Grid:
    """The damping of K-FAC, or the learning rate of the others."""
    if method == "kfac":
        return {"damping": grid_around(0.03, 2.0, values)}
    return {"learning_rate": grid_around(4e-3, 2.0, values)}


def build(method: str, given: Task, **point: Any) -> Optimizer:
    """A method with its tuned number."""
    settings: dict[str, dict[str, Any]] = {
        "adamw": {"weight_decay": 0.01},
        "galore": {"rank": _rank(given.objective.model), "refresh_every": 50},
        "kfac": {"learning_rate": 0.1, "kl_clip": 1e-2},
    }
    return methods.build(method, given.objective, given.steps, **point, **settings.get(method, {}))


def _rank(model: Any) -> int:
    """A quarter of what the first layer puts out."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    return max(params[model.dense_layers[0]]["weight"].shape[1] // 4, 1)


def cells(settings: Settings) -> dict[str, Cell]:
    """One cell for each method on each network, and one for the costs on each network."""
    tasks = [task(name, Size(**settings.size), CHECKPOINTS) for name in settings.networks]
    points = partial(grid, values=settings.tuning_values)
    found = races(tasks, FIELD, build, points, seeds=settings.seeds)
    timed = partial(step_costs, steps=settings.timed_steps)
    return found | costs(tasks, FIELD, build, partial(grid, values=1), timed)


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return stored.values_of(results, "network", method="soaa")


def checkpoints(results: dict, method: str, network: str, count: int = CHECKPOINTS) -> np.ndarray:
    """Means of the training loss over stretches of the run, ``(seeds, count)``."""
    loss = stored.over_runs(results, "loss", method=method, network=network)
    return plotting.binned(loss, count)


def checkpoint_steps(results: dict, method: str, network: str, count: int = CHECKPOINTS) -> Any:
    """The middles of those stretches, in steps, ``(count,)``."""
    steps = stored.steps(results, method=method, network=network)
    points = stored.over_runs(results, "loss", method=method, network=network).shape[1]
    return plotting.binned(stored.middles(points, steps), count)


def bytes_ratio(results: dict, network: str, key: str, method: str, rival: str) -> float:
    """Bytes of one method over those of another."""
    found = (stored.cost(results, key, m, network=network) for m in (method, rival))
    return float(np.divide(*found))


def seconds_ratio(results: dict, network: str, method: str, rival: str) -> np.ndarray:
    """Seconds of a step of one method over those of another, one for each timed repeat."""
    found = (stored.cost(results, "seconds_a_step", m, network=network) for m in (method, rival))
    return np.divide(*found)


def log_ratio(results: dict, network: str, method: str, rival: str) -> np.ndarray:
    """Log of a method's final loss over a rival's, one for each seed."""
    return stored.beside(results, method, rival, network=network)


def verdicts(results: dict) -> list[Verdict]:
    """A2, A3, A4, A8 and A10."""
    networks = networks_of(results)
    transformers = [n for n in networks if n != "mlp"]

    def loss(
        says: str, rival: str, asks: str = "below 1 %", on: Sequence[str] = networks
    ) -> Clause:
        readings = [measured(log_ratio(results, n, "soaa", rival), SHORT[n]) for n in on]
        statistic = f"SOAA's loss beside that of {label(rival)}:"
        return Clause(says, statistic, asks, readings)

    def spread(rival: str) -> Clause:
        readings = [spread_beside(results, n, rival) for n in networks]
        statistic = f"spread over seeds beside that of {label(rival)}:"
        return Clause(f"more stable than {label(rival)}", statistic, "below 1.1 times", readings)

    more_memory = Clause(
        "at more memory",
        "SOAA's state over that of",
        "above 1.1 times",
        [
            known(
                np.log(bytes_ratio(results, n, "bytes", "soaa", rival)),
                f"{label(rival)}, {SHORT[n]}",
            )
            for rival in FRUGAL
            for n in networks
        ],
    )
    losses = [
        f"{NETWORKS[n]}: "
        + ", ".join(
            f"{label(m)} {mean_and_spread(stored.final_loss(results, method=m, network=n), 3)}"
            for m in FIELD
        )
        for n in networks
    ]
    claims = {
        "A2": [loss("faster than Adam", "adam"), loss("than AdamW", "adamw")],
        "A3": [spread("adam"), spread("adamw")],
        "A4": [
            loss("lower loss than 8-bit Adam", "adam_8bit"),
            loss("than GaLore", "galore"),
            more_memory,
        ],
        "A8": [loss("as good on encoders and decoders", "adam", "at most 1 %", transformers)],
        "A10": _eight_bits(results, networks),
    }
    return [
        judge(claim, clauses, findings=losses if claim == "A2" else ())
        for claim, clauses in claims.items()
    ]


def rows(results: dict, network: str) -> list[dict[str, str]]:
    """Losses, seconds of a step and memory of every method on a network."""
    columns = ["tuned", "loss", "test loss", "ms/step", "Adam steps", "state/params", "peak MB"]
    return of_race(results, FIELD, columns, network=network)


def table(results: dict) -> str:
    """The rows of every network as text."""
    found = [{"network": n, **row} for n in networks_of(results) for row in rows(results, n)]
    return as_text(found, device_note(results, list(stored.select(results, cost="step"))))


def draw_losses(
    axes: Axes, results: dict, network: str, field: Sequence[str] = FIELD, against: str = "step"
) -> None:
    """Training loss against steps or seconds, a band for the seeds."""
    panels.curves(axes, results, field, against=against, points=2 * CHECKPOINTS, network=network)
    axes.set(yscale="log", title=NETWORKS[network])


def draw_spreads(axes: Axes, results: dict, network: str) -> None:
    """Standard deviation over seeds at each checkpoint."""
    for method in (*RIVALS, "soaa"):
        spread = checkpoints(results, method, network).std(axis=0, ddof=1)
        x = checkpoint_steps(results, method, network)
        axes.plot(x, spread, marker="o", **METHODS[method])
    axes.set(xlabel="step", ylabel="standard deviation over seeds (nats)", yscale="log")


def figure(results: dict) -> Figure:
    """Losses above, spreads over seeds below, a column for each network."""
    networks = networks_of(results)
    drawing, axes = plt.subplots(
        2, len(networks), figsize=(4.3 * len(networks) + 1, 7), squeeze=False
    )
    for column, network in enumerate(networks):
        draw_losses(axes[0, column], results, network)
        draw_spreads(axes[1, column], results, network)
    axes[0, -1].legend(fontsize=8)
    axes[1, -1].legend(fontsize=8)
    return drawing


def spread_beside(results: dict, network: str, rival: str) -> Reading:
    """The log ratio of SOAA's standard deviation over a rival's, a mean over checkpoints.

    The interval is that of a single checkpoint (an F distribution), as if all moved together.
    """
    spreads = [
        np.log(checkpoints(results, method, network).std(axis=0, ddof=1))
        for method in ("soaa", rival)
    ]
    estimate = float(np.mean(spreads[0] - spreads[1]))
    seeds = stored.seeds_of(results, method="soaa", network=network)

    def interval_at(confidence: float) -> Interval:
        quantile = scipy.stats.f.ppf((1 + confidence) / 2, seeds - 1, seeds - 1)
        half = 0.5 * float(np.log(quantile)) if seeds > 1 else np.inf
        return estimate - half, estimate, estimate + half

    return Reading(SHORT[network], interval_at, seeds)


def _eight_bits(results: dict, networks: Sequence[str]) -> list[Clause]:
    """State saved, time gained, and the peak memory of 8-bit Adam and GaLore beside SOAA's."""

    def saved(network: str) -> Reading:
        share = 1 - bytes_ratio(results, network, "bytes", "adam_8bit", "adam")
        return known(share - CLAIMED_SAVING, SHORT[network])

    def faster(network: str) -> Reading:
        return measured(
            np.log(seconds_ratio(results, network, "adam", "adam_8bit")), SHORT[network]
        )

    def less(network: str, method: str) -> Reading:
        peak = bytes_ratio(results, network, "peak_bytes", method, "soaa")
        return known(np.log(peak), f"{label(method)}, {SHORT[network]}")

    return [
        Clause(
            "8-bit Adam saves up to 75 % of the optimizer's memory",
            "the share of Adam's state that it saves, less 75 %:",
            "within 5 points",
            [saved(n) for n in networks],
        ),
        Clause(
            "and trains up to 4 times faster",
            "Adam's seconds of a step over its own:",
            "above 1.1 times",
            [faster(n) for n in networks],
        ),
        Clause(
            "it and GaLore need less memory than SOAA",
            "peak memory beside SOAA's:",
            "below 1 %",
            [less(n, method) for method in FRUGAL for n in networks],
        ),
    ]
