"""Tables as text, and the rows of a race."""

from collections.abc import Callable, Sequence

import numpy as np

from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.verdicts import mean_and_spread


def as_text(rows: list[dict[str, str]], note: str = "") -> str:
    """Rows with the same columns, under their names, each column as wide as it needs to be.

    A note stands below them.
    """
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = (dict(zip(widths, widths)), *rows)
    texts = ("  ".join(f"{line[key]:{w}}" for key, w in widths.items()) for line in lines)
    return "\n".join([*(text.rstrip() for text in texts), *filter(None, [note])])


def _tuned(results: dict, method: str, **labels: object) -> str:
    best = stored.search(results, method=method, **labels)["best"]
    return ", ".join(f"{value:.2g}" for value in best.values())


COLUMNS: dict[str, Callable[..., str]] = {
    "tuned": _tuned,
    "loss": lambda results, method, **labels: mean_and_spread(
        stored.final_loss(results, method=method, **labels), 3
    ),
    "test loss": lambda results, method, **labels: mean_and_spread(
        stored.held_out_loss(results, method=method, **labels), 3
    ),
    "accuracy": lambda results, method, **labels: mean_and_spread(
        stored.final_accuracy(results, method=method, **labels), 3
    ),
    "ms/step": lambda results, method, **labels: (
        f"{1e3 * np.median(stored.cost(results, 'seconds_a_step', method, **labels)):.3g}"
    ),
    "Adam steps": lambda results, method, **labels: (
        f"{np.median(stored.in_adam_steps(results, method, **labels)):.2f}"
    ),
    "state/params": lambda results, method, **labels: (
        f"{stored.state_over_parameters(results, method, **labels):.2f}"
    ),
    "peak MB": lambda results, method, **labels: (
        f"{stored.cost(results, 'peak_bytes', method, **labels) / 1e6:.1f}"
    ),
}
"""What a table of a race may tell of a method in a place."""


def of_race(
    results: dict, methods: Sequence[str], columns: Sequence[str], **labels: object
) -> list[dict[str, str]]:
    """A row for each method in a place, with some of ``COLUMNS``."""
    return [
        {"method": label(method)} | {c: COLUMNS[c](results, method, **labels) for c in columns}
        for method in methods
    ]
