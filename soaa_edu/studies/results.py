"""Stored numbers as labelled arrays: what a study asks for, it selects by name.

The name of a cell lists its labels, as in ``method=adam network=mlp batch=64``. A cell of runs has
a list of ``runs``, one for each seed, or is one run itself, with its ``seed`` as a label. A cell
labelled ``search=refined`` stands for the one without: it comes from a finer search and more seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from soaa_edu import plotting

HIGHEST_LOSS = 10.0
REFINED = {"search": "refined"}


def name(**labels: Any) -> str:
    """The name of the cell with these labels."""
    return " ".join(f"{label}={value}" for label, value in labels.items())


def labels_of(cell: str) -> dict[str, str]:
    """The labels in a cell's name; a word alone is none."""
    return dict(pair.split("=", 1) for pair in cell.split() if "=" in pair)


def select(results: dict, **labels: Any) -> dict[str, Any]:
    """The cells with these labels, whatever others they have, refined ones in their places."""
    wanted = {label: str(value) for label, value in labels.items()}
    cells = results["cells"]
    found = {}
    for cell in cells:
        of_cell = labels_of(cell)
        if wanted.items() <= of_cell.items() and not REFINED.items() <= of_cell.items():
            found[cell] = cells.get(f"{cell} {name(**REFINED)}", cells[cell])
    return found


def one(results: dict, **labels: Any) -> Any:
    """The one cell with these labels.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = select(results, **labels)
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} cells of {results['study']} have {name(**labels)}: its cells are "
            f"{', '.join(list(results['cells'])[:5])} and so on"
        )
    return next(iter(found.values()))


def values_of(results: dict, label: str, **labels: Any) -> list[str]:
    """The values that a label has among the cells with others, each once, in their order."""
    found = (labels_of(cell) for cell in select(results, **labels))
    return list(dict.fromkeys(of_cell[label] for of_cell in found if label in of_cell))


def runs(results: dict, **labels: Any) -> list[dict[str, Any]]:
    """The runs of a method in one place, seed by seed.

    Raises:
        ValueError: there are none, or the cells differ in more than their seeds.
    """
    found = select(results, **labels)
    places = {name(**{k: v for k, v in labels_of(c).items() if k != "seed"}) for c in found}
    if len(places) != 1:
        raise ValueError(
            f"{name(**labels)} names {len(places)} places in {results['study']}, not one: "
            f"{', '.join(sorted(places)) or ', '.join(list(results['cells'])[:5])}"
        )
    return [run for cell in found.values() for run in cell.get("runs", [cell])]


def over_runs(results: dict, key: str, **labels: Any) -> np.ndarray:
    """A number, or a curve, of each run in a place, seeds along the first axis.

    Curves are kept of the first seeds alone. Errors are those of ``runs``.
    """
    return np.array([run[key] for run in runs(results, **labels) if key in run], float)


def info(results: dict, key: str, **labels: Any) -> np.ndarray:
    """What the optimizer told along runs, means over stretches of steps, ``(seeds, points)``."""
    return np.array([run["info"][key] for run in runs(results, **labels) if "info" in run], float)


def final_loss(results: dict, **labels: Any) -> np.ndarray:
    """Training loss at the end, one for each seed; that of a diverged run counts as 10."""
    return capped(over_runs(results, "final_loss", **labels))


def held_out_loss(results: dict, **labels: Any) -> np.ndarray:
    """Loss on what was not trained on, at the end, one for each seed; at most 10."""
    return capped(over_runs(results, "test_loss", **labels)[:, -1])


def final_accuracy(results: dict, **labels: Any) -> np.ndarray:
    """Test accuracy at the end, one for each seed; that of a diverged run counts as 0."""
    return np.nan_to_num(over_runs(results, "test_accuracy", **labels)[:, -1])


def beside(results: dict, method: str, rival: str, **labels: Any) -> np.ndarray:
    """Log of a method's final loss over a rival's in the same place, seed by seed."""
    losses = (final_loss(results, method=each, **labels) for each in (method, rival))
    return log_ratio(*losses)


def log_ratio(losses: Any, rivals: Any) -> np.ndarray:
    """Log of losses over a rival's, seed by seed as far as both go; lost runs count as 10."""
    both = min(len(losses), len(rivals))
    return np.log(capped(losses[:both])) - np.log(capped(rivals[:both]))


def capped(losses: Any) -> np.ndarray:
    """Losses, of which those of diverged runs, and all above, count as 10."""
    return np.fmin(losses, HIGHEST_LOSS)


def lowest(results: dict, methods: Sequence[str], **labels: Any) -> str:
    """Of these methods the one with the lowest mean loss in a place."""
    return min(methods, key=lambda method: final_loss(results, method=method, **labels).mean())


def search(results: dict, **labels: Any) -> dict[str, Any]:
    """The search in a place: its ``points``, their ``scores`` and the ``best`` of them."""
    return one(results, **labels)["search"]


def cost(results: dict, what: str, method: str, **labels: Any) -> np.ndarray:
    """What a method takes: ``"seconds_a_step"`` by repeat, ``"bytes"`` or ``"peak_bytes"``."""
    return np.array(one(results, cost="step", **labels)[what][method], float)


def in_adam_steps(results: dict, method: str, **labels: Any) -> np.ndarray:
    """Seconds of a method's step over those of Adam's, one for each repeat."""
    seconds = (cost(results, "seconds_a_step", each, **labels) for each in (method, "adam"))
    return np.divide(*seconds)


def state_over_parameters(results: dict, method: str, **labels: Any) -> float:
    """Bytes of a method's state over those of the parameters."""
    whole = one(results, cost="step", **labels)["parameter_bytes"]
    return float(cost(results, "bytes", method, **labels) / whole)


def steps(results: dict, **labels: Any) -> int:
    """How many steps a run in a place has."""
    return int(over_runs(results, "steps", **labels)[0])


def middles(points: int, steps: int) -> np.ndarray:
    """The middles, in steps, of as many consecutive stretches of a run."""
    return plotting.binned(np.arange(steps) + 0.5, points)


def seeds_of(results: dict, **labels: Any) -> int:
    """How many seeds there are in a place."""
    return len(runs(results, **labels))
