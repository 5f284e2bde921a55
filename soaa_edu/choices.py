"""Which method to take, as far as the stored numbers carry it.

A method stands in a line of ``by_steps`` if in every setting of the line, a network at a batch
size or on an amount of text, its training loss lies below that of the better first-order method by
more than 1 %, with its whole interval over seeds. Intervals hold for the methods of a setting
together. Where no method does, the line has the first-order methods, all that were run.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soaa_edu import studies
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.poster import batch_sizes, damping_grids, dataset_sizes
from soaa_edu.studies.poster.field import FIRST_ORDER
from soaa_edu.studies.results import final_loss, held_out_loss, log_ratio
from soaa_edu.studies.soaa import soaa_race
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import CONFIDENCE, interval

CURVED = ("kfac", "shampoo", "psgd")
MARGIN = 0.01
CLASSES = {
    "fewer than 50": (0, 50),
    "50 to 1,000": (50, 1000),
    "more than 1,000": (1000, float("inf")),
}
"""How many steps a run has."""
SLACK = 1.1
"""Times that differ by less count as the same."""
NOTHING = "No results are stored."
LOSS = "training loss beside first order's"
FRESH = "on fresh data"
TIME = "time of a step, in Adam's"
STATE = "state, in copies"


class Table:
    """Rows with the same columns: text when printed, a table in a notebook."""

    def __init__(self, rows: Iterable[dict[str, str]]) -> None:
        self.rows = list(rows)

    def __repr__(self) -> str:
        return as_text(self.rows) if self.rows else NOTHING

    def _repr_html_(self) -> str:
        if not self.rows:
            return NOTHING
        head = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in self.rows[0])
        lines = (
            "".join(f'<td style="text-align:left">{escape(text)}</td>' for text in row.values())
            for row in self.rows
        )
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Setting(NamedTuple):
    """One network at one number of steps.

    Attributes:
        network: what it is called.
        steps: of a run.
        losses: each method's training losses at the end, seed by seed.
        fresh: likewise, on data that was not trained on.
        points: what tuning chose for each method.
        times: seconds of a step over those of Adam, where they were measured.
        copies: size of each method's state over that of the parameters, likewise.
    """

    network: str
    steps: int
    losses: dict[str, np.ndarray]
    fresh: dict[str, np.ndarray]
    points: dict[str, dict[str, float]]
    times: dict[str, float]
    copies: dict[str, float]

    def first_order(self) -> str:
        """Of SGD and Adam, where both were run, the one with the lower mean training loss."""
        rivals = (method for method in FIRST_ORDER if method in self.losses)
        return min(rivals, key=lambda method: self.losses[method].mean())

    def gained(self, method: str) -> np.ndarray:
        """Log of a method's training loss over that of the better first-order method, by seed."""
        return log_ratio(self.losses[method], self.losses[self.first_order()])

    def ahead(self, method: str) -> bool:
        """Whether that is below the margin, with the whole interval."""
        compared = [m for m in CURVED if m in self.losses]
        if method not in compared:
            return False
        confidence = 1 - (1 - CONFIDENCE) / len(compared)
        return interval(self.gained(method), confidence)[1] < np.log1p(-MARGIN)

    def on_fresh_data(self, method: str) -> float:
        """Mean log of the loss on fresh data over that of the same first-order method."""
        return float(log_ratio(self.fresh[method], self.fresh[self.first_order()]).mean())


def settings(folder: Path | None = None) -> list[Setting]:
    """All settings of the studies of batch and of dataset size that are stored."""
    images = studies.largest_stored("batch_sizes", folder)
    text = studies.largest_stored("dataset_sizes", folder)
    return [*(_on_images(images) if images else []), *(_on_text(text) if text else [])]


def _on_images(results: dict) -> Iterable[Setting]:
    for network in batch_sizes.networks_of(results):
        for size in batch_sizes.sizes_of(results, network):
            methods = batch_sizes.methods_of(results, network)
            at = {"network": network, "batch": size}
            timed = methods if stored.select(results, cost="step", **at) else []
            yield _setting(results, batch_sizes.NETWORKS[network], methods, timed, at)


def _on_text(results: dict) -> Iterable[Setting]:
    for characters, epochs in dataset_sizes.readings_of(results):
        methods = dataset_sizes.learners(results, characters, epochs)
        at = {"characters": characters, "epochs": epochs}
        yield _setting(results, "decoder", methods, [], at)


def _setting(
    results: dict, network: str, methods: Sequence[str], timed: Sequence[str], at: dict[str, Any]
) -> Setting:
    return Setting(
        network,
        stored.steps(results, method=methods[0], **at),
        {m: final_loss(results, method=m, **at) for m in methods},
        {m: held_out_loss(results, method=m, **at) for m in methods},
        {m: stored.search(results, method=m, **at)["best"] for m in methods},
        {m: float(np.median(stored.in_adam_steps(results, m, **at))) for m in timed},
        {m: stored.state_over_parameters(results, m, **at) for m in timed},
    )


def by_steps(folder: Path | None = None) -> Table:
    """What to take for a number of steps and a network, and the numbers that say so."""
    found = settings(folder)
    rows = []
    for name, (low, high) in CLASSES.items():
        counted = [setting for setting in found if low <= setting.steps < high]
        for network in dict.fromkeys(setting.network for setting in counted):
            rows += _lines(name, [s for s in counted if s.network == network])
    return Table(rows)


def _lines(name: str, found: Sequence[Setting]) -> list[dict[str, str]]:
    common = [m for m in CURVED if all(m in setting.losses for setting in found)]
    ahead = [m for m in common if all(setting.ahead(m) for setting in found)]
    start = {"steps": name, "network": found[0].network}
    if not ahead:
        rivals = [m for m in FIRST_ORDER if m in found[0].losses]
        chosen = "; ".join(f"{label(m)} {_points(found, m)}" for m in rivals)
        rest = {LOSS: "no other ahead in every setting", FRESH: "", TIME: "", STATE: ""}
        take = " or ".join(map(label, rivals))
        return [start | {"take": take} | rest | {"tuning chose": chosen}]
    return [
        start
        | {
            "take": label(m),
            LOSS: _percent([setting.gained(m).mean() for setting in found]),
            FRESH: _percent([setting.on_fresh_data(m) for setting in found]),
            TIME: _range([s.times[m] for s in found if s.times], "{:.1f}"),
            STATE: _range([s.copies[m] for s in found if s.copies], "{:.0f}"),
            "tuning chose": _points(found, m),
        }
        for m in ahead
    ]


def _points(found: Sequence[Setting], method: str) -> str:
    points = [setting.points[method] for setting in found if method in setting.points]
    names = {"learning_rate": "rate", "damping": "damping"}
    return ", ".join(
        f"{text} {_range([point[name] for point in points], '{:.2g}')}"
        for name, text in names.items()
        if points and name in points[0]
    )


def _percent(logs: Sequence[float]) -> str:
    return _range(100 * np.expm1(logs), "{:+.0f}") + " %"


def _range(values: Any, form: str) -> str:
    ends = [form.format(end) for end in (np.min(values), np.max(values))] if len(values) else [""]
    return " to ".join(dict.fromkeys(ends))


def by_need(folder: Path | None = None) -> Table:
    """What to take when memory is short, and when the batch grows under a tuned K-FAC."""
    race = studies.largest_stored("soaa_race", folder)
    grids = studies.largest_stored("damping_grids", folder)
    rows = [_short_of_memory(race)] if race else []
    return Table([*rows, *([_larger_batch(grids)] if grids else [])])


def _short_of_memory(results: dict) -> dict[str, str]:
    networks = soaa_race.networks_of(results)
    confidence = 1 - (1 - CONFIDENCE) / len(networks)
    logs = [soaa_race.log_ratio(results, network, "adam_8bit", "adam") for network in networks]
    state = [soaa_race.bytes_ratio(results, n, "bytes", "adam_8bit", "adam") for n in networks]
    worst = max(interval(log, confidence)[1] for log in logs)
    return {
        "you": "are short of memory for Adam's state",
        "take": "8-bit Adam",
        "because": f"its state is {_range(state, '{:.2f}')} of Adam's, its training loss "
        f"{_range(100 * np.expm1([log.mean() for log in logs]), '{:+.1f}')} % beside Adam's on "
        f"{len(networks)} networks, at most {100 * np.expm1(worst):+.1f} % by the intervals",
    }


def _larger_batch(results: dict) -> dict[str, str]:
    """What scaling K-FAC's learning rate with the batch size costs, and what keeping it does."""
    sizes = results["settings"]["batch_sizes"]
    rates, _ = damping_grids.grids(results, "kfac")
    prices: dict[bool, list[float]] = {True: [], False: []}
    for small, large in pairwise(sizes):
        losses = damping_grids.over_grid(results, "kfac", large).mean(axis=-1)
        rate, damping = damping_grids.best_point(results, "kfac", small)
        scaled = int(np.abs(np.log(rates / rates[rate] / (large / small))).argmin())
        for scale, place in {True: scaled, False: rate}.items():
            prices[scale].append(losses[place, damping] / losses.min())
    return {
        "you": "make the batch larger under a tuned K-FAC",
        "take": "the learning rate times the same factor, the damping as it is",
        "because": f"it ends at {_range(prices[True], '{:.2f}')} times the loss of a new search, "
        f"the old learning rate at {_range(prices[False], '{:.2f}')} times",
    }


def in_the_same_time(folder: Path | None = None) -> Table:
    """Curved runs, and the best first-order run at any batch size that took as long or less.

    Only runs are compared that take no longer than the longest first-order run on that network,
    because beyond it first order would have had time for more epochs. Times within a tenth count
    as the same.
    """
    results = studies.largest_stored("batch_sizes", folder)
    if results is None:
        return Table([])
    rows = []
    for network in batch_sizes.networks_of(results):
        seconds, losses = _timed(results, network)
        longest = max(took for (m, _), took in seconds.items() if m in FIRST_ORDER)
        for (method, size), took in seconds.items():
            if method not in CURVED or took > SLACK * longest:
                continue
            rivals = [k for k, s in seconds.items() if k[0] in FIRST_ORDER and s <= SLACK * took]
            if not rivals:
                continue
            rival = min(rivals, key=lambda key: losses[key].mean())
            low, high = interval(log_ratio(losses[method, size], losses[rival]))
            rows.append(
                {
                    "network": batch_sizes.NETWORKS[network],
                    "run": f"{label(method)} at {size:,}",
                    "seconds": f"{took:.1f}",
                    "best first order in that time": f"{label(rival[0])} at {rival[1]:,}",
                    "training loss beside it": f"{100 * np.expm1(low):+.0f} to "
                    f"{100 * np.expm1(high):+.0f} %",
                }
            )
    return Table(rows)


def _timed(results: dict, network: str) -> tuple[dict, dict]:
    """Seconds of a run, and its losses by seed, of each method and batch size that was timed."""
    seconds, losses = {}, {}
    for size in results["settings"]["timed"][network]:
        at = {"network": network, "batch": size}
        for method in batch_sizes.methods_of(results, network):
            of_step = np.median(stored.cost(results, "seconds_a_step", method, **at))
            seconds[method, size] = float(of_step) * stored.steps(results, method=method, **at)
            losses[method, size] = final_loss(results, method=method, **at)
    return seconds, losses
