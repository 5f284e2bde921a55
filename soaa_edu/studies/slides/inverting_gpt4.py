"""The slides' arithmetic for GPT-4, done again (claim S9).

A dense Hessian of n parameters holds n² numbers; inverting it takes about n³ operations. The
slides' n = 1.7e12 is a rumour given to two digits; each result shows what these two leave open.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.studies.verdicts import Clause, Verdict, judge, known

TITLE = "What it would take to invert GPT-4's Hessian"
CLAIMS = ("S9",)
CLAIMED_OPERATIONS = 5e36
CLAIMED_GIGABYTES = 4e27
BYTES = 8


class Settings(NamedTuple):
    """The range of n, and what the arithmetic costs."""

    parameters: tuple[float, float, float]
    minutes: float


SCALES = dict.fromkeys(("quick", "laptop", "gpu"), Settings((1.65e12, 1.7e12, 1.75e12), 0.0))


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """The one cell of arithmetic."""
    return {"arithmetic": lambda: _arithmetic(np.array(settings.parameters))}


def _arithmetic(n: np.ndarray) -> dict[str, Any]:
    return {
        "parameters": n,
        "operations": n**3,
        "gigabytes": BYTES * n**2 / 1e9,
        "gigabytes_of_n_cubed": BYTES * n**3 / 1e9,
    }


def figure(results: dict) -> Figure:
    """The slides' two figures beside ours."""
    ours = results["cells"]["arithmetic"]
    drawing, axes = plt.subplots(figsize=(7, 2.6))
    rows = ("operations, n³", "memory in GB, 8 n² / 10⁹")
    for row, (claimed, key) in enumerate(
        [(CLAIMED_OPERATIONS, "operations"), (CLAIMED_GIGABYTES, "gigabytes")]
    ):
        axes.plot(claimed, row, "s", color=plotting.VERMILLION, label="slides" if row else None)
        axes.plot(ours[key][1], row, "o", color=plotting.BLUE, label="computed" if row else None)
    axes.set(xscale="log", yticks=[0, 1], yticklabels=rows, ylim=(-0.5, 1.5), xlabel="count")
    axes.legend(loc="center")
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """S9: each figure within a factor of two of the arithmetic."""
    ours = results["cells"]["arithmetic"]
    clauses = [
        Clause(
            f"about {claimed:.0e} {name}",
            "the slides' figure over the arithmetic's:",
            "within 2 times",
            [known(np.log(claimed / ours[key][1]))],
        )
        for name, claimed, key in (
            ("operations", CLAIMED_OPERATIONS, "operations"),
            ("GB of memory", CLAIMED_GIGABYTES, "gigabytes"),
        )
    ]
    findings = [
        f"computed: {ours['operations'][1]:.1e} operations, {ours['gigabytes'][1]:.1e} GB",
        f"8 bytes for each of n³ numbers would be {ours['gigabytes_of_n_cubed'][1]:.1e} GB",
    ]
    return [judge("S9", clauses, findings=findings)]
